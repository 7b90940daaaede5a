"""The watch process of a member: it owns the watchers, and tells the fronts what happened to the keys they watch.

One turn: take in credit, what apply committed and what the fronts ask; deliver; serve one slice to those who are
behind; send each front one frame.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any, Final

from node import malloc
from node.child import ChildContext
from node.frames import HEADER_BYTES, Frame, Kind, Process
from node.front.state import answer
from node.link_zmq import Arrivals, BlockingReader, Links
from node.watch.registry import Registry

PATIENCE_S: Final = 0.5
"""How long a wait may be: the supervisor wants to hear a beat each second."""


class Watch:
    """The shell around the registry: links and time."""

    def __init__(self, child: ChildContext, links: Links) -> None:
        self._child = child
        self._links = links
        self._registry = Registry(self._ask)
        fronts = [Process.FRONT + i for i in range(child.config.front_workers)]
        for front in fronts:
            outlet = links.outlet(front, Kind.DELIVERIES)
            self._registry.add_front(front, outlet.open, self._sender(front))
        links.open(Process.APPLY, Kind.EVENTS)

    def _ask(self, payload: bytes) -> None:
        self._links.send_control(Process.APPLY, Kind.WATCH_ASK, payload)

    def _sender(self, front: int) -> Callable[[bytes], None]:
        return lambda payload: self._links.send(front, Kind.DELIVERIES, payload)

    def run(self) -> None:
        """Until the supervisor says stop."""
        links = self._links
        reader = BlockingReader(links, self._child.lifeline)
        busy = False
        while (arrivals := reader.wait(0 if busy else PATIENCE_S)) is not None:
            now_s = time.monotonic()
            self._child.lifeline.beat(now_s)
            busy = self._turn(arrivals, now_s)

    def _turn(self, arrivals: Arrivals, now_s: float) -> bool:
        links = self._links
        for frame in arrivals.control:
            assert frame.kind == Kind.STATE_ASK, f"watch got a control frame of kind {frame.kind}"
            links.send_control(frame.sender, Kind.STATE, answer(frame, self._state()))
        for frame in arrivals.data:
            self._on_frame(frame)
        return self._registry.turn(now_s)

    def _on_frame(self, frame: Frame) -> None:
        if frame.kind == Kind.EVENTS:
            self._registry.on_events(frame.data, HEADER_BYTES)
            self._links.consume(frame.sender, frame.kind, frame.end - frame.start)
        else:
            assert frame.kind == Kind.WATCHES, f"watch got a frame of kind {frame.kind}"
            self._registry.on_watches(frame.sender, frame.data, HEADER_BYTES)

    def _state(self) -> dict[str, Any]:
        registry = self._registry
        return {
            "revision": registry.revision,
            "registrations": registry.watchers,
            "pending_bytes": registry.pending_bytes,
            "metrics": {"etcd_debugging_mvcc_slow_watcher_total": registry.behind},
        }


def main(child: ChildContext) -> None:
    """Runs the watch process until the supervisor says stop."""
    malloc.keep_large_buffers()
    fronts = [Process.FRONT + i for i in range(child.config.front_workers)]
    links = Links(child.run_dir, Process.WATCH, [Process.APPLY, *fronts])
    try:
        watch = Watch(child, links)
        child.lifeline.ready()
        gc.collect()
        gc.freeze()
        gc.disable()
        watch.run()
    finally:
        links.close()
