"""The Watch service: what its clients ask, in the order in which they ask it.

A stream's creates, cancels and progress requests are all answered at a marker (`node.watches`), so their replies keep
the order of the requests and carry the store's revision. This file holds the streams; `watch_deliveries` takes in what
the watch process sends.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.message import DecodeError

from kvorum import errors
from kvorum.errors import Code, Status, unmarshal_error
from kvorum.pb.rpc_pb2 import WatchCreateRequest, WatchRequest
from kvorum.ranges import FROM_KEY
from kvorum.watch_replies import (
    CANCELED,
    CREATED,
    DUPLICATE_ID,
    EMPTY_RANGE,
    NO_WATCH,
    canceled_compacted,
    refused,
    watch_id_field,
)
from kvorum.wire.routes import CancelReason, ReplyStream
from node.front.member import WATCH, Head, admitted, needs_leader
from node.front.watch_deliveries import Deliveries
from node.front.watch_groups import NO_MARK, ClientWatch, Registration, Spec, State
from node.watches import FRAGMENT, NODELETE, NOPUT, PREV

MAX_PENDING: Final = 128
MAX_PENDING_BYTES: Final = 1 << 20
"""Requests of one stream, and their bytes, that wait for their answer; at either the stream is not read any more."""


class WatchStream:
    """One Watch call; the wire's handler for it."""

    def __init__(self, deliveries: Deliveries, wire: ReplyStream, *, needs_leader: bool) -> None:
        self._deliveries = deliveries
        self._wire = wire
        self.needs_leader = needs_leader
        self.ended = False
        self.paused = False
        """Whether the stream takes nothing, and its registrations are parked."""
        self.opened_s = deliveries.now()
        self.interval_s = deliveries.progress_interval_s()
        self.watches: dict[int, ClientWatch] = {}
        self.registrations: dict[Registration, None] = {}
        """All that are registered: asked, behind or live."""
        self.parked: dict[Registration, None] = {}
        self._owed: dict[Registration, None] = {}
        """Those of the parked that are owed a reply, in the order in which they were cut short."""
        self.live = 0
        """How many of them are live."""
        self._dead = 0
        """Watches ended by a compaction whose ids are still taken (W15, W16)."""
        self._next_id = 0
        self._progress_from = 0
        """No progress at a revision before this: a watch begins there (WP4)."""
        self._notified: dict[ClientWatch, None] = {}
        self._ticking = False
        self._notifying = False
        self._pending = 0
        self._pending_bytes = 0
        self._reading = True

    # what the wire tells

    def on_message(self, message: bytes) -> None:
        """A WatchRequest; one without a request in it is ignored (W19)."""
        if self.ended:
            return
        try:
            request = WatchRequest.FromString(message)
        except DecodeError as error:
            self._deliveries.member.count_stream_end(WATCH, CancelReason.FAULT)
            self.end(*unmarshal_error(error))
            return
        kind = request.WhichOneof("request_union")
        if kind == "create_request":
            self._create(request.create_request, len(message))
        elif kind == "cancel_request":
            self._cancel(request.cancel_request.watch_id, len(message))
        elif kind == "progress_request":
            self._ask(self._on_progress, None, len(message))
        if self._reading and self._is_full():
            self._reading = False
            self._wire.pause_reading()

    def on_half_close(self) -> None:
        """The client has no more requests; its watches go on (W20)."""

    def on_cancel(self, reason: CancelReason | None) -> None:
        """The client has ended the stream, or is gone."""
        if not self.ended:
            self._deliveries.member.count_stream_end(WATCH, reason)
            self._close()

    def on_writable(self) -> None:
        """The stream takes something again: go on where each watch stands."""
        if self.ended:
            return
        if self.paused:
            self._resume()
        self._read_on()

    # requests

    def _create(self, request: WatchCreateRequest, size_bytes: int) -> None:
        key = request.key or b"\0"
        range_end = request.range_end
        start = request.start_revision
        watch_id = request.watch_id
        if start < 0:
            reason = errors.COMPACTED.message  # W9
        elif range_end and range_end != FROM_KEY and range_end <= key:
            reason = EMPTY_RANGE
        elif watch_id and watch_id in self.watches:
            reason = DUPLICATE_ID
        else:
            if not watch_id:
                watch_id = self._free_id()
            flags = (PREV if request.prev_kv else 0) | (FRAGMENT if request.fragment else 0)
            if request.filters:
                flags |= NOPUT if WatchCreateRequest.NOPUT in request.filters else 0
                flags |= NODELETE if WatchCreateRequest.NODELETE in request.filters else 0
            watch = ClientWatch(watch_id, watch_id_field(watch_id), start)
            self.watches[watch_id] = watch
            self._deliveries.watches += 1
            if request.progress_notify:
                self._notified[watch] = None
                self._tick_later()
            registration = Registration(self, self._wire, (key, range_end, flags), start)
            registration.add(watch)
            self._count(size_bytes)
            self._register(registration, self._on_created, (watch, registration, size_bytes))
            return
        self._ask(self._on_refused, reason, size_bytes)

    def _free_id(self) -> int:
        """The next automatic id: a counter of the stream's own that skips ids in use (W3)."""
        while self._next_id in self.watches:
            self._next_id += 1
        watch_id = self._next_id
        self._next_id += 1
        return watch_id

    def _cancel(self, watch_id: int, size_bytes: int) -> None:
        watch = self.watches.pop(watch_id, None)
        if watch is None:
            return  # W18
        self._deliveries.watches -= 1
        self._notified.pop(watch, None)
        registration = watch.registration
        if registration is None:
            self._dead -= 1
        elif len(registration.watches) == 1:
            self._drop(registration)
            registration.discard(watch)
        elif registration.group is not None:
            registration.group.discard(registration, watch)
        else:
            registration.discard(watch)
        self._ask(self._on_canceled, watch.id_field, size_bytes)

    def _ask(self, answered: Any, subject: object, size_bytes: int) -> None:
        self._count(size_bytes)
        self._deliveries.ask(answered, (subject, size_bytes))

    def _count(self, size_bytes: int) -> None:
        self._pending += 1
        self._pending_bytes += size_bytes

    def _is_full(self) -> bool:
        return self._pending >= MAX_PENDING or self._pending_bytes >= MAX_PENDING_BYTES or not self._wire.writable

    def _settle(self, size_bytes: int) -> None:
        """A request was answered."""
        self._pending -= 1
        self._pending_bytes -= size_bytes
        self._read_on()

    def _read_on(self) -> None:
        if not self._reading and not self.ended and not self._is_full() and self._pending <= MAX_PENDING // 2:
            self._reading = True
            self._wire.resume_reading()

    # answers, at a revision of the store

    def _on_created(self, subject: tuple[ClientWatch, Registration, int], revision: int) -> None:
        if self.ended:
            return
        watch, registration, size_bytes = subject
        if registration.next == 0:
            registration.next = revision + 1
        self._wire.send(self._deliveries.header(revision) + watch.id_field + CREATED)
        self._on_registered(registration, revision)
        self._settle(size_bytes)

    def _on_registered(self, registration: Registration, _revision: int) -> None:
        """From here on events may come, unless it was canceled meanwhile."""
        if registration in self.registrations:
            registration.state = State.BEHIND
            if self.paused:
                self._park(registration)

    def _on_refused(self, subject: tuple[str, int], revision: int) -> None:
        if not self.ended:
            self._wire.send(refused(self._deliveries.header(revision), subject[0]))
            self._settle(subject[1])

    def _on_canceled(self, subject: tuple[bytes, int], revision: int) -> None:
        if not self.ended:
            self._wire.send(self._deliveries.header(revision) + subject[0] + CANCELED)
            self._settle(subject[1])

    def _on_progress(self, subject: tuple[None, int], revision: int) -> None:
        """All watches have been given everything up to `revision`, or nothing is said (WP6)."""
        if self.ended:
            return
        if self.watches and self._is_synced(revision) and self._wire.writable:
            self._wire.send(self._deliveries.header(revision) + watch_id_field(NO_WATCH))
        self._settle(subject[1])

    def _is_synced(self, revision: int) -> bool:
        return (
            self.live == len(self.registrations)
            and not self.parked
            and not self._dead
            and revision >= self._progress_from
        )

    # the timer of progress_notify

    def _tick_later(self) -> None:
        if not self._ticking:
            self._ticking = True
            self._deliveries.tick_later(self)

    def on_tick(self) -> None:
        """An interval is over: asks for progress of the watches that got nothing in it (WP3)."""
        self._ticking = False
        if self.ended or not self._notified:
            return
        self._tick_later()
        due: list[ClientWatch] = []
        for watch in self._notified:
            registration = watch.registration
            if registration is not None:
                if registration.last_event == watch.mark:
                    due.append(watch)
                watch.mark = registration.last_event
        if due and not self._notifying:
            self._notifying = True
            self._deliveries.ask(self._on_notify, due)

    def _on_notify(self, due: list[ClientWatch], revision: int) -> None:
        self._notifying = False
        if self.ended:
            return
        header = self._deliveries.header(revision)
        for watch in due:
            registration = watch.registration
            if registration is not None and registration.state is State.LIVE and revision >= watch.start:
                if not self._wire.writable:
                    return  # WP9
                self._wire.send(header + watch.id_field)

    # registrations

    def _register(self, registration: Registration, answered: Any, subject: object) -> None:
        registration.state = State.ASKED
        self.registrations[registration] = None
        self._deliveries.register(registration, answered, subject)

    def _drop(self, registration: Registration) -> None:
        """Ends a registration, wherever it stands."""
        if registration.state is State.PARKED:
            self._settle_owed(registration)
            del self.parked[registration]
        else:
            self._unregister(registration)

    def _unregister(self, registration: Registration) -> None:
        if registration.state is State.LIVE:
            self._deliveries.leave_group(registration)
            self.live -= 1
        del self.registrations[registration]
        self._deliveries.unregister(registration)

    def on_live(self, registration: Registration, next_revision: int) -> None:
        """A registration is about to join its group."""
        registration.next = next_revision
        for watch in registration.watches.values():
            if watch.start > self._progress_from:
                self._progress_from = watch.start

    def fall_behind(self, registration: Registration) -> None:
        """A registration's group is void."""
        registration.group = None
        registration.state = State.BEHIND
        registration.next = max(registration.next, self._deliveries.complete + 1)
        self.live -= 1

    def absorbed(self, registration: Registration) -> None:
        """A registration's watches belong to another now."""
        del self.registrations[registration]

    def pause(self, given: Registration | None = None) -> None:
        """The stream takes nothing more: parks what is registered, so that nothing more comes.

        `given` are the watches that were served of a registration that was not served whole.
        """
        if self.ended:
            return
        self.paused = True
        if given is not None:
            self.parked[given] = None
        for registration in [one for one in self.registrations if one.state is not State.ASKED]:
            self._park(registration)

    def _park(self, registration: Registration) -> None:
        if registration.state is State.LIVE:
            registration.next = max(registration.next, self._deliveries.complete + 1)
        self._unregister(registration)
        registration.state = State.PARKED
        self.parked[registration] = None
        self._keep(registration)

    def _keep(self, registration: Registration) -> None:
        """Keeps the reply that a parked registration is owed, if there is room for it."""
        if registration.owed is not None:
            reply = registration.owed[0]
            if self._deliveries.owe(reply):
                reply.forget_framed()
                self._owed[registration] = None
            else:
                registration.owed = None

    def _settle_owed(self, registration: Registration) -> None:
        if self._owed.pop(registration, self) is None:
            assert registration.owed is not None
            self._deliveries.settle(registration.owed[0])
        registration.owed = None

    def _resume(self) -> None:
        """Gives what was begun; then registers what is parked, alike and at the same revision as one."""
        while self._owed:
            registration = next(iter(self._owed))
            assert registration.owed is not None
            reply, revision = registration.owed
            self._settle_owed(registration)
            given = registration.give(reply, revision)
            if given is not None:
                self.parked[given] = None
                self._keep(registration)
            if given is not None or not self._wire.writable:
                return
        self.paused = False
        parked, self.parked = self.parked, {}
        merged: dict[tuple[Spec, int], Registration] = {}
        for registration in parked:
            place = (registration.spec, registration.next)
            same = merged.get(place)
            if same is None:
                merged[place] = registration
            elif len(same.watches) < len(registration.watches):
                registration.absorb(same)
                merged[place] = registration
            else:
                same.absorb(registration)
        for registration in merged.values():
            self._register(registration, self._on_registered, registration)

    def on_compacted(self, registration: Registration, compacted: int) -> None:
        """What the registration wants next is gone: its watches end, their ids stay taken (W14, W15)."""
        del self.registrations[registration]
        header = self._deliveries.header(0)
        for watch in list(registration.watches.values()):
            registration.discard(watch)
            watch.mark = NO_MARK
            self._dead += 1
            self._wire.send(canceled_compacted(header, watch.id_field, compacted))

    # the end

    def end(self, code: int, text: str) -> None:
        """Ends the stream with a status."""
        if not self.ended:
            self._close()
            self._wire.end(code, text)

    def _close(self) -> None:
        if self.ended:
            return
        self.ended = True
        for registration in (*self.registrations, *self.parked):
            self._drop(registration)
            registration.watches.clear()  # they name each other
        if self._ticking:
            self._deliveries.tick_dropped()
        self._deliveries.watches -= len(self.watches)
        self._deliveries.streams.pop(self, None)
        self.watches.clear()
        self._notified.clear()


class WatchService:
    """Opens Watch streams, and ends them when the member says so."""

    def __init__(self, deliveries: Deliveries) -> None:
        self.deliveries = deliveries

    def open(self, stream: Any, head: Head) -> WatchStream:
        """The wire's opener for /etcdserverpb.Watch/Watch."""
        handler = WatchStream(self.deliveries, stream, needs_leader=needs_leader(head))
        if admitted(self.deliveries.member, stream, head):
            self.deliveries.streams[handler] = None
        else:
            handler.ended = True
        return handler

    def end_leaderless(self) -> None:
        """The member has been without a leader for too long: ends the streams that wanted one (WP11)."""
        self._end_all(errors.NO_LEADER, [one for one in self.deliveries.streams if one.needs_leader])

    def end_all(self, status: Status = errors.STOPPED) -> None:
        """The member stops."""
        self._end_all(status, list(self.deliveries.streams))

    @staticmethod
    def _end_all(status: Status, streams: list[Any]) -> None:
        for stream in streams:
            stream.end(Code(status.code), status.message)
