"""Rows T: transactions."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from kvorum import errors
from kvorum.errors import Status
from kvorum.pb.mvcc_pb2 import Event
from kvorum.pb.rpc_pb2 import (
    CompactionRequest,
    Compare,
    PutRequest,
    RangeRequest,
    RequestOp,
    ResponseHeader,
    TxnRequest,
    TxnResponse,
)
from tests.calls import OK
from tests.differential.side import Side, batches, delete_op, events, put_op, range_op, txn_op

EQUAL, GREATER, LESS, NOT_EQUAL = Compare.EQUAL, Compare.GREATER, Compare.LESS, Compare.NOT_EQUAL
UNKNOWN_LEASE = 4711
FAILS = Compare(key=b"no such key", version=1)


def txn(
    api: Side,
    success: Sequence[RequestOp] = (),
    failure: Sequence[RequestOp] = (),
    compare: Sequence[Compare] = (),
) -> TxnResponse:
    return api(TxnRequest(compare=compare, success=success, failure=failure))  # type: ignore[no-any-return]


def status(api: Side, *success: RequestOp, failure: Sequence[RequestOp] = ()) -> Status:
    return api.status(TxnRequest(success=success, failure=failure))


EMPTY = RequestOp()
NO_KEY = put_op(b"")
TWICE = [put_op(b"twice"), put_op(b"twice")]


@pytest.mark.parametrize(
    ("request_of", "expected"),
    [
        (TxnRequest(compare=[Compare()], success=[NO_KEY] * 129), errors.TOO_MANY_OPS),
        (TxnRequest(compare=[Compare()], success=[EMPTY]), errors.EMPTY_KEY),
        (TxnRequest(success=[EMPTY, NO_KEY]), errors.KEY_NOT_FOUND),
        (TxnRequest(success=[NO_KEY, EMPTY]), errors.EMPTY_KEY),
        (TxnRequest(success=[txn_op([EMPTY]), NO_KEY]), errors.KEY_NOT_FOUND),
        (TxnRequest(success=TWICE, failure=[NO_KEY]), errors.EMPTY_KEY),
        (TxnRequest(success=[*TWICE, EMPTY]), errors.KEY_NOT_FOUND),
        (TxnRequest(success=TWICE, failure=[put_op(b"x")]), errors.DUPLICATE_KEY),
        (TxnRequest(failure=TWICE), errors.DUPLICATE_KEY),
    ],
    ids=range(9),
)
def test_T1_order_of_checks(api: Side, request_of: TxnRequest, expected: Status) -> None:
    assert api.status(request_of) == expected


def test_T2_each_list_may_reach_128(api: Side) -> None:
    ops = [range_op(api.key("a"))] * 129
    compares = [Compare(key=api.key("a"), version=0)] * 129
    assert api.status(TxnRequest(compare=compares[:128], success=ops[:128], failure=ops[:128])) == OK
    for request in (TxnRequest(compare=compares), TxnRequest(success=ops), TxnRequest(failure=ops)):
        assert api.status(request) == errors.TOO_MANY_OPS


@pytest.mark.parametrize(
    ("operations", "passes"),
    [
        pytest.param(lambda some: [txn_op(some(127))], True, id="one nested with 127"),
        pytest.param(lambda some: [txn_op(some(128))], False, id="one nested with 128"),
        pytest.param(lambda some: [txn_op(some(126)), txn_op(some(126))], True, id="two nested with 126"),
        pytest.param(lambda some: [txn_op(some(127)), txn_op(some(1))], False, id="two nested, one with 127"),
        pytest.param(lambda some: [*some(126), txn_op(some(1))], True, id="126 and one nested with one"),
        pytest.param(lambda some: [*some(127), txn_op(some(1))], False, id="127 and one nested with one"),
        pytest.param(lambda some: [txn_op()] * 128, True, id="128 empty nested"),
    ],
)
def test_T3_a_nested_txn_has_what_its_parent_leaves(
    api: Side, operations: Callable[[Callable[[int], list[RequestOp]]], list[RequestOp]], passes: bool
) -> None:
    ops = operations(lambda count: [range_op(api.key("a"))] * count)
    assert status(api, *ops) == (OK if passes else errors.TOO_MANY_OPS)


@pytest.mark.parametrize("branch", ["success", "failure"])
@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        pytest.param(EMPTY, errors.KEY_NOT_FOUND, id="T4"),
        pytest.param(NO_KEY, errors.EMPTY_KEY, id="T5-put"),
        pytest.param(range_op(b""), errors.EMPTY_KEY, id="T5-range"),
        pytest.param(delete_op(b"", b"\0"), errors.EMPTY_KEY, id="T5-delete"),
        pytest.param(put_op(b"x", b"v", ignore_value=True), errors.VALUE_PROVIDED, id="T5-ignore_value"),
        pytest.param(put_op(b"x", ignore_lease=True, lease=1), errors.LEASE_PROVIDED, id="T5-ignore_lease"),
        pytest.param(txn_op([txn_op(failure=[NO_KEY])]), errors.EMPTY_KEY, id="T5-nested"),
        pytest.param(txn_op(compare=[Compare()]), errors.EMPTY_KEY, id="T5-nested-compare"),
    ],
)
def test_T5_rules_hold_in_both_branches(api: Side, branch: str, operation: RequestOp, expected: Status) -> None:
    assert api.status(TxnRequest(**{branch: [operation]})) == expected  # type: ignore[arg-type]


def case_ops(api: Side, case: str) -> list[RequestOp]:
    """p: put a; g: get a; d: delete a; D: delete [a, c); F: delete from a on; I: delete [c, a); {then|else}: nested."""
    a, c = api.key("a"), api.key("c")
    flat = {"p": put_op(a), "d": delete_op(a), "D": delete_op(a, c), "g": range_op(a), "F": delete_op(a, b"\0")}
    flat["I"] = delete_op(c, a)
    ops: list[RequestOp] = []
    at = 0
    while at < len(case):
        if case[at] == "{":
            end = case.index("}", at)
            then, _, otherwise = case[at + 1 : end].partition("|")
            ops.append(txn_op(case_ops(api, then), case_ops(api, otherwise)))
            at = end + 1
        else:
            ops.append(flat[case[at]])
            at += 1
    return ops


@pytest.mark.parametrize(
    ("case", "passes"),
    [
        pytest.param("pp", False, id="T6-two puts"),
        pytest.param("pd", False, id="T6-put and delete"),
        pytest.param("dp", False, id="T6-delete and put"),
        pytest.param("pD", False, id="T6-put and covering delete"),
        pytest.param("Dp", False, id="T6-covering delete and put"),
        pytest.param("dD", True, id="T6-overlapping deletes"),
        pytest.param("gpg", True, id="T6-ranges never count"),
        pytest.param("{p|p}", True, id="T7-then and else of a child"),
        pytest.param("p{p}", False, id="T7-parent's put and child's put"),
        pytest.param("p{|p}", False, id="T7-parent's put and child's else"),
        pytest.param("{p}p", False, id="T7-child's put and parent's put"),
        pytest.param("d{p}", False, id="T7-parent's delete and child's put"),
        pytest.param("{p}{p}", False, id="T7-puts in two children"),
        pytest.param("{d}{p}", False, id="T8-first deletes, second puts"),
        pytest.param("{p}{d}", True, id="T8-first puts, second deletes"),
        pytest.param("{p|d}", True, id="T8-then puts, else deletes"),
        pytest.param("pF", True, id="T9-put and delete from key"),
        pytest.param("pI", True, id="T9-put and inverted delete"),
    ],
)
@pytest.mark.parametrize("branch", ["success", "failure"])
def test_duplicate_keys(fresh_keys: Side, case: str, passes: bool, branch: str) -> None:
    ops = case_ops(fresh_keys, case)
    request = TxnRequest(compare=[] if branch == "success" else [FAILS], **{branch: ops})
    assert fresh_keys.status(request) == (OK if passes else errors.DUPLICATE_KEY)


@pytest.fixture
def fresh_keys(api: Side) -> Side:
    """Keys above those of all other tests, so that a delete from a key on harms nobody."""
    api.prefix = b"\xf0" + api.prefix
    return api


def test_T6_success_and_failure_are_checked_apart(api: Side) -> None:
    assert status(api, put_op(api.key("a")), failure=[put_op(api.key("a"))]) == OK


def test_T9_WE13_put_then_delete_from_key_are_two_events_of_one_revision(fresh_keys: Side) -> None:
    api = fresh_keys
    with api.watch() as stream:
        api.create(stream)
        at = txn(api, [put_op(api.key("a"), b"1"), delete_op(api.key("a"), b"\0")]).header.revision
        found = events(stream, 2)
    assert [(event.type, event.kv.mod_revision) for event in found] == [(Event.PUT, at), (Event.DELETE, at)]


def test_T10_compares_see_the_state_before_the_whole_txn(api: Side) -> None:
    nested = txn_op(
        [put_op(api.key("b"), b"existed")], [put_op(api.key("b"), b"absent")], [absent(api, "a", NOT_EQUAL)]
    )
    reply = txn(api, [put_op(api.key("a")), nested])
    assert not reply.responses[1].response_txn.succeeded
    assert api.get("b").kvs[0].value == b"absent"


def absent(api: Side, name: str, result: Compare.CompareResult = EQUAL) -> Compare:
    return Compare(key=api.key(name), target=Compare.CREATE, result=result, create_revision=0)


def test_T11_T12_no_compare_succeeds_and_empty_branches_change_nothing(api: Side) -> None:
    at = api.revision
    for compare, succeeded in (([], True), ([FAILS], False)):
        reply = txn(api, compare=compare)
        assert (reply.succeeded, len(reply.responses), reply.header.revision) == (succeeded, 0, at)


TARGETS = {
    "version": Compare.VERSION,
    "create_revision": Compare.CREATE,
    "mod_revision": Compare.MOD,
    "lease": Compare.LEASE,
}


@pytest.mark.parametrize("field", TARGETS)
def test_T13_T14_T15_numbers_of_no_key_compare_as_0(api: Side, field: str) -> None:
    inverted = {"key": api.key("b"), "range_end": api.key("a")}
    empty = {"key": api.key("a"), "range_end": api.key("b")}
    for where in ({"key": api.key("a")}, empty, inverted):
        for value, expected in ((0, "E"), (1, "LN"), (-1, "GN")):
            for letter, result in zip("EGLN", (EQUAL, GREATER, LESS, NOT_EQUAL), strict=True):
                fields: dict[str, Any] = {**where, "target": TARGETS[field], "result": result, field: value}
                assert txn(api, compare=[Compare(**fields)]).succeeded == (letter in expected), fields


@pytest.mark.parametrize("range_end", ["", "b"])
@pytest.mark.parametrize("result", [EQUAL, GREATER, LESS, NOT_EQUAL])
def test_T13_T15_the_value_of_no_key_compares_false(api: Side, range_end: str, result: Compare.CompareResult) -> None:
    compare = Compare(key=api.key("a"), range_end=api.key(range_end), target=Compare.VALUE, result=result, value=b"1")
    assert not txn(api, compare=[compare]).succeeded


def test_T15_a_compare_over_a_range_wants_every_key(api: Side) -> None:
    api.put("a", b"1")
    api.put("b", b"1")
    api.put("b", b"1")

    def holds(**fields: Any) -> bool:
        return txn(api, compare=[Compare(key=api.prefix, range_end=api.end, **fields)]).succeeded

    assert holds(target=Compare.VALUE, value=b"1")
    assert not holds(target=Compare.VERSION, version=1)
    assert holds(target=Compare.VERSION, result=LESS, version=3)


@pytest.mark.parametrize("given", [{}, {"mod_revision": 1}])
def test_T16_a_missing_or_foreign_union_member_is_zero(api: Side, given: dict[str, int]) -> None:
    key = api.key("a")
    assert txn(api, compare=[Compare(key=key, target=Compare.VERSION, **given)]).succeeded  # type: ignore[arg-type]
    api.put("a", b"")
    assert not txn(api, compare=[Compare(key=key, target=Compare.VERSION, **given)]).succeeded  # type: ignore[arg-type]
    assert txn(api, compare=[Compare(key=key, target=Compare.VALUE, **given)]).succeeded  # type: ignore[arg-type]


def test_T17_unknown_enums(api: Side) -> None:
    api.put("a", b"1")
    unknown_result = Compare(key=api.key("a"), target=Compare.VERSION, result=9, version=77)  # type: ignore[arg-type]
    assert txn(api, compare=[unknown_result]).succeeded
    for result, holds in ((EQUAL, True), (GREATER, False), (LESS, False), (NOT_EQUAL, False)):
        compare = Compare(key=api.key("a"), target=9, result=result, version=77)  # type: ignore[arg-type]
        assert txn(api, compare=[compare]).succeeded == holds


@pytest.mark.parametrize(
    ("value", "holds"), [(b"b", "E"), (b"a\xff", "GN"), (b"b\0", "LN"), (b"", "GN"), (b"\xff", "LN")]
)
def test_T18_values_compare_in_byte_order(api: Side, value: bytes, holds: str) -> None:
    api.put("a", b"b")
    for letter, result in zip("EGLN", (EQUAL, GREATER, LESS, NOT_EQUAL), strict=True):
        compare = Compare(key=api.key("a"), target=Compare.VALUE, result=result, value=value)
        assert txn(api, compare=[compare]).succeeded == (letter in holds)


FAULTS: dict[str, tuple[Callable[[Side], RequestOp], Status]] = {
    "lease": (lambda api: put_op(api.key("x"), lease=UNKNOWN_LEASE), errors.LEASE_NOT_FOUND),
    "ignore_value": (lambda api: put_op(api.key("x"), ignore_value=True), errors.KEY_NOT_FOUND),
    "ignore_lease": (lambda api: put_op(api.key("x"), ignore_lease=True), errors.KEY_NOT_FOUND),
    "future": (lambda api: range_op(api.key("x"), revision=1 << 62), errors.FUTURE_REV),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_T19_T20_a_fault_of_the_taken_path_fails_the_whole_txn_and_no_other(api: Side, fault: str) -> None:
    operation, expected = FAULTS[fault][0](api), FAULTS[fault][1]
    at = api.revision
    first = put_op(api.key("first"))
    assert status(api, first, operation) == expected
    assert status(api, first, txn_op([txn_op([operation])])) == expected
    assert (api.revision, api.get("first").count) == (at, 0)
    assert status(api, first, txn_op(failure=[operation]), failure=[operation]) == OK


def test_T21_ignore_value_after_a_put_in_the_same_txn(api: Side) -> None:
    nested = txn_op([put_op(api.key("b"), ignore_value=True)])
    assert status(api, put_op(api.key("b1")), nested) == errors.KEY_NOT_FOUND


def test_T22_the_revision_of_a_range_inside(fresh: Side) -> None:
    at = fresh.put("a").header.revision
    fresh.put("a")

    def inside(revision: int) -> Status:
        return status(fresh, put_op(fresh.key("b")), range_op(fresh.key("a"), revision=revision))

    assert inside(0) == inside(at) == inside(-1) == OK
    assert inside(fresh.revision + 1) == errors.FUTURE_REV
    assert inside(-2) == errors.COMPACTED
    fresh(CompactionRequest(revision=at))
    assert inside(at) == OK
    assert [inside(revision) for revision in (-1, -2, at - 1)] == [errors.COMPACTED] * 3
    assert fresh.status(RangeRequest(key=fresh.key("a"), revision=-1)) == OK


def test_T23_T25_T34_reads_and_headers_inside(api: Side) -> None:
    api.put("a", b"old")
    at = api.revision
    key, other = api.key("a"), api.key("b")
    reply = txn(
        api,
        [
            range_op(key),
            delete_op(api.key("absent")),
            put_op(key, b"new", prev_kv=True),
            range_op(key),
            delete_op(api.key("absent")),
            txn_op([put_op(other, b"n", prev_kv=True)]),
            txn_op([delete_op(other, prev_kv=True)]),
        ],
    )
    before, nothing, put, after, nothing_again, nested, deleted = reply.responses
    assert before.response_range.kvs[0].value == b"old"
    assert put.response_put.prev_kv.value == b"old"
    assert after.response_range.kvs[0].value == b"new"
    assert after.response_range.kvs[0].mod_revision == at + 1
    assert not nested.response_txn.responses[0].response_put.HasField("prev_kv")
    assert deleted.response_txn.responses[0].response_delete_range.prev_kvs[0].value == b"n"
    old, new = ResponseHeader(revision=at), ResponseHeader(revision=at + 1)
    assert before.response_range.header == nothing.response_delete_range.header == old
    assert put.response_put.header == after.response_range.header == nothing_again.response_delete_range.header == new
    assert reply.header.revision == at + 1


def test_T24_T26_T27_replies_follow_the_operations_of_the_taken_branch(api: Side) -> None:
    a = api.key("a")
    nested = txn_op([range_op(a)], [put_op(a), delete_op(api.key("b"))], [FAILS])
    reply = txn(api, failure=[range_op(a), nested, txn_op()], compare=[FAILS])
    assert not reply.succeeded
    kinds = [response.WhichOneof("response") for response in reply.responses]
    assert kinds == ["response_range", "response_txn", "response_txn"]
    inner = reply.responses[1].response_txn
    assert not inner.succeeded
    assert [response.WhichOneof("response") for response in inner.responses] == [
        "response_put",
        "response_delete_range",
    ]
    for response in reply.responses[1:]:
        assert response.response_txn.HasField("header")
        assert response.response_txn.header == ResponseHeader()
    assert reply.responses[2].response_txn.succeeded
    assert reply.header.cluster_id and reply.header.member_id and reply.header.raft_term


def test_T28_T29_T30_T31_reads_and_empty_deletes_change_nothing(api: Side) -> None:
    a = api.key("a")
    api.put("a", b"1")
    at = api.revision
    for ops in (
        [range_op(a)],
        [range_op(a, serializable=True)],
        [txn_op([range_op(a)])],
        [range_op(a, serializable=True), delete_op(api.key("absent"))],
    ):
        assert txn(api, ops).header.revision == at
    assert api.revision == at


def test_T32_T33_events_come_in_one_reply_in_order(api: Side) -> None:
    for name in "ab":
        api.put(name)
    with api.watch() as stream:
        api.create(stream)
        ops = [
            txn_op([delete_op(api.key("a")), put_op(api.key("z"), b"1")]),
            txn_op([delete_op(api.key("b")), put_op(api.key("c"), b"2")]),
        ]
        at = txn(api, ops).header.revision
        events(stream, 4)
        (reply,) = batches(stream)
    assert [(event.type, api.names([event.kv])) for event in reply.events] == [
        (Event.DELETE, "a"),
        (Event.PUT, "z"),
        (Event.DELETE, "b"),
        (Event.PUT, "c"),
    ]
    assert {event.kv.mod_revision for event in reply.events} == {at}


def test_T13_T14_create_if_absent_as_clients_write_it(api: Side) -> None:
    for field in ("version", "create_revision", "mod_revision"):
        compare = Compare(key=api.key(field), target=TARGETS[field], **{field: 0})  # type: ignore[arg-type]
        put = put_op(api.key(field), b"mine")
        assert txn(api, [put], compare=[compare]).succeeded
        assert not txn(api, [put], [range_op(api.key(field))], compare=[compare]).succeeded


def test_T15_a_compare_from_key_and_an_exact_lease(api: Side) -> None:
    lease = api.grant()
    api(PutRequest(key=api.key("a"), lease=lease))
    assert txn(api, compare=[Compare(key=api.key("a"), target=Compare.LEASE, lease=lease)]).succeeded
    assert not txn(api, compare=[Compare(key=api.key("a"), target=Compare.LEASE, lease=lease + 1)]).succeeded
