"""Rows V and P: which checks come first, revisions and headers."""

import pytest

from kvorum import errors
from kvorum.errors import Code, Status
from kvorum.pb.rpc_pb2 import (
    AlarmRequest,
    Compare,
    DefragmentRequest,
    DeleteRangeRequest,
    LeaseRevokeRequest,
    MemberListRequest,
    MemberRemoveRequest,
    MoveLeaderRequest,
    PutRequest,
    RangeRequest,
    SnapshotRequest,
    StatusRequest,
    TxnRequest,
)
from tests.calls import OK
from tests.differential.side import Side, delete_op, put_op, range_op, txn_op


def test_P3_a_request_beyond_the_limit_is_too_large(api: Side) -> None:
    # two sizes known to lie on either side: the limit counts the internal request around the body
    assert api.status(PutRequest(key=b"key", value=bytes(1_572_834))) == OK
    assert api.status(PutRequest(key=b"key", value=bytes(1_572_844))) == errors.REQUEST_TOO_LARGE
    api(DeleteRangeRequest(key=b"key"))


def test_P4_a_message_beyond_the_receive_limit_is_refused_by_grpc(api: Side) -> None:
    request = PutRequest(key=api.key("a"), value=bytes(2_097_152))
    size = request.ByteSize()
    assert api.status(request) == Status(
        Code.RESOURCE_EXHAUSTED, f"grpc: received message larger than max ({size} vs. 2097152)"
    )


def test_P6_an_unmapped_error_is_unknown_with_its_text(api: Side) -> None:
    member = api(MemberListRequest(linearizable=True)).members[0].ID
    assert api.status(MemberRemoveRequest(ID=member)) == errors.MEMBER_NOT_ENOUGH_STARTED


@pytest.mark.parametrize("range_end", [b"", b"a", b"\0"])
@pytest.mark.parametrize("kind_of", [RangeRequest, DeleteRangeRequest])
def test_P7_an_empty_key_is_refused_with_any_range_end(
    api: Side, kind_of: type[RangeRequest] | type[DeleteRangeRequest], range_end: bytes
) -> None:
    assert api.status(kind_of(range_end=range_end)) == errors.EMPTY_KEY


def test_P7_put_of_an_empty_key(api: Side) -> None:
    assert api.status(PutRequest(value=b"x")) == errors.EMPTY_KEY


@pytest.mark.parametrize(
    ("range_end", "names"),
    [("", "b"), ("c", "b bb"), ("b", ""), ("a", ""), ("bb\0", "b bb")],
)
def test_P8_the_forms_of_range_end(api: Side, range_end: str, names: str) -> None:
    for name in ("a", "b", "bb", "c"):
        api.put(name)
    assert api.names(api.get("b", range_end=api.key(range_end)).kvs) == names


def test_P8_one_zero_byte_is_from_the_key_on_and_two_are_an_ordinary_end(api: Side) -> None:
    api.put("a")
    api.put("b")
    assert api.names(api.get("a", range_end=b"\0", limit=2).kvs) == "a b"
    assert api.get("a", range_end=b"\0\0").count == 0


def test_P9_lease_0_is_no_lease(api: Side) -> None:
    api.put("a", lease=0)
    assert api.get("a").kvs[0].lease == 0


def test_P18_a_serializable_read_is_answered(api: Side) -> None:
    api.put("a", b"1")
    assert api.get("a", serializable=True).kvs[0].value == b"1"


def test_V1_V12_R6_an_empty_store_is_at_revision_1_and_the_first_write_makes_2(fresh: Side) -> None:
    empty = fresh.get("a")
    assert (empty.header.revision, empty.count) == (1, 0)
    assert fresh.get("a", revision=1).count == 0
    assert fresh.put("a").header.revision == 2
    assert fresh.get("a", revision=1).count == 0
    kv = fresh.get("a").kvs[0]
    assert (kv.create_revision, kv.mod_revision, kv.version) == (2, 2, 1)
    status = fresh(StatusRequest())
    assert status.raftTerm >= 1 and status.raftIndex >= 1
    assert fresh.get("a").header.raft_term == status.raftTerm


def test_V2_a_transaction_adds_one_revision(api: Side) -> None:
    api.put("d")
    before = api.revision
    reply = api(TxnRequest(success=[put_op(api.key("a")), put_op(api.key("b")), delete_op(api.key("d"))]))
    assert reply.header.revision == before + 1 == api.revision
    assert {kv.mod_revision for kv in api.all().kvs} == {before + 1}


def test_V3_what_changes_nothing_adds_no_revision(api: Side) -> None:
    before = api.revision
    api.delete("absent")
    api(TxnRequest(success=[delete_op(api.key("absent"))]))
    api(TxnRequest(compare=[Compare(key=api.key("absent"), version=1)], success=[put_op(api.key("a"))]))
    lease = api.grant()
    api(LeaseRevokeRequest(ID=lease))
    api(MemberListRequest())
    api(AlarmRequest())
    assert api.revision == before


def test_V4_V5_each_put_is_a_change_and_versions_restart_after_a_delete(api: Side) -> None:
    first = api.put("a", b"1").header.revision
    second = api.put("a", b"1").header.revision
    kv = api.get("a").kvs[0]
    assert (second, kv.create_revision, kv.mod_revision, kv.version) == (first + 1, first, second, 2)
    api.delete("a")
    again = api.put("a", b"1").header.revision
    kv = api.get("a").kvs[0]
    assert (kv.create_revision, kv.mod_revision, kv.version) == (again, again, 1)


def test_V6_the_later_of_a_put_and_a_delete_in_two_branches_wins(api: Side) -> None:
    key = api.key("a")
    reply = api(TxnRequest(success=[txn_op([put_op(key, b"1")]), txn_op([delete_op(key)])]))
    assert reply.responses[1].response_txn.responses[0].response_delete_range.deleted == 1
    assert api.get("a").count == 0
    assert api.get("a", revision=reply.header.revision).count == 0


def test_V7_the_header_names_cluster_member_revision_and_term(api: Side) -> None:
    header = api.put("a").header
    members = api(MemberListRequest(linearizable=True))
    assert header.member_id == members.members[0].ID != 0
    assert header.cluster_id == members.header.cluster_id != 0
    assert header.raft_term == api(StatusRequest()).raftTerm


def test_V8_a_read_of_an_old_revision_has_the_current_one_in_its_header(api: Side) -> None:
    old = api.put("a").header.revision
    new = api.put("a").header.revision
    assert api.get("a", revision=old).header.revision == new


def test_V9_a_write_s_header_has_its_own_revision(api: Side) -> None:
    put = api.put("a").header.revision
    assert api.delete("absent").header.revision == put
    assert api.delete("a").header.revision == put + 1


def test_V10_V11_replies_without_revision_and_without_header(api: Side) -> None:
    header = api(MemberListRequest(linearizable=True)).header
    assert header.revision == 0 and header.member_id
    assert not api(DefragmentRequest()).HasField("header")
    assert not api(MoveLeaderRequest(targetID=header.member_id)).HasField("header")
    assert not any(part.HasField("header") for part in api.stream(SnapshotRequest()))


def test_P1_the_first_failing_check_answers(api: Side) -> None:
    """The fields before the size; the count of operations before what they hold."""
    assert api.status(PutRequest(value=bytes(1_600_000))) == errors.EMPTY_KEY
    ops = [range_op(b"")] * 129
    assert api.status(TxnRequest(success=ops)) == errors.TOO_MANY_OPS
