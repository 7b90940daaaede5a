"""Processes that serve run without cyclic garbage collection: calls and connections must leave no cycles."""

import gc
from collections.abc import Iterator

import pytest

from kvorum.wire import frames
from kvorum.wire.calls import ClientStream, UnaryClientCall
from kvorum.wire.grpc import Metadata
from kvorum.wire.hpack import encode_stateless
from tests.wire.peer import ClientPeer, ServerPeer, data, message, request_fields
from tests.wire.serving import Echo


@pytest.fixture
def collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


def garbage() -> list[str]:
    """Types of what only the collector could free."""
    gc.collect()
    return [type(each).__name__ for each in gc.garbage]


@pytest.mark.usefixtures("collector")
def test_calls_and_connections_of_a_server() -> None:
    for _ in range(3):
        peer = ServerPeer(streams={"/t.S/Chat": Echo}).started()
        for number in range(50):
            at = 8 * number + 1
            peer.echo(at)
            fields = request_fields("/t.S/Chat", [(b"grpc-timeout", b"1S")])
            peer.feed(peer.headers(at + 2, fields), data(at + 2, message(b"x")), data(at + 2, b"", end=True))
            peer.feed(peer.headers(at + 4, fields), data(at + 4, message(b"x")[:3]), frames.rst_stream(at + 4, 8))
            peer.feed(peer.headers(at + 6, request_fields("/t.S/None")))
        peer.feed(peer.headers(1001, request_fields("/t.S/Chat")))
        peer.core.lost("gone")
        peer.feed(b"more")
    assert garbage() == []


class Ignore:
    def on_message(self, message: bytes) -> None:
        pass

    def on_end(self, code: int, text: str, trailers: Metadata) -> None:
        pass

    def on_writable(self) -> None:
        pass


@pytest.mark.usefixtures("collector")
def test_calls_and_connections_of_a_client() -> None:
    headers = encode_stateless([(b":status", b"200"), (b"content-type", b"application/grpc")])
    ok = encode_stateless([(b"grpc-status", b"0")])
    for _ in range(3):
        peer = ClientPeer().started()
        for number in range(50):
            at = 4 * number + 1
            done = UnaryClientCall("/t.S/Echo", (), None, b"?", lambda _: None, lambda code, text, reply: None)
            peer.core.start(done, peer.now)
            peer.core.start(ClientStream("/t.S/Chat", (), None, lambda _: None, Ignore()), peer.now)
            for stream_id in (at, at + 2):
                peer.feed(
                    frames.frame(frames.HEADERS, 4, stream_id, headers),
                    data(stream_id, message(b"x")),
                    frames.frame(frames.HEADERS, 5, stream_id, ok),
                )
            assert not peer.core.streams
        peer.core.start(ClientStream("/t.S/Chat", (), None, lambda _: None, Ignore()), peer.now)
        peer.core.lost("gone")
    assert garbage() == []
