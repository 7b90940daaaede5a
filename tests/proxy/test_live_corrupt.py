"""A member whose replies are no messages of the API harms nobody but who asked it."""

import json
from pathlib import Path
from typing import Final

import grpc
import pytest

from kvorum.wire.head import Head
from kvorum.wire.routes import CancelReason
from kvorum.wire.server_calls import ServerStream
from kvorum.wire.server_connection import ServerConnection
from loadtest import processes
from proxy import paths
from tests.servers import start_proxy
from tests.wire.serving import Serving

GARBAGE: Final = (b"\xff\xff", b"\x0a\x7f", b"\x0a\x01\xff")
"""Cut short, a header cut short, and one whose header is no message."""

UNARY: Final = (
    paths.RANGE,
    *paths.WRITES,
    *paths.LEASE,
    *paths.MAINTENANCE,
    *paths.AUTH,
    paths.UNLOCK,
    *paths.ELECTION,
)
STREAMS: Final = (paths.WATCH, paths.KEEP_ALIVE, paths.LOCK, paths.CAMPAIGN, paths.OBSERVE, paths.RANGE_STREAM)
TIMEOUT_S: Final = 1.0
FILE: Final = """
reader: {user: counter, password: secret}
tenants:
  - {name: one, namespace: one/, authorities: [localhost], limits: {keys: 10}}
  - {name: other, namespace: other/, authorities: [127.0.0.1]}
"""


class Babbling:
    """The member's side of a stream: each request is answered with what nobody can read."""

    def __init__(self, stream: ServerStream, reply: bytes) -> None:
        self.stream = stream
        self.reply = reply

    def on_message(self, message: bytes) -> None:
        self.stream.send(self.reply)

    def on_half_close(self) -> None: ...

    def on_cancel(self, reason: CancelReason) -> None: ...

    def on_writable(self) -> None: ...


def babbling(reply: bytes) -> Serving:
    """A member."""

    def answer(connection: ServerConnection, stream_id: int, head: Head, message: bytes) -> None:
        connection.reply(stream_id, reply)

    def open_stream(stream: ServerStream, head: Head) -> Babbling:
        return Babbling(stream, reply)

    unary = dict.fromkeys((*UNARY, *paths.CLUSTER, paths.HEALTH_CHECK), answer)
    return Serving(unary=unary, streams=dict.fromkeys((*STREAMS, paths.HEALTH_WATCH), open_stream))


def is_lost(error: grpc.RpcError) -> bool:
    """Whether the proxy has gone under the call; what a limited tenant stores can indeed not be known."""
    return error.code() is grpc.StatusCode.UNAVAILABLE and "is not known at the moment" not in error.details()


def ask_everything(address: str) -> None:
    """Every call once, with an empty request and one that holds a key; whatever it ends with."""
    with grpc.insecure_channel(address) as channel:
        for request in (b"", b"\x0a\x01k"):
            for path in UNARY:
                call = channel.unary_unary(path)
                try:
                    call(request, timeout=TIMEOUT_S)
                except grpc.RpcError as error:
                    assert not is_lost(error), (path, error)
            replies = [channel.stream_stream(path)(iter([request]), timeout=TIMEOUT_S) for path in STREAMS]
            for path, stream in zip(STREAMS, replies, strict=True):
                try:
                    list(stream)
                except grpc.RpcError as error:
                    assert not is_lost(error), (path, error)


@pytest.mark.parametrize("reply", GARBAGE)
@pytest.mark.parametrize("what", ["plain", "registered", "leasing", "tenants"])
def test_the_proxy_goes_on(what: str, reply: bytes, tmp_path: Path) -> None:
    flags = {"endpoints-auto-sync-interval": "100ms", "experimental-serializable-ordering": "true"}
    if what == "registered":
        flags |= {"resolver-prefix": "proxies/", "resolver-ttl": "2"}
    elif what == "leasing":
        flags |= {"experimental-leasing-prefix": "leasing/"}
    elif what == "tenants":
        file = tmp_path / "tenants.yaml"
        file.write_text(FILE)
        flags |= {"namespaces-file": str(file)}
    with babbling(reply) as member, start_proxy([f"127.0.0.1:{member.port}"], flags) as proxy:
        began = processes.tree(proxy.pid)
        ask_everything(proxy.address)
        if what == "tenants":
            ask_everything(proxy.address.replace("127.0.0.1", "localhost"))
        assert processes.tree(proxy.pid) == began
        said = [json.loads(line) for line in proxy.log_path.read_text().splitlines() if line.startswith("{")]
        assert all(line["level"] in ("info", "warn") for line in said), said
