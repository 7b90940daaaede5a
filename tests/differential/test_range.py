"""Rows R and RS: Range and RangeStream."""

from typing import Any

import pytest

from kvorum import errors
from kvorum.errors import ApiError, Code, Status
from kvorum.pb.rpc_pb2 import CompactionRequest, LeaseRevokeRequest, RangeRequest, RangeResponse
from tests.differential.side import Side, differs

NONE, ASCEND, DESCEND = RangeRequest.NONE, RangeRequest.ASCEND, RangeRequest.DESCEND
KEY, VERSION, CREATE, MOD, VALUE = (
    RangeRequest.KEY,
    RangeRequest.VERSION,
    RangeRequest.CREATE,
    RangeRequest.MOD,
    RangeRequest.VALUE,
)


@pytest.fixture
def five(api: Side) -> int:
    """Keys a to e, made in the order c a e b d, values 5 to 1, c put three times, a twice; from the revision given."""
    values = {"a": b"5", "b": b"4", "c": b"3", "d": b"2", "e": b"1"}
    first = api.revision + 1
    for name in ("c", "a", "e", "b", "d", "c", "a", "c"):
        api.put(name, values[name])
    return first


@pytest.mark.usefixtures("five")
@differs("X1")
@pytest.mark.parametrize("fields", [{"sort_order": 3}, {"sort_target": 5}, {"sort_order": -1}, {"sort_target": -1}])
def test_R1_R2_an_unknown_sort_option_is_refused_after_an_empty_key(api: Side, fields: dict[str, int]) -> None:
    assert api.status(RangeRequest(key=api.key("a"), **fields)) == errors.INVALID_SORT_OPTION  # type: ignore[arg-type]
    assert api.status(RangeRequest(**fields)) == errors.EMPTY_KEY  # type: ignore[arg-type]


@pytest.mark.usefixtures("five")
@pytest.mark.parametrize(
    ("fields", "names", "more"),
    [
        pytest.param({}, "a b c d e", False, id="R9-no limit"),
        pytest.param({"limit": -1}, "a b c d e", False, id="R3-negative limit"),
        pytest.param({"limit": 2}, "a b", True, id="R7-R9-limit"),
        pytest.param({"limit": 5}, "a b c d e", False, id="R10-limit equal"),
        pytest.param({"limit": 9}, "a b c d e", False, id="R10-limit above"),
        pytest.param({"count_only": True, "limit": 2}, "", False, id="R8-count only"),
        pytest.param({"count_only": True, "max_mod_revision": -1}, "", False, id="R8-count only with a filter"),
        pytest.param({"max_mod_revision": -1}, "", False, id="R11-negative filter"),
        pytest.param({"sort_order": ASCEND}, "a b c d e", False, id="R13-key ascending"),
        pytest.param({"sort_order": DESCEND}, "e d c b a", False, id="R12-key descending"),
        pytest.param({"sort_order": DESCEND, "limit": 2}, "e d", True, id="R12-sort before limit"),
        pytest.param({"sort_target": VALUE}, "e d c b a", False, id="R14-no order sorts ascending"),
        pytest.param({"sort_target": VALUE, "limit": 2}, "c b", True, id="R14-no order cuts in key order first"),
        pytest.param({"sort_target": VALUE, "sort_order": ASCEND, "limit": 2}, "e d", True, id="R14-ascend sorts all"),
        pytest.param({"sort_target": CREATE, "sort_order": ASCEND}, "c a e b d", False, id="R12-create"),
        pytest.param({"sort_target": MOD, "sort_order": DESCEND}, "c a d b e", False, id="R12-mod"),
        pytest.param({"sort_target": VERSION, "sort_order": DESCEND, "limit": 2}, "c a", True, id="R12-version"),
        pytest.param(
            {"sort_target": VALUE, "sort_order": DESCEND, "keys_only": True}, "a b c d e", False, id="R16-keys only"
        ),
    ],
)
def test_range(api: Side, fields: dict[str, Any], names: str, more: bool) -> None:
    reply = api.all(**fields)
    assert (api.names(reply.kvs), reply.more, reply.count) == (names, more, 5)


