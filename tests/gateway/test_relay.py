"""Bytes between sockets through pipes: nothing is lost, repeated or reordered, however stuck the other side is."""

import random
import select
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.relay import FREE_PIPES_MAX, PIPE_BYTES, SMALL_READ_BYTES, Relay

RESET = struct.pack("ii", 1, 0)
MANY_BYTES = 1_000_000_000
"""More than all socket buffers and pipes of a connection hold."""


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    one.setblocking(False)
    other.setblocking(False)
    return one, other


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class Bench:
    """A relay, its loop, and the outer ends of connections that pass through it."""

    def __init__(self, pipes_max: int = 4) -> None:
        self.epoll = select.epoll()
        self.relay = Relay(self.epoll, pipes_max)
        self.ends: list[socket.socket] = []

    def connect(self) -> tuple[socket.socket, socket.socket]:
        client, inner = tcp_pair()
        outer, backend = tcp_pair()
        self.ends += [client, backend]
        self.relay.join(inner, outer)
        return client, backend

    def turn(self, timeout_s: float = 0.0) -> int:
        """One batch of events; gives how many there were."""
        events = self.epoll.poll(timeout_s)
        for fd, mask in events:
            side = self.relay.sides.get(fd)
            if side is not None:
                self.relay.on_event(side, mask)
        self.relay.close_dead()
        return len(events)

    def settle(self) -> None:
        """Until nothing happens any more."""
        while self.turn(0.05):
            pass

    def read(self, end: socket.socket, size: int) -> bytes:
        """So many bytes, or fewer if they end; the relay goes on meanwhile."""
        chunks = []
        while size:
            try:
                chunk = end.recv(min(size, 1 << 20))
            except BlockingIOError:
                self.turn(0.05)
                continue
            if not chunk:
                break
            chunks.append(chunk)
            size -= len(chunk)
        return b"".join(chunks)

    def fill(self, end: socket.socket) -> int:
        """Send zeros until nothing takes them; gives how many."""
        sent = 0
        while True:
            try:
                sent += end.send(bytes(1 << 20))
            except BlockingIOError:
                if not self.turn(0.05):
                    return sent
            assert sent < MANY_BYTES

    def close(self) -> None:
        for end in self.ends:
            end.close()
        self.relay.close()
        self.epoll.close()


