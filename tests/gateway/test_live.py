"""The gateway as a process, with real sockets: what passes through, and what happens when something ends or breaks
(behaviour GW1-GW6)."""

import contextlib
import hashlib
import random
import resource
import signal
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.relay import FREE_PIPES_MAX
from kvorum.self_signed import write_certificate
from loadtest.launcher import Kind, Port, wait_until
from tests.gateway.backends import (
    ACTIVATED,
    DEACTIVATED,
    READY,
    STILL_INACTIVE,
    TIMEOUT_S,
    Backend,
    GatewayProcess,
    ask,
    ours_alone,
    read,
    read_all,
)
from tests.servers import SUBJECT

RESET = struct.pack("ii", 1, 0)
PAUSED = "accepting no connections for now"
RESUMED = "accepting connections again"


def named(name: bytes) -> Backend:
    """A server that says its name."""
    return Backend(lambda connection: connection.sendall(name))


def hear(gateway: GatewayProcess) -> bytes:
    """What the server behind the gateway says before it ends; nothing if there is none."""
    with gateway.connect() as connection:
        return read_all(connection)


@pytest.fixture
def dead() -> Iterator[Port]:
    """A port where nobody listens."""
    port = Port()
    yield port
    port.release()


def fds(gateway: GatewayProcess) -> int:
    return len(list(Path(f"/proc/{gateway.process.pid}/fd").iterdir()))


class TestEndpoints:
    def test_the_ready_line_names_the_endpoints(self, tmp_path: Path) -> None:
        """GW4, GW6."""
        with GatewayProcess(
            tmp_path, "--endpoints=http://127.0.0.1:1,https://127.0.0.1:2", "--endpoints=127.0.0.1:3"
        ) as gw:
            (line,) = gw.lines(READY)
            assert line["endpoints"] == ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]
            assert line["level"] == "info"

    def test_connections_go_to_the_endpoints_in_turn(self, tmp_path: Path) -> None:
        """GW1; a host may be a name."""
        with named(b"a") as a, named(b"b") as b:
            flags = f"--endpoints=http://{a.address},localhost:{b.port}"
            with GatewayProcess(tmp_path, flags) as gateway:
                assert [hear(gateway) for _ in range(4)] == [b"a", b"b", b"a", b"b"]

    def test_a_dead_endpoint_is_passed_over_and_comes_back(self, tmp_path: Path, dead: Port) -> None:
        """GW2: the same connection gets the next endpoint."""
        address = f"127.0.0.1:{dead.number}"
        with named(b"a") as a:
            flags = (f"--endpoints={address},{a.address}", "--retry-delay=50ms")
            with GatewayProcess(tmp_path, *flags) as gateway:
                assert [hear(gateway) for _ in range(4)] == [b"a"] * 4
                (line,) = gateway.lines(DEACTIVATED)
                error = f"dial tcp {address}: connect: connection refused"
                assert (line["level"], line["address"], line["interval"]) == ("warn", address, 0.05)
                assert line["error"] == error
                line = gateway.wait_for(STILL_INACTIVE, 2)[0]
                assert (line["level"], line["address"], line["interval"]) == ("warn", address, 0.05)
                assert line["error"] == error
                with Backend(lambda connection: connection.sendall(b"b"), dead.number):
                    (line,) = gateway.wait_for(ACTIVATED)
                    assert (line["level"], line["address"]) == ("info", address)
                    assert {hear(gateway), hear(gateway)} == {b"a", b"b"}
                assert [hear(gateway) for _ in range(3)] == [b"a"] * 3
                assert len(gateway.lines(DEACTIVATED)) == 2

    def test_when_all_are_dead_the_connection_is_closed(self, tmp_path: Path, dead: Port) -> None:
        """GW3; said once."""
        with GatewayProcess(tmp_path, f"--endpoints=127.0.0.1:{dead.number},[::1]:{dead.number}") as gateway:
            assert [hear(gateway) for _ in range(3)] == [b"", b"", b""]
            assert len(gateway.lines(DEACTIVATED)) == 2
            if SUBJECT is Kind.KVORUM:
                assert len(gateway.lines("no endpoint is active: connections are closed")) == 1

    def test_a_killed_server_ends_its_connections_and_the_next_go_elsewhere(self, tmp_path: Path) -> None:
        with (
            Backend() as a,
            Backend() as b,
            GatewayProcess(tmp_path, f"--endpoints={a.address},{b.address}") as gateway,
        ):
            with gateway.connect() as client:
                client.sendall(b"x")
                assert client.recv(1) == b"x"
                a.close()
                assert client.recv(1) == b""
            assert [ask(gateway, b"y") for _ in range(3)] == [b"y"] * 3
            assert (a.accepted, b.accepted) == (1, 3)


