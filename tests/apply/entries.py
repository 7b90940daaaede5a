"""Frames of log entries for a machine, as raft sends them; and the replies that come of them."""

from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import Message

from kvorum.pb.internal_pb2 import ClusterVersion, Founding, MemberChange, Publish
from kvorum.pb.rpc_pb2 import (
    AlarmRequest,
    CompactionRequest,
    DeleteRangeRequest,
    LeaseGrantRequest,
    LeaseRevokeRequest,
    Member,
    PutRequest,
    TxnRequest,
)
from node import membership
from node.apply import alarms, lease
from node.apply.alarms import Alarms
from node.apply.lease import Lessor
from node.apply.machine import Machine
from node.apply.mvcc.store import Store
from node.frames import ENTRY_HEADER, Kind, Process, pack
from node.membership import Membership
from node.raft.core.change import ChangeType, ConfChange, encode_change
from node.raft.core.messages import EntryType
from node.requests import REPLY, Op, pack_batch, pack_record
from tests.apply.mvcc_store import IDENTITY, FailingDatabase

MEMBER = IDENTITY.member_id
INCARNATION = 77
FRONT = Process.FRONT
TERM = 2

OPS: dict[type[Message], Op] = {
    PutRequest: Op.PUT,
    DeleteRangeRequest: Op.DELETE_RANGE,
    TxnRequest: Op.TXN,
    CompactionRequest: Op.COMPACT,
    LeaseGrantRequest: Op.LEASE_GRANT,
    LeaseRevokeRequest: Op.LEASE_REVOKE,
    AlarmRequest: Op.ALARM,
    Publish: Op.PUBLISH,
    ClusterVersion: Op.CLUSTER_VERSION,
}

FOUNDING = Founding(members=[Member(ID=MEMBER, name="m1", peerURLs=["http://127.0.0.1:2380"])]).SerializeToString()

Entry = tuple[int, int, bytes]
"""Term, type, data."""


def record(request: Message) -> bytes:
    return pack_record(OPS[type(request)], request.SerializeToString())


def batch(
    *requests: Message, origin: int = FRONT, member: int = MEMBER, incarnation: int = INCARNATION, first: int = 1
) -> bytes:
    """A batch of requests, by default of this generation's first front."""
    return pack_batch(origin, member, incarnation, first, [record(request) for request in requests])


def normal(*batches: bytes, term: int = TERM) -> Entry:
    return term, EntryType.NORMAL, b"".join(batches)


def changed(
    op: Op, change: MemberChange, *, incarnation: int = INCARNATION, sequence: int = 1, term: int = TERM
) -> Entry:
    """A change of members as raft logs it; which type of change stands in it is the core's business alone."""
    context = pack_batch(FRONT, MEMBER, incarnation, sequence, [pack_record(op, change.SerializeToString())])
    data = encode_change(ConfChange(((ChangeType.UPDATE, change.ID),), context=context))
    return term, EntryType.CONF_CHANGE, data


def founding() -> Entry:
    return 1, EntryType.FOUNDING, FOUNDING


def frame(first_index: int, *entries: Entry) -> bytes:
    """A frame of entries, the first with that index."""
    parts = []
    for index, (term, type_, data) in enumerate(entries, first_index):
        parts += [ENTRY_HEADER.pack(index, term, type_, len(data)), data]
    return pack(Process.RAFT, Kind.ENTRIES, 0, b"".join(parts))


def replies(packed: list[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """(sequence, code, body) of each reply."""
    for reply in packed:
        sequence, length, code = REPLY.unpack_from(reply)
        assert len(reply) == REPLY.size + length
        yield sequence, code, reply[REPLY.size :]


class PhysicalReplies:
    """Holds what waits for a compaction's end."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, int]] = []

    def wait(self, origin: int, sequence: int, reply: bytes) -> None:
        assert reply
        self.waiting.append((origin, sequence))


class MachineUnderTest:
    """A machine on a store in a directory; `reopen` loses what was not committed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.commits = 0
        self._open()

    def _open(self) -> None:
        self.database = FailingDatabase(str(self.path))
        self.lessor = Lessor()
        self.store = Store(self.database, self.lessor, IDENTITY)
        self.lessor.restore(
            self.database.scan(lease.LEASE_TABLE, lease.LEASE_TABLE + b"\xff" * 9),
            self.database.scan(lease.ATTACHED_TABLE, bytes((lease.ATTACHED_TABLE[0] + 1,))),
        )
        self.alarms = Alarms(self.database.scan(alarms.TABLE, bytes((alarms.TABLE[0] + 1,))))
        self.membership = Membership(self.database.scan(membership.TABLE, bytes((membership.TABLE[0] + 1,))))
        self.physical = PhysicalReplies()
        self.machine = Machine(
            member_id=MEMBER,
            incarnation=INCARNATION,
            store=self.store,
            lessor=self.lessor,
            membership=self.membership,
            alarms=self.alarms,
            physical=self.physical,
        )

    def reopen(self) -> None:
        self.close()
        del self.store, self.database, self.machine
        self._open()

    def close(self) -> None:
        self.store.close()

    def execute(self, *entries: Entry) -> list[tuple[int, int, bytes]]:
        """Execute and commit the next entries; the replies to the first front."""
        self.machine.load(frame(self.machine.applied_index + 1, *entries))
        while not self.machine.step():
            pass
        self.commit()
        return self.take_replies()

    def commit(self) -> None:
        self.commits += 1
        self.store.commit(self.machine.cursor)
        self.store.take_events()

    def take_replies(self) -> list[tuple[int, int, bytes]]:
        taken, self.machine.replies = self.machine.replies, {}
        return list(replies(taken.get(FRONT, [])))

    def request(self, request: Message) -> tuple[int, bytes]:
        """Execute one request in an entry of its own: (code, body or text)."""
        ((_, code, body),) = self.execute(normal(batch(request)))
        return code, body

    def rows(self) -> dict[bytes, bytes]:
        """Everything in the database but the cursor."""
        return {row: value for row, value in self.database.committed(b"", b"\xff" * 9) if row != b"mcursor"}
