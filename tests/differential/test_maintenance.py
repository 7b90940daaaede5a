"""Rows MA: maintenance."""

import hashlib
from collections.abc import Iterator

import pytest
from google.protobuf.message import Message

from kvorum import API_VERSION, errors
from kvorum.errors import Code, Status
from kvorum.pb.rpc_pb2 import (
    CORRUPT,
    NONE,
    NOSPACE,
    AlarmMember,
    AlarmRequest,
    CompactionRequest,
    DefragmentRequest,
    DeleteRangeRequest,
    DowngradeRequest,
    HashKVRequest,
    LeaseGrantRequest,
    LeaseKeepAliveRequest,
    LeaseRevokeRequest,
    LeaseTimeToLiveRequest,
    MemberListRequest,
    MoveLeaderRequest,
    PutRequest,
    SnapshotRequest,
    StatusRequest,
    TxnRequest,
)
from loadtest.launcher import Kind
from tests.calls import OK
from tests.differential.side import Side, delete_op, differs, events, put_op, range_op, txn_op
from tests.servers import start

GET, ACTIVATE, DEACTIVATE = AlarmRequest.GET, AlarmRequest.ACTIVATE, AlarmRequest.DEACTIVATE
VALIDATE, ENABLE, CANCEL = DowngradeRequest.VALIDATE, DowngradeRequest.ENABLE, DowngradeRequest.CANCEL


def alarms(
    api: Side, action: AlarmRequest.AlarmAction = GET, alarm: int = NONE, member: int = 0
) -> list[tuple[int, int]]:
    """(member, alarm) of the reply."""
    reply = api(AlarmRequest(action=action, alarm=alarm, memberID=member))  # type: ignore[arg-type]
    return [(found.memberID, found.alarm) for found in reply.alarms]


def member_id(api: Side) -> int:
    return api(MemberListRequest()).members[0].ID  # type: ignore[no-any-return]


def test_MA1_status(api: Side) -> None:
    at = api.put("a").header.revision
    status = api(StatusRequest())
    assert (status.header.revision, status.header.member_id) == (at, member_id(api))
    assert status.leader == status.header.member_id
    assert status.raftTerm == status.header.raft_term > 0
    assert status.raftIndex >= status.raftAppliedIndex > 0
    assert 0 < status.dbSizeInUse <= status.dbSize
    assert (status.isLearner, list(status.errors)) == (False, [])


@differs("X30")
def test_MA1_MA4_MA5_what_newer_versions_tell(api: Side) -> None:
    status = api(StatusRequest())
    assert (status.version, status.storageVersion) == (API_VERSION, API_VERSION)
    assert tuple(int(part) for part in status.version.split(".")) >= (3, 5, 13)
    assert status.dbSizeQuota == 2_147_483_648
    assert status.HasField("downgradeInfo") and not status.downgradeInfo.enabled


def test_MA3_status_tells_the_alarms(fresh: Side) -> None:
    alarms(fresh, ACTIVATE, CORRUPT, 11417610130673999598)
    (text,) = fresh(StatusRequest()).errors
    assert text.split() == ["memberID:11417610130673999598", "alarm:CORRUPT"]


def test_MA7_MA8_MA9_MA14_alarms(fresh: Side) -> None:
    assert alarms(fresh) == []
    assert alarms(fresh, ACTIVATE, NONE, 5) == []
    assert alarms(fresh, ACTIVATE, NOSPACE, 5) == [(5, NOSPACE)]
    assert alarms(fresh, ACTIVATE, NOSPACE, 5) == [(5, NOSPACE)]
    assert alarms(fresh, ACTIVATE, NOSPACE, 0) == [(0, NOSPACE)]
    assert alarms(fresh, ACTIVATE, CORRUPT, 5) == [(5, CORRUPT)]
    assert sorted(alarms(fresh)) == [(0, NOSPACE), (5, NOSPACE), (5, CORRUPT)]
    assert sorted(alarms(fresh, GET, NOSPACE, 99)) == [(0, NOSPACE), (5, NOSPACE)]
    assert alarms(fresh, DEACTIVATE, NOSPACE, 6) == []
    assert alarms(fresh, DEACTIVATE, NOSPACE, 5) == [(5, NOSPACE)]
    assert alarms(fresh, DEACTIVATE, NOSPACE, 5) == []
    assert sorted(alarms(fresh)) == [(0, NOSPACE), (5, CORRUPT)]
    fresh.server.restart()
    with Side(fresh.kind, fresh.server) as again:
        assert sorted(alarms(again)) == [(0, NOSPACE), (5, CORRUPT)]


