"""What stands behind a gateway in tests, and the gateway itself as a process."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
import pytest

from loadtest.launcher import Kind, Port, reference_tool, wait_until
from tests.servers import SUBJECT

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 30.0

READY = "ready to proxy client requests"
DEACTIVATED = "deactivated endpoint"
ACTIVATED = "activated"
STILL_INACTIVE = "failed to activate endpoint (stay inactive for another interval)"

Serve = Callable[[socket.socket], None]


def echo(connection: socket.socket) -> None:
    """Send back what comes until it ends, then end."""
    while chunk := connection.recv(1 << 16):
        connection.sendall(chunk)


class Backend:
    """A server on loopback; each connection is served by `serve` in a thread and closed after it."""

    def __init__(self, serve: Serve = echo, port: int = 0) -> None:
        self._serve = serve
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.accepted = 0
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("127.0.0.1", port))
        self.listener.listen(1024)
        self.port = int(self.listener.getsockname()[1])
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """How many are open now."""
        with self._lock:
            return len(self._open)

    def close(self) -> None:
        """Stop listening and end all connections."""
        self.listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(TIMEOUT_S)
        self.listener.close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.listener.fileno() >= 0:
            self.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            connection.settimeout(TIMEOUT_S)
            with self._lock:
                self._open.add(connection)
                self.accepted += 1
            thread = threading.Thread(target=self._run, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _run(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError):
            self._serve(connection)
        with self._lock:
            self._open.discard(connection)


ours_alone = pytest.mark.skipif(SUBJECT is Kind.REFERENCE, reason="the reference does otherwise (decision 0014)")

PROGRAMS = {
    Kind.KVORUM: [sys.executable, "-m", "gateway"],
    Kind.REFERENCE: [str(reference_tool("etcd")), "gateway"],
}

PATIENT = [
    *(sys.executable, "-c"),
    "import sys, gateway.process as p; p.STOP_S = 3600.0; from gateway.command import main; main(sys.argv[1:])",
]


class GatewayProcess:
    """`gateway start` on a port of its own, with these flags besides; its log is kept in `directory`.

    It is kvorum's, or what KVORUM_SUBJECT puts in its place. `patient`: kvorum's, which waits an hour when it stops.
    """

    def __init__(self, directory: Path, *flags: str, fds: int | None = None, patient: bool = False) -> None:
        self.log_path = directory / "gateway.log"
        self._port = Port()
        self.address = ("127.0.0.1", self._port.number)
        limit = ["prlimit", f"--nofile={fds}"] if fds is not None else []
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *limit,
                    *(PATIENT if patient else PROGRAMS[SUBJECT]),
                    "start",
                    f"--listen-addr=127.0.0.1:{self._port.number}",
                    *flags,
                ],
                cwd=directory,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self.wait_for(READY)
        except BaseException:
            self.close()
            raise

    def connect(self) -> socket.socket:
        connection = socket.create_connection(self.address, TIMEOUT_S)
        connection.settimeout(TIMEOUT_S)
        return connection

    def lines(self, msg: str = "") -> list[dict[str, Any]]:
        """The log's lines; those with this message, if one is given."""
        whole = self.log_path.read_bytes().rpartition(b"\n")[0]
        lines = [orjson.loads(line) for line in whole.splitlines() if line.startswith(b"{")]
        return [line for line in lines if not msg or line["msg"] == msg]

    def wait_for(self, msg: str, count: int = 1) -> list[dict[str, Any]]:
        def is_there() -> bool:
            return len(self.lines(msg)) >= count or self.process.poll() is not None

        wait_until(is_there, f"{count} lines of {msg}", TIMEOUT_S)
        assert len(self.lines(msg)) >= count, self.log_path.read_text()
        return self.lines(msg)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it by a signal; gives its exit status."""
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT_S)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(TIMEOUT_S)
        self._port.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def read_all(connection: socket.socket) -> bytes:
    """All bytes up to the end."""
    chunks = []
    while chunk := connection.recv(1 << 16):
        chunks.append(chunk)
    return b"".join(chunks)


def ask(gateway: GatewayProcess, message: bytes) -> bytes:
    """Send, and read as much or to the end."""
    with gateway.connect() as connection:
        connection.sendall(message)
        return read(connection, len(message))


def read(connection: socket.socket, size: int) -> bytes:
    """So many bytes, or all up to the end."""
    chunks = []
    while size and (chunk := connection.recv(min(size, 1 << 16))):
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)
