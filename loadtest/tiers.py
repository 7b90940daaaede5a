"""Starts and stops what stands in front of a cluster: proxies and gateways, of kvorum or of the reference."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path

from loadtest import processes
from loadtest.launcher import READY_TIMEOUT_S, STOP_TIMEOUT_S, Kind, Port, reference_tool, wait_until


class Tier(Enum):
    """What stands between clients and members."""

    PROXY = "proxy"
    GATEWAY = "gateway"


_READY = {Tier.PROXY: b"started gRPC proxy", Tier.GATEWAY: b"ready to proxy client requests"}
_PROGRAMS = {
    (Kind.KVORUM, Tier.PROXY): [sys.executable, "-m", "proxy", "start"],
    (Kind.KVORUM, Tier.GATEWAY): [sys.executable, "-m", "gateway", "start"],
}


def _program(kind: Kind, tier: Tier) -> list[str]:
    if kind is Kind.KVORUM:
        return _PROGRAMS[kind, tier]
    return [str(reference_tool("etcd")), "grpc-proxy" if tier is Tier.PROXY else "gateway", "start"]


class TierServer:
    """A proxy or a gateway that runs."""

    def __init__(self, kind: Kind, tier: Tier, address: str, process: subprocess.Popen[bytes], log_path: Path) -> None:
        self.kind = kind
        self.tier = tier
        self.address = address
        """`host:port` of its listener."""
        self.log_path = log_path
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_ready(self) -> bool:
        """True once it serves; raises RuntimeError when it has ended."""
        status = self._process.poll()
        if _READY[self.tier] in self.log_path.read_bytes():
            return True
        if status is not None:
            raise RuntimeError(f"the {self.tier.value} ended with status {status}:\n{self.log_tail()}")
        return False

    def log_tail(self, lines: int = 40) -> str:
        """The last lines of the log, for a failure's report."""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        """SIGTERM; SIGKILL to all its processes when that is not enough."""
        pids = processes.tree(self._process.pid)
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            for pid in pids:
                processes.send(pid, signal.SIGKILL)
            self._process.wait()
            text = f"the {self.tier.value} did not stop within {STOP_TIMEOUT_S} s of SIGTERM"
            raise TimeoutError(f"{text}:\n{self.log_tail()}") from None


@contextlib.contextmanager
def running_tier(
    kind: Kind, tier: Tier, endpoints: Sequence[str], flags: Mapping[str, str] | None = None
) -> Iterator[TierServer]:
    """A proxy or gateway in front of these `host:port`s, ready to serve; ended on exit."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{kind.value}-{tier.value}-")))
        port = Port()
        stack.callback(port.release)
        address = f"127.0.0.1:{port.number}"
        given = {"listen-addr": address, "endpoints": ",".join(endpoints)}
        if tier is Tier.PROXY:
            given |= {"advertise-client-url": address, "data-dir": str(directory / "data")}
        command = _program(kind, tier) + [f"--{name}={value}" for name, value in (given | dict(flags or {})).items()]
        log_path = directory / f"{tier.value}.log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        with log_path.open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        server = TierServer(kind, tier, address, process, log_path)
        stack.callback(server.stop)
        try:
            wait_until(server.is_ready, f"the {tier.value} of {kind.value} to be ready", READY_TIMEOUT_S)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{server.log_tail()}") from None
        yield server
