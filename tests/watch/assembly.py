"""Feed, watch process and fronts wired together in one process, over links that can be stopped."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import Any

from kvorum.pb.rpc_pb2 import (
    WatchCancelRequest,
    WatchCreateRequest,
    WatchProgressRequest,
    WatchRequest,
    WatchResponse,
)
from node.apply.feed import Feed
from node.events import RevisionChanges
from node.frames import HEADER_BYTES, Kind, Process, pack
from node.front.calls import Calls
from node.front.member import Limits, Member
from node.front.watch import WatchService, WatchStream
from node.front.watch_deliveries import Deliveries
from node.link import Inlet, Outlet
from node.watch.registry import Registry
from tests.watch.store import Store

CLUSTER_ID = 0xCDF818194E3A8C32
MEMBER_ID = 0x8E9E05C52164694D
TERM = 7


class Link:
    """A stream of frames with credit; `receive` hands them over one by one."""

    def __init__(self, window_bytes: int) -> None:
        self.outlet = Outlet()
        self.inlet = Inlet(window_bytes)
        self.frames: deque[bytes] = deque()
        self.granting = True
        self.most_in_flight = 0
        self.grant()

    def grant(self) -> None:
        if self.granting and (total := self.inlet.grant()) is not None:
            self.outlet.grant(total)

    def send(self, payload: bytes) -> None:
        self.outlet.advance(len(payload))
        self.frames.append(payload)
        self.most_in_flight = max(self.most_in_flight, self.outlet.position - self.inlet.consumed)

    def receive(self) -> bytes:
        payload = self.frames.popleft()
        self.inlet.accept(self.inlet.position, self.inlet.position + len(payload))
        self.inlet.consume(len(payload))
        self.grant()
        return payload


class Head:
    """A call's headers."""

    def __init__(self, metadata: dict[str, tuple[str | bytes, ...]] | None = None) -> None:
        self.metadata = metadata or {}


class Client:
    """One Watch stream from both sides: what the service writes to, and what its client does."""

    def __init__(self, mark_bytes: int) -> None:
        self.handler: WatchStream | None = None
        self.mark_bytes = mark_bytes
        self.buffer: deque[bytes] = deque()
        self.buffered_bytes = 0
        self.most_buffered_bytes = 0
        self.largest_send_bytes = 0
        self.replies: list[WatchResponse] = []
        self.held: deque[bytes] = deque()
        self.reading = True
        self.status: tuple[int, str] | None = None
        self.told = True

    # the stream, as the wire or the JSON gateway gives it

    @property
    def writable(self) -> bool:
        if self.buffered_bytes >= self.mark_bytes:
            self.told = False
            return False
        return True

    def send(self, message: bytes) -> None:
        self.send_framed(struct.pack(">BI", 0, len(message)) + message, 1)

    def send_framed(self, framed: bytes, messages: int) -> None:
        assert self.status is None, "something is sent after the end"
        self.buffered_bytes += len(framed)
        self.most_buffered_bytes = max(self.most_buffered_bytes, self.buffered_bytes)
        self.largest_send_bytes = max(self.largest_send_bytes, len(framed))
        at = count = 0
        while at < len(framed):
            flag, size = struct.unpack_from(">BI", framed, at)
            assert flag == 0
            self.buffer.append(framed[at : at + 5 + size])
            at += 5 + size
            count += 1
        assert (at, count) == (len(framed), messages)

    def end(self, code: int, text: str) -> None:
        self.status = (code, text)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True
        assert self.handler is not None
        while self.reading and self.held:
            self.handler.on_message(self.held.popleft())

    # the client

    def read(self, most_bytes: int = 1 << 62) -> None:
        """Takes what is buffered, up to so many bytes, at least one message."""
        taken = 0
        while self.buffer and (taken == 0 or taken + len(self.buffer[0]) <= most_bytes):
            message = self.buffer.popleft()
            taken += len(message)
            self.replies.append(WatchResponse.FromString(message[5:]))
        self.buffered_bytes -= taken
        if not self.told and self.buffered_bytes < self.mark_bytes and self.handler is not None:
            self.told = True
            self.handler.on_writable()

    def request(self, request: WatchRequest) -> None:
        message = request.SerializeToString()
        assert self.handler is not None
        if self.reading:
            self.handler.on_message(message)
        else:
            self.held.append(message)

    def create(self, key: bytes = b"k", range_end: bytes = b"", **fields: Any) -> None:
        create = WatchCreateRequest(key=key, range_end=range_end, **fields)
        self.request(WatchRequest(create_request=create))

    def cancel(self, watch_id: int) -> None:
        self.request(WatchRequest(cancel_request=WatchCancelRequest(watch_id=watch_id)))

    def progress(self) -> None:
        self.request(WatchRequest(progress_request=WatchProgressRequest()))

    def take(self) -> list[WatchResponse]:
        """Reads everything; returns the replies since the last `take`."""
        self.read()
        replies, self.replies = self.replies, []
        return replies


class Timer:
    """A callback at a time."""

    def __init__(self, at_s: float, callback: Callable[[], None]) -> None:
        self.at_s = at_s
        self.callback = callback
        self.canceled = False

    def cancel(self) -> None:
        self.canceled = True