@pytest.fixture(params=[4, 1, 0], ids=["pipes", "one-pipe", "no-pipe"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """With pipes for all that is stuck, for one direction, and for none."""
    before = open_fds()
    made = Bench(request.param)
    yield made
    made.close()
    assert open_fds() == before


def is_reset(end: socket.socket) -> bool:
    try:
        return end.recv(1) == b"never"
    except ConnectionResetError:
        return True


def test_what_one_end_sends_the_other_receives(bench: Bench) -> None:
    client, backend = bench.connect()
    client.send(b"ping")
    assert bench.read(backend, 4) == b"ping"
    backend.send(b"pong")
    assert bench.read(client, 4) == b"pong"


def test_an_end_passes_alone_and_the_last_one_closes(bench: Bench) -> None:
    client, backend = bench.connect()
    client.send(b"all")
    client.shutdown(socket.SHUT_WR)
    assert bench.read(backend, 100) == b"all"
    bench.settle()
    assert bench.relay.connections == 1
    backend.send(b"answer")
    backend.close()
    assert bench.read(client, 100) == b"answer"
    bench.settle()
    assert bench.relay.connections == 0


@pytest.mark.parametrize("breaker", [0, 1])
def test_a_reset_passes_as_a_reset(bench: Bench, breaker: int) -> None:
    ends = bench.connect()
    ends[breaker].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    ends[breaker].close()
    bench.settle()
    assert is_reset(ends[1 - breaker])
    assert bench.relay.connections == 0


@pytest.mark.parametrize("breaker", [0, 1])
def test_a_reset_ends_a_connection_that_is_stuck(bench: Bench, breaker: int) -> None:
    """Whether the one breaks that sends or the one that does not read."""
    ends = bench.connect()
    bench.fill(ends[0])
    ends[breaker].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    ends[breaker].close()
    bench.settle()
    assert bench.relay.connections == 0
    other, backend = bench.connect()
    other.send(b"x")
    assert bench.read(backend, 1) == b"x"


def test_a_reset_after_the_other_way_has_ended(bench: Bench) -> None:
    client, backend = bench.connect()
    client.shutdown(socket.SHUT_WR)
    bench.settle()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()
    bench.settle()
    with pytest.raises(BrokenPipeError):
        backend.send(b"x")
    assert bench.relay.connections == 0


def test_a_receiver_that_does_not_read_stops_the_sender_and_nobody_else(bench: Bench) -> None:
    stuck = [bench.connect() for _ in range(3)]
    sent = [bench.fill(client) for client, _ in stuck]
    client, backend = bench.connect()
    for _ in range(3):
        client.send(b"ping")
        assert bench.read(backend, 4) == b"ping"
    for (_, stuck_backend), size in zip(stuck, sent, strict=True):
        assert bench.read(stuck_backend, size) == bytes(size)


def test_waiting_for_a_receiver_costs_nothing(bench: Bench) -> None:
    """Epoll tells of nothing while all are stuck, in whatever way the other direction stands."""
    for shut in (False, True):
        client, backend = bench.connect()
        bench.fill(client)
        if shut:
            client.shutdown(socket.SHUT_WR)
            backend.shutdown(socket.SHUT_WR)
        bench.settle()
        assert bench.turn(0.05) == 0


def test_an_end_behind_bytes_that_are_stuck_comes_after_them(bench: Bench) -> None:
    client, backend = bench.connect()
    sent = bench.fill(client)
    client.shutdown(socket.SHUT_WR)
    backend.shutdown(socket.SHUT_WR)
    bench.settle()
    assert bench.read(client, 1) == b""
    assert bench.read(backend, sent + 1) == bytes(sent)
    bench.settle()
    assert bench.relay.connections == 0


def test_both_directions_can_be_stuck_at_once(bench: Bench) -> None:
    client, backend = bench.connect()
    to_backend, to_client = bench.fill(client), bench.fill(backend)
    assert bench.read(backend, to_backend) == bytes(to_backend)
    assert bench.read(client, to_client) == bytes(to_client)


def test_pipes_are_bounded_and_what_has_none_is_held_in_little_memory() -> None:
    bench = Bench(pipes_max=2)
    try:
        before = open_fds()
        connections = [bench.connect() for _ in range(6)]
        for client, _ in connections:
            bench.fill(client)
        assert open_fds() - before - 6 * 4 == 2 * 2
        sides = list(bench.relay.sides.values())
        assert sum(side.pipe is not None for side in sides) == 2
        assert max(side.pipe_bytes for side in sides) <= PIPE_BYTES
        held = [len(side.held) for side in sides if side.held]
        assert len(held) == 4
        assert max(held) <= SMALL_READ_BYTES
    finally:
        bench.close()


def test_few_pipes_are_kept_when_nothing_is_stuck_any_more() -> None:
    bench = Bench(pipes_max=FREE_PIPES_MAX + 4)
    try:
        before = open_fds()
        connections = [bench.connect() for _ in range(FREE_PIPES_MAX + 4)]
        sent = [bench.fill(client) for client, _ in connections]
        for (_, backend), size in zip(connections, sent, strict=True):
            bench.read(backend, size)
        bench.settle()
        assert open_fds() - before - 4 * len(connections) == 2 * FREE_PIPES_MAX
    finally:
        bench.close()


def test_ending_all_sends_what_was_read_before(bench: Bench) -> None:
    idle, idle_backend = bench.connect()
    client, backend = bench.connect()
    bench.fill(client)
    waiting = sum(side.pipe_bytes + len(side.held) for side in bench.relay.sides.values())
    assert waiting
    bench.relay.end_all()
    bench.settle()
    assert bench.relay.connections == 1
    assert bench.read(idle, 1) == bench.read(idle_backend, 1) == b""
    received = 0
    while chunk := bench.read(backend, 1 << 20):
        received += len(chunk)
    assert received >= waiting
    bench.settle()
    assert bench.relay.connections == 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), pipes_max=st.integers(0, 2))
def test_any_order_of_sends_and_reads_gives_the_bytes_in_order(seed: int, pipes_max: int) -> None:
    draw = random.Random(seed)
    bench = Bench(pipes_max)
    try:
        flows: list[tuple[socket.socket, socket.socket, list[bytes], list[bytes]]] = []
        for _ in range(3):
            client, backend = bench.connect()
            flows += [(client, backend, [], []), (backend, client, [], [])]
        for _ in range(draw.randrange(10, 100)):
            sender, receiver, sent, received = draw.choice(flows)
            match draw.randrange(3):
                case 0:
                    message = draw.randbytes(draw.choice((1, 1000, 300_000, 2_000_000)))
                    try:
                        sent.append(message[: sender.send(message)])
                    except BlockingIOError:
                        bench.turn()
                case 1:
                    try:
                        received.append(receiver.recv(draw.choice((10, 100_000, 1 << 20))))
                    except BlockingIOError:
                        bench.turn()
                case _:
                    bench.turn()
        for sender, _, _, _ in flows:
            sender.shutdown(socket.SHUT_WR)
        for _, receiver, sent, received in flows:
            while chunk := bench.read(receiver, 1 << 20):
                received.append(chunk)
            assert b"".join(received) == b"".join(sent)
        bench.settle()
        assert bench.relay.connections == 0
    finally:
        bench.close()
