"""A member that does not take what it is sent costs bounded memory, and nobody else anything."""

import asyncio
from functools import partial
from typing import Any

import pytest

from node.raft.core import MessageType
from node.raft.peers import peer, transport
from node.raft.peers.channel import BULK_QUEUE_BYTES
from node.raft.peers.peer import FORWARD_QUEUE_BYTES, MESSAGES_QUEUE_BYTES, Peer
from tests.raft.peers.members import Place, TestMember, append, close, group, heartbeat, run, until

MIB = 1 << 20
SLOW = "a member does not take what it is sent"

SOCKETS_BYTES = 8 * MIB
"""What two sockets and the wire's turn may hold beside the queues."""


def reading(member: TestMember, goes_on: bool) -> None:
    """Have a member stop reading its connections, or read again."""
    for _, server in member.transport._servers:
        for protocol in server._protocols:
            underlying: Any = protocol._transport
            if goes_on:
                underlying.resume_reading()
            else:
                underlying.pause_reading()


def heard(member: TestMember, count: int) -> bool:
    return len(member.heard.messages) == count


def peer_of(member: TestMember, other: TestMember) -> Peer:
    return member.transport._peers[other.id]


def test_entries_beyond_the_bound_are_dropped_and_reported() -> None:
    async def test() -> None:
        one, two, three = (TestMember(id_, [Place.tcp()]) for id_ in (1, 2, 3))
        await group(one, two, three)
        reading(two, False)
        body = bytes(MIB)
        sent = 0
        while not one.heard.unreachable:
            one.transport.send([append(1, 2, sent, body), append(1, 3, sent, body)])
            sent += 1
            await until(partial(heard, three, sent))
        assert one.heard.unreachable == [2]
        entries = peer_of(one, two)._entries
        assert entries is not None
        assert BULK_QUEUE_BYTES < entries.queued_bytes < BULK_QUEUE_BYTES + 2 * MIB
        assert sent * MIB < BULK_QUEUE_BYTES + SOCKETS_BYTES
        for index in range(50):
            one.transport.send([append(1, 2, index, body)])
        assert entries.queued_bytes < BULK_QUEUE_BYTES + 2 * MIB
        assert peer_of(one, two).failures == 51
        assert [line["remote-peer-id"] for line in one.heard.said(SLOW)] == ["2"]
        figures = one.transport.figures()
        assert figures["etcd_network_peer_sent_failures_total"] == [[["2"], 51], [["3"], 0]]
        reading(two, True)
        await until(lambda: len(two.heard.messages) == sent - 1)
        one.transport.send([append(1, 2, 1000, b"now there is room")])
        await until(lambda: two.heard.messages[-1].index == 1000)
        await close(one, two, three)

    run(test)


def test_heartbeats_pass_the_entries_that_wait() -> None:
    async def test() -> None:
        one, two = TestMember(1, [Place.tcp()]), TestMember(2, [Place.tcp()])
        await group(one, two)
        reading(two, False)
        body = bytes(MIB)
        for index in range(24):
            one.transport.send([append(1, 2, index, body)])
        one.transport.send([heartbeat(1, 2)])
        one.transport.forward(2, b"so do forwards")
        reading(two, True)
        await until(lambda: bool(two.heard.forwards))
        assert len(two.heard.messages) < 16
        await until(lambda: len(two.heard.messages) == 25)
        at = [message.type for message in two.heard.messages].index(MessageType.HEARTBEAT)
        assert at < 16
        await close(one, two)

    run(test)


@pytest.mark.parametrize("kind", ["messages", "forwards"])
def test_what_is_small_has_a_bound_too(kind: str) -> None:
    async def test() -> None:
        one, two = TestMember(1, [Place.tcp()]), TestMember(2, [Place.tcp()])
        await group(one, two)
        reading(two, False)
        body = bytes(MIB)
        while not peer_of(one, two).failures:  # until nothing passes to the socket
            one.transport.send([append(1, 2, 0, body)])
            await until(lambda: True)
        dropped = peer_of(one, two).failures
        small = [heartbeat(1, 2) for _ in range(100)]
        payload = bytes(64 * 1024)
        stream = peer_of(one, two)._messages if kind == "messages" else peer_of(one, two)._forwards
        bound = MESSAGES_QUEUE_BYTES if kind == "messages" else FORWARD_QUEUE_BYTES
        assert stream is not None
        most = 0
        while peer_of(one, two).failures == dropped:
            if kind == "messages":
                one.transport.send(small)
            else:
                one.transport.forward(2, payload)
            most = max(most, stream.queued_bytes)
        assert bound < most < bound + 128 * 1024
        await until(lambda: bool(one.heard.unreachable))
        one.heard.unreachable.clear()
        dropped = peer_of(one, two).failures
        if kind == "messages":
            one.transport.send(small)
            await until(lambda: one.heard.unreachable == [2])
            assert peer_of(one, two).failures == dropped + 100
        else:
            one.transport.forward(2, payload)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert peer_of(one, two).failures == dropped + 1
            assert one.heard.unreachable == []  # nothing that the core sent is lost
        await close(one, two)

    run(test)


def test_a_member_that_stands_still_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "PROBE_INTERVAL_S", 0.01)
    monkeypatch.setattr(peer, "PROBE_TIMEOUT_S", 0.2)

    async def test() -> None:
        one, two = TestMember(1, [Place.tcp()]), TestMember(2, [Place.tcp()])
        await group(one, two)
        since = one.transport.connected_since(2)
        reading(two, False)
        await until(lambda: one.transport.connected_since(2) not in (since, None))  # another connection is read
        assert "no answer for" in one.heard.said("lost the connection to a member")[0]["error"]
        assert 2 in one.heard.unreachable
        one.transport.send([heartbeat(1, 2)])
        await until(lambda: two.heard.messages == [heartbeat(1, 2)])
        reading(two, True)
        await close(one, two)

    run(test)


def test_a_message_that_is_too_large_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "MESSAGE_BYTES", 1000)

    async def test() -> None:
        one, two = TestMember(1, [Place.tcp()]), TestMember(2, [Place.tcp()])
        await group(one, two)
        one.transport.send([append(1, 2, 0, bytes(1000))])
        await until(lambda: one.heard.unreachable == [2])
        (line,) = one.heard.said("a message is too large to be sent")
        assert line["level"] == "error"
        one.transport.send([append(1, 2, 0, bytes(100))])
        await until(lambda: len(two.heard.messages) == 1)
        await close(one, two)

    run(test)