class FrontSide:
    """One front: its service, and its links to watch."""

    def __init__(self, world: World, number: int, window_bytes: int, max_request_bytes: int) -> None:
        self.number = number
        self.world = world
        self.deliveries_link = Link(window_bytes)
        self.watches_sent: deque[bytes] = deque()
        self.soon: list[Callable[[], None]] = []
        limits = Limits(max_request_bytes, 128, 2, 7.0)
        calls = Calls(
            origin=number,
            member=MEMBER_ID,
            incarnation=1,
            send=lambda *_: None,
            call_soon=lambda _: None,
            now=lambda: world.now_s,
            timeout_s=7.0,
        )
        self.member = Member(MEMBER_ID, CLUSTER_ID, limits, calls, term=TERM, leader=MEMBER_ID)
        self.deliveries = Deliveries(
            self.member,
            send=self._send,
            call_soon=self.soon.append,
            call_later=world.call_later,
            now=lambda: world.now_s,
            random=lambda: 0.5,
            progress_interval_s=100.0,
        )
        self.service = WatchService(self.deliveries)

    def _send(self, process: int, kind: int, payload: bytes) -> None:
        assert (process, kind) == (Process.WATCH, Kind.WATCHES)
        self.watches_sent.append(payload)

    def open(self, mark_bytes: int = 1 << 20, metadata: dict[str, tuple[str | bytes, ...]] | None = None) -> Client:
        """A new Watch stream."""
        client = Client(mark_bytes)
        client.handler = self.service.open(client, Head(metadata))
        return client

    def flush(self) -> None:
        soon, self.soon[:] = list(self.soon), []
        for callback in soon:
            callback()


class World:
    """A member's watch machinery. Nothing moves between its processes but by `step` and `run`."""

    def __init__(
        self,
        *,
        fronts: int = 1,
        window_bytes: int = 1 << 25,
        ring_bytes: int = 1 << 20,
        max_request_bytes: int = 1_572_864,
    ) -> None:
        self.now_s = 1000.0
        self.store = Store()
        self.feed = Feed(self.store.history)
        self.events_link = Link(window_bytes)
        self.asks: deque[bytes] = deque()
        self.registry = Registry(self.asks.append, ring_bytes)
        self.timers: list[Timer] = []
        self.fronts = [FrontSide(self, Process.FRONT + i, window_bytes, max_request_bytes) for i in range(fronts)]
        for front in self.fronts:
            link = front.deliveries_link
            self.registry.add_front(front.number, link.outlet.open, link.send)
        self.pending: list[RevisionChanges] = []
        self.busy = False

    # what happens in the store

    def put(self, key: bytes = b"k", value: bytes = b"v") -> int:
        return self.txn((key, value))

    def delete(self, key: bytes = b"k") -> int:
        return self.txn((key, None))

    def txn(self, *operations: tuple[bytes, bytes | None]) -> int:
        """One revision, which apply tells watch in its next turn."""
        self.pending.append(self.store.txn(operations))
        return self.store.revision

    def compact(self, revision: int) -> None:
        self.store.compacted = revision

    # turns

    def step_apply(self, with_prev: bool = True) -> None:
        while self.asks and len(self.feed._asks) < 2:
            self.feed.on_ask(self.asks.popleft(), 0)
        revisions, self.pending = self.pending, []
        self.feed.on_revisions(revisions, with_prev)
        payload = self.feed.take(self.events_link.outlet.open(), self.store.revision, self.store.compacted)
        if payload is not None:
            self.events_link.send(payload)

    def step_watch(self, frames: int = 1000) -> None:
        while self.events_link.frames and frames:
            self.registry.on_events(self.events_link.receive(), 0)
            frames -= 1
        for front in self.fronts:
            while front.watches_sent:
                self.registry.on_watches(front.number, front.watches_sent.popleft(), 0)
        self.busy = self.registry.turn(self.now_s)

    def step_front(self, number: int = 0, frames: int = 1000) -> None:
        front = self.fronts[number]
        link = front.deliveries_link
        while link.frames and frames:
            payload = link.receive()
            data = pack(Process.WATCH, Kind.DELIVERIES, 0, payload)
            assert len(data) == HEADER_BYTES + len(payload)
            front.deliveries.on_deliveries(data)
            frames -= 1
        front.flush()

    def run(self) -> None:
        """Until nothing moves any more."""
        for _ in range(10_000):
            self.step_apply()
            for number in range(len(self.fronts)):
                self.step_front(number)
            self.step_watch()
            if not self._moving():
                return
        raise AssertionError("it never comes to rest")

    def _moving(self) -> bool:
        return bool(
            self.pending
            or ((self.asks or self.feed._asks) and self.events_link.outlet.open())
            or self.busy
            or self.events_link.frames
            or any(front.deliveries_link.frames or front.soon or front.watches_sent for front in self.fronts)
        )

    # time

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(self.now_s + delay_s, callback)
        self.timers.append(timer)
        return timer

    def pass_time(self, seconds: float) -> None:
        """Fires the timers that fall due, in order, and lets everything come to rest after each."""
        until_s = self.now_s + seconds
        while True:
            self.timers = [timer for timer in self.timers if not timer.canceled]
            due = min((timer for timer in self.timers if timer.at_s <= until_s), key=lambda one: one.at_s, default=None)
            if due is None:
                break
            self.timers.remove(due)
            self.now_s = max(self.now_s, due.at_s)
            due.callback()
            self.run()
        self.now_s = until_s
        self.run()
