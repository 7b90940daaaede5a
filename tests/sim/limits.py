"""Limits that a short run would never come to, made small for it: what happens there is part of the product."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from random import Random
from typing import Any

from node.apply import auto_compaction, flusher, machine, read_index, reads
from node.front import calls, watch_deliveries
from node.front import watch as front_watch
from node.raft import delivery, driver, proposals
from node.watch import catchup, registry
from node.watch import process as watch_process

_CHOICES: tuple[tuple[Any, str, tuple[Any, ...]], ...] = (
    (flusher, "FLUSH_REQUESTS", (5, 40, 10_000)),
    (machine, "SLICE_BYTES", (150, 2_000, 24 << 10)),
    (reads, "SLICE_ROWS", (2, 1000)),
    (delivery, "SEND_BYTES", (500, 1 << 20)),
    (driver, "MAX_MESSAGE_BYTES", (1_000, 1 << 20)),
    (driver, "MAX_INFLIGHT_MESSAGES", (2, 256)),
    (proposals, "ENTRY_BYTES", (300, 1 << 20)),
    (registry, "SLICE_BYTES", (200, 1 << 20)),
    (registry, "MAX_REVISIONS", (3, 1000)),
    (catchup, "MAX_HITS", (4, 8192)),
    (registry, "LINGER_S", (0.5, 10.0)),
    (calls, "MAX_PROPOSALS", (3, 20_000)),
    (driver, "MAX_BACKLOG_BYTES", (2_000, 64 << 20)),
    (proposals, "MAX_HELD_BYTES", (500, 64 << 20)),
    (read_index, "MAX_WAITING", (2, 200_000)),
    (watch_deliveries, "MAX_OWED_BYTES", (300, 64 << 20)),
    (front_watch, "MAX_PENDING", (2, 128)),
    (auto_compaction, "REVISION_INTERVAL_S", (2.0,)),
)
"""By module: a constant, and what it may be in a run."""


@contextmanager
def small_limits(random: Random) -> Iterator[None]:
    """Draws all of them, for as long as it is entered."""
    kept = [(module, name, getattr(module, name)) for module, name, _ in _CHOICES]
    watch_module: Any = watch_process
    watch_registry = watch_module.Registry
    try:
        for module, name, values in _CHOICES:
            setattr(module, name, random.choice(values))
        ring_bytes = random.choice((1_000, 20_000, 16 << 20))
        watch_module.Registry = partial(watch_registry, ring_bytes=ring_bytes)
        yield
    finally:
        for module, name, value in kept:
            setattr(module, name, value)
        watch_module.Registry = watch_registry
