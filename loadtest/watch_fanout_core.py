"""What an event costs on its way from the store to the bytes of every watcher's reply: the pure cores, no sockets.

    python -m loadtest.watch_fanout_core [--puts N]

Prints microseconds of CPU per delivery for each step: apply encodes the event, watch finds who wants it, the front
frames it. The wire (HTTP/2 frames, sockets) comes on top.
"""

from __future__ import annotations

import argparse
import gc
import struct
import time
from collections.abc import Callable
from typing import Any

from kvorum.pb.mvcc_pb2 import KeyValue
from kvorum.pb.rpc_pb2 import WatchCreateRequest, WatchRequest
from node.apply.feed import Feed
from node.apply.mvcc.history import KeyRanges
from node.events import Change, RevisionChanges
from node.frames import Kind, Process, pack
from node.front.calls import Calls
from node.front.member import Limits, Member
from node.front.watch import WatchService
from node.front.watch_deliveries import Deliveries
from node.watch.registry import Registry

FRONT = Process.FRONT
VALUE_BYTES = 256


class Sink:
    """A stream that takes everything and keeps the sizes."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self.messages = 0
        self.writable = True

    def send(self, message: bytes) -> None:
        self.send_framed(struct.pack(">BI", 0, len(message)) + message, 1)

    def send_framed(self, framed: bytes, messages: int) -> None:
        self.size_bytes += len(framed)
        self.messages += messages

    def end(self, code: int, text: str) -> None:
        raise AssertionError((code, text))

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class NoHead:
    metadata: dict[str, tuple[str | bytes, ...]] = {}  # noqa: RUF012  # never written to


class NoTimer:
    def cancel(self) -> None:
        pass


def no_history(
    _from: int, /, *, max_rows: int, max_bytes: int, ranges: KeyRanges | None, want_prev: bool
) -> tuple[list[RevisionChanges], int]:
    raise AssertionError("nobody is behind")


class Pipeline:
    """Feed, registry and front, with a clock for each."""

    def __init__(self) -> None:
        self.feed = Feed(no_history)
        self.revision = 1
        self.asks: list[bytes] = []
        self.registry = Registry(self.asks.append)
        self.delivered: list[bytes] = []
        self.registry.add_front(FRONT, lambda: True, self.delivered.append)
        self.asked: list[bytes] = []
        calls = Calls(
            origin=FRONT,
            member=1,
            incarnation=1,
            send=lambda *_: None,
            call_soon=lambda _: None,
            now=time.monotonic,
            timeout_s=7,
        )
        member = Member(1 << 60, 1 << 61, Limits(1_572_864, 128, 2, 7), calls, term=2, leader=1)
        self.soon: list[Callable[[], None]] = []

        def send(_process: int, _kind: int, payload: bytes) -> None:
            self.asked.append(payload)

        self.front = Deliveries(
            member,
            send=send,
            call_soon=self.soon.append,
            call_later=lambda _delay_s, _callback: NoTimer(),
            now=time.monotonic,
            random=lambda: 0.5,
            progress_interval_s=600,
        )
        self.service = WatchService(self.front)
        self.spent_s = {"apply": 0.0, "watch": 0.0, "front": 0.0}

    def turn(self, revisions: list[RevisionChanges]) -> None:
        clock = time.process_time
        t0 = clock()
        for ask in self.asks:
            self.feed.on_ask(ask, 0)
        self.asks.clear()
        self.feed.on_revisions(revisions, with_prev=True)
        events = self.feed.take(True, self.revision, -1)
        t1 = clock()
        if events is not None:
            self.registry.on_events(events, 0)
        for payload in self.asked:
            self.registry.on_watches(FRONT, payload, 0)
        self.asked.clear()
        self.registry.turn(0.0)
        t2 = clock()
        for payload in self.delivered:
            self.front.on_deliveries(pack(Process.WATCH, Kind.DELIVERIES, 0, payload))
        self.delivered.clear()
        for callback in self.soon:
            callback()
        self.soon.clear()
        t3 = clock()
        self.spent_s["apply"] += t1 - t0
        self.spent_s["watch"] += t2 - t1
        self.spent_s["front"] += t3 - t2

    def put(self, count: int) -> None:
        revisions: list[RevisionChanges] = []
        for _ in range(count):
            self.revision += 1
            kv = KeyValue(key=b"/fanout/key", value=b"v" * VALUE_BYTES, create_revision=2, mod_revision=self.revision)
            change: Change = (False, b"/fanout/key", kv.SerializeToString(), None)
            revisions.append((self.revision, [change]))
        self.turn(revisions)


def measure(streams: int, watchers: int, puts: int, batch: int) -> dict[str, Any]:
    """CPU microseconds per delivery: `streams` with `watchers` each on one prefix, `puts` in batches of `batch`."""
    pipeline = Pipeline()
    sinks = [Sink() for _ in range(streams)]
    create = WatchCreateRequest(key=b"/fanout/", range_end=b"/fanout0")
    message = WatchRequest(create_request=create).SerializeToString()
    for sink in sinks:
        handler = pipeline.service.open(sink, NoHead())
        for _ in range(watchers):
            handler.on_message(message)
    for _ in range(10):
        pipeline.turn([])
    assert sum(sink.messages for sink in sinks) == streams * watchers
    pipeline.put(1)
    pipeline.spent_s = dict.fromkeys(pipeline.spent_s, 0.0)
    before = sum(sink.messages for sink in sinks)
    for _ in range(puts // batch):
        pipeline.put(batch)
    deliveries = sum(sink.messages for sink in sinks) - before
    assert deliveries == puts // batch * batch * streams * watchers
    return {name: spent_s * 1e6 / deliveries for name, spent_s in pipeline.spent_s.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--puts", type=int, default=200, help="puts per shape")
    puts = parser.parse_args().puts
    gc.disable()
    print(
        f"{'streams':>8} {'watchers':>8} {'batch':>6} {'apply':>8} {'watch':>8} {'front':>8} {'total':>8}  us/delivery"
    )
    for streams, watchers in ((1, 1000), (1000, 1), (100, 10), (1, 1)):
        for batch in (1, 10):
            cost = measure(streams, watchers, puts, batch)
            row = [cost["apply"], cost["watch"], cost["front"], sum(cost.values())]
            print(f"{streams:8} {watchers:8} {batch:6}", *(f"{value:8.3f}" for value in row))


if __name__ == "__main__":
    main()