@differs("Z2")
def test_MA10_an_unknown_action_is_refused_and_harms_nobody(api: Side) -> None:
    outcome = api.outcome(AlarmRequest(action=7))  # type: ignore[arg-type]
    assert not outcome.ListFields() if not isinstance(outcome, Status) else outcome.code == Code.INVALID_ARGUMENT
    api.put("a")


@differs("MA11")
def test_MA11_an_unknown_type_is_stored_and_listed(fresh: Side) -> None:
    assert alarms(fresh, ACTIVATE, 9, 5) == [(5, 9)]
    assert list(fresh(AlarmRequest()).alarms) == [AlarmMember(memberID=5, alarm=9)]  # type: ignore[arg-type]
    assert fresh.status(PutRequest(key=b"a")) == OK


WRITES: dict[str, Message] = {
    "put": PutRequest(key=b"a"),
    "txn": TxnRequest(success=[put_op(b"a")]),
    "txn, put in the other branch": TxnRequest(failure=[put_op(b"a")]),
    "grant": LeaseGrantRequest(TTL=60),
}
REMOVALS: dict[str, Message] = {
    "delete": DeleteRangeRequest(key=b"b"),
    "delete txn": TxnRequest(success=[delete_op(b"b")]),
    "revoke": LeaseRevokeRequest(ID=2),
    "compact": CompactionRequest(revision=2),
}
READS: dict[str, Message] = {
    "read txn": TxnRequest(success=[range_op(b"a")]),
    "time to live": LeaseTimeToLiveRequest(ID=1),
    "hash": HashKVRequest(),
}


@pytest.fixture
def prepared(fresh: Side) -> Side:
    for lease in (1, 2):
        fresh.grant(lease=lease)
    for key in (b"a", b"b", b"c"):
        fresh(PutRequest(key=key))
    return fresh


def test_MA13_L6_nospace_stops_what_grows(prepared: Side) -> None:
    alarms(prepared, ACTIVATE, NOSPACE, 5)
    assert {name: prepared.status(request) for name, request in WRITES.items()} == dict.fromkeys(
        WRITES, errors.NO_SPACE
    )
    assert {prepared.status(request) for request in (REMOVALS | READS).values()} == {OK}
    assert prepared.status(DefragmentRequest()) == OK
    with prepared.watch() as stream, prepared.keep_alive() as renewals:
        renewals.send(LeaseKeepAliveRequest(ID=1))
        assert renewals.wait(lambda replies: replies)[0].TTL == 3600
        prepared.create(stream, key=b"c")
        prepared(DeleteRangeRequest(key=b"c"))
        events(stream, 1)
    alarms(prepared, DEACTIVATE, NOSPACE, 5)
    assert {prepared.status(request) for request in WRITES.values()} == {OK}


@differs("X26")
def test_MA13_nospace_counts_nested_puts(prepared: Side) -> None:
    alarms(prepared, ACTIVATE, NOSPACE, 5)
    assert prepared.status(TxnRequest(success=[txn_op([put_op(b"a")])])) == errors.NO_SPACE


def test_MA16_MA17_corrupt_stops_every_change_and_wins(prepared: Side) -> None:
    alarms(prepared, ACTIVATE, NOSPACE, 5)
    alarms(prepared, ACTIVATE, CORRUPT, 5)
    changes = WRITES | REMOVALS
    assert {name: prepared.status(request) for name, request in changes.items()} == dict.fromkeys(
        changes, errors.CORRUPT
    )
    assert {prepared.status(request) for request in READS.values()} == {OK}
    assert prepared.get("a").count == 0
    with prepared.watch() as stream:
        prepared.create(stream)


@pytest.fixture
def small(kind: Kind) -> Iterator[Side]:
    """A server with a quota of 16 MiB."""
    with start(kind, {"quota-backend-bytes": str(16 << 20)}) as server, Side(kind, server) as side:
        yield side


