"""The replicated state machine: executes the log's entries in order, and says what to answer.

Deterministic: the same entries give the same bytes on every member and every replay. Nothing here reads a clock, draws
a number or depends on what else the process holds. What a request asks for was checked before it was logged; it can
fail only by the API's errors, found before its first write. Anything else that is raised stops the member, with the
index of the entry and the request's place in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol

from kvorum.errors import ApiError, Status
from kvorum.pb.rpc_pb2 import (
    AlarmRequest,
    AlarmResponse,
    CompactionRequest,
    LeaseGrantRequest,
    LeaseGrantResponse,
    LeaseRevokeRequest,
    TxnRequest,
)
from node.apply.alarms import Alarms
from node.apply.lease import Lessor
from node.apply.membership import Membership
from node.apply.mvcc.database import Cursor
from node.apply.mvcc.store import Store
from node.frames import HEADER_BYTES
from node.raft.solo import ENTRY_HEADER, EntryType
from node.requests import RECORD, REPLY, Batch, Op, batches

NOSPACE_REFUSES: Final = frozenset({Op.PUT, Op.LEASE_GRANT})
"""What NOSPACE forbids besides a transaction that may put (MA13)."""

CORRUPT_REFUSES: Final = frozenset({Op.PUT, Op.DELETE_RANGE, Op.TXN, Op.COMPACT, Op.LEASE_GRANT, Op.LEASE_REVOKE})
"""MA16."""

Replies = dict[int, list[bytes]]
"""Packed replies by the process where the request began."""


class BrokenInvariant(Exception):
    """An agreed request could not be executed: the member stops, since skipping it would part it from the others."""


class PhysicalWaits(Protocol):
    """Answers that are held until a compaction's rows are gone (C7)."""

    def wait(self, origin: int, sequence: int, reply: bytes) -> None:
        """Send `reply` to the request `sequence` of `origin` when the compaction under way has ended."""


class Machine:
    """Store, leases, members and alarms, changed only by `execute`."""

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
        self.revoked = 0
        """Leases, in the same time."""
        self.txns = 0
        self._mine = (member_id, incarnation)
        self._physical = physical
        self._handlers: dict[int, Callable[[bytes], bytes]] = {
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

    @property
    def cursor(self) -> Cursor:
        """Where the machine stands, to be committed with what it changed."""
        return Cursor(self.applied_index, 0, self.applied_term)

    def execute(self, frame: bytes) -> None:
        """Executes the entries of one frame; replies to this generation's own requests gather in `replies`."""
        at = HEADER_BYTES
        while at < len(frame):
            index, term, type_, length = ENTRY_HEADER.unpack_from(frame, at)
            at += ENTRY_HEADER.size
            assert index == self.applied_index + 1, f"entry {index} came after {self.applied_index}"
            if type_ == EntryType.MEMBERSHIP:
                self._add_rows(self.membership.found(frame[at : at + length]))
            else:
                for batch in batches(frame, at, at + length):
                    self._execute_batch(frame, index, batch)
            at += length
            self.applied_index = index
            self.applied_term = term
        self._add_rows(self.lessor.drain_rows())

    def _execute_batch(self, data: bytes, index: int, batch: Batch) -> None:
        mine = (batch.member, batch.incarnation) == self._mine
        replies = self.replies.setdefault(batch.origin, []) if mine else []
        handlers = self._handlers
        unpack = RECORD.unpack_from
        pack_reply = REPLY.pack
        record_bytes = RECORD.size
        sequence = batch.first_sequence
        at = batch.records_at
        alarmed = bool(self.alarms.active())
        while at < batch.end:
            length, op, flags, _ = unpack(data, at)
            assert flags == 0, "a record names a user, but this release knows none"
            at += record_bytes
            body = data[at : at + length]
            at += length
            try:
                if alarmed:
                    self._refuse_under_alarm(op, body)
                reply = handlers[op](body)
            except ApiError as error:
                code, text = error.status
                message = text.encode()
                replies.append(pack_reply(sequence, len(message), code) + message)
            except Exception as error:
                raise BrokenInvariant(f"entry {index}, request {sequence - batch.first_sequence}: {error!r}") from error
            else:
                if op == Op.COMPACT and mine and CompactionRequest.FromString(body).physical:
                    self._physical.wait(batch.origin, sequence, reply)
                else:
                    replies.append(pack_reply(sequence, len(reply), 0) + reply)
                if op == Op.ALARM:
                    alarmed = bool(self.alarms.active())
            sequence += 1
        self.requests += batch.size

    def _add_rows(self, rows: Iterable[tuple[bytes, bytes | None]]) -> None:
        self.store.database.pending.update(rows)

    def _refuse_under_alarm(self, op: int, body: bytes) -> None:
        if op not in CORRUPT_REFUSES:
            return
        grows = op in NOSPACE_REFUSES or (op == Op.TXN and may_put(TxnRequest.FromString(body)))
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


def may_put(request: TxnRequest) -> bool:
    """Whether either branch of a transaction has a put, nested ones too."""
    for ops in (request.success, request.failure):
        for op in ops:
            kind = op.WhichOneof("request")
            if kind == "request_put" or (kind == "request_txn" and may_put(op.request_txn)):
                return True
    return False