def test_R4_R5_revisions(api: Side, five: int) -> None:
    now = api.revision
    assert api.names(api.all(revision=five + 1).kvs) == "a c"
    assert api.all(revision=-1).count == api.all(revision=now).count == 5
    for fields in ({}, {"count_only": True}, {"keys_only": True}):
        future = RangeRequest(key=api.prefix, range_end=api.end, revision=now + 1, **fields)  # type: ignore[arg-type]
        assert api.status(future) == errors.FUTURE_REV
    nothing = RangeRequest(key=api.key("y"), range_end=api.key("z"), revision=now + 1)
    assert api.status(nothing) == errors.FUTURE_REV


def test_R4_the_compacted_revision_is_readable_and_nothing_below(api: Side, five: int) -> None:
    api(CompactionRequest(revision=five + 2, physical=True))
    assert api.names(api.all(revision=five + 2).kvs) == "a c e"
    for fields in ({}, {"count_only": True}, {"keys_only": True}):
        below = RangeRequest(key=api.prefix, range_end=api.end, revision=five + 1, **fields)  # type: ignore[arg-type]
        assert api.status(below) == errors.COMPACTED


def test_R11_filters_are_inclusive_and_leave_count_alone(api: Side, five: int) -> None:
    # creates: c+0 a+1 e+2 b+3 d+4; last changes: e+2 b+3 d+4 a+6 c+7
    for fields, names in (
        ({"min_mod_revision": five + 4}, "a c d"),
        ({"max_mod_revision": five + 4}, "b d e"),
        ({"min_create_revision": five + 2}, "b d e"),
        ({"max_create_revision": five + 2}, "a c e"),
        ({"min_mod_revision": five + 3, "max_create_revision": five + 1}, "a c"),
    ):
        reply = api.all(**fields)
        assert (api.names(reply.kvs), reply.count, reply.more) == (names, 5, False), fields
    reply = api.all(min_mod_revision=five + 4, limit=2)
    assert (api.names(reply.kvs), reply.count, reply.more) == ("a c", 5, True)
    reply = api.all(min_mod_revision=five + 4, limit=3)
    assert (api.names(reply.kvs), reply.more) == ("a c d", False)


@pytest.mark.usefixtures("five")
def test_R15_equal_sort_values_come_in_some_order(api: Side) -> None:
    kvs = api.all(sort_target=VERSION, sort_order=ASCEND).kvs
    assert [kv.version for kv in kvs] == [1, 1, 1, 2, 3]
    assert sorted(api.names(kvs[:3]).split()) == ["b", "d", "e"]


def test_R17_keys_only_keeps_the_revisions(api: Side) -> None:
    at = api.put("a", b"1").header.revision
    kv = api.get("a", keys_only=True).kvs[0]
    assert (kv.value, kv.create_revision, kv.mod_revision, kv.version) == (b"", at, at, 1)


@differs("X2")
def test_R17_keys_only_drops_the_lease_unless_sorted_by_value(api: Side) -> None:
    lease = api.grant()
    api.put("a", b"1", lease=lease)
    assert api.get("a", keys_only=True).kvs[0].lease == 0
    by_value = api.get("a", keys_only=True, sort_target=VALUE, sort_order=ASCEND).kvs[0]
    assert (by_value.lease, by_value.value) == (lease, b"")
    api(LeaseRevokeRequest(ID=lease))


@pytest.mark.parametrize("fields", [{"limit": 1}, {"sort_order": DESCEND}, {"count_only": True}, {"sort_target": MOD}])
def test_R18_options_on_a_single_key(api: Side, fields: dict[str, Any]) -> None:
    api.put("a")
    assert (api.get("a", **fields).count, api.get("b", **fields).count) == (1, 0)
    assert not api.get("a", **fields).more


def test_R19_a_deleted_key_is_gone_at_the_revision_of_its_delete(api: Side) -> None:
    api.put("a")
    deleted = api.delete("a").header.revision
    assert api.get("a", revision=deleted).count == 0
    assert api.get("a", revision=deleted - 1).count == 1


def stream(api: Side, **fields: Any) -> list[RangeResponse]:
    fields = {"key": api.prefix, "range_end": api.end} | fields
    return [part.range_response for part in api.stream(RangeRequest(**fields))]


def fill(api: Side, count: int, size: int = 1) -> None:
    for number in range(count):
        api.put(f"{number:04}", bytes(size))