class TestBytes:
    @ours_alone
    def test_each_way_ends_by_itself(self, tmp_path: Path) -> None:
        """The server answers after the client has said that it is done."""

        def answer_at_the_end(connection: socket.socket) -> None:
            connection.sendall(b"<" + read_all(connection) + b">")

        message = bytes(range(256)) * 4096
        with (
            Backend(answer_at_the_end) as backend,
            GatewayProcess(tmp_path, f"--endpoints={backend.address}") as gateway,
        ):
            for text in (message, b""):
                with gateway.connect() as client:
                    client.sendall(text)
                    client.shutdown(socket.SHUT_WR)
                    assert read_all(client) == b"<" + text + b">"

    def test_tls_passes_through(self, tmp_path: Path) -> None:
        """GW4."""
        cert, key = str(tmp_path / "cert"), str(tmp_path / "key")
        write_certificate(cert, key, ["localhost"], 1)
        serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        serving.load_cert_chain(cert, key)

        def serve(connection: socket.socket) -> None:
            with serving.wrap_socket(connection, server_side=True) as secured:
                secured.sendall(secured.recv(100).upper())
                with contextlib.suppress(ssl.SSLError):
                    secured.recv(1)  # the client just closes

        trusting = ssl.create_default_context(cafile=cert)
        with (
            Backend(serve) as backend,
            GatewayProcess(tmp_path, f"--endpoints=https://{backend.address}") as gateway,
            trusting.wrap_socket(gateway.connect(), server_hostname="localhost") as secured,
        ):
            secured.sendall(b"secret")
            assert secured.recv(100) == b"SECRET"

    def test_a_slow_reader_stops_its_sender_and_nobody_else(self, tmp_path: Path) -> None:
        """The server has 256 MiB to send, more than all buffers between; it gets on only as the client reads."""
        chunk = bytes(range(256)) * 4096
        count = 256
        done = threading.Event()

        def serve(connection: socket.socket) -> None:
            if connection.recv(4) == b"much":
                for _ in range(count):
                    connection.sendall(chunk)
                done.set()
            else:
                connection.sendall(b"some")

        with Backend(serve) as backend, GatewayProcess(tmp_path, f"--endpoints={backend.address}") as gateway:
            with gateway.connect() as slow:
                slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
                slow.sendall(b"much")
                first = slow.recv(1000)
                for _ in range(5):
                    assert ask(gateway, b"else") == b"some"
                assert not done.is_set()
                digest, size = hashlib.sha256(first), len(first)
                while part := slow.recv(1 << 20):
                    digest.update(part)
                    size += len(part)
            assert size == count * len(chunk)
            assert digest.digest() == hashlib.sha256(chunk * count).digest()

    @ours_alone
    @pytest.mark.parametrize("breaker", ["client", "server"])
    def test_a_reset_passes_as_a_reset(self, tmp_path: Path, breaker: str) -> None:
        seen = threading.Event()

        def serve(connection: socket.socket) -> None:
            assert connection.recv(1) == b"x"
            connection.sendall(b"x")
            if breaker == "server":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                return
            with contextlib.suppress(ConnectionResetError):
                connection.recv(1)
                return
            seen.set()

        with Backend(serve) as backend, GatewayProcess(tmp_path, f"--endpoints={backend.address}") as gateway:
            with gateway.connect() as client:
                client.sendall(b"x")
                assert client.recv(1) == b"x"
                if breaker == "server":
                    with pytest.raises(ConnectionResetError):
                        client.recv(1)
                else:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            if breaker == "client":
                assert seen.wait(TIMEOUT_S)


