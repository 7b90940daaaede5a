"""The ZeroMQ sockets under the links: each process binds one inbox for data and one for control.

PUSH/PULL over `ipc://` in the generation's run directory. Without a high-water mark a send never blocks: the bound on
what is in flight is the streams' credit (`link.py`). Linger is 0, since a generation that ends takes nothing along.
"""

from __future__ import annotations

import select
import struct
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

import zmq

from kvorum.lifeline import Lifeline
from node.frames import HEADER_BYTES, Frame, Kind, pack, unpack
from node.link import UNBOUNDED, Inlet, Outlet

CREDIT: Final = struct.Struct("<BxxxxxxxQ")  # kind of the stream, bytes granted in total

RECONNECT_MS: Final = 5
"""A process may connect before its peer has bound; ZeroMQ's own 100 ms would show in every start."""

MOST_FRAMES: Final = 256
"""Frames taken in at once, so that one turn stays short."""

CREDITED: Final = frozenset({Kind.ENTRIES, Kind.REPLIES, Kind.EVENTS, Kind.DELIVERIES})
"""The streams that flow by credit; in all others the sender bounds what it has under way itself."""


def address(run_dir: str, process: int, control: bool) -> str:
    """Where a process's inbox is bound; short, since a socket's path may have 107 bytes at most."""
    return f"ipc://{run_dir}/{process}{'c' if control else 'd'}"


class Links:
    """All links of one process. `data` and `control` are its two inboxes; read control first.

    Their descriptors (`data_fd`, `control_fd`) are readable when something may have come since the inbox was last read
    to EAGAIN, as `receive` and `receive_control` do.
    """

    def __init__(self, run_dir: str, process: int, peers: Iterable[int]) -> None:
        self.process = process
        self._context = zmq.Context()
        self.data = self._bind(address(run_dir, process, control=False))
        self.control = self._bind(address(run_dir, process, control=True))
        self.data_fd = int(self.data.getsockopt(zmq.FD))
        self.control_fd = int(self.control.getsockopt(zmq.FD))
        self._out: dict[int, zmq.Socket[bytes]] = {}
        self._out_control: dict[int, zmq.Socket[bytes]] = {}
        for peer in peers:
            self._out[peer] = self._connect(address(run_dir, peer, control=False))
            self._out_control[peer] = self._connect(address(run_dir, peer, control=True))
        self._begin()

    def _begin(self) -> None:
        self.data_left = True
        self._one_by_one = True
        self._since_empty = 0
        self._outlets: dict[tuple[int, int], Outlet] = {}
        self._inlets: dict[tuple[int, int], Inlet] = {}

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        return socket

    def _bind(self, where: str) -> zmq.Socket[bytes]:
        socket = self._socket(zmq.PULL)
        socket.bind(where)
        return socket

    def _connect(self, where: str) -> zmq.Socket[bytes]:
        socket = self._socket(zmq.PUSH)
        socket.connect(where)
        return socket

    def outlet(self, to: int, kind: int) -> Outlet:
        """The sending end of the stream of `kind` to `to`."""
        outlet = self._outlets.get((to, kind))
        if outlet is None:
            outlet = self._outlets[to, kind] = Outlet(0 if kind in CREDITED else UNBOUNDED)
        return outlet

    def inlet(self, sender: int, kind: int) -> Inlet:
        """The receiving end of the stream of `kind` from `sender`."""
        inlet = self._inlets.get((sender, kind))
        if inlet is None:
            inlet = self._inlets[sender, kind] = Inlet()
        return inlet

    def send(self, to: int, kind: int, payload: bytes) -> None:
        """Sends one frame on a data stream; the caller has seen that its outlet is open."""
        start = self.outlet(to, kind).advance(len(payload))
        self._out[to].send(pack(self.process, kind, start, payload), zmq.NOBLOCK)

    def send_control(self, to: int, kind: int, payload: bytes) -> None:
        """Sends one control frame. These have no credit: each is small, and sent once per event of its kind."""
        self._out_control[to].send(pack(self.process, kind, 0, payload), zmq.NOBLOCK)

    def open(self, sender: int, kind: int) -> None:
        """Grants the first window of a stream this process receives."""
        self._grant(sender, kind, self.inlet(sender, kind))

    def consume(self, sender: int, kind: int, size_bytes: int) -> None:
        """So many payload bytes of that stream are done with; grants its sender more when it is time."""
        inlet = self.inlet(sender, kind)
        inlet.consume(size_bytes)
        self._grant(sender, kind, inlet)

    def _grant(self, sender: int, kind: int, inlet: Inlet) -> None:
        total = inlet.grant()
        if total is not None:
            self.send_control(sender, Kind.CREDIT, CREDIT.pack(kind, total))

    def receive(self) -> list[Frame]:
        """Data frames that are there; continuity is asserted. `data_left` says whether to call again without waiting.

        The look that finds an inbox empty costs 3 us, 10 in a process that has just been woken. When frames come one
        by one, as for a lone client, a frame is therefore returned at once, and the look comes after it is served.
        """
        frames: list[Frame] = []
        receive = self.data.recv
        while len(frames) < MOST_FRAMES:
            try:
                frame = unpack(receive(zmq.NOBLOCK))
            except zmq.Again:
                self._one_by_one = self._since_empty + len(frames) <= 1
                self._since_empty = 0
                self.data_left = False
                return frames
            self.inlet(frame.sender, frame.kind).accept(frame.start, frame.end)
            frames.append(frame)
            if self._one_by_one and not self._since_empty:
                break
        self._since_empty += len(frames)
        self.data_left = True
        return frames

    def receive_control(self) -> list[Frame]:
        """The control frames that are there. Credit is taken in here and not returned."""
        frames: list[Frame] = []
        while True:
            try:
                frame = unpack(self.control.recv(zmq.NOBLOCK))
            except zmq.Again:
                return frames
            if frame.kind == Kind.CREDIT:
                kind, total = CREDIT.unpack_from(frame.data, HEADER_BYTES)
                self.outlet(frame.sender, kind).grant(total)
            else:
                frames.append(frame)

    def close(self) -> None:
        """Closes every socket; nothing unsent is kept."""
        for socket in (self.data, self.control, *self._out.values(), *self._out_control.values()):
            socket.close(0)
        self._context.term()


