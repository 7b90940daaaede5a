"""Runs etcdctl, and makes what it says at two servers comparable."""

import os
import re
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from loadtest.launcher import Server, reference_tool, wait_until

TIMEOUT_S = 30.0


class Said(NamedTuple):
    """What a command ended with: exit status, standard output, and its last error line."""

    status: int
    out: str
    error: str


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("ETCD_", "ETCDCTL_"))}


def command(server: Server, arguments: Sequence[str]) -> list[str]:
    return [str(reference_tool("etcdctl")), f"--endpoints={server.address}", *arguments]


def run(server: Server, *arguments: str, stdin: str = "", directory: Path | None = None) -> Said:
    """Runs etcdctl to its end."""
    done = subprocess.run(
        command(server, arguments),
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",  # -w protobuf writes bytes
        timeout=TIMEOUT_S,
        env=environment(),
        cwd=directory,
        check=False,
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error:")]
    return Said(done.returncode, done.stdout, errors[-1] if errors else "")


# What belongs to one server or one moment: (what to look for, what to put there)
_OWN = [
    (re.compile(r'("(?:cluster_id|member_id|raft_term|raftIndex|raftTerm|raftAppliedIndex|ID|leader)":)\d+'), r"\1#"),
    (re.compile(r'("(?:ClusterID|MemberID|RaftTerm|RaftIndex|RaftAppliedIndex|Leader)" : )\d+'), r"\1#"),
    (re.compile(r'("(?:dbSize|dbSizeInUse|DBSize|DBSizeInUse)"\s*:\s*)\d+'), r"\1#"),
    (re.compile(r'("[Vv]ersion"\s*:\s*)"\d+\.\d+\.\d+"'), r'\1"#"'),
    (re.compile(r"\b[\d.]+(?:µs|us|ms|s)\b"), "#s"),
    (re.compile(r'"took":"#s"'), "#s"),
    (re.compile(r"\b[0-9a-f]{15,16}\b"), "#id"),
    (re.compile(r"\b\d{17,20}\b"), "#id"),
]


def _sorted_keys(found: re.Match[str]) -> str:
    return f"attached keys([{' '.join(sorted(found[1].split()))}])"  # a set, in any order


def comparable(text: str, server: Server) -> str:
    """`text` without the server's own addresses, ids, times and sizes."""
    text = text.replace(server.address, "CLIENT").replace(server.peer_address, "PEER")
    text = re.sub(r"attached keys\(\[(.*?)\]\)", _sorted_keys, text)
    for pattern, into in _OWN:
        text = pattern.sub(into, text)
    return "\n".join(
        re.sub("-+", "-", re.sub(" +", " ", line)) if line[:1] in "|+" else line for line in text.split("\n")
    )


class Running:
    """An etcdctl command that runs until it is ended, its output read as it comes."""

    def __init__(self, server: Server, *arguments: str) -> None:
        self._server = server
        self._process = subprocess.Popen(
            command(server, arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        self._out = bytearray()
        self._errors = bytearray()
        self._readers = [
            threading.Thread(target=self._read, args=(self._process.stdout, self._out)),
            threading.Thread(target=self._read, args=(self._process.stderr, self._errors)),
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(pipe: object, into: bytearray) -> None:
        while chunk := os.read(pipe.fileno(), 65536):  # type: ignore[attr-defined]  # a pipe of Popen
            into += chunk

    @property
    def out(self) -> str:
        return self._out.decode()

    def write(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    def wait_lines(self, count: int) -> str:
        """The output once it has that many lines."""
        what = f"{count} lines, so far: {self.out!r} {self._errors.decode()!r}"
        wait_until(lambda: self.out.count("\n") >= count, what, TIMEOUT_S)
        return self.out

    def interrupt(self) -> int:
        """SIGINT, as a user does; the exit status."""
        self._process.send_signal(signal.SIGINT)
        return self.ended()

    def ended(self) -> int:
        return self._process.wait(TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()
