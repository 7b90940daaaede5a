"""The links between a member's processes, without their sockets: everything else is the real `Links`.

ZeroMQ keeps the order of what one process sends to one inbox of another, and nothing more: data and control, and two
senders, may overtake each other. Nothing is lost while both live.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import zmq

from node.link import Inlet
from node.link_zmq import Links
from tests.sim.clock import Scheduler

_EMPTY = zmq.Again()


class _Inbox:
    """A PULL socket."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.frames: deque[bytes] = deque()
        self.wake = wake

    def recv(self, _flags: int) -> bytes:
        if not self.frames:
            raise _EMPTY.with_traceback(None)  # making one takes 7 us
        return self.frames.popleft()

    def close(self, _linger: int) -> None:
        self.frames.clear()


class _Outbox:
    """A PUSH socket: what is sent arrives later, and in order."""

    def __init__(self, links: GenerationLinks, inbox: _Inbox) -> None:
        self._links = links
        self._inbox = inbox
        self._last_s = 0.0

    def send(self, data: bytes, _flags: int) -> None:
        links = self._links
        scheduler = links.scheduler
        at_s = self._last_s = max(self._last_s, scheduler.now_s + scheduler.elapsed_s + links.delay_s())
        scheduler.at(at_s, lambda: self._arrive(data))

    def _arrive(self, data: bytes) -> None:
        if self._links.alive:
            self._inbox.frames.append(data)
            self._inbox.wake()

    def close(self, _linger: int) -> None:
        pass


class GenerationLinks:
    """All inboxes of one generation of a member. When it dies, what is on its way is gone."""

    def __init__(self, scheduler: Scheduler, window_bytes: int) -> None:
        self.scheduler = scheduler
        self.window_bytes = window_bytes
        self.alive = True
        self._inboxes: dict[tuple[int, bool], _Inbox] = {}

    def delay_s(self) -> float:
        """How long a frame is under way: mostly tens of microseconds, now and then a scheduler's whim."""
        random = self.scheduler.random
        return random.uniform(0.00002, 0.0002) if random.random() < 0.97 else random.uniform(0.0002, 0.02)

    def add(self, process: int, wake: Callable[[], None]) -> None:
        """A process, and how it is woken; all before the first `links_of`."""
        for control in (False, True):
            self._inboxes[process, control] = _Inbox(wake)

    def links_of(self, process: int, peers: Iterable[int]) -> SimulatedLinks:
        """The links of one process."""
        return SimulatedLinks(self, process, peers)

    def inbox(self, process: int, control: bool) -> Any:
        """A process's inbox, in place of a socket."""
        return self._inboxes[process, control]


class SimulatedLinks(Links):
    """`Links` on inboxes in memory."""

    def __init__(self, generation: GenerationLinks, process: int, peers: Iterable[int]) -> None:
        self.process = process
        self.data = generation.inbox(process, False)
        self.control = generation.inbox(process, True)
        self._out = {peer: self._to(generation, peer, False) for peer in peers}
        self._out_control = {peer: self._to(generation, peer, True) for peer in peers}
        self._window_bytes = generation.window_bytes
        self._begin()

    def inlet(self, sender: int, kind: int) -> Inlet:
        """See Links."""
        inlet = self._inlets.get((sender, kind))
        if inlet is None:
            inlet = self._inlets[sender, kind] = Inlet(self._window_bytes)
        return inlet

    @staticmethod
    def _to(generation: GenerationLinks, peer: int, control: bool) -> Any:
        return _Outbox(generation, generation.inbox(peer, control))

    @property
    def control_waiting(self) -> bool:
        """Whether anything lies in the inbox for control."""
        return bool(self.control.frames)

    @property
    def waiting(self) -> bool:
        """Whether anything lies in an inbox."""
        return bool(self.data.frames or self.control.frames)
