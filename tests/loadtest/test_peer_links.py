"""Relays between members: bytes pass, stand still in the blocked direction alone, and pass later."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from loadtest.launcher import Port, wait_until
from loadtest.peer_links import PeerLinks

QUIET_S = 0.2  # how long nothing must come: a failure to block would show within microseconds


class Member:
    """A peer listener, and the connections it has accepted."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(5)
        self.port = self.listener.getsockname()[1]
        self.accepted: list[socket.socket] = []

    def accept(self) -> socket.socket:
        connection, _ = self.listener.accept()
        connection.settimeout(5)
        self.accepted.append(connection)
        return connection

    def close(self) -> None:
        for opened in (self.listener, *self.accepted):
            opened.close()


class Pair:
    """Members `a` and `b`; this process dials as `a`."""

    def __init__(self) -> None:
        self.b = Member()
        self.ports = [Port(), Port()]
        roots = {"a": os.getpid(), "b": None}
        self.links = PeerLinks(roots.get)
        self.links.add("a", self.ports[0].number, 1)
        self.links.add("b", self.ports[1].number, self.b.port)
        self.dialled: list[socket.socket] = []

    def dial(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.ports[1].number), 5)
        self.dialled.append(connection)
        return connection

    def connected(self) -> tuple[socket.socket, socket.socket]:
        return self.dial(), self.b.accept()

    def close(self) -> None:
        for connection in self.dialled:
            connection.close()
        self.links.close()
        self.b.close()
        for port in self.ports:
            port.release()


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


def is_quiet(connection: socket.socket) -> bool:
    connection.settimeout(QUIET_S)
    try:
        return connection.recv(1) == b"never sent"
    except TimeoutError:
        return True
    finally:
        connection.settimeout(5)


def test_bytes_pass_both_ways_and_the_end_too(pair: Pair) -> None:
    one, other = pair.connected()
    one.sendall(b"ask")
    assert other.recv(9) == b"ask"
    other.sendall(b"answer")
    assert one.recv(9) == b"answer"
    assert pair.links.connections == {("a", "b"): 1}
    other.close()
    assert one.recv(9) == b""
    wait_until(lambda: not pair.links.connections, "the relay to forget the connection")


def test_one_direction_is_blocked_and_loses_nothing(pair: Pair) -> None:
    one, other = pair.connected()
    pair.links.block(("a", "b"))
    one.sendall(b"late")
    other.sendall(b"now")
    assert one.recv(9) == b"now"
    assert is_quiet(other)
    pair.links.heal()
    assert other.recv(9) == b"late"


def test_the_other_direction_is_blocked_on_the_same_connection(pair: Pair) -> None:
    one, other = pair.connected()
    pair.links.block(("b", "a"))
    one.sendall(b"now")
    other.sendall(b"late")
    assert other.recv(9) == b"now"
    assert is_quiet(one)
    pair.links.heal()
    assert one.recv(9) == b"late"


@pytest.mark.parametrize("direction", [("a", "b"), ("b", "a")])
def test_no_connection_is_made_over_a_blocked_direction(pair: Pair, direction: tuple[str, str]) -> None:
    pair.links.block(direction)
    one = pair.dial()
    one.sendall(b"hello")
    pair.b.listener.settimeout(QUIET_S)
    with pytest.raises(TimeoutError):
        pair.b.accept()
    pair.b.listener.settimeout(5)
    pair.links.heal()
    assert pair.b.accept().recv(9) == b"hello"


def test_an_isolated_member_is_cut_off_in_every_direction(pair: Pair) -> None:
    one, other = pair.connected()
    pair.links.isolate("a")
    one.sendall(b"x")
    other.sendall(b"y")
    assert is_quiet(one) and is_quiet(other)
    pair.links.heal()
    assert (other.recv(1), one.recv(1)) == (b"x", b"y")


def test_dropped_connections_can_be_made_again(pair: Pair) -> None:
    one, other = pair.connected()
    pair.links.drop_connections()
    assert one.recv(1) == other.recv(1) == b""
    one, other = pair.connected()
    one.sendall(b"again")
    assert other.recv(9) == b"again"


def test_a_fast_sender_is_held_back_and_loses_nothing(pair: Pair) -> None:
    one, other = pair.connected()
    data = os.urandom(1 << 20) * 32
    one.settimeout(QUIET_S)
    sent = 0
    with pytest.raises(TimeoutError):  # the relay does not take what nobody reads
        while sent < len(data):
            sent += one.send(data[sent:])
    one.settimeout(5)
    received = bytearray()
    while len(received) < sent:
        received += other.recv(1 << 20)
    assert bytes(received) == data[:sent]


def test_a_member_that_does_not_listen_ends_the_connection(pair: Pair) -> None:
    connection = socket.create_connection(("127.0.0.1", pair.ports[0].number), 5)  # `a` listens nowhere
    pair.dialled.append(connection)
    assert connection.recv(1) == b""


def test_a_stranger_is_sent_away(pair: Pair) -> None:
    """Whose bytes they are is known for certain: a process that is no member's gets no connection."""
    code = f"import socket; print(socket.create_connection(('127.0.0.1', {pair.ports[1].number})).recv(1))"
    # `setsid --fork` ends at once, so that its child is no descendant of this process, which is member `a`
    command = ["setsid", "--fork", sys.executable, "-W", "ignore", "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as stranger:
        assert stranger.stdout is not None
        assert stranger.stdout.read() == "b''\n"
