"""The watch process of a member: it owns the watchers, and tells the fronts what happened to the keys they watch.

One turn: take in credit, what apply committed and what the fronts ask; deliver; serve one slice to those who are
behind; send each front one frame.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from kvorum import malloc
from node.child import ChildContext
from node.frames import HEADER_BYTES, Frame, Kind, Process
from node.front.state import answer
from node.link import Streams
from node.link_zmq import Arrivals, BlockingReader, Links
from node.watch.registry import Registry

PATIENCE_S: Final = 0.5
"""How long a wait may be: the supervisor wants to hear a beat each second."""


class Watch:
    """The shell around the registry, turn by turn. `now` is monotonic seconds."""

    def __init__(self, fronts: Iterable[int], links: Streams, now: Callable[[], float]) -> None:
        self._links = links
        self._now = now
        self._registry = Registry(self._ask)
        self._busy = False
        for front in fronts:
            outlet = links.outlet(front, Kind.DELIVERIES)
            self._registry.add_front(front, outlet.open, self._sender(front))

    def start(self) -> None:
        """Opens the stream of events: what follows comes by `turn`."""
        self._links.open(Process.APPLY, Kind.EVENTS)

    def _ask(self, payload: bytes) -> None:
        self._links.send_control(Process.APPLY, Kind.WATCH_ASK, payload)

    def _sender(self, front: int) -> Callable[[bytes], None]:
        return lambda payload: self._links.send(front, Kind.DELIVERIES, payload)

    def patience_s(self) -> float:
        """How long nothing needs to be done unless something arrives."""
        return 0 if self._busy else PATIENCE_S

    def turn(self, arrivals: Arrivals) -> None:
        """Does what arrived, and a slice of what is behind."""
        links = self._links
        for frame in arrivals.control:
            assert frame.kind == Kind.STATE_ASK, f"watch got a control frame of kind {frame.kind}"
            links.send_control(frame.sender, Kind.STATE, answer(frame, self._state()))
        for frame in arrivals.data:
            self._on_frame(frame)
        self._busy = self._registry.turn(self._now())

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
        watch = Watch(fronts, links, time.monotonic)
        watch.start()
        child.lifeline.ready()
        gc.collect()
        gc.freeze()
        gc.disable()
        reader = BlockingReader(links, child.lifeline)
        while (arrivals := reader.wait(watch.patience_s())) is not None:
            child.lifeline.beat(time.monotonic())
            watch.turn(arrivals)
    finally:
        links.close()
