"""Dialing: addresses one after the other, names looked up beside the loop, time limits."""

import select
import socket
import threading
from collections.abc import Iterator, Sequence

import pytest

from gateway.dial import DIAL_TIMEOUT_S, NAME_AGE_S, Dialer, is_address
from tests.gateway.backends import TIMEOUT_S, Backend

UNUSED = "127.0.0.77"
"""Nobody listens here."""


class Bench:
    """A dialer, its loop, its clock, and names."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.names: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self.ended: list[tuple[socket.socket | None, str, bool]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.epoll = select.epoll()
        self.dialer = Dialer(self.epoll, self.lookup, lambda: self.now_s)

    def lookup(self, host: str) -> Sequence[str]:
        assert self.gate.wait(TIMEOUT_S)
        self.asked.append(host)
        if host not in self.names:
            raise OSError(0, "No such host")
        return self.names[host]

    def dial(self, host: str, port: int) -> None:
        self.dialer.dial(host, port, lambda sock, error, no_room: self.ended.append((sock, error, no_room)))

    def run(self, count: int) -> None:
        """Until so many dials have ended."""
        self.dialer.settle()
        while len(self.ended) < count:
            events = self.epoll.poll(TIMEOUT_S)
            assert events
            for fd, _ in events:
                if fd in self.dialer.pending:
                    self.dialer.on_event(fd)
                else:
                    assert fd == self.dialer.wake_fd
                    self.dialer.on_lookups()
            self.dialer.settle()

    def result(self, host: str, port: int) -> tuple[str, str, bool]:
        """Dial and wait: the address that was reached, or why none was."""
        self.dial(host, port)
        self.run(len(self.ended) + 1)
        sock, error, no_room = self.ended[-1]
        return (str(sock.getpeername()[0]) if sock is not None else "", error, no_room)

    def close(self) -> None:
        self.dialer.close()
        for sock, _, _ in self.ended:
            if sock is not None:
                sock.close()
        self.epoll.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend() as made:
        yield made


def test_an_address_is_dialed_without_a_lookup(bench: Bench, backend: Backend) -> None:
    assert bench.result("127.0.0.1", backend.port) == ("127.0.0.1", "", False)
    assert bench.asked == []
    sock = bench.ended[0][0]
    assert sock is not None
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_a_refusal_is_told_as_it_is(bench: Bench, backend: Backend) -> None:
    refused = f"dial tcp {UNUSED}:{backend.port}: connect: connection refused"
    assert bench.result(UNUSED, backend.port) == ("", refused, False)


def test_the_addresses_of_a_name_are_tried_in_order(bench: Bench, backend: Backend) -> None:
    bench.names["infra0"] = [UNUSED, "::1", "127.0.0.1"]
    assert bench.result("infra0", backend.port) == ("127.0.0.1", "", False)


def test_a_name_is_looked_up_again_when_its_addresses_are_old(bench: Bench, backend: Backend) -> None:
    bench.dialer.know("infra0", [UNUSED])
    bench.names["infra0"] = ["127.0.0.1"]
    bench.now_s += NAME_AGE_S / 2
    assert bench.result("infra0", backend.port)[0] == ""
    assert bench.asked == []
    bench.now_s += NAME_AGE_S
    assert bench.result("infra0", backend.port)[0] == "127.0.0.1"
    assert bench.result("infra0", backend.port)[0] == "127.0.0.1"
    assert bench.asked == ["infra0"]


def test_the_last_addresses_stay_while_names_cannot_be_looked_up(bench: Bench, backend: Backend) -> None:
    bench.dialer.know("infra0", ["127.0.0.1"])
    bench.now_s += 2 * NAME_AGE_S
    for _ in range(3):
        assert bench.result("infra0", backend.port)[0] == "127.0.0.1"
    assert bench.asked == ["infra0"]
    assert bench.result("nowhere", backend.port) == ("", "lookup nowhere: no such host", False)


def test_dials_of_one_name_wait_for_one_lookup(bench: Bench, backend: Backend) -> None:
    bench.names["infra0"] = ["127.0.0.1"]
    bench.gate.clear()
    for _ in range(3):
        bench.dial("infra0", backend.port)
    bench.gate.set()
    bench.run(3)
    assert all(sock is not None for sock, _, _ in bench.ended)
    assert bench.asked == ["infra0"]


def test_an_address_that_does_not_answer_is_given_up_in_time(bench: Bench, backend: Backend) -> None:
    """Full: its queue of connections takes no more, and the kernel lets the next one wait."""
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind((UNUSED, 0))
        full.listen(0)
        port = full.getsockname()[1]
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex((UNUSED, port))
        bench.dialer.know("infra0", [UNUSED])
        assert bench.dialer.due_s == float("inf")
        bench.dial("infra0", port)
        assert bench.dialer.due_s == bench.now_s + DIAL_TIMEOUT_S
        bench.now_s += DIAL_TIMEOUT_S
        bench.dialer.on_time()
        bench.run(1)
        assert bench.ended == [(None, f"dial tcp {UNUSED}:{port}: i/o timeout", False)]
        assert bench.dialer.due_s == float("inf")


def test_closing_gives_up_what_is_under_way(backend: Backend) -> None:
    bench = Bench()
    bench.dial("127.0.0.1", backend.port)
    bench.gate.clear()
    bench.dial("infra0", backend.port)
    bench.close()
    bench.gate.set()
    assert bench.ended == []


def test_addresses_and_names() -> None:
    assert is_address("127.0.0.1")
    assert is_address("::1")
    assert not is_address("localhost")
    assert not is_address("127.1")
