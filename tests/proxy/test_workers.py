"""A proxy that fails begins anew on the same socket, and gives up when that does not help."""

import os
import signal
import socket
from collections.abc import Iterator

import pytest

from kvorum.log import Level, LogFormat, Logger
from kvorum.urls import parse_url
from proxy import listeners, workers
from proxy.config import Config, StartFailed
from proxy.listeners import Place
from proxy.process import Control
from proxy.worker import Worker
from tests.proxy.test_command import config_of, started

__all__ = ["started"]

LOG = Logger((), Level.FATAL, LogFormat.JSON)


@pytest.fixture
def place() -> Iterator[Place]:
    (place,) = listeners.bind_clients("127.0.0.1:0", 1)
    yield place
    place.close()


class Lives:
    """What the worker does each time it is run: fails before or after it was ready, or ends by SIGTERM."""

    def __init__(self, *lives: str) -> None:
        self.left = list(lives)

    def __call__(self, worker: Worker, logger: Logger, control: Control) -> None:
        life = self.left.pop(0)
        with worker.clients.socket() as sock:
            sock.listen()
            with socket.create_connection(sock.getsockname()):
                pass
        if life != "unready":
            control.ready()
        if life != "ends":
            raise RuntimeError(life)
        assert isinstance(control, workers._Signals)
        control.received = signal.SIGTERM


def serve(monkeypatch: pytest.MonkeyPatch, config: Config, place: Place, lives: Lives) -> int:
    monkeypatch.setattr(workers, "run", lives)
    monkeypatch.setattr(workers, "RESTART_WAIT_S", 0.0)
    return workers._serve_alone(Worker(config, 0, None, place, None), LOG)


def test_a_failure_is_followed_by_another_life(
    monkeypatch: pytest.MonkeyPatch, started: list[Config], place: Place
) -> None:
    lives = Lives("fails", "unready", "unready", "fails", "unready", "unready", "ends")
    assert serve(monkeypatch, config_of(started), place, lives) == -signal.SIGTERM
    assert not lives.left


def test_one_that_never_gets_ready_is_given_up(
    monkeypatch: pytest.MonkeyPatch, started: list[Config], place: Place
) -> None:
    lives = Lives("fails", "unready", "unready", "unready", "ends")
    assert serve(monkeypatch, config_of(started), place, lives) == 1
    assert lives.left == ["ends"]


def test_the_two_listeners_cannot_have_one_port(place: Place) -> None:
    with socket.socket(fileno=os.dup(place.fd)) as bound:
        host, port = bound.getsockname()
    with pytest.raises(StartFailed, match=f"listen tcp {host}:{port}: bind: address already in use"):
        listeners.bind_url(parse_url(f"http://{host}:{port}"))


def test_a_place_that_is_given_up_refuses_connections(place: Place) -> None:
    sock = place.socket()
    sock.listen()
    address = sock.getsockname()
    sock.close()
    with socket.create_connection(address):
        pass  # it waits in the socket that is still held
    place.close()
    place.close()
    with pytest.raises(ConnectionRefusedError), socket.create_connection(address):
        raise AssertionError("nobody should listen")
