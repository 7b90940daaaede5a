"""Leases and the store together: their rows go with the data in one write, and both are found again after a restart."""

from pathlib import Path

import pytest

from kvorum.errors import LEASE_NOT_FOUND, ApiError
from kvorum.pb.rpc_pb2 import PutRequest, RangeRequest, RangeResponse
from node.apply.lease import ATTACHED_TABLE, LEASE_TABLE, Lessor
from node.apply.mvcc.database import Cursor
from node.apply.mvcc.store import Store
from tests.apply.mvcc_store import IDENTITY, DiskFullError, FailingDatabase


class Member:
    """A store with its leases, as the apply process puts them together."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.index = 0
        self.open()

    def open(self) -> None:
        self.lessor = Lessor()
        self.database = FailingDatabase(str(self.path))
        self.store = Store(self.database, self.lessor, IDENTITY)
        self.lessor.restore(
            *(list(self.database.scan(table, bytes([table[0] + 1]))) for table in (LEASE_TABLE, ATTACHED_TABLE))
        )

    def restart(self) -> None:
        self.store.close()
        del self.store, self.database
        self.open()

    def put(self, key: bytes, lease_id: int) -> None:
        self.store.put(PutRequest(key=key, lease=lease_id).SerializeToString())

    def revoke(self, lease_id: int) -> None:
        self.store.delete_keys(self.lessor.revoke(lease_id))

    def commit(self) -> None:
        self.index += 1
        self.database.pending.update(self.lessor.drain_rows())
        self.store.commit(Cursor(self.index, 0, 1))

    def keys(self) -> list[bytes]:
        request = RangeRequest(key=b"\0", range_end=b"\0", keys_only=True)
        reply = RangeResponse.FromString(self.store.range(request.SerializeToString()))
        return [kv.key for kv in reply.kvs]

    def attached(self) -> dict[int, set[bytes]]:
        return {lease_id: set(self.lessor.keys_of(lease_id)) for lease_id in self.lessor.leases()}


def test_l26_leases_and_their_keys_survive_a_restart(tmp_path: Path) -> None:
    member = Member(tmp_path)
    for lease_id in (1, -2, 3):
        member.lessor.grant(lease_id, 60)
    for key, lease_id in ((b"a", 1), (b"b", 1), (b"\xff\0", -2), (b"c", 3), (b"d", 0)):
        member.put(key, lease_id)
    member.commit()
    member.put(b"b", -2)
    member.put(b"c", 0)
    member.commit()
    expected = {1: {b"a"}, -2: {b"b", b"\xff\0"}, 3: set[bytes]()}
    assert member.attached() == expected
    member.restart()
    assert member.attached() == expected
    member.lessor.promote(10.0, 1.0)
    assert member.lessor.time_to_live(-2, 10.0).granted_ttl_s == 60
    member.store.close()


def test_l20_a_revoke_deletes_in_one_revision_and_leaves_no_row(tmp_path: Path) -> None:
    member = Member(tmp_path)
    member.lessor.grant(1, 60)
    for key in (b"b", b"a", b"c"):
        member.put(key, 1)
    member.put(b"d", 0)
    revision = member.store.revision
    member.revoke(1)
    assert member.store.revision == revision + 1
    assert member.keys() == [b"d"]
    member.commit()
    _, changes = member.store.take_events()[-1]
    assert [(deleted, key) for deleted, key, _, _ in changes] == [(True, b"a"), (True, b"b"), (True, b"c")]
    with pytest.raises(ApiError) as caught:
        member.put(b"e", 1)
    assert caught.value.status == LEASE_NOT_FOUND
    member.restart()
    assert member.attached() == {}
    assert list(member.database.scan(ATTACHED_TABLE, b"b")) == []
    member.store.close()


def test_l20_without_keys_no_revision(tmp_path: Path) -> None:
    member = Member(tmp_path)
    member.lessor.grant(1, 60)
    revision = member.store.revision
    member.revoke(1)
    assert member.store.revision == revision
    member.store.close()


def test_a_failed_write_loses_no_row(tmp_path: Path) -> None:
    """The rows are the database's from the moment they are drained; it writes them again with whatever came since."""
    member = Member(tmp_path)
    member.lessor.grant(1, 60)
    member.put(b"a", 1)
    member.database.failures = 1
    with pytest.raises(DiskFullError):
        member.commit()
    member.lessor.grant(2, 60)
    member.put(b"b", 2)
    member.commit()
    member.restart()
    assert member.attached() == {1: {b"a"}, 2: {b"b"}}
    member.store.close()