def test_P2_MA14_MA15_the_quota_raises_the_alarm_which_stays_until_disarmed(small: Side) -> None:
    status, puts = OK, 0
    while status == OK and puts < 40:
        status = small.status(PutRequest(key=small.key(f"{puts:02}"), value=random_bytes(puts)))
        puts += 1
    assert status == errors.NO_SPACE
    assert small.status(PutRequest()) in (errors.NO_SPACE, errors.EMPTY_KEY)
    (raised,) = alarms(small)
    assert raised == (member_id(small), NOSPACE)
    small(DeleteRangeRequest(key=small.prefix, range_end=small.end))
    small(CompactionRequest(revision=small.revision, physical=True))
    small(DefragmentRequest())
    assert small.status(PutRequest(key=small.key("a"))) == errors.NO_SPACE
    alarms(small, DEACTIVATE, NOSPACE, raised[0])
    assert small.status(PutRequest(key=small.key("a"))) == OK


def random_bytes(seed: int) -> bytes:
    """1 MB that no storage can compress."""
    return hashlib.shake_128(seed.to_bytes(4, "big")).digest(1_000_000)


def test_MA18_a_defragmentation_keeps_the_data(api: Side) -> None:
    api.put("a", b"1")
    api(DefragmentRequest())
    assert api.get("a").kvs[0].value == b"1"


def test_MA20_MA21_a_snapshot_counts_down_and_ends_with_its_checksum(api: Side) -> None:
    api.put("a", random_bytes(1))
    *data, last = api.stream(SnapshotRequest())
    blobs = [part.blob for part in data]
    left = sum(map(len, blobs))
    assert left > 0 and left % 512 == 0
    for part in data:
        left -= len(part.blob)
        assert (part.remaining_bytes, len(part.blob) <= 32 * 1024) == (left, True)
    assert (last.remaining_bytes, last.blob) == (0, hashlib.sha256(b"".join(blobs)).digest())


@differs("X31")
def test_MA20_a_snapshot_names_its_version(api: Side) -> None:
    assert {part.version for part in api.stream(SnapshotRequest())} == {API_VERSION}


def test_MA24_move_leader(api: Side) -> None:
    assert api.status(MoveLeaderRequest(targetID=1)) == errors.BAD_LEADER_TRANSFEREE
    assert api.status(MoveLeaderRequest(targetID=member_id(api))) == OK


@pytest.mark.parametrize("version", ["", "x", "3", "3.", "three.six"])
def test_MA26_the_format_of_a_downgrade_s_version(api: Side, version: str) -> None:
    for action in (VALIDATE, ENABLE):
        request = DowngradeRequest(action=action, version=version)
        assert api.status(request) == errors.WRONG_DOWNGRADE_VERSION_FORMAT


def minor_below(api: Side, steps: int) -> str:
    """The version `steps` minor versions below what that server says it is."""
    major, minor, _ = api(StatusRequest()).version.split(".")
    return f"{major}.{int(minor) - steps}"


def test_MA27_only_the_minor_version_below_is_a_target(api: Side) -> None:
    for steps in (-1, 0, 2):
        request = DowngradeRequest(action=VALIDATE, version=minor_below(api, steps) + ".0")
        assert api.status(request) == errors.INVALID_DOWNGRADE_TARGET_VERSION, steps
    assert api.status(DowngradeRequest(action=VALIDATE, version=minor_below(api, 1))) == OK


@differs("X29")
def test_MA28_MA30_the_reply_names_the_cluster_version_and_cancel_needs_no_job(api: Side) -> None:
    reply = api(DowngradeRequest(action=VALIDATE, version="3.6.0"))
    assert (reply.version, reply.header.revision) == ("3.7", api.revision)
    assert api(DowngradeRequest(action=CANCEL)).version == "3.7"


@differs("X29")
def test_MA29_enable_twice(fresh: Side) -> None:
    request = DowngradeRequest(action=ENABLE, version=minor_below(fresh, 1) + ".0")
    assert fresh.status(request) == OK
    assert fresh.status(request) == errors.DOWNGRADE_IN_PROCESS
    assert fresh.status(DowngradeRequest(action=CANCEL)) == OK
    assert fresh.status(request) == OK


def test_MA31_an_unknown_downgrade_action(api: Side) -> None:
    request = DowngradeRequest(action=9, version="3.4.0")  # type: ignore[arg-type]
    assert api.status(request) == Status(Code.UNKNOWN, "etcdserver: unknown method")


@differs("X30")
def test_MA32_a_running_downgrade_is_told_in_status(fresh: Side) -> None:
    fresh(DowngradeRequest(action=ENABLE, version="3.6.0"))
    info = fresh(StatusRequest()).downgradeInfo
    assert (info.enabled, info.targetVersion) == (True, "3.6.0")
