"""Starting, further routes of the peer port, and a clean end."""

from pathlib import Path

import pytest

from kvorum.wire.calls import ClientStream
from kvorum.wire.grpc import Metadata
from kvorum.wire.head import Head
from kvorum.wire.server_calls import ServerStream
from node.raft.core import ConfState, Message, MessageType, Snapshot
from node.raft.peers.channel import peer_channel
from node.raft.peers.identity import Identity
from node.raft.peers.transport import PeerTransport
from tests.raft.peers.members import Heard, Place, TestMember, close, group, heartbeat, run, until
from tests.wire.serving import Echo


def test_members_may_be_known_before_the_start_and_nobody_is_called_until_then() -> None:
    async def test() -> None:
        one, two = TestMember(1, [Place.tcp()]), TestMember(2, [Place.tcp()])
        await two.start()
        one.knows(two)
        two.knows(one)
        assert one.transport.connected_since(2) is None
        await one.start()
        await until(lambda: one.connected(two) and two.connected(one))
        assert [line["address"] for line in one.heard.said("serving peer traffic")] == one.urls
        await close(one, two)

    run(test)


def test_several_listeners_serve_alike() -> None:
    async def test() -> None:
        one, two = TestMember(1, []), TestMember(2, [Place.tcp(), Place.tcp()])
        await one.start()
        await two.start()
        for url in two.urls:
            one.transport.set_members({2: [url]}, [])
            await until(lambda: one.connected(two))
        assert {line["url"] for line in one.heard.said("connected to a member")} <= set(two.urls)
        await close(one, two)

    run(test)


class Replies:
    """What an Echo stream answers."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.end: tuple[int, str] | None = None

    def on_message(self, message: bytes) -> None:
        self.messages.append(message)

    def on_end(self, code: int, text: str, trailers: Metadata) -> None:
        self.end = (code, text)

    def on_writable(self) -> None:
        pass


def test_further_routes_are_served_on_the_peer_port() -> None:
    """As a snapshot's sender uses it: a channel of its own to the peer URL, the same metadata."""

    def opened(stream: ServerStream, head: Head) -> Echo:
        assert head.metadata["kvorum-from-member"] == ("1",)
        return Echo(stream, head)

    async def test() -> None:
        two = TestMember(2, [Place.tcp()], routes={"/kvorum.Peer/Snapshot": opened})
        await two.start()
        channel = peer_channel(two.urls[0], None)
        replies = Replies()
        stream: ClientStream = channel.open("/kvorum.Peer/Snapshot", replies, Identity(0xC1, 1).metadata(2))
        stream.send(b"chunk")
        stream.half_close()
        await until(lambda: replies.end is not None)
        assert (replies.messages, replies.end) == ([b"chunk"], (0, ""))
        await channel.close()
        await close(two)

    run(test)


def test_snapshots_go_where_they_were_said_to_go() -> None:
    async def test() -> None:
        sent: list[tuple[Message, str]] = []
        heard = Heard()
        transport = PeerTransport(
            identity=Identity(0xC1, 1),
            listeners=[],
            tls=None,
            members=list,
            cluster_version=lambda: "",
            logger=heard.logger(),
            send_snapshot=lambda message, path: sent.append((message, path)),
        )
        await transport.start(heard)
        message = Message(MessageType.SNAP, 2, 1, 1, snapshot=Snapshot(5, 1, ConfState((1, 2))))
        transport.send_snapshot(message, "/checkpoint")
        assert sent == [(message, "/checkpoint")]
        await transport.close()

    run(test)


@pytest.mark.parametrize("url", ["127.0.0.1:2380", "ftp://127.0.0.1:2380", "http://127.0.0.1:2380/x", "https://a:1"])
def test_what_is_no_peer_url_has_no_channel(url: str) -> None:
    async def test() -> None:
        with pytest.raises(ValueError):
            peer_channel(url, None)

    run(test)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_clean_end_is_told_to_the_others_and_leaves_nothing_open() -> None:
    async def test() -> None:
        first = TestMember(1, [Place.tcp()])  # the loop keeps a file open once it has a listener
        await first.start()
        await close(first)
        before = open_files()
        one, two, three = (TestMember(id_, [Place.tcp()]) for id_ in (1, 2, 3))
        await group(one, two, three)
        await close(three)
        await until(lambda: not one.connected(three) and not two.connected(three))
        assert one.heard.said("lost the connection to a member")[0]["error"] == "the member stops"
        assert one.connected(two)
        await close(one, two)
        await until(lambda: open_files() == before)

    run(test)


def test_an_end_before_the_start_closes_the_listeners() -> None:
    async def test() -> None:
        before = open_files()
        one = TestMember(1, [Place.tcp()])
        assert open_files() == before + 1
        await close(one)
        assert open_files() == before

    run(test)


def test_nothing_is_heard_or_sent_after_the_end() -> None:
    async def test() -> None:
        one, two = TestMember(1, [Place.tcp()]), TestMember(2, [Place.tcp()])
        await group(one, two)
        one.transport.send([heartbeat(1, 2)])
        await until(lambda: len(two.heard.messages) == 1)
        await close(one)
        told = list(one.heard.unreachable)
        one.transport.send([heartbeat(1, 2)])
        one.transport.forward(2, b"x")
        await close(two)
        assert one.heard.unreachable == told
        assert len(two.heard.messages) == 1

    run(test)
