"""What a tree of processes costs, read from /proc: the pids, their CPU time and their memory."""

import contextlib
import os
import signal
import time
from pathlib import Path


def _stat(pid: int) -> list[str] | None:
    """/proc/PID/stat after the command's name (proc(5)): [0] state, [1] parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def alive(pid: int) -> bool:
    """True while `pid` runs; a zombie that nobody has waited for does not."""
    fields = _stat(pid)
    return fields is not None and fields[0] not in "ZX"


def children(root: int) -> list[int]:
    """The living direct children of `root`, in ascending order of pid."""
    return [pid for pid in tree(root) if pid != root and (fields := _stat(pid)) is not None and int(fields[1]) == root]


def tree(root: int) -> list[int]:
    """`root`, when it lives, and all its living descendants."""
    below: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        name = entry.name
        if name.isdigit() and (fields := _stat(int(name))) is not None and fields[0] not in "ZX":
            below.setdefault(int(fields[1]), []).append(int(name))
    found = [root] if alive(root) else []
    todo = [root]
    while todo:
        of = sorted(below.get(todo.pop(), []))
        found += of
        todo += of
    return found


def send(pid: int, number: signal.Signals) -> None:
    """A signal to a process that may just have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def cpu_s(root: int) -> float:
    """User and system time in seconds that the tree under `root` has used so far, threads that have ended included.

    Children that have ended and were waited for are left out: the difference of two calls is right only while the
    tree keeps its processes.
    """
    total = 0.0
    for pid in tree(root):
        # The clock of another process (clock_getcpuclockid(3), whose arithmetic this is): nanoseconds, where
        # /proc/PID/stat has ticks of 10 ms.
        with contextlib.suppress(OSError):  # it has just ended
            total += time.clock_gettime((~pid << 3) | 2)
    return total


def pss_bytes(root: int) -> int:
    """Proportional set size of the tree under `root`: memory shared by n processes counts 1/n in each."""
    total = 0
    for pid in tree(root):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def title(pid: int) -> str:
    """The command line of `pid`, for messages."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return "(gone)"
