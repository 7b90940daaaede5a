"""HTTP/1.1 on the port of gRPC: http.client, raw sockets and curl as the peers."""

import asyncio
import contextlib
import http.client
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from typing import cast

import pytest

from kvorum.wire.http1 import Http1Exchange
from kvorum.wire.limits import ServerLimits
from tests.wire.serving import DEADLINE_S, LOOPS, Serving, echo

TEXT = [(b"content-type", b"text/plain")]


class Shouting(asyncio.Protocol):
    """What a connection may be switched to."""

    def __init__(self) -> None:
        self.lost = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data.upper())

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost += 1


class Site:
    """Handlers by path."""

    def __init__(self) -> None:
        self.open: list[Http1Exchange] = []
        self.chunks: list[bytes] = []
        self.gone = 0
        self.upgraded: list[Shouting] = []

    def handle(self, exchange: Http1Exchange) -> None:
        path = exchange.target.partition("?")[0]
        match path:
            case "/hello":
                exchange.respond(200, TEXT, b"hello")
            case "/echo":
                exchange.read_body(lambda body: exchange.respond(200, TEXT, body))
            case "/headers":
                names = {name.decode(): value.decode() for name, value in exchange.headers}
                shown = {"method": exchange.method, "target": exchange.target, "headers": names}
                exchange.respond(200, [(b"content-type", b"application/json")], json.dumps(shown).encode())
            case "/open":
                self.open.append(exchange)
                exchange.on_disconnect = self.left
                exchange.start(200, TEXT)
                exchange.write(b"first\n")
            case "/duplex":
                exchange.start(200, TEXT)
                exchange.stream_body(lambda chunk: exchange.write(b"got %d\n" % len(chunk)), exchange.finish)
            case "/late":
                self.open.append(exchange)
            case "/flood":
                exchange.start(200, TEXT)
                exchange.on_writable = lambda: self.pour(exchange)
                self.pour(exchange)
            case "/deaf":
                exchange.stream_body(self.chunks.append, lambda: exchange.respond(200, TEXT, b"done"))
                exchange.pause_reading()
                self.open.append(exchange)
            case "/upgrade":
                self.upgraded.append(Shouting())
                if not exchange.switch([(b"upgrade", b"shout"), (b"connection", b"upgrade")], self.upgraded[-1]):
                    exchange.respond(400, TEXT, b"not asked for")
            case "/ignores-body":
                exchange.respond(200, TEXT, b"no thanks")
            case _:
                exchange.respond(404, TEXT, b"404 page not found\n")

    def left(self) -> None:
        self.gone += 1

    def pour(self, exchange: Http1Exchange) -> None:
        while exchange.writable and len(self.chunks) < 2_000:
            self.chunks.append(b"x" * 10_000)
            exchange.write(self.chunks[-1])
        if len(self.chunks) == 2_000:
            exchange.finish()


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture(params=LOOPS)
def serving(request: pytest.FixtureRequest, site: Site) -> Iterator[Serving]:
    limits = ServerLimits(http1_header_bytes=4_096, http1_body_bytes=10_000)
    with Serving(unary={"/t.S/Echo": echo}, http1=site, loop=request.param, limits=limits) as running:
        yield running


@pytest.fixture
def client(serving: Serving) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", serving.port, timeout=DEADLINE_S)
    yield connection
    connection.close()


def connect(serving: Serving) -> socket.socket:
    return socket.create_connection(("127.0.0.1", serving.port), DEADLINE_S)


def read_all(connection: socket.socket) -> bytes:
    octets = bytearray()
    while part := connection.recv(65_536):
        octets += part
    return bytes(octets)


def read_to_the_end(connection: socket.socket) -> bytes:
    """What came before the connection was closed or reset."""
    with contextlib.suppress(ConnectionResetError):
        return read_all(connection)
    return b""


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    octets = b""
    while mark not in octets:
        part = connection.recv(65_536)
        assert part, octets
        octets += part
    return octets


