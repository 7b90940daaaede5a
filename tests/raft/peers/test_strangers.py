"""Whoever else finds the peer port: nothing that comes in reaches raft or the connections of members."""

import asyncio
import random
import struct
from collections.abc import Awaitable, Callable

import pytest

from kvorum.wire import frames
from kvorum.wire.calls import ClientStream
from kvorum.wire.client import Channel
from kvorum.wire.grpc import Metadata
from node.raft.core import Message, MessageType, Snapshot
from node.raft.core.messages import ConfState
from node.raft.peers.codec import encode
from node.raft.peers.identity import Identity
from node.raft.peers.incoming import COUNTS_MAX
from node.raft.peers.peer import ENTRIES, FORWARD, MESSAGES
from tests.raft.peers.members import CLUSTER, Place, TestMember, append, close, group, heartbeat, run, until

NO_MESSAGE = "a member sent what is no message"


class Stream:
    """A stream to a member's port, opened by the test."""

    def __init__(self, channel: Channel, path: str, sender: int, to: int) -> None:
        self.replies: list[bytes] = []
        self.end: tuple[int, str] | None = None
        self.stream: ClientStream = channel.open(path, self, Identity(CLUSTER, sender).metadata(to))

    def on_message(self, message: bytes) -> None:
        self.replies.append(message)

    def on_end(self, code: int, text: str, trailers: Metadata) -> None:
        self.end = (code, text)

    def on_writable(self) -> None:
        pass


Attack = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def between_members(attack: Attack) -> None:
    """Two members speak with each other before, during and after what a stranger does to one of them."""
    place = Place.tcp()
    port = place.port
    one, two = TestMember(1, [Place.tcp()]), TestMember(2, [place])
    await group(one, two)
    one.transport.send([heartbeat(1, 2, 1)])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await attack(reader, writer)
    assert await reader.read() == b""  # the stranger's connection was closed
    writer.close()
    one.transport.send([heartbeat(1, 2, 2)])
    await until(lambda: len(two.heard.messages) == 2)
    assert two.heard.messages == [heartbeat(1, 2, 1), heartbeat(1, 2, 2)]
    assert one.heard.unreachable == two.heard.unreachable == []
    await close(one, two)


