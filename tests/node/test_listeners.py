"""Listeners for clients and members (behaviour S37, HT22-HT24, HT27)."""

import os
import socket
from pathlib import Path

import pytest

from kvorum.listening import ListenFailed
from kvorum.urls import Url, parse_url
from loadtest.launcher import Port
from node import listeners
from node.child import Listener, Serves
from node.flags import Start, parse


def bind(*texts: str, reuse_port: bool = False) -> list[Listener]:
    bound = listeners.bind([(parse_url(text), Serves.ALL) for text in texts], reuse_port)
    listeners.listen(bound)
    return bound


def bound_name(fd: int) -> object:
    with socket.socket(fileno=os.dup(fd)) as view:
        return view.getsockname()


@pytest.fixture
def port() -> int:
    held = Port()
    held.release()
    return held.number


@pytest.mark.parametrize(
    ("host", "name"), [("127.0.0.1", "127.0.0.1"), ("localhost", "127.0.0.1"), ("0.0.0.0", "0.0.0.0")]
)
def test_tcp(host: str, name: str, port: int) -> None:
    bound = bind(f"http://{host}:{port}")
    try:
        assert bound_name(bound[0].fd) == (name, port)
        assert not os.get_blocking(bound[0].fd)
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
    finally:
        listeners.close(bound)


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="no IPv6 here")
def test_the_unspecified_ipv6_address_takes_ipv4_too(port: int) -> None:
    bound = bind(f"http://[::]:{port}")
    try:
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, port), timeout=5):
                pass
    finally:
        listeners.close(bound)


def test_a_port_in_use(port: int) -> None:
    """S37; what was bound before is closed again."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # an earlier test may have used the port
        other.bind(("127.0.0.1", port))
        other.listen()
        before = len(list(Path("/proc/self/fd").iterdir()))
        with pytest.raises(ListenFailed) as raised:
            bind("http://127.0.0.1:0", f"http://127.0.0.1:{port}")
        assert str(raised.value) == f"listen tcp 127.0.0.1:{port}: bind: address already in use"
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_nobody_is_let_in_before_the_member_listens(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bound = listeners.bind([(parse_url(f"http://127.0.0.1:{port}"), Serves.ALL)], False)
    bound += listeners.bind([(parse_url("unix://k"), Serves.ALL)], False)
    try:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
        with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
            client.connect("k")
        listeners.listen(bound)
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    finally:
        listeners.close(bound)


def test_members_are_let_in_by_raft(port: int) -> None:
    bound = listeners.bind([(parse_url(f"http://127.0.0.1:{port}"), Serves.PEERS)], False)
    try:
        listeners.listen(bound)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
    finally:
        listeners.close(bound)


def test_two_that_bind_before_either_listens(port: int) -> None:
    first, second = (listeners.bind([(parse_url(f"http://127.0.0.1:{port}"), Serves.ALL)], False) for _ in "12")
    try:
        listeners.listen(first)
        with pytest.raises(ListenFailed, match="address already in use"):
            listeners.listen(second)
    finally:
        listeners.close([*first, *second])


def test_two_that_reuse_a_port(port: int) -> None:
    first = bind(f"http://127.0.0.1:{port}", reuse_port=True)
    second = bind(f"http://127.0.0.1:{port}", reuse_port=True)
    listeners.close([*first, *second])


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://192.0.2.1:1", "listen tcp 192.0.2.1:1: bind: cannot assign requested address"),
        ("http://[2001:db8::1]:1", "listen tcp [2001:db8::1]:1: bind: cannot assign requested address"),
        ("http://127.0.0.1:99999", "listen tcp: address 99999: invalid port"),
        ("http://127.0.0.1:999999999999", "listen tcp: address 999999999999: invalid port"),
        ("unix://none/s", "listen unix none/s: bind: no such file or directory"),
    ],
)
def test_what_cannot_be_bound(url: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ListenFailed) as raised:
        bind(url)
    assert str(raised.value) == reason


def test_a_unix_socket_is_a_file_and_goes_with_its_listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bound = bind("unix://localhost:1234")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("localhost:1234")
    again = bind("unix://localhost:1234")
    listeners.close(again)
    assert list(tmp_path.iterdir()) == []
    listeners.close(bound)


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "k").write_text("mine")
    with pytest.raises(ListenFailed, match="address already in use"):
        bind("unix://k")
    assert (tmp_path / "k").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "places"),
    [
        ((), [("localhost:2380", Serves.PEERS), ("localhost:2379", Serves.ALL)]),
        (
            (
                "--listen-client-http-urls=http://127.0.0.1:1",
                "--listen-metrics-urls=http://127.0.0.1:2",
                "--listen-peer-urls=http://127.0.0.1:4,http://127.0.0.1:3",
            ),
            [
                ("127.0.0.1:3", Serves.PEERS),
                ("127.0.0.1:4", Serves.PEERS),
                ("localhost:2379", Serves.GRPC),
                ("127.0.0.1:1", Serves.HTTP),
                ("127.0.0.1:2", Serves.METRICS),
            ],
        ),
    ],
)
def test_what_each_listener_serves(arguments: tuple[str, ...], places: list[tuple[str, Serves]]) -> None:
    parsed = parse(["kvorum", *arguments], {}, lambda path: Path(path).read_bytes())
    assert isinstance(parsed, Start)
    assert listeners.wanted(parsed.config) == [(Url("http", host), serves) for host, serves in places]