def test_kept_alive_connection(client: http.client.HTTPConnection, serving: Serving) -> None:
    for number in range(5):
        client.request("POST", "/echo", body=b"body %d" % number)
        reply = client.getresponse()
        assert (reply.status, reply.read()) == (200, b"body %d" % number)
        assert reply.getheader("Content-Type") == "text/plain"
        assert reply.getheader("Date")
    assert serving.server.connections_accepted == 1


def test_what_a_request_carries(client: http.client.HTTPConnection) -> None:
    client.request("PUT", "/headers?a=%20b", body=b"x", headers={"Authorization": "Bearer t"})
    shown = json.loads(client.getresponse().read())
    assert (shown["method"], shown["target"]) == ("PUT", "/headers?a=%20b")
    assert shown["headers"]["authorization"] == "Bearer t"


def test_head_has_the_headers_and_no_body(client: http.client.HTTPConnection) -> None:
    client.request("HEAD", "/hello")
    reply = client.getresponse()
    assert (reply.status, reply.getheader("content-length"), reply.read()) == (200, "5", b"")
    client.request("GET", "/hello")
    assert client.getresponse().read() == b"hello"


def test_chunked_request_body(client: http.client.HTTPConnection) -> None:
    client.request("POST", "/echo", body=iter([b"one", b"two"]), encode_chunked=True)
    assert client.getresponse().read() == b"onetwo"


