"""Between a front's Watch streams and the watch process: what is asked, and what is delivered to whom."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Any, Final, Protocol

from kvorum.watch_replies import Headers, Reply, split_events
from node.frames import HEADER_BYTES, Kind, Process
from node.front.member import Member
from node.front.watch_groups import Group, Registration
from node.watches import ASK, FRAGMENT, ITEM, ITEM_BYTES, PAIR, Create, Delivery, encode_cancel, encode_create

FRAGMENT_SLACK_BYTES: Final = 512 << 10
"""What the reference adds to the request limit for the overhead of gRPC (WE14)."""

MAX_OWED_BYTES: Final = 64 << 20
"""Of replies kept for slow streams; beyond it the watch process is asked for the same events again."""

MIN_ENDED_TICKS: Final = 64

MAX_ID_FIELD_BYTES: Final = 11
"""A watch id's field at its longest (a negative id)."""


class Timer(Protocol):
    """What `call_later` returns."""

    def cancel(self) -> object:
        """It will not fire."""


Answered = Callable[[Any, int], None]
"""(subject, revision): a create or an ask was answered."""


class Deliveries:
    """All registrations of a front, by handle, and its groups.

    `send(process, kind, payload)` hands a frame to a link, `call_soon` arms `flush` at the end of the loop's turn,
    `call_later(delay_s, callback)` the progress timer; `random()` is in [0, 1).
    """

    def __init__(
        self,
        member: Member,
        *,
        send: Callable[[int, int, bytes], None],
        call_soon: Callable[[Callable[[], None]], object],
        call_later: Callable[[float, Callable[[], None]], Timer],
        now: Callable[[], float],
        random: Callable[[], float],
        progress_interval_s: float,
    ) -> None:
        self.member = member
        self.now = now
        self.streams: dict[Any, None] = {}
        self.watches = 0
        self.events = 0
        """Events sent to clients."""
        self.complete = 0
        """The revision up to which every live registration has been given all it wants."""
        self.max_owed_bytes = MAX_OWED_BYTES
        self.owed_bytes = 0
        """Replies that are kept for streams which took them for some of their watches."""
        self._send = send
        self._call_soon = call_soon
        self._call_later = call_later
        self._random = random
        self._progress_interval_s = progress_interval_s
        self._headers = Headers(member.cluster_id, member.member_id)
        self._fragment_bytes = member.limits.max_request_bytes + FRAGMENT_SLACK_BYTES
        self._next_handle = 1
        self._registrations: dict[int, Registration] = {}
        self._groups: dict[int, Group] = {}
        self._asked: deque[tuple[Answered, Any]] = deque()
        self._items: list[bytes] = []
        self._flush_armed = False
        self._ticks: list[tuple[float, int, Any]] = []
        self._tick_number = 0
        self._ended_ticks = 0
        self._timer: Timer | None = None
        self._timer_due_s = 0.0

    def header(self, revision: int) -> bytes:
        """Field 1 of a reply."""
        return self._headers.at(revision, self.member.term)

    # what the streams ask

    def ask(self, answered: Answered, subject: object) -> None:
        """Calls `answered(subject, revision)` in the order of asks, with the store's revision after this moment."""
        self._asked.append((answered, subject))
        self._push(ASK)

    def register(self, registration: Registration, answered: Answered, subject: object) -> None:
        """Registers from `registration.next` on (0: from the answer on) under a fresh handle; answered as an ask."""
        handle = registration.handle = self._next_handle
        self._next_handle = handle + 1
        self._registrations[handle] = registration
        self._asked.append((answered, subject))
        key, range_end, flags = registration.spec
        self._push(encode_create(Create(handle, key, range_end, registration.next, flags)))

    def unregister(self, registration: Registration) -> None:
        """Nothing more is wanted under the registration's handle."""
        del self._registrations[registration.handle]
        self._push(encode_cancel(registration.handle))
        registration.handle = 0

    def leave_group(self, registration: Registration) -> None:
        """Takes a registration out of its group."""
        group = registration.group
        assert group is not None
        group.remove(registration)
        if not group.of_stream:
            del self._groups[group.number]

    def owe(self, reply: Reply) -> bool:
        """Whether a reply that a stream did not take whole may be kept for it. Streams share it: it counts once."""
        if not reply.holders:
            if self.owed_bytes + reply.size_bytes > self.max_owed_bytes:
                return False
            self.owed_bytes += reply.size_bytes
        reply.holders += 1
        return True

    def settle(self, reply: Reply) -> None:
        """A stream needs a kept reply no more."""
        reply.holders -= 1
        if not reply.holders:
            self.owed_bytes -= reply.size_bytes

    def _push(self, item: bytes) -> None:
        self._items.append(item)
        if not self._flush_armed:
            self._flush_armed = True
            self._call_soon(self.flush)

    def flush(self) -> None:
        """Sends what the streams asked in this turn as one frame."""
        self._flush_armed = False
        if self._items:
            payload = b"".join(self._items)
            self._items.clear()
            self._send(Process.WATCH, Kind.WATCHES, payload)

    # what the watch process delivers

    def on_deliveries(self, data: bytes) -> None:
        """A DELIVERIES frame; the caller flushes the wire afterwards, once."""
        total = len(data)
        at = HEADER_BYTES
        unpack = ITEM.unpack_from
        while at < total:
            item, count, events, size, revision = unpack(data, at)
            at += ITEM_BYTES
            end = at + size
            if item == 3:
                self._on_events(data, at, end, count, events, revision)
            elif item == Delivery.ANSWERED:
                self.complete = revision
                asked = self._asked
                for _ in range(count):
                    answered, subject = asked.popleft()
                    answered(subject, revision)
            elif item == Delivery.LIVE:
                handle, group_number = PAIR.unpack_from(data, at)
                self._on_live(handle, group_number, revision)
            elif item == Delivery.CAUGHT_UP:
                self._on_caught_up(data, at, end, count, events, revision)
            elif item == Delivery.BEHIND:
                self._on_behind()
            else:
                assert item == Delivery.COMPACTED, f"watch delivered an item {item}"
                handle = int.from_bytes(data[at:end], "little")
                registration = self._registrations.pop(handle, None)
                if registration is not None:
                    registration.stream.on_compacted(registration, revision)
            at = end

    def _on_events(self, data: bytes, at: int, end: int, count: int, number: int, revision: int) -> None:
        """Events of one revision for `count` groups."""
        self.complete = revision - 1
        body_at = at + 8 * count
        numbers = struct.unpack_from(f"<{count}Q", data, at)
        events = data[body_at:end]
        header = self.header(revision)
        whole: Reply | None = None
        cut: Reply | None = None
        for group_number in numbers:
            group = self._groups.get(group_number)
            if group is None:
                continue
            if group.is_fragmented:
                reply = cut = cut or self._reply(header, events, number, fragment=True)
            else:
                reply = whole = whole or self._reply(header, events, number, fragment=False)
            self.events += number * group.watches
            full = group.deliver(reply, revision)
            for stream, given in full:
                stream.pause(given)

    def _reply(self, header: bytes, events: bytes, number: int, *, fragment: bool) -> Reply:
        limit_bytes = self._fragment_bytes
        if fragment and number > 1 and len(events) + len(header) + MAX_ID_FIELD_BYTES >= limit_bytes:
            return Reply(header, split_events(events, len(header) + MAX_ID_FIELD_BYTES, limit_bytes), number)
        return Reply(header, (events,), number)

    def _on_caught_up(self, data: bytes, at: int, end: int, count: int, number: int, served: int) -> None:
        """Past events for `count` registrations; the header's revision is the store's (WE2)."""
        current, *handles = struct.unpack_from(f"<{count + 1}Q", data, at)
        self.complete = current
        events = data[at + 8 + 8 * count : end]
        header = self.header(current)
        replies: list[Reply | None] = [None, None]
        for handle in handles:
            registration = self._registrations.get(handle)
            if registration is None:
                continue
            fragment = registration.spec[2] & FRAGMENT != 0
            reply = replies[fragment]
            if reply is None:
                reply = replies[fragment] = self._reply(header, events, number, fragment=fragment)
            self.events += number * len(registration.watches)
            given = registration.give(reply, served)
            if given is not None or not registration.wire.writable:
                registration.stream.pause(given)

    def _on_live(self, handle: int, group_number: int, next_revision: int) -> None:
        self.complete = next_revision - 1
        registration = self._registrations.get(handle)
        if registration is None:
            return
        stream = registration.stream
        stream.on_live(registration, next_revision)
        group = self._groups.get(group_number)
        if group is None:
            group = self._groups[group_number] = Group(group_number, registration.spec)
        first = group.of_stream.get(stream)
        if first is None:
            group.add(registration)
            stream.live += 1
        else:
            group.merge(first, registration)
            stream.absorbed(registration)
            self.unregister(registration)

    def _on_behind(self) -> None:
        """No registration is live any more; each goes on from where it stands, under its handle."""
        groups, self._groups = self._groups, {}
        for group in groups.values():
            for registration in group.of_stream.values():
                registration.stream.fall_behind(registration)

    # the timers of progress_notify

    def progress_interval_s(self) -> float:
        """An interval for one stream: up to 10% longer at random, so that streams do not tick together (WP1)."""
        return self._progress_interval_s * (1 + self._random() / 10)

    def tick_later(self, stream: Any) -> None:
        """Calls `stream.on_tick()` when the next whole interval since the stream was opened is over."""
        interval_s = stream.interval_s
        intervals = (self.now() - stream.opened_s) // interval_s + 1
        self._tick_number += 1
        heappush(self._ticks, (stream.opened_s + intervals * interval_s, self._tick_number, stream))
        self._arm()

    def tick_dropped(self) -> None:
        """A stream has ended that waited for a tick. It is kept until then, or until half of those kept have ended."""
        self._ended_ticks += 1
        if self._ended_ticks > MIN_ENDED_TICKS and self._ended_ticks * 2 > len(self._ticks):
            self._ticks = [tick for tick in self._ticks if not tick[2].ended]
            heapify(self._ticks)
            self._ended_ticks = 0

    def _arm(self) -> None:
        """One timer, for the earliest tick."""
        if not self._ticks:
            return
        due_s = self._ticks[0][0]
        if self._timer is not None:
            if self._timer_due_s <= due_s:
                return
            self._timer.cancel()
        self._timer_due_s = due_s
        self._timer = self._call_later(max(0.0, due_s - self.now()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now_s = self.now()
        while self._ticks and self._ticks[0][0] <= now_s:
            stream = heappop(self._ticks)[2]
            if stream.ended:
                self._ended_ticks -= 1
            else:
                stream.on_tick()
        self._arm()

    def state(self) -> dict[str, int]:
        """Figures for the metrics."""
        return {"watch_streams": len(self.streams), "watchers": self.watches, "watch_events": self.events}
