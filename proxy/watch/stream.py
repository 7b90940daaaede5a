"""A client's Watch stream: what it asks, in the order in which it asks it, with the ids it knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from kvorum import errors
from kvorum.errors import ApiError, Status
from kvorum.pb.rpc_pb2 import WatchCreateRequest, WatchRequest, WatchResponse
from kvorum.ranges import FROM_KEY
from kvorum.watch_replies import (
    CANCELED,
    CREATED,
    DUPLICATE_ID,
    EMPTY_RANGE,
    NO_WATCH,
    canceled,
    canceled_compacted,
    refused,
    watch_id_field,
)
from kvorum.wire.routes import CancelReason
from proxy.namespaces.namespace import Namespace
from proxy.paths import WATCH
from proxy.tenants.tenant import Tenant
from proxy.watch.batch import header_field
from proxy.watch.cohort import Cohort, Ids, Place, Wire
from proxy.watch.group import Group
from proxy.watch.session import Ask, AskKind, Session
from proxy.watch.spec import Spec, flags_of, id_field_of, refusal_text

if TYPE_CHECKING:
    from proxy.watch.service import WatchService

MAX_PENDING: Final = 128
MAX_PENDING_BYTES: Final = 1 << 20
"""Requests of one stream, and their bytes, that wait for their answer; at either the stream is not read any more."""


class WatchStream:
    """One Watch call; the wire's handler for it."""

    __slots__ = (
        "__weakref__",
        "_last_start",
        "_next_id",
        "_parked",
        "_pending",
        "_pending_bytes",
        "_reading",
        "_service",
        "_session",
        "_tenant",
        "asked",
        "ended",
        "namespace",
        "watches",
        "wire",
    )

    def __init__(
        self,
        service: WatchService,
        session: Session,
        wire: Wire,
        namespace: Namespace | None,
        tenant: Tenant | None,
    ) -> None:
        self._service = service
        self._tenant = tenant
        if tenant is not None:
            tenant.streams[self] = self._end_for_tenant
        self._session = session
        self.wire = wire
        self.namespace = namespace
        self.ended = False
        self.watches: dict[bytes, Cohort | None] = {}
        """By id field; None: asked, or ended by a compaction, and its id still taken (W15)."""
        self.asked: dict[bytes, Ask] = {}
        self._parked: dict[tuple[Spec, int], Cohort] = {}
        self._last_start = 0
        """The greatest revision that a watch was created from."""
        self._next_id = 0
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
            self.end(*errors.unmarshal_error(error))
            return
        kind = request.WhichOneof("request_union")
        if kind == "create_request":
            self._create(request.create_request, len(message))
        elif kind == "cancel_request":
            self._cancel(request.cancel_request.watch_id, len(message))
        elif kind == "progress_request":
            self._ask(Ask(AskKind.PROGRESS, self, None, len(message)))
        if self._reading and self._is_full():
            self._reading = False
            self.wire.pause_reading()

    def on_half_close(self) -> None:
        """The client has no more requests; its watches go on (W20)."""

    def on_cancel(self, reason: CancelReason | None) -> None:
        """The client has ended the stream, or is gone."""
        self._close()

    def on_writable(self) -> None:
        """The stream takes something again: each watch goes on where it stands."""
        if self.ended:
            return
        parked, self._parked = self._parked, {}
        for cohort in parked.values():
            group = cohort.group
            (ids,) = cohort.members.values()
            group.join(self, ids, cohort.next)
            group.release()
            if self.ended:
                return
        self._read_on()

    # requests

    def _create(self, request: WatchCreateRequest, size_bytes: int) -> None:
        key = request.key or b"\0"  # W8
        range_end = request.range_end
        start = request.start_revision
        watch_id = request.watch_id
        id_field = id_field_of(watch_id)
        if start < 0:
            reason = errors.COMPACTED.message  # W9
        elif range_end and range_end != FROM_KEY and range_end <= key:
            reason = EMPTY_RANGE
        elif watch_id and id_field in self.watches:
            reason = DUPLICATE_ID
        elif (over := self._admit()) is not None:
            reason = over
        else:
            if not watch_id:
                id_field = self._free_id()
            namespace = self.namespace
            if namespace is not None:
                key, range_end = namespace.watch_interval(key, range_end)
            group = self._session.group(Spec(key, range_end, flags_of(request), namespace))
            ask = Ask(AskKind.CREATE, self, group.spec[:2], size_bytes)
            ask.id_field = id_field
            ask.group = group
            ask.start = start
            if start > self._last_start:
                self._last_start = start
            self.watches[id_field] = None
            self.asked[id_field] = ask
            if request.progress_notify:
                group.notified.setdefault(self, {})[id_field] = start
            self._ask(ask)
            return
        if self.namespace is not None:
            key = self.namespace.key(key)
        ask = Ask(AskKind.REFUSE, self, (key, b""), size_bytes)
        ask.reason = reason
        self._ask(ask)

    def _admit(self) -> str | None:
        """One more watch, if the caller may have it; else why not."""
        tenant = self._tenant
        if tenant is not None:
            try:
                tenant.count_request(WATCH)
                tenant.open_watch()
            except ApiError as error:
                return refusal_text(*error.status)
        self._service.shared.watches += 1
        return None

    def _dismiss(self, watches: int = 1) -> None:
        """So many watches fewer."""
        self._service.shared.watches -= watches
        if self._tenant is not None:
            self._tenant.close_watches(watches)

    def _end_for_tenant(self, status: Status) -> None:
        self.end(*status)

    def _free_id(self) -> bytes:
        """The next automatic id: a counter of the stream's own that skips ids in use (W3)."""
        while (id_field := id_field_of(self._next_id)) in self.watches:
            self._next_id += 1
        self._next_id += 1
        return id_field

    def _cancel(self, watch_id: int, size_bytes: int) -> None:
        id_field = id_field_of(watch_id)
        if id_field not in self.watches:
            return  # W18
        cohort = self.watches.pop(id_field)
        key_range = None
        if cohort is not None:
            group = cohort.group
            key_range = group.spec[:2]
            group.discard(cohort, self, id_field)
            if cohort.place is Place.PARKED and not cohort.size:
                del self._parked[group.spec, cohort.next]
                group.release()
            self._dismiss()
        else:
            create = self.asked.pop(id_field, None)
            if create is not None:
                assert create.group is not None
                create.given_up = True
                create.group.forget_notified(self, id_field)
                self._dismiss()
        ask = Ask(AskKind.CANCEL, self, key_range, size_bytes)
        ask.id_field = id_field
        self._ask(ask)

    def _ask(self, ask: Ask) -> None:
        self._pending += 1
        self._pending_bytes += ask.size_bytes
        self._session.ask(ask)

    def _is_full(self) -> bool:
        return self._pending >= MAX_PENDING or self._pending_bytes >= MAX_PENDING_BYTES or not self.wire.writable

    def settle(self, size_bytes: int) -> None:
        """A request was answered."""
        self._pending -= 1
        self._pending_bytes -= size_bytes
        if not self._reading:
            self._read_on()

    def _read_on(self) -> None:
        if not self._reading and not self.ended and not self._is_full() and self._pending <= MAX_PENDING // 2:
            self._reading = True
            self.wire.resume_reading()

    # answers

    def answer_created(self, ask: Ask, header: bytes) -> None:
        self.wire.send(header + ask.id_field + CREATED)
        if not ask.given_up:
            self.asked.pop(ask.id_field, None)

    def answer_denied(self, ask: Ask, header: bytes, status: Status) -> None:
        """The caller may not read what it wants to watch (W25)."""
        if not ask.given_up:
            assert ask.group is not None
            del self.asked[ask.id_field]
            del self.watches[ask.id_field]
            ask.group.forget_notified(self, ask.id_field)
            self._dismiss()
        self.wire.send(refused(header, refusal_text(*status)))

    def answer_refused(self, header: bytes, reason: str) -> None:
        self.wire.send(refused(header, reason))

    def answer_cancel(self, header: bytes, id_field: bytes) -> None:
        self.wire.send(header + id_field + CANCELED)

    def answer_progress(self, header: bytes) -> None:
        """All watches have been given everything up to the header's revision (WP6)."""
        if self.wire.writable:  # WP9
            self.wire.send(header + watch_id_field(NO_WATCH))

    def is_complete(self, revision: int) -> bool:
        """Whether all watches are live and have been given everything up to a revision, and it is not the one before
        a watch's first (WP4)."""
        if not self.watches or revision + 1 == self._last_start:
            return False
        return all(
            cohort is not None and cohort.place is Place.LIVE and cohort.group.position >= revision
            for cohort in set(self.watches.values())
        )

    def end_watch(self, id_field: bytes, reply: WatchResponse) -> None:
        """A member has ended what serves a watch."""
        header = header_field(reply.header) if reply.HasField("header") else b""
        self._dismiss()
        if reply.compact_revision:
            self.watches[id_field] = None
            self.wire.send(canceled_compacted(header, id_field, reply.compact_revision))
        else:
            del self.watches[id_field]
            self.wire.send(canceled(header, id_field, reply.cancel_reason))

    # a stream that takes nothing now

    def park(self, group: Group, ids: Ids, next_revision: int) -> None:
        """Keeps watches until the stream takes something again."""
        place = (group.spec, next_revision)
        cohort = self._parked.get(place)
        if cohort is None:
            cohort = self._parked[place] = Cohort(group, Place.PARKED, next_revision)
            group.hold()
        cohort.add(self, ids)

    # the end

    def end(self, code: int, text: str) -> None:
        """Ends the stream with a status."""
        if not self.ended:
            self._close()
            self.wire.end(code, text)

    def _close(self) -> None:
        if self.ended:
            return
        self.ended = True
        self._dismiss(len(self.watches) - self._dead())
        if self._tenant is not None:
            del self._tenant.streams[self]
        for cohort in set(self.watches.values()):
            if cohort is not None:
                cohort.group.leave(cohort, self)
                if cohort.place is Place.PARKED:
                    cohort.group.release()
        for ask in self.asked.values():
            assert ask.group is not None
            ask.group.notified.pop(self, None)
        self.watches.clear()
        self.asked.clear()
        self._parked.clear()
        self._service.on_stream_ended(self, self._session)

    def _dead(self) -> int:
        """Watches ended by a compaction."""
        return sum(cohort is None for cohort in self.watches.values()) - len(self.asked)
