"""The members that tests of this folder start: their processes, their logs, and what they tell their children."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from loadtest.launcher import wait_until
from loadtest.processes import alive, children, tree

ROOT = Path(__file__).parents[2]
ROLES = ("apply", "raft", "watch", "front")
TIMEOUT_S = 20.0
READY = "all processes of the member are ready"


class Member:
    """A member in `directory`, which serves a unix socket there. `silence_s` and `stop_s` shorten its limits."""

    def __init__(self, directory: Path, silence_s: float = 10.0, stop_s: float = 10.0) -> None:
        self.directory = directory
        self.data_dir = directory / "d"
        self.log_path = directory / "log"
        self._limits = [str(silence_s), str(stop_s)]
        self._process: subprocess.Popen[bytes] | None = None
        self._pids: set[int] = set()
        self._run_base = tempfile.TemporaryDirectory()  # its path is short, as sockets need

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def launch(self, *arguments: str, environ: Mapping[str, str] | None = None) -> None:
        """Start it and wait for nothing."""
        url = "unix://k.sock"
        flags = ["--name=m", "--data-dir=d", f"--listen-client-urls={url}", "--advertise-client-urls=http://m:1"]
        flags += ["--listen-peer-urls=unix://p.sock"]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.node.member", *self._limits, *flags, *arguments],
                cwd=self.directory,
                env={**clean, "PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": self._run_base.name, **(environ or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )

    def start(self, *arguments: str, environ: Mapping[str, str] | None = None) -> None:
        """Start it and wait until it serves."""
        before = self.count(READY)
        self.launch(*arguments, environ=environ)
        self.wait_for(READY, before + 1)

    def tell(self, order: str) -> None:
        """Leave an order for the children (`tests.node.children`)."""
        self.data_dir.mkdir(mode=0o700, exist_ok=True)
        (self.data_dir / order).touch()

    def report(self, child: str) -> dict[str, Any]:
        """What a child of the newest generation was given; its place is `front0`, `raft0`, …"""
        facts = orjson.loads((self.data_dir / f"report-{child}").read_bytes())
        assert isinstance(facts, dict)
        return facts

    def lines(self) -> list[dict[str, Any]]:
        """The log, of all runs."""
        return [orjson.loads(line) for line in self.log_path.read_bytes().splitlines() if line.startswith(b"{")]

    def messages(self) -> list[str]:
        return [line["msg"] for line in self.lines()]

    def count(self, msg: str) -> int:
        return self.messages().count(msg) if self.log_path.exists() else 0

    def wait_for(self, msg: str, times: int = 1) -> None:
        """Wait until the log has the message that often."""
        wait_until(lambda: self.count(msg) >= times or self._ended(), f"{times} x {msg!r}", TIMEOUT_S)
        assert self.count(msg) >= times, self.log_path.read_text()

    def incarnation_served(self) -> int:
        """Connect as a client, wait for the answer: the incarnation of the front that took the connection."""
        address = f"/proc/{self.pid}/cwd/k.sock"
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(TIMEOUT_S)
            client.connect(address)
            return int(client.recv(100))

    def children(self) -> list[int]:
        return children(self.pid)

    def remember(self) -> None:
        """Note the processes that live now, for `all_gone`."""
        self._pids.update(tree(self.pid))

    def all_gone(self) -> bool:
        return not any(alive(pid) for pid in self._pids)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def status(self) -> int:
        """Wait for the end; the exit code, or minus the signal's number."""
        assert self._process is not None
        return self._process.wait(TIMEOUT_S)

    def close(self) -> None:
        """End it the hard way if it still lives."""
        if self._process is not None:
            for pid in reversed(tree(self._process.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait(TIMEOUT_S)
        self._run_base.cleanup()

    def _ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None
