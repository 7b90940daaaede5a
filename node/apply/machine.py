"""The replicated state machine: executes the log's entries in order, and says what to answer.

Deterministic: the same entries give the same bytes on every member and every replay. Nothing here reads a clock, draws
a number or depends on what else the process holds. What a request asks for was checked before it was logged; it can
fail only by the API's errors, found before its first write. Anything else that is raised stops the member, with the
index of the entry and the request's place in it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from typing import Final, Protocol

from kvorum.errors import ApiError, Status
from kvorum.pb.internal_pb2 import MemberChange
from kvorum.pb.rpc_pb2 import (
    AlarmRequest,
    AlarmResponse,
    CompactionRequest,
    LeaseGrantRequest,
    LeaseGrantResponse,
    LeaseRevokeRequest,
    MemberAddResponse,
    MemberListResponse,
    TxnRequest,
)
from node.apply.alarms import Alarms
from node.apply.lease import Lessor
from node.apply.mvcc.database import Cursor
from node.apply.mvcc.store import Store
from node.check import has_put
from node.frames import ENTRY_HEADER, HEADER_BYTES
from node.membership import Membership
from node.raft.core.change import decode_change
from node.raft.core.messages import EntryType
from node.requests import RECORD, REPLY, Batch, Op, batches
from node.stats import Histogram, histogram

NOSPACE_REFUSES: Final = frozenset({Op.PUT, Op.LEASE_GRANT})
"""What NOSPACE forbids besides a transaction that may put (MA13)."""

CORRUPT_REFUSES: Final = frozenset({Op.PUT, Op.DELETE_RANGE, Op.TXN, Op.COMPACT, Op.LEASE_GRANT, Op.LEASE_REVOKE})
"""MA16."""

SLICE_BYTES: Final = 24 << 10
REQUEST_BYTES: Final = 100
"""A slice ends when the bodies of its requests, and so many bytes for each of them, come to this: 1 to 5 ms."""

Replies = dict[int, list[bytes]]
"""Packed replies by the process where the request began."""


Handlers = dict[int, Callable[[bytes], bytes]]
"""By op: takes a record's body, returns the reply; raises ApiError."""


class BrokenInvariant(Exception):
    """An agreed request could not be executed: the member stops, since skipping it would part it from the others."""


class PhysicalWaits(Protocol):
    """Answers that are held until a compaction's rows are gone (C7)."""

    def wait(self, origin: int, sequence: int, reply: bytes) -> None:
        """Send `reply` to the request `sequence` of `origin` when the compaction under way has ended."""