def test_pipelined_requests_are_answered_in_order(serving: Serving, site: Site) -> None:
    with connect(serving) as connection:
        requests = b"GET /late HTTP/1.1\r\nhost: a\r\n\r\nPOST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi"
        connection.sendall(requests + b"GET /hello HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        serving.wait(lambda: bool(site.open))
        serving.call(lambda: site.open[0].respond(200, TEXT, b"late"))
        octets = read_all(connection)
    assert [part.rpartition(b"\r\n\r\n")[2] for part in octets.split(b"HTTP/1.1 200")[1:]] == [b"late", b"hi", b"hello"]


def test_too_much_pipelined_stops_the_reading(serving: Serving, site: Site) -> None:
    with connect(serving) as connection:
        connection.sendall(b"GET /late HTTP/1.1\r\nhost: a\r\n\r\n")
        serving.wait(lambda: bool(site.open))
        connection.settimeout(0.2)
        request = b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n" * 1_000
        with pytest.raises(TimeoutError):
            for _ in range(3_000):
                connection.sendall(request)


def test_reply_stays_open_and_the_disconnect_is_told(serving: Serving, site: Site) -> None:
    with connect(serving) as connection:
        connection.sendall(b"GET /open HTTP/1.1\r\nhost: a\r\n\r\n")
        read_until(connection, b"first\n")
        serving.call(lambda: site.open[0].write(b"second\n"))
        assert b"second\n" in read_until(connection, b"second\n")
    serving.wait(lambda: site.gone == 1)
    serving.call(lambda: site.open[0].write(b"into the void"))
    serving.call(lambda: site.open[0].finish())
    assert site.gone == 1


def test_request_and_reply_at_the_same_time(serving: Serving) -> None:
    with connect(serving) as connection:
        connection.sendall(b"POST /duplex HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        assert b"got 3\n" in read_until(connection, b"got 3\n")
        connection.sendall(b"5\r\nabcde\r\n")
        assert b"got 5\n" in read_until(connection, b"got 5\n")
        connection.sendall(b"0\r\n\r\n")
        assert read_until(connection, b"0\r\n\r\n").endswith(b"0\r\n\r\n")
        connection.sendall(b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n")
        assert read_until(connection, b"hello").endswith(b"hello")


def test_expect_100_continue(serving: Serving) -> None:
    head = b"POST %s HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n"
    with connect(serving) as connection:
        connection.sendall(head % b"/echo")
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"abc")
        assert read_until(connection, b"abc").startswith(b"HTTP/1.1 200 ")
    with connect(serving) as connection:
        connection.sendall(head % b"/hello")
        octets = read_all(connection)
        assert octets.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close" in octets.lower()


def test_http_1_0_gets_the_reply_until_close(serving: Serving, site: Site) -> None:
    with connect(serving) as connection:
        connection.sendall(b"GET /open HTTP/1.0\r\n\r\n")
        read_until(connection, b"first\n")
        serving.call(lambda: site.open[0].write(b"last\n"))
        serving.call(lambda: site.open[0].finish())
        octets = read_all(connection)
        assert octets.endswith(b"last\n")
        assert b"chunked" not in octets


def test_a_half_closed_client_still_gets_its_reply(serving: Serving, site: Site) -> None:
    with connect(serving) as connection:
        connection.sendall(b"GET /late HTTP/1.1\r\nhost: a\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        serving.wait(lambda: bool(site.open))
        serving.call(lambda: site.open[0].respond(200, TEXT, b"late"))
        assert read_all(connection).endswith(b"late")


@pytest.mark.parametrize(
    ("request_octets", "status"),
    [
        (b"GARBAGE\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nhost: a\r\nbad header\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 5_000, b"431"),
        (b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 10001\r\n\r\n" + b"x" * 10_001, b"413"),
        (b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n", b"501"),
        (b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n", b"400"),
        (b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (b"GET /nowhere HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", b"404"),
        (b"PRI /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", b"404"),
    ],
)
def test_errors_are_answered_and_close(serving: Serving, request_octets: bytes, status: bytes) -> None:
    with connect(serving) as connection:
        connection.sendall(request_octets)
        octets = read_all(connection)
        assert octets.startswith(b"HTTP/1.1 " + status), octets
        assert b"connection: close" in octets.lower()
    serving.wait(lambda: serving.server.connections_open == 0)


def test_a_body_nobody_reads_is_skipped_up_to_the_limit(serving: Serving) -> None:
    head = b"POST /ignores-body HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n"
    with connect(serving) as connection:
        connection.sendall(head % 5_000 + b"x" * 5_000 + b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n")
        assert read_until(connection, b"hello").endswith(b"hello")
    with connect(serving) as connection:
        connection.sendall(head % 20_000 + b"x" * 20_000)
        assert read_all(connection).endswith(b"no thanks")


def test_a_slow_reader_stops_the_writer(serving: Serving, site: Site) -> None:
    with connect(serving) as connection:
        connection.sendall(b"GET /flood HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        serving.wait(lambda: len(site.chunks) > 10)
        assert serving.call(lambda: len(site.chunks)) < 2_000
        octets = read_all(connection)
    assert octets.count(b"x" * 10) == 2_000_000
    assert octets.endswith(b"0\r\n\r\n")


def test_a_slow_handler_stops_the_body(serving: Serving, site: Site) -> None:
    with connect(serving) as connection:
        size = 50_000_000
        connection.sendall(b"POST /deaf HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % size)
        serving.wait(lambda: bool(site.open))
        connection.settimeout(0.2)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < size:
                sent += connection.send(b"x" * 100_000)
        assert sum(map(len, site.chunks)) == 0
        connection.settimeout(DEADLINE_S)
        serving.call(lambda: site.open[0].resume_reading())
        while sent < size:
            sent += connection.send(b"x" * min(1_000_000, size - sent))
        assert read_until(connection, b"done").endswith(b"done")
        assert sum(map(len, site.chunks)) == size


def test_a_handler_may_take_its_time(site: Site) -> None:
    limits = ServerLimits(preface_timeout_s=0.01, http1_idle_timeout_s=0.01)
    with Serving(http1=site, limits=limits) as serving, connect(serving) as connection:
        connection.sendall(b"POST /late HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nab")
        serving.wait(lambda: bool(site.open))
        serving.call(lambda: [each.tick(serving.loop.time() + 1_000) for each in list(serving.server._protocols)])
        serving.call(lambda: site.open[0].respond(200, TEXT, b"late"))
        assert read_until(connection, b"late").startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("octets", [b"", b"GET / HT", b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nx"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_client_that_stops_is_closed(octets: bytes, loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvorum.wire.server._TICK_S", 0.01)
    limits = ServerLimits(preface_timeout_s=0.01, http1_idle_timeout_s=0.01)
    with Serving(http1=Site(), limits=limits, loop=loop) as serving, connect(serving) as connection:
        connection.sendall(octets)
        assert read_to_the_end(connection) == b""


def test_switching_to_another_protocol(serving: Serving, site: Site) -> None:
    with connect(serving) as connection:
        connection.sendall(b"GET /upgrade HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: shout\r\n\r\nearly ")
        octets = read_until(connection, b"EARLY ")
        assert octets.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        connection.sendall(b"late")
        assert read_until(connection, b"LATE") == b"LATE"
    serving.wait(lambda: serving.server.connections_open == 0)
    assert site.upgraded[0].lost == 1
    with connect(serving) as connection:
        connection.sendall(b"GET /upgrade HTTP/1.1\r\nhost: a\r\n\r\n")
        assert read_until(connection, b"not asked for").startswith(b"HTTP/1.1 400 ")


def test_a_switch_behind_much_that_was_pipelined_reads_on(serving: Serving, site: Site) -> None:
    early = b"e" * 300_000
    with connect(serving) as connection:
        connection.sendall(b"GET /late HTTP/1.1\r\nhost: a\r\n\r\n")
        serving.wait(lambda: bool(site.open))
        connection.sendall(b"GET /upgrade HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: shout\r\n\r\n" + early)
        serving.wait(lambda: len(bytes(site.open[0]._connection._h11.trailing_data[0])) > 65_536)  # type: ignore[union-attr]
        serving.call(lambda: site.open[0].respond(200, TEXT, b"late"))
        connection.sendall(b"last")
        assert read_until(connection, b"LAST").count(b"E") >= len(early)


@pytest.mark.parametrize(("path", "line"), [("/hello", b"200 OK"), ("/nowhere", b"404 Not Found")])
def test_the_status_line_has_the_standard_phrase(serving: Serving, path: str, line: bytes) -> None:
    with connect(serving) as connection:
        connection.sendall(b"GET %s HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n" % path.encode())
        assert read_all(connection).startswith(b"HTTP/1.1 " + line + b"\r\n")


def test_shutdown_waits_for_the_exchange_that_is_open(serving: Serving, site: Site) -> None:
    with connect(serving) as idle, connect(serving) as connection:
        idle.sendall(b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n")
        read_until(idle, b"hello")
        connection.sendall(b"GET /late HTTP/1.1\r\nhost: a\r\n\r\n")
        serving.wait(lambda: bool(site.open))
        done = serving.shutdown(DEADLINE_S)
        assert read_all(idle) == b""
        serving.call(lambda: site.open[0].respond(200, TEXT, b"late"))
        octets = read_all(connection)
        assert octets.endswith(b"late")
        assert b"connection: close" in octets.lower()
    done.result(DEADLINE_S)


def test_without_a_handler_http1_is_closed() -> None:
    with Serving() as serving, connect(serving) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert read_to_the_end(connection) == b""


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(serving: Serving) -> None:
    url = f"http://127.0.0.1:{serving.port}"
    run = subprocess.run(["curl", "-sS", "-d", "body", f"{url}/echo"], capture_output=True, timeout=DEADLINE_S)
    assert (run.returncode, run.stdout) == (0, b"body")
    # HTTP/2 on plain TCP is gRPC's: no answer for others than a gRPC error under HTTP 415.
    command = ["curl", "-sS", "--http2-prior-knowledge", "-i", f"{url}/echo"]
    run = subprocess.run(command, capture_output=True, timeout=DEADLINE_S)
    assert run.stdout.startswith(b"HTTP/2 415")
    assert b"grpc-status: 3" in run.stdout
    assert b'grpc-message: invalid gRPC request content-type ""' in run.stdout