def test_garbage_octets() -> None:
    async def attack(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x16\x03\x01" + random.Random(1).randbytes(4000))
        await reader.readuntil(b"\r\n\r\n")
        await reader.read()

    run(lambda: between_members(attack))


def test_garbage_behind_a_preface() -> None:
    async def attack(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(frames.PREFACE + random.Random(2).randbytes(4000))
        await reader.read()

    run(lambda: between_members(attack))


@pytest.mark.parametrize(
    "flood", [frames.settings({}), frames.frame(0x77, 0, 0, b"")], ids=["SETTINGS", "frames of an unknown type"]
)
def test_floods(flood: bytes) -> None:
    async def send(writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(flood * 1000)
                await writer.drain()
        except OSError:
            return

    async def test() -> None:
        place = Place.tcp()
        port = place.port
        one, two = TestMember(1, [Place.tcp()]), TestMember(2, [place])
        await group(one, two)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(frames.PREFACE + frames.settings({}))
        sending = asyncio.create_task(send(writer))
        try:
            while await reader.read(65536):
                pass
        except ConnectionResetError:
            pass  # what was sent after the end makes the kernel say so
        await sending
        writer.close()
        one.transport.send([heartbeat(1, 2)])
        await until(lambda: two.heard.messages == [heartbeat(1, 2)])
        assert one.heard.unreachable == two.heard.unreachable == []
        await close(one, two)

    run(test)


async def open_and_end(stream: Stream) -> None:
    await until(lambda: bool(stream.replies))
    stream.stream.half_close()
    await until(lambda: stream.end is not None)


def test_strangers_cannot_make_labels_without_end() -> None:
    async def test() -> None:
        one, two = TestMember(1, [Place.tcp()]), TestMember(2, [Place.tcp()])
        await group(one, two)
        channel = Channel(two.urls[0].removeprefix("http://"))
        for sender in range(100, 100 + COUNTS_MAX + 5):
            await open_and_end(Stream(channel, FORWARD, sender=sender, to=2))
        counted = [name for (name,), _ in two.transport.figures()["etcd_network_peer_received_bytes_total"]]
        assert "1" in counted and f"{100 + COUNTS_MAX + 4:x}" in counted
        assert len(counted) <= COUNTS_MAX
        await channel.close()
        await close(one, two)

    run(test)


def bad_batches() -> dict[str, bytes]:
    good = b"".join(encode([append(1, 2, 0, b"x" * 100)]))
    snapshot = Message(MessageType.SNAP, 2, 1, 1, snapshot=Snapshot(1, 1, ConfState((1, 2))))
    return {
        "cut off": good[:-1],
        "too long": good + b"x",
        "no messages": b"",
        "random": random.Random(3).randbytes(500),
        "of the storage": bytes([MessageType.STORAGE_APPEND]) + good[1:],
        "from another sender": b"".join(encode([heartbeat(3, 2)])),
        "to another member": b"".join(encode([heartbeat(1, 3)])),
        "a snapshot": b"".join(encode([snapshot])),
        "behind a good one": b"".join(encode([heartbeat(1, 2), heartbeat(3, 2)])),
    }


@pytest.mark.parametrize("path", [MESSAGES, ENTRIES])
@pytest.mark.parametrize("name", bad_batches())
def test_a_batch_that_is_none_ends_its_connection_and_nothing_else(name: str, path: str) -> None:
    async def test() -> None:
        one, two = TestMember(1, [Place.tcp()]), TestMember(2, [Place.tcp()])
        await group(one, two)
        channel = Channel(two.urls[0].removeprefix("http://"))
        stream = Stream(channel, path, sender=9, to=2)
        other = Stream(channel, FORWARD, sender=9, to=2)
        await until(lambda: bool(stream.replies and other.replies))
        batch = bad_batches()[name]
        stream.stream.send(batch.replace(struct.pack("<Q", 1), struct.pack("<Q", 9)))
        await until(lambda: stream.end is not None and other.end is not None)
        (line,) = two.heard.said(NO_MESSAGE)
        assert (line["level"], line["remote-peer-id"]) == ("warn", "9")
        assert two.heard.messages == []
        assert two.transport.figures()["etcd_network_peer_received_failures_total"] == [[["1"], 0], [["9"], 1]]
        assert one.connected(two)
        assert two.connected(one)
        assert one.heard.unreachable == two.heard.unreachable == []
        await channel.close()
        await close(one, two)

    run(test)


def test_one_connection_has_only_so_many_streams() -> None:
    async def test() -> None:
        two = TestMember(2, [Place.tcp()])
        await two.start()
        channel = Channel(two.urls[0].removeprefix("http://"))
        streams = [Stream(channel, FORWARD, sender=9, to=2) for _ in range(200)]
        # Each takes the place of the one before; those above the limit wait for their turn.
        await until(lambda: all(stream.end is not None for stream in streams[:-1]) and bool(streams[-1].replies))
        assert len(two.transport._incoming._streams) == 1
        await channel.close()
        await close(two)

    run(test)


def test_what_ends_is_forgotten() -> None:
    async def test() -> None:
        two = TestMember(2, [Place.tcp()])
        await two.start()
        channel = Channel(two.urls[0].removeprefix("http://"))
        half_closed = Stream(channel, FORWARD, sender=7, to=2)
        cancelled = Stream(channel, MESSAGES, sender=8, to=2)
        lost = Stream(channel, ENTRIES, sender=9, to=2)
        await until(lambda: bool(half_closed.replies and cancelled.replies and lost.replies))
        half_closed.stream.half_close()
        cancelled.stream.cancel()
        await until(lambda: half_closed.end == (0, "") and len(two.transport._incoming._streams) == 1)
        await channel.close()
        await until(lambda: not two.transport._incoming._streams)
        await close(two)

    run(test)


def test_a_method_that_is_none_is_refused() -> None:
    async def test() -> None:
        two = TestMember(2, [Place.tcp()])
        await two.start()
        channel = Channel(two.urls[0].removeprefix("http://"))
        stream = Stream(channel, "/etcdserverpb.KV/Put", sender=1, to=2)
        await until(lambda: stream.end is not None)
        assert stream.end == (12, "unknown service etcdserverpb.KV")
        await channel.close()
        await close(two)

    run(test)