@differs("X3")
@pytest.mark.usefixtures("five")
@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"key": b""}, errors.EMPTY_KEY),
        ({"sort_order": 3}, errors.INVALID_SORT_OPTION),
        ({"sort_target": 9}, errors.INVALID_SORT_OPTION),
        ({"revision": 1 << 62}, errors.FUTURE_REV),
        ({"sort_order": DESCEND}, Status(Code.UNIMPLEMENTED, "RangeStream does not support custom sort orders")),
        # a target without an order is no custom order, as R14 shows
        (
            {"sort_target": MOD, "sort_order": ASCEND},
            Status(Code.UNIMPLEMENTED, "RangeStream does not support custom sort orders"),
        ),
        ({"min_mod_revision": 1}, Status(Code.UNIMPLEMENTED, "RangeStream does not support revision filters")),
        ({"max_create_revision": -1}, Status(Code.UNIMPLEMENTED, "RangeStream does not support revision filters")),
    ],
)
def test_RS2_what_range_stream_refuses(api: Side, fields: dict[str, Any], status: Status) -> None:
    with pytest.raises(ApiError) as refused:
        stream(api, **fields)
    assert refused.value.status == status


@differs("X3")
def test_RS1_RS5_RS6_RS7_the_parts_join_to_the_range(api: Side) -> None:
    fill(api, 25)
    old = api.revision
    api.put("0003", b"new")
    for fields in ({}, {"revision": old}, {"keys_only": True}, {"serializable": True}):
        parts = stream(api, **fields)
        whole = api.all(**fields)
        assert [kv for part in parts for kv in part.kvs] == list(whole.kvs)
        assert not any(part.HasField("header") or part.count or part.more for part in parts[:-1])
        assert (parts[-1].header, parts[-1].count, parts[-1].more) == (whole.header, 25, False)


@differs("X3")
def test_RS3_count_only_is_one_message(api: Side) -> None:
    fill(api, 15)
    (part,) = stream(api, count_only=True)
    assert (part.count, len(part.kvs), part.header.revision) == (15, 0, api.revision)


@differs("X3")
@pytest.mark.parametrize(
    ("count", "size", "fields", "sizes"),
    [
        pytest.param(75, 1, {}, [10, 20, 40, 5], id="small keys double"),
        pytest.param(75, 1, {"limit": 45}, [10, 20, 15], id="never above the limit"),
        pytest.param(9, 1, {"limit": 4}, [4], id="the limit is the first size"),
        pytest.param(25, 100_000, {}, [10, 10, 5], id="chunks of half the request limit stay"),
        pytest.param(25, 400_000, {}, [10, 5, 5, 5], id="chunks of twice the request limit are halved"),
    ],
)
def test_RS4_the_size_of_chunks(api: Side, count: int, size: int, fields: dict[str, Any], sizes: list[int]) -> None:
    fill(api, count, size)
    assert [len(part.kvs) for part in stream(api, **fields)] == sizes


@differs("X3")
def test_RS8_RS9_limits(api: Side) -> None:
    fill(api, 30)
    parts = stream(api, limit=12)
    assert (sum(len(part.kvs) for part in parts), parts[-1].more, parts[-1].count) == (12, True, 30)
    parts = stream(api, limit=30)
    assert (sum(len(part.kvs) for part in parts), parts[-1].more) == (30, False)
    (whole,) = stream(api, limit=-1)
    assert (len(whole.kvs), whole.more) == (30, False)
    assert len(stream(api)) > 1


@differs("X3")
def test_RS10_an_empty_range_is_one_message(api: Side) -> None:
    (part,) = stream(api)
    assert (part.count, len(part.kvs), part.header.revision) == (0, 0, api.revision)


@differs("X3")
def test_RS5_RS11_a_stream_is_one_snapshot_or_fails_as_compacted(api: Side) -> None:
    fill(api, 40, 500_000)  # more than flow control lets pass at once
    parts = api.stream(RangeRequest(key=api.prefix, range_end=api.end))
    seen = list(next(parts).range_response.kvs)
    changed = api.put("0039", b"new").header.revision
    try:
        for part in parts:
            seen += part.range_response.kvs
    except ApiError as error:
        assert error.status == errors.COMPACTED
    else:
        assert len(seen) == 40 and all(kv.mod_revision < changed for kv in seen)
    api(CompactionRequest(revision=changed))


def test_R20_a_prefix_is_a_range_that_clients_compute(api: Side) -> None:
    for name in (b"p", b"p\xff", b"p1", b"q"):
        api.put(name)
    assert api.get("p", range_end=api.key("q")).count == 3