class TestManyConnections:
    def test_five_hundred_at_once(self, tmp_path: Path) -> None:
        count = 500
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert hard >= 4 * count
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        try:
            with (
                Backend() as a,
                Backend() as b,
                GatewayProcess(tmp_path, f"--endpoints={a.address},{b.address}") as gateway,
            ):
                before = fds(gateway)
                with contextlib.ExitStack() as stack:
                    clients = [stack.enter_context(gateway.connect()) for _ in range(count)]
                    for number, client in enumerate(clients):
                        client.sendall(b"%d." % number)
                    for number, client in enumerate(clients):
                        assert client.recv(100) == b"%d." % number
                    assert (a.accepted, b.accepted) == (count / 2, count / 2)
                    if SUBJECT is Kind.KVORUM:
                        assert fds(gateway) - before <= 2 * count + 4
                wait_until(lambda: fds(gateway) <= before + 4, "closed connections leave nothing", TIMEOUT_S)
                wait_until(
                    lambda: a.connections == b.connections == 0, "the servers' connections are closed", TIMEOUT_S
                )
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    @ours_alone
    def test_at_the_limit_of_descriptors_connections_wait_until_others_end(self, tmp_path: Path) -> None:
        with Backend() as backend, GatewayProcess(tmp_path, f"--endpoints={backend.address}", fds=64) as gateway:
            places = gateway.lines(READY)[0]["connections-max"]
            assert 0 < places <= 16
            with contextlib.ExitStack() as stack:
                clients = [gateway.connect() for _ in range(places + 3)]
                for client in clients:
                    stack.enter_context(client)
                    client.sendall(b"x")
                for client in clients[:places]:
                    assert client.recv(1) == b"x"
                (line,) = gateway.wait_for(PAUSED)
                assert line["connections"] == places
                assert line["reason"] == f"all {places} connections are in use"
                assert backend.accepted == places
                for client in clients[:3]:
                    client.close()
                for client in clients[places:]:
                    assert client.recv(1) == b"x"
            gateway.wait_for(RESUMED)
            assert ask(gateway, b"y") == b"y"

    @ours_alone
    @pytest.mark.parametrize("descriptors", [None, 96], ids=["", "few-descriptors"])
    def test_connections_that_end_in_every_way_leave_nothing(self, tmp_path: Path, descriptors: int | None) -> None:
        """Ends, half-closes and resets on both sides at any moment, also with bytes under way and unread."""

        def serve(connection: socket.socket) -> None:
            chance = random.Random(connection.recv(8))
            if chance.random() < 0.2:
                connection.sendall(bytes(chance.randrange(3_000_000)))
                return
            while chunk := connection.recv(1 << 16):
                if chance.random() < 0.02:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    return
                connection.sendall(chunk)

        def use(gateway: GatewayProcess, chance: random.Random) -> None:
            with gateway.connect() as client:
                client.sendall(chance.randbytes(8))
                for _ in range(chance.randrange(5)):
                    client.sendall(bytes(chance.choice((1, 1000, 10_000))))
                    if chance.random() < 0.5:
                        client.recv(1 << 20, socket.MSG_DONTWAIT)
                match chance.randrange(3):
                    case 0:
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    case 1:
                        client.shutdown(socket.SHUT_WR)
                        read_all(client)

        with Backend(serve) as a, Backend(serve) as b:
            flags = f"--endpoints={a.address},{b.address}"
            with GatewayProcess(tmp_path, flags, fds=descriptors) as gateway:
                before = fds(gateway)

                def run(seed: int) -> None:
                    chance = random.Random(seed)
                    for _ in range(8):
                        try:
                            use(gateway, chance)
                        except TimeoutError:
                            raise  # nobody may be left waiting
                        except OSError:
                            continue  # the server broke it, or has nothing to read yet

                threads = [threading.Thread(target=run, args=(seed,)) for seed in range(24)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                wait_until(
                    lambda: a.connections == b.connections == 0, "the servers' connections are closed", TIMEOUT_S
                )
                wait_until(lambda: fds(gateway) <= before + 2 * FREE_PIPES_MAX, "nothing is left", TIMEOUT_S)
                assert gateway.process.poll() is None
                assert len(gateway.lines()) == gateway.log_path.read_bytes().count(b"\n")


@ours_alone
class TestNoRoom:
    """The system gives fewer descriptors than it promised."""

    def limit(self, gateway: GatewayProcess, number: int) -> None:
        _, hard = resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE, (number, hard))

    def test_none_for_a_client(self, tmp_path: Path) -> None:
        with Backend() as backend, GatewayProcess(tmp_path, f"--endpoints={backend.address}") as gateway:
            self.limit(gateway, fds(gateway))
            with gateway.connect() as client:
                client.sendall(b"x")
                line = gateway.wait_for(PAUSED)[0]
                assert line["reason"] == "too many open files"
                self.limit(gateway, 100)
                assert client.recv(1) == b"x"
            gateway.wait_for(RESUMED)

    def test_none_for_an_endpoint(self, tmp_path: Path) -> None:
        """That is no fault of the endpoint."""
        with Backend() as backend, GatewayProcess(tmp_path, f"--endpoints={backend.address}") as gateway:
            before = fds(gateway)
            self.limit(gateway, before + 1)
            assert hear(gateway) == b""
            (line,) = gateway.lines("cannot dial an endpoint")
            assert (line["address"], line["error"]) == (backend.address, "too many open files")
            self.limit(gateway, before + 10)
            assert ask(gateway, b"x") == b"x"
            assert gateway.lines(DEACTIVATED) == []

    def test_none_for_a_pipe(self, tmp_path: Path) -> None:
        """What a slow reader does not take is then held in memory."""
        message = bytes(range(256)) * (1 << 17)
        with Backend() as backend, GatewayProcess(tmp_path, f"--endpoints={backend.address}") as gateway:
            self.limit(gateway, fds(gateway) + 2)
            sent = threading.Thread(target=lambda: client.sendall(message))
            with gateway.connect() as client:
                sent.start()
                assert read(client, len(message)) == message
                sent.join()


