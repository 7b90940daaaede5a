"""Members' transports on loopback, in one loop, and what their handlers heard."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import uvloop

from kvorum.log import Level, LogFormat, Logger
from kvorum.pb.rpc_pb2 import Member
from kvorum.urls import parse_url
from kvorum.wire.routes import StreamOpen
from node.child import Listener, Serves
from node.config import PeerTls
from node.raft.core import Message, MessageType
from node.raft.peers.identity import Identity
from node.raft.peers.transport import PeerTransport

DEADLINE_S = 20.0
CLUSTER = 0xC1


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test on uvloop, as raft does; what the loop's exception handler hears fails the test."""
    errors: list[dict[str, Any]] = []

    async def guarded() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        try:
            async with asyncio.timeout(DEADLINE_S):
                await test()
        finally:
            # What a failed test leaves open would keep the loop from its end.
            await close(*_open)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(guarded())
    assert not errors, errors


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until the condition holds; the test's deadline is that of `run`."""
    while not condition():
        await asyncio.sleep(0.002)


def listen_tcp(port: int = 0) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen(64)
    return sock


def port_of(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


class Place:
    """Where a member listens."""

    def __init__(self, url: str, sock: socket.socket) -> None:
        self.url = url
        self.sock = sock

    @classmethod
    def tcp(cls, scheme: str = "http", port: int = 0) -> "Place":
        sock = listen_tcp(port)
        return cls(f"{scheme}://127.0.0.1:{port_of(sock)}", sock)

    @classmethod
    def unix(cls, path: Path, scheme: str = "unix") -> "Place":
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(path))
        sock.listen(64)
        return cls(f"{scheme}://{path}", sock)

    @property
    def port(self) -> int:
        return port_of(self.sock)

    def listener(self) -> Listener:
        """The socket, handed over."""
        return Listener(parse_url(self.url), Serves.ALL, self.sock.detach())


class Heard:
    """What a transport's handlers were told, and the lines of its log."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, list[Message]]] = []
        self.forwards: list[tuple[int, bytes]] = []
        self.unreachable: list[int] = []
        self.removed = 0
        self.lines: list[dict[str, Any]] = []

    @property
    def messages(self) -> list[Message]:
        return [message for _, messages in self.batches for message in messages]

    def on_messages(self, sender: int, messages: Sequence[Message]) -> None:
        self.batches.append((sender, list(messages)))

    def on_forward(self, sender: int, payload: bytes) -> None:
        self.forwards.append((sender, payload))

    def on_unreachable(self, member: int) -> None:
        self.unreachable.append(member)

    def on_snapshot_sent(self, member: int, ok: bool) -> None:
        raise AssertionError

    def on_snapshot_received(self, message: Message) -> None:
        raise AssertionError

    def on_removed(self) -> None:
        self.removed += 1

    def logger(self) -> Logger:
        return Logger((lambda _level, line: self.lines.append(orjson.loads(line)),), Level.INFO, LogFormat.JSON)

    def said(self, msg: str) -> list[dict[str, Any]]:
        """The lines with this text."""
        return [line for line in self.lines if line["msg"] == msg]


_open: list["TestMember"] = []


class TestMember:
    """One member: a transport and what it heard."""

    __test__ = False

    def __init__(
        self,
        member_id: int,
        places: Sequence[Place],
        *,
        cluster_id: int = CLUSTER,
        version: str = "3.7.0",
        tls: PeerTls | None = None,
        routes: Mapping[str, StreamOpen] | None = None,
        members: Sequence[Member] = (),
    ) -> None:
        self.id = member_id
        self.urls = [place.url for place in places]
        self.heard = Heard()
        self.cluster_version = "3.7.0"
        self.transport = PeerTransport(
            identity=Identity(cluster_id, member_id, version),
            listeners=[place.listener() for place in places],
            tls=tls,
            members=lambda: members,
            cluster_version=lambda: self.cluster_version,
            logger=self.heard.logger(),
            routes=routes,
        )
        _open.append(self)

    async def start(self) -> None:
        await self.transport.start(self.heard)

    def knows(self, *others: "TestMember", removed: Collection[int] = ()) -> None:
        self.transport.set_members({other.id: other.urls for other in others}, removed)

    def connected(self, other: "TestMember") -> bool:
        return self.transport.connected_since(other.id) is not None


async def group(*members: TestMember) -> None:
    """Start members that know each other, until all are connected."""
    for member in members:
        await member.start()
    for member in members:
        member.knows(*[other for other in members if other is not member])
    await until(lambda: all(one.connected(other) for one in members for other in members if one is not other))


async def close(*members: TestMember) -> None:
    for member in members:
        _open.remove(member)
        await member.transport.close()


def heartbeat(sender: int, to: int, commit: int = 0) -> Message:
    return Message(MessageType.HEARTBEAT, to, sender, 1, commit=commit)


def append(sender: int, to: int, index: int, *data: bytes) -> Message:
    entries = [(1, index + 1 + i, 0, body) for i, body in enumerate(data)]
    return Message(MessageType.APP, to, sender, 1, 1, index, entries=entries)
