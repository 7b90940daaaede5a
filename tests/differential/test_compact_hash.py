"""Rows C and H: Compact, HashKV and Hash."""

import os

from google_crc32c import value as crc32c

from kvorum import errors
from kvorum.pb.mvcc_pb2 import Event, KeyValue
from kvorum.pb.rpc_pb2 import (
    CompactionRequest,
    DefragmentRequest,
    DeleteRangeRequest,
    HashKVRequest,
    HashRequest,
    RangeRequest,
    StatusRequest,
    TxnRequest,
)
from loadtest.launcher import wait_until
from tests.differential.side import Side, canceled, delete_op, differs, events, put_op

EMPTY_HASH = 1_084_519_789


def row(main: int, sub: int, kv: KeyValue, *, tombstone: bool = False) -> bytes:
    """H2, H3: one row of the key table."""
    key = main.to_bytes(8, "big") + b"_" + sub.to_bytes(8, "big") + (b"t" if tombstone else b"")
    return key + kv.SerializeToString(deterministic=True)


def test_C1_C3_borders_and_header(api: Side) -> None:
    at = api.put("a").header.revision
    assert api.status(CompactionRequest(revision=at + 1)) == errors.FUTURE_REV
    last = api.put("a").header.revision
    assert api(CompactionRequest(revision=at)).header.revision == last
    assert api.status(CompactionRequest(revision=at)) == errors.COMPACTED
    assert api.status(CompactionRequest(revision=at - 1)) == errors.COMPACTED
    assert api(CompactionRequest(revision=last, physical=True)).header.revision == last


def test_C2_revision_0_succeeds_once_on_a_store_never_compacted(fresh: Side) -> None:
    assert fresh.status(CompactionRequest(revision=-1)) == errors.COMPACTED
    assert fresh(HashKVRequest()).compact_revision == -1
    fresh(CompactionRequest())
    assert fresh.status(CompactionRequest()) == errors.COMPACTED
    fresh.put("a")
    assert fresh(HashKVRequest()).compact_revision == 0


def test_C4_every_key_readable_at_the_compacted_revision_stays(api: Side) -> None:
    api.put("a", b"1")
    api.put("b", b"1")
    api.delete("b")
    api.put("a", b"2")
    at = api.put("c", b"1").header.revision
    api.put("a", b"3")
    api.compact(at, physical=True)
    assert [(api.names([kv]), kv.value) for kv in api.all(revision=at).kvs] == [("a", b"2"), ("c", b"1")]
    assert api.status(RangeRequest(key=api.key("a"), revision=at - 1)) == errors.COMPACTED
    with api.watch() as stream:
        api.create(stream, start_revision=at)
        assert [event.kv.value for event in events(stream, 2)] == [b"1", b"3"]


@differs("X6")
def test_C5_the_tombstone_at_the_compacted_revision_is_watched(api: Side) -> None:
    api.put("a")
    at = api.delete("a").header.revision
    api.put("b")
    api.compact(at, physical=True)
    with api.watch() as stream:
        api.create(stream, start_revision=at)
        assert [event.type for event in events(stream, 2)] == [Event.DELETE, Event.PUT]


def test_C6_C7_both_ways_of_compacting_hide_the_old_at_once(api: Side) -> None:
    for physical in (False, True):
        at = api.put("a").header.revision
        api.compact(api.put("a").header.revision, physical=physical)
        assert api.status(RangeRequest(key=api.key("a"), revision=at)) == errors.COMPACTED


def test_C9_a_synced_watcher_does_not_notice_and_an_old_start_is_canceled(api: Side) -> None:
    old = api.put("a").header.revision
    at = api.put("a").header.revision
    with api.watch() as stream:
        api.create(stream, watch_id=7)
        api.compact(at)
        api.create(stream, watch_id=8, start_revision=old)
        assert canceled(stream, 8).compact_revision == at
        api.put("a", b"after")
        assert events(stream, 1, 7)[0].kv.value == b"after"


def test_C8_a_restart_keeps_the_compaction(fresh: Side) -> None:
    for _ in range(5):
        at = fresh.put("a").header.revision
    fresh(CompactionRequest(revision=at - 1))
    fresh.server.restart()
    with Side(fresh.kind, fresh.server) as again:
        again.prefix = fresh.prefix
        assert again.status(RangeRequest(key=again.key("a"), revision=at - 2)) == errors.COMPACTED
        assert again.get("a", revision=at - 1).kvs[0].version == 4
        assert again(HashKVRequest()).compact_revision == at - 1


