"""What the kernel says about a member's processes: the process_* series, without the 4 MiB that their library takes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from node.stats import Figures


class ProcessFigures(NamedTuple):
    """One process, from /proc/PID (proc(5))."""

    cpu_s: float
    start_time_s: float
    virtual_bytes: int
    resident_bytes: int
    open_fds: int
    max_fds: float


def read_process(pid: int, proc: Path = Path("/proc")) -> ProcessFigures | None:
    """The figures of one process; None when it is gone, or the system has no /proc."""
    at = proc / str(pid)
    try:
        stat = (at / "stat").read_bytes()
        limits = (at / "limits").read_bytes()
        open_fds = len(os.listdir(at / "fd"))  # noqa: PTH208  # a Path for each of 10,000 connections takes 10 ms more
        boot_time_s = _boot_time_s(proc)
    except OSError:
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    max_fds = float("inf")
    for line in limits.splitlines():
        if line.startswith(b"Max open files"):
            soft = line.split()[3]
            max_fds = float("inf") if soft == b"unlimited" else float(soft)
    return ProcessFigures(
        cpu_s=(int(fields[11]) + int(fields[12])) / ticks_per_s,
        start_time_s=boot_time_s + int(fields[19]) / ticks_per_s,
        virtual_bytes=int(fields[20]),
        resident_bytes=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        open_fds=open_fds,
        max_fds=max_fds,
    )


@cache
def _boot_time_s(proc: Path) -> float:
    for line in (proc / "stat").read_bytes().splitlines():
        if line.startswith(b"btime "):
            return float(line.split()[1])
    raise OSError(f"{proc}/stat has no btime")


def figures_of(pids: Iterable[int], proc: Path = Path("/proc")) -> Figures:
    """The process_* and os_fd_* figures of a member.

    CPU and memory add up over its processes. File descriptors do not, since each process has a limit of its own: they
    are those of the process that is nearest to it.
    """
    processes = [process for pid in sorted(set(pids)) if (process := read_process(pid, proc)) is not None]
    if not processes:
        return {}
    fullest = max(processes, key=lambda process: process.open_fds / process.max_fds)
    return {
        "os_fd_limit": fullest.max_fds,
        "os_fd_used": fullest.open_fds,
        "process_cpu_seconds_total": sum([process.cpu_s for process in processes]),
        "process_resident_memory_bytes": sum([process.resident_bytes for process in processes]),
        "process_virtual_memory_bytes": sum([process.virtual_bytes for process in processes]),
        "process_start_time_seconds": min([process.start_time_s for process in processes]),
        "process_open_fds": fullest.open_fds,
        "process_max_fds": fullest.max_fds,
    }