class Machine:
    """Store, leases, members and alarms, changed only by `step`.

    `load` takes a frame of entries, `step` executes some of it; a commit of `cursor` fits between any two steps, also
    in the middle of an entry.
    """

    def __init__(
        self,
        *,
        member_id: int,
        incarnation: int,
        store: Store,
        lessor: Lessor,
        membership: Membership,
        alarms: Alarms,
        physical: PhysicalWaits,
    ) -> None:
        self.store = store
        self.lessor = lessor
        self.membership = membership
        self.alarms = alarms
        self.applied_index = store.cursor.index
        self.applied_term = store.cursor.term
        self.replies: Replies = {}
        self.requests = 0
        """Requests executed since the process began."""
        self.granted = 0
        self.granted_ttl_s: Histogram = histogram("etcd_debugging_lease_ttl_total")
        self.revoked = 0
        """Leases, in the same time."""
        self.txns = 0
        self._requests_done = 0  # of the entry after applied_index
        self._resume_at = store.cursor.requests_done
        self._frame: Iterator[None] | None = None
        self._mine = (member_id, incarnation)
        self._physical = physical
        self._handlers: Handlers = {
            Op.PUT: store.put,
            Op.DELETE_RANGE: store.delete_range,
            Op.TXN: self._txn,
            Op.COMPACT: store.compact,
            Op.LEASE_GRANT: self._lease_grant,
            Op.LEASE_REVOKE: self._lease_revoke,
            Op.ALARM: self._alarm,
            Op.PUBLISH: self._publish,
            Op.CLUSTER_VERSION: self._cluster_version,
        }
        self._change_handlers: Handlers = {
            op: partial(self._change_members, op)
            for op in (Op.MEMBER_ADD, Op.MEMBER_REMOVE, Op.MEMBER_UPDATE, Op.MEMBER_PROMOTE)
        }

    @property
    def cursor(self) -> Cursor:
        """Where the machine stands, to be committed with what it changed."""
        return Cursor(self.applied_index, self._requests_done, self.applied_term)

    @property
    def busy(self) -> bool:
        """Whether some of the frame loaded last is still to be executed."""
        return self._frame is not None

    def load(self, frame: bytes) -> None:
        """The next frame of entries, to be executed by `step`."""
        assert self._frame is None, "the frame before is not executed"
        self._frame = self._execute(frame)

    def step(self) -> bool:
        """Executes a slice of the frame; True when that was the last one.

        Replies to this generation's own requests gather in `replies`. Raises BrokenInvariant.
        """
        assert self._frame is not None, "no frame was loaded"
        done = next(self._frame, self) is self
        if done:
            self._frame = None
        self._add_rows(self.lessor.drain_rows())
        return done

    def _execute(self, frame: bytes) -> Iterator[None]:
        """The entries of a frame, with a yield between two slices."""
        spent = 0
        at = HEADER_BYTES
        while at < len(frame):
            index, term, type_, length = ENTRY_HEADER.unpack_from(frame, at)
            at += ENTRY_HEADER.size
            assert index == self.applied_index + 1, f"entry {index} came after {self.applied_index}"
            if type_ == EntryType.NORMAL:
                for batch in batches(frame, at, at + length):
                    spent = yield from self._execute_batch(frame, index, batch, self._handlers, spent)
            elif type_ == EntryType.FOUNDING:
                self._add_rows(self.membership.found(frame[at : at + length]))
            else:  # raft's own, such as the end of a joint configuration, have no context
                try:
                    change = decode_change(frame[at : at + length])
                except ValueError as error:
                    raise BrokenInvariant(f"entry {index}: {error}") from error
                assert not self._resume_at, "raft was told of members that had changed within an entry"
                for batch in batches(change.context):
                    spent = yield from self._execute_batch(change.context, index, batch, self._change_handlers, spent)
            at += length
            assert not self._resume_at, f"entry {index} has fewer requests than were executed of it before"
            self.applied_index = index
            self.applied_term = term
            self._requests_done = 0

    def _execute_batch(
        self, data: bytes, index: int, batch: Batch, handlers: Handlers, spent: int
    ) -> Generator[None, None, int]:
        """One batch, with a yield where a slice ends; `spent`, also returned, is what the slice has cost so far."""
        mine = (batch.member, batch.incarnation) == self._mine
        replies = self.replies.setdefault(batch.origin, []) if mine else []
        unpack = RECORD.unpack_from
        pack_reply = REPLY.pack
        record_bytes = RECORD.size
        sequence = batch.first_sequence
        begun = sequence - self._requests_done  # the sequence less the request's place in the entry
        at = batch.records_at
        alarmed = self.alarms.any_active
        while at < batch.end:
            length, op, flags, _ = unpack(data, at)
            at += record_bytes
            if self._resume_at:  # executed, and committed, before this process began
                self._resume_at -= 1
                at += length
                sequence += 1
                continue
            if spent > SLICE_BYTES:
                spent = 0
                self._requests_done = sequence - begun
                yield
                replies = self.replies.setdefault(batch.origin, []) if mine else []
            spent += length + REQUEST_BYTES
            body = data[at : at + length]
            at += length
            try:
                assert flags == 0, "the record names a user, but this release knows none"
                if alarmed:
                    self._refuse_under_alarm(op, body)
                reply = handlers[op](body)
            except ApiError as error:
                code, text = error.status
                message = text.encode()
                replies.append(pack_reply(sequence, len(message), code) + message)
            except Exception as error:
                place = f"entry {index}, request {sequence - begun} (op {op}, {length} bytes)"
                raise BrokenInvariant(f"{place}: {error!r}") from error
            else:
                if op == Op.COMPACT and mine and CompactionRequest.FromString(body).physical:
                    self._physical.wait(batch.origin, sequence, reply)
                else:
                    replies.append(pack_reply(sequence, len(reply), 0) + reply)
                if op == Op.ALARM:
                    alarmed = self.alarms.any_active
            sequence += 1
            self.requests += 1
        self._requests_done = sequence - begun
        return spent

    def _add_rows(self, rows: Iterable[tuple[bytes, bytes | None]]) -> None:
        self.store.database.pending.update(rows)

    def _refuse_under_alarm(self, op: int, body: bytes) -> None:
        if op not in CORRUPT_REFUSES:
            return
        grows = op in NOSPACE_REFUSES or (op == Op.TXN and has_put(TxnRequest.FromString(body)))
        status: Status | None = self.alarms.refusal(grows)
        if status is not None:
            raise ApiError(status)

    def _txn(self, body: bytes) -> bytes:
        self.txns += 1
        return self.store.txn(body)

    def _lease_grant(self, body: bytes) -> bytes:
        request = LeaseGrantRequest.FromString(body)
        self.lessor.grant(request.ID, request.TTL)
        self.granted += 1
        self.granted_ttl_s.observe(request.TTL)
        return self.store.header() + LeaseGrantResponse(ID=request.ID, TTL=request.TTL).SerializeToString()

    def _lease_revoke(self, body: bytes) -> bytes:
        self.store.delete_keys(self.lessor.revoke(LeaseRevokeRequest.FromString(body).ID))
        self.revoked += 1
        return self.store.header()

    def _alarm(self, body: bytes) -> bytes:
        alarms, rows = self.alarms.execute(AlarmRequest.FromString(body))
        self._add_rows(rows)
        return self.store.header() + AlarmResponse(alarms=alarms).SerializeToString()

    def _publish(self, body: bytes) -> bytes:
        self._add_rows(self.membership.publish(body))
        return b""

    def _cluster_version(self, body: bytes) -> bytes:
        self._add_rows(self.membership.set_cluster_version(body))
        return b""

    def _change_members(self, op: Op, body: bytes) -> bytes:
        """The four changes of members answer alike (M2), but that an added one is also named by itself."""
        change = MemberChange.FromString(body)
        status = self.membership.check(op, change)
        if status is not None:
            raise ApiError(status)
        self._add_rows(self.membership.execute(op, change))
        members = self.membership.members()
        if op == Op.MEMBER_ADD:
            reply = MemberAddResponse(member=self.membership.get(change.ID), members=members).SerializeToString()
        else:  # these three have one form with the reply to MemberList
            reply = MemberListResponse(members=members).SerializeToString()
        return self.store.header(0) + reply
