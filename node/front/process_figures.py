"""The process_* and os_fd_* series of a member, from what the Prometheus client library reads of each process.

Imported with the library, when a page first needs it: see metrics_page.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from prometheus_client import ProcessCollector

from node.stats import Figures


def figures_of(pids: Iterable[int], proc: str = "/proc") -> Figures:
    """The figures of all processes of a member; of those that are gone there are none.

    CPU and memory add up. File descriptors do not, since each process has a limit of its own: they are those of the
    process that is nearest to it.
    """
    processes = [figures for pid in sorted(set(pids)) if (figures := _read(pid, proc))]
    if not processes:
        return {}
    fullest = max(processes, key=lambda figures: figures["process_open_fds"] / figures["process_max_fds"])
    return {
        "os_fd_limit": fullest["process_max_fds"],
        "os_fd_used": fullest["process_open_fds"],
        "process_start_time_seconds": min([figures["process_start_time_seconds"] for figures in processes]),
        "process_open_fds": fullest["process_open_fds"],
        "process_max_fds": fullest["process_max_fds"],
        **{
            name: sum([figures[name] for figures in processes])
            for name in ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_virtual_memory_bytes")
        },
    }


def _read(pid: int, proc: str) -> dict[str, float]:
    """The series of one process; empty when it is gone, also when that happens between two of its files."""
    try:
        families = ProcessCollector(pid=partial(int, pid), proc=proc, registry=None).collect()
    except ValueError:  # a system that says `unlimited` for descriptors, which Linux does not
        return {}
    figures = {sample.name: sample.value for family in families for sample in family.samples}
    return figures if "process_open_fds" in figures and "process_cpu_seconds_total" in figures else {}