@ours_alone
class TestStop:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_the_signal_ends_all_connections_and_is_the_status(self, tmp_path: Path, number: signal.Signals) -> None:
        with Backend() as backend, GatewayProcess(tmp_path, f"--endpoints={backend.address}") as gateway:
            with gateway.connect() as client:
                client.sendall(b"x")
                assert client.recv(1) == b"x"
                assert gateway.stop(number) == -number
                assert client.recv(1) == b""
            (line,) = gateway.lines("stopping")
            assert (line["signal"], line["connections"]) == (number.name, 1)

    def test_a_connection_that_has_no_endpoint_yet_is_closed(self, tmp_path: Path) -> None:
        """The endpoint's queue is full, so that it neither takes nor refuses."""
        with contextlib.ExitStack() as stack:
            full = stack.enter_context(socket.socket())
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            address = full.getsockname()
            for _ in range(2):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(address)
            gateway = stack.enter_context(GatewayProcess(tmp_path, f"--endpoints=127.0.0.1:{address[1]}"))
            before = fds(gateway)
            client = stack.enter_context(gateway.connect())
            wait_until(lambda: fds(gateway) == before + 2, "the gateway dials", TIMEOUT_S)
            assert gateway.stop() == -signal.SIGTERM
            assert client.recv(1) == b""
            assert gateway.lines("stopping")[0]["connections"] == 1

    def test_a_second_signal_does_not_wait_for_slow_readers(self, tmp_path: Path) -> None:
        started = threading.Event()

        def serve(connection: socket.socket) -> None:
            while True:
                connection.sendall(bytes(1 << 20))
                started.set()

        with (
            Backend(serve) as backend,
            GatewayProcess(tmp_path, f"--endpoints={backend.address}", patient=True) as gateway,
            gateway.connect() as slow,
        ):
            slow.recv(1)
            assert started.wait(TIMEOUT_S)
            gateway.process.send_signal(signal.SIGTERM)
            gateway.wait_for("stopping")
            assert gateway.stop(signal.SIGINT) == -signal.SIGTERM