def test_C10_defragment_gives_the_space_back(fresh: Side) -> None:
    for _ in range(60):
        at = fresh.put("a", os.urandom(100_000)).header.revision
    wait_until(lambda: fresh(StatusRequest()).dbSize > 5_000_000, "dbSize to count what was written")
    fresh(CompactionRequest(revision=at, physical=True))
    fresh(DefragmentRequest())
    wait_until(lambda: fresh(StatusRequest()).dbSize < 2_000_000, "dbSize to fall")
    status = fresh(StatusRequest())
    assert 0 < status.dbSizeInUse <= status.dbSize


def test_H1_H2_H3_H7_the_hash_is_over_the_rows_of_the_reference_s_layout(fresh: Side) -> None:
    lease = fresh.grant(lease=77)
    a, b = fresh.key("a"), fresh.key("b")
    assert fresh(HashKVRequest()).hash == EMPTY_HASH
    fresh.put("a", b"1", lease=lease)
    fresh(TxnRequest(success=[put_op(b, b""), delete_op(a)]))
    fresh.put("b", b"2")
    rows = [
        row(2, 0, KeyValue(key=a, value=b"1", create_revision=2, mod_revision=2, version=1, lease=lease)),
        row(3, 0, KeyValue(key=b, create_revision=3, mod_revision=3, version=1)),
        row(3, 1, KeyValue(key=a), tombstone=True),
        row(4, 0, KeyValue(key=b, value=b"2", create_revision=3, mod_revision=4, version=2)),
    ]
    reply = fresh(HashKVRequest())
    assert reply.hash == crc32c(b"key" + b"".join(rows))
    assert (reply.header.revision, reply.compact_revision) == (4, -1)
    assert fresh(HashKVRequest(revision=2)).hash == crc32c(b"key" + rows[0])
    assert fresh(HashKVRequest(revision=1)).hash == fresh(HashKVRequest(revision=-1)).hash == EMPTY_HASH


def test_H4_H5_rows_at_or_below_the_compaction_count_only_when_kept(fresh: Side) -> None:
    a = fresh.key("a")
    fresh.put("a", b"1")
    fresh.put("a", b"2")
    fresh.put("b", b"1")
    fresh.delete("b")
    fresh.put("a", b"3")
    fresh(CompactionRequest(revision=5))
    kept = row(3, 0, KeyValue(key=a, value=b"2", create_revision=2, mod_revision=3, version=2))
    last = row(6, 0, KeyValue(key=a, value=b"3", create_revision=2, mod_revision=6, version=3))
    # at 6 the latest version of a is the one at 6, so the one kept for revision 5 does not count
    assert fresh(HashKVRequest(revision=6)).hash == crc32c(b"key" + last)
    fresh.put("c", b"1")
    assert fresh(HashKVRequest()).compact_revision == 5
    assert crc32c(b"key" + kept + last) != fresh(HashKVRequest(revision=6)).hash


def test_H6_revisions(api: Side) -> None:
    old = api.put("a").header.revision
    at = api.put("a").header.revision
    now = api.put("a").header.revision
    api(CompactionRequest(revision=at, physical=True))
    assert api.status(HashKVRequest(revision=now + 1)) == errors.FUTURE_REV
    assert api.status(HashKVRequest(revision=old)) == errors.COMPACTED
    assert api(HashKVRequest(revision=now)).hash == api(HashKVRequest()).hash
    assert api(HashKVRequest(revision=-5)).hash == EMPTY_HASH


@differs("X4")
def test_H6_H8_the_compacted_revision_has_the_hash_of_its_compaction(api: Side) -> None:
    first = api.put("a", b"1").header.revision
    api(CompactionRequest(revision=first, physical=True))
    api.put("a", b"2")
    at = api.put("b", b"1").header.revision
    before = api(HashKVRequest(revision=at))
    api.put("b", b"2")
    api(CompactionRequest(revision=at, physical=True))
    stored = api(HashKVRequest(revision=at))
    assert (stored.hash, stored.compact_revision, stored.hash_revision) == (before.hash, first, at)
    assert api(HashKVRequest()).compact_revision == at


@differs("X5")
def test_H7_the_revision_hashed_is_told(api: Side) -> None:
    at = api.put("a").header.revision
    now = api.put("a").header.revision
    reply = api(HashKVRequest(revision=at))
    assert (reply.hash_revision, reply.header.revision) == (at, now)
    assert api(HashKVRequest()).hash_revision == now


def test_H12_hash_changes_with_the_store(api: Side) -> None:
    reply = api(HashRequest())
    assert (reply.header.revision, reply.header.member_id != 0) == (api.revision, True)
    api(DeleteRangeRequest(key=api.key("absent")))
    api.put("a")
    assert api(HashRequest()).hash != reply.hash