class LoopReader:
    """Reads an inbox from an event loop: ZeroMQ's descriptor is edge-triggered, so each wake drains to EAGAIN.

    `on_ready` handles what is there and returns whether it may have left something; then it is called again in the next
    turn of the loop, behind whatever else is ready there.
    """

    def __init__(
        self,
        descriptor: int,
        on_ready: Callable[[], bool],
        add_reader: Callable[[int, Callable[[], None]], object],
        call_soon: Callable[[Callable[[], None]], object],
    ) -> None:
        self._on_ready = on_ready
        self._call_soon = call_soon
        self._again = False
        add_reader(descriptor, self._wake)
        call_soon(self._wake)  # what came before the descriptor was watched

    def _wake(self) -> None:
        if self._on_ready() and not self._again:
            self._again = True
            self._call_soon(self._rewake)

    def _rewake(self) -> None:
        self._again = False
        self._wake()


class Arrivals(NamedTuple):
    """What a wait brought."""

    control: list[Frame]
    data: list[Frame]


class BlockingReader:
    """Reads the inboxes of a process without an event loop, and hears the supervisor's stop.

    Polling the descriptors costs 0.4 us. ZeroMQ's own poller takes 3 us, and so does each look into an empty inbox.
    """

    def __init__(self, links: Links, lifeline: Lifeline) -> None:
        self._links = links
        self._lifeline = lifeline
        self._lifeline_fd = lifeline.fileno()
        self._poll = select.epoll()
        for descriptor in (links.control_fd, links.data_fd, self._lifeline_fd):
            self._poll.register(descriptor, select.EPOLLIN)

    def wait(self, patience_s: float) -> Arrivals | None:
        """What has arrived, waiting up to `patience_s` for it; None when the supervisor said stop."""
        links = self._links
        while True:
            looks_again = links.data_left
            ready = {descriptor for descriptor, _ in self._poll.poll(0 if looks_again else patience_s)}
            if self._lifeline_fd in ready and self._lifeline.stop_requested():
                return None
            control = links.receive_control() if links.control_fd in ready else []
            data = links.receive() if looks_again or links.data_fd in ready else []
            if data or control or not looks_again:
                return Arrivals(control, data)
