"""A cluster on this machine: python -m ops.local_cluster (see --help), or `make cluster`.

Each member has its data in FOLDER/NAME and its log in FOLDER/NAME.log. Ctrl-C stops all, the last one started first; a
start with the same folder goes on with its data.
"""

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

READY_TEXT = b"ready to serve client requests"
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0  # a member itself gives up after 10 s
POLL_S = 0.05
DEFAULT_PORTS = (2379, 22379, 32379, 42379, 52379)
"""Of clients; peers use the next one."""
DESCRIPTION_NAME = "cluster.json"
TAIL_LINES = 5


class ClusterError(Exception):
    """Why there is no cluster, for the user."""


class Member:
    """One member: where it lies and, while it runs, its process."""

    def __init__(self, name: str, folder: Path, client_port: int) -> None:
        self.name = name
        self.data_dir = folder / name
        self.log_path = folder / f"{name}.log"
        self.client_url = f"http://127.0.0.1:{client_port}"
        self.peer_url = f"http://127.0.0.1:{client_port + 1}"
        self.endpoint = f"127.0.0.1:{client_port}"
        self.is_ready = False
        self.process: subprocess.Popen[bytes] | None = None
        self._read_to = 0

    def command(self, program: Sequence[str], initial_cluster: str, flags: Sequence[str]) -> list[str]:
        """The command line that starts it."""
        return [
            *program,
            f"--name={self.name}",
            f"--data-dir={self.data_dir}",
            f"--listen-client-urls={self.client_url}",
            f"--advertise-client-urls={self.client_url}",
            f"--listen-peer-urls={self.peer_url}",
            f"--initial-advertise-peer-urls={self.peer_url}",
            f"--initial-cluster={initial_cluster}",
            "--initial-cluster-token=local",
            *flags,
        ]

    def start(self, command: Sequence[str]) -> None:
        with self.log_path.open("ab") as log:
            self._read_to = log.tell()
            # a process group of its own: the terminal's Ctrl-C is ours alone, so that we choose the order
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0)

    def look(self) -> None:
        """Reads on in the log, whole lines only, for the one that says that clients are served."""
        with self.log_path.open("rb") as log:
            log.seek(self._read_to)
            for line in log:
                if not line.endswith(b"\n"):
                    break
                self._read_to += len(line)
                self.is_ready = self.is_ready or READY_TEXT in line

    def ended(self) -> str | None:
        """How the process ended, or None while it runs."""
        assert self.process is not None
        status = self.process.poll()
        if status is None:
            return None
        return f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"

    def stop(self) -> bool:
        """SIGTERM, and SIGKILL to its whole group when that is not enough; False then."""
        assert self.process is not None
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_TIMEOUT_S)
            return True
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return False

    def tail(self) -> str:
        """The log's last lines."""
        lines = self.log_path.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        return "\n".join(f"    {line}" for line in lines)


