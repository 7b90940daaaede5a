"""A million watches through a proxy: python -m loadtest.proxy_hang (see --help).

Many clients, each with a watch without a start revision on each of a few hundred keys; then every key is written once.
Every watch must get exactly that one event. A load like this was reported to make the reference's proxy hang; here it
may show what it does. Printed: how long the creates took, how long until the last event, and the memory of the proxy.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Sequence

import uvloop

from kvorum.descriptors import raise_fd_limit
from kvorum.pb.rpc_pb2 import WatchCreateRequest, WatchRequest, WatchResponse
from kvorum.wire import grpc
from kvorum.wire.client import Channel
from loadtest import processes
from loadtest.launcher import Kind, Server, running
from loadtest.loads import MIB
from loadtest.messages import put_request
from loadtest.proxies import running_proxy


class HangError(Exception):
    """Not everything came."""


def key_of(number: int) -> bytes:
    return b"/hang/%05d" % number


class Watching:
    """A client: one connection with one stream and a watch on each key."""

    def __init__(self, address: str, creates: bytes, watches: int) -> None:
        self.created = 0
        self.events = 0
        self.failure = ""
        self.done = asyncio.Event()
        self._watches = watches
        self._seen = bytearray(watches)
        self._channel = Channel(address)
        self._stream = self._channel.open("/etcdserverpb.Watch/Watch", self)
        self._stream.send_framed(creates)

    def on_message(self, message: bytes) -> None:
        reply = WatchResponse.FromString(message)
        if reply.canceled:
            self._fail(f"a watch was canceled: {reply.cancel_reason}")
        elif reply.created:
            if not 0 <= reply.watch_id < self._watches:
                self._fail(f"a watch was given the id {reply.watch_id}")
            self.created += 1
            if self.created == self._watches:
                self.done.set()
        for event in reply.events:
            if event.kv.key != key_of(reply.watch_id) or self._seen[reply.watch_id]:
                self._fail(f"watch {reply.watch_id} got {event.kv.key!r}, a second time or not its own")
            self._seen[reply.watch_id] = 1
            self.events += 1
            if self.events == self._watches:
                self.done.set()

    def on_end(self, code: int, text: str, trailers: grpc.Metadata) -> None:
        self._fail(f"the stream ended with {code}: {text}")

    def on_writable(self) -> None:
        """All creates fit."""

    def _fail(self, text: str) -> None:
        self.failure = self.failure or text
        self.done.set()

    async def close(self) -> None:
        await self._channel.close()


async def _until_done(clients: Sequence[Watching], what: str, wanted: int, deadline: float) -> None:
    """Every one is done; raises HangError."""
    try:
        async with asyncio.timeout_at(deadline):
            for client in clients:
                await client.done.wait()
    except TimeoutError:
        got = sum(getattr(client, what) for client in clients)
        raise HangError(f"{got} of {wanted} {what}") from None
    failed = [client.failure for client in clients if client.failure]
    if failed:
        raise HangError(f"{len(failed)} clients failed; the first: {failed[0]}")
    for client in clients:
        client.done.clear()


Figures = dict[str, float | int]


async def watch_all(
    proxy: Server, clients: int, watches: int, timeout_s: float, at_once: int = 200, figures: Figures | None = None
) -> Figures:
    """Runs the load, with the creates of `at_once` clients under way at a time; the figures.

    Raises HangError; `figures`, when given, then has those that there are.
    """
    figures = {} if figures is None else figures
    loop = asyncio.get_running_loop()
    creates = b"".join(
        grpc.frame(WatchRequest(create_request=WatchCreateRequest(key=key_of(number))).SerializeToString())
        for number in range(watches)
    )
    count = figures["watches"] = clients * watches
    idle_bytes = processes.pss_bytes(proxy.pid)
    figures["proxy MiB idle"] = round(idle_bytes / MIB, 1)
    watching: list[Watching] = []
    writer = Channel(proxy.address)
    try:
        began = time.perf_counter()
        deadline = loop.time() + timeout_s
        while len(watching) < clients:
            wave = [Watching(proxy.address, creates, watches) for _ in range(min(at_once, clients - len(watching)))]
            watching += wave
            await _until_done(wave, "created", len(wave) * watches, deadline)
        figures["seconds to create"] = round(time.perf_counter() - began, 2)
        created_bytes = processes.pss_bytes(proxy.pid)
        figures["proxy MiB with all watches"] = round(created_bytes / MIB, 1)
        figures["proxy bytes per watch"] = round((created_bytes - idle_bytes) / count)
        cpu_before = processes.cpu_s(proxy.pid)
        began = time.perf_counter()
        deadline = loop.time() + timeout_s
        for number in range(watches):
            await writer.unary("/etcdserverpb.KV/Put", put_request(key_of(number), b"v"), timeout_s=timeout_s)
        await _until_done(watching, "events", count, deadline)
        figures["seconds to the last event"] = round(time.perf_counter() - began, 2)
        figures["proxy CPU us per event"] = round((processes.cpu_s(proxy.pid) - cpu_before) / count * 1e6, 2)
        return figures
    finally:
        figures["proxy MiB at the end"] = round(processes.pss_bytes(proxy.pid) / MIB, 1)
        for client in watching:
            await client.close()
        await writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=[kind.value for kind in Kind], default=Kind.KVORUM.value)
    parser.add_argument("--clients", type=int, default=3500)
    parser.add_argument("--watches", type=int, default=300, help="of each client, and keys")
    parser.add_argument("--at-once", type=int, default=200, help="clients whose creates are under way at a time")
    parser.add_argument("--timeout-s", type=float, default=300.0, help="for the creates, and again for the events")
    args = parser.parse_args()
    raise_fd_limit()
    kind = Kind(args.kind)
    figures: Figures = {}
    failure = ""
    with (
        running(kind) as member,
        running_proxy(kind, [member.address]) as proxy,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        try:
            runner.run(watch_all(proxy, args.clients, args.watches, args.timeout_s, args.at_once, figures))
        except HangError as error:
            failure = str(error)
    print(json.dumps({"kind": kind.value, **figures, "failure": failure}, indent=2))
    if failure:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