class LocalCluster:
    """All members, from their start to their stop."""

    def __init__(self, folder: Path, ports: Sequence[int], program: Sequence[str], flags: Sequence[str]) -> None:
        self.members = [Member(f"infra{number}", folder, port) for number, port in enumerate(ports)]
        initial_cluster = ",".join(f"{member.name}={member.peer_url}" for member in self.members)
        self._commands = {member.name: member.command(program, initial_cluster, flags) for member in self.members}
        self._signal: signal.Signals | None = None

    def run(self, out: IO[str]) -> int:
        """Until a signal says stop or no member is left; returns the exit status."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        try:
            self._start(out)
            self._watch(out)
        finally:
            clean = self._stop(out)
        return 0 if clean else 1

    def _on_signal(self, number: int, _: object) -> None:
        self._signal = signal.Signals(number)

    def _start(self, out: IO[str]) -> None:
        """Returns when all serve, or when told to stop; raises ClusterError when one ends before."""
        began = time.monotonic()
        for member in self.members:
            member.start(self._commands[member.name])
        while not all(member.is_ready for member in self.members):
            if self._signal is not None:
                return
            time.sleep(POLL_S)
            for member in self.members:
                member.look()
                how = member.ended()
                if how is not None:
                    where = f"{member.log_path} ends with:\n{member.tail()}"
                    raise ClusterError(f"{member.name} ended with {how} before it served; {where}")
            if time.monotonic() - began > READY_TIMEOUT_S:
                waiting = ", ".join(member.name for member in self.members if not member.is_ready)
                raise ClusterError(f"not ready after {READY_TIMEOUT_S:.0f} s: {waiting}")
        for member in self.members:
            assert member.process is not None
            print(f"{member.name}  {member.client_url}  pid {member.process.pid}  log {member.log_path}", file=out)
        endpoints = ",".join(member.endpoint for member in self.members)
        print(f"all serve after {time.monotonic() - began:.1f} s; Ctrl-C stops them\n", file=out)
        print(f"    etcdctl --endpoints={endpoints} endpoint status --write-out=table\n", file=out, flush=True)

    def _watch(self, out: IO[str]) -> None:
        """Reports members that end, until told to stop or none is left."""
        running = list(self.members)
        while self._signal is None:
            for member in list(running):
                how = member.ended()
                if how is not None:
                    running.remove(member)
                    print(f"{member.name} ended with {how}; {member.log_path} ends with:\n{member.tail()}", file=out)
                    print(f"start it again with:\n    {shlex.join(self._commands[member.name])}", file=out, flush=True)
            if not running:
                raise ClusterError("no member is left")
            time.sleep(POLL_S)

    def _stop(self, out: IO[str]) -> bool:
        clean = True
        for member in reversed(self.members):
            if member.process is None or member.ended() is not None:
                continue
            if member.stop():
                print(f"{member.name} stopped", file=out, flush=True)
            else:
                clean = False
                print(f"{member.name} did not stop within {STOP_TIMEOUT_S:.0f} s and was killed", file=out, flush=True)
        return clean


def prepare(folder: Path, size: int | None, ports: Sequence[int] | None, fresh: bool) -> list[int]:
    """The members' client ports: those that the folder was made with, or new ones, which it then remembers.

    Raises ClusterError when the folder holds something else than what is asked for.
    """
    description = folder / DESCRIPTION_NAME
    if folder.exists() and not description.exists() and any(folder.iterdir()):
        raise ClusterError(f"{folder} is no cluster of this command")
    if fresh and folder.exists():
        shutil.rmtree(folder)
    if description.exists():
        known = [int(port) for port in json.loads(description.read_text())["client-ports"]]
        if size is not None and size != len(known):
            raise ClusterError(f"{folder} holds {len(known)} members, not {size}: --fresh removes them")
        if ports is not None and list(ports) != known:
            raise ClusterError(f"{folder} has the client ports {known}, not {list(ports)}: --fresh removes it")
        return known
    chosen = list(DEFAULT_PORTS[: size or 3] if ports is None else ports)
    if size is not None and size != len(chosen):
        raise ClusterError(f"{size} members, but {len(chosen)} ports")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    description.write_text(json.dumps({"client-ports": chosen}) + "\n")
    return chosen


def _ports(text: str) -> list[int]:
    ports = [int(part) for part in text.split(",")]
    if not all(0 < port < 65535 for port in ports) or len({*ports, *(port + 1 for port in ports)}) != 2 * len(ports):
        raise argparse.ArgumentTypeError(f"{text}: each member takes a port and the one after it")
    return ports


def _size(text: str) -> int:
    size = int(text)
    if not 1 <= size <= len(DEFAULT_PORTS):
        raise argparse.ArgumentTypeError(f"{text} is not in 1 to {len(DEFAULT_PORTS)}")
    return size


def arguments() -> argparse.Namespace:
    default_ports = ",".join(str(port) for port in DEFAULT_PORTS[:3])
    parser = argparse.ArgumentParser(
        prog="python -m ops.local_cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=_size, help="number of members (default 3, or what the folder has)")
    parser.add_argument("--folder", type=Path, default=Path("cluster.kvorum"), help="default ./cluster.kvorum")
    parser.add_argument("--fresh", action="store_true", help="remove the folder's members and their data first")
    parser.add_argument(
        "--ports", type=_ports, help=f"of clients, peers use the next one (default {default_ports}, or the folder's)"
    )
    parser.add_argument("--program", help="another server that takes the same flags (default kvorum)")
    parser.add_argument(
        "flags", nargs="*", metavar="-- FLAG", help="flags for every member, such as -- --log-level=debug"
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    try:
        ports = prepare(args.folder, args.size, args.ports, args.fresh)
        program = shlex.split(args.program) if args.program else [sys.executable, "-m", "node"]
        cluster = LocalCluster(args.folder, ports, program, args.flags)
        sys.exit(cluster.run(sys.stdout))
    except ClusterError as error:
        sys.exit(f"local_cluster: {error}")


if __name__ == "__main__":
    main()
