"""The checker accepts what a correct store may show, and names each way of being wrong."""

from __future__ import annotations

import math
from typing import Any

from kvorum import errors
from kvorum.errors import Status
from kvorum.pb.mvcc_pb2 import Event, KeyValue
from kvorum.pb.rpc_pb2 import (
    CompactionRequest,
    CompactionResponse,
    Compare,
    DeleteRangeRequest,
    DeleteRangeResponse,
    LeaseGrantRequest,
    LeaseGrantResponse,
    LeaseKeepAliveRequest,
    LeaseKeepAliveResponse,
    LeaseRevokeRequest,
    LeaseRevokeResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    RequestOp,
    ResponseHeader,
    ResponseOp,
    TxnRequest,
    TxnResponse,
)
from tests.linearizability.check import check
from tests.linearizability.history import History, Operation, Received, Reply, Request, Revision, Session, Watch

ONE, OTHER = Session(1, 1), Session(2, 1)


def kv(key: bytes, value: bytes, revision: int, created: int = 0, version: int = 1, lease: int = 0) -> KeyValue:
    created = created or revision
    return KeyValue(key=key, value=value, mod_revision=revision, create_revision=created, version=version, lease=lease)


def put(*arguments: Any, **options: Any) -> Event:
    return Event(type=Event.PUT, kv=kv(*arguments, **options))


def deleted(key: bytes, revision: int) -> Event:
    return Event(type=Event.DELETE, kv=KeyValue(key=key, mod_revision=revision))


def header(revision: int) -> ResponseHeader:
    return ResponseHeader(cluster_id=7, member_id=1, raft_term=3, revision=revision)


def operation(
    began_s: float, ended_s: float, request: Request, outcome: Reply | Status | None, session: Session = ONE
) -> Operation:
    return Operation(began_s, ended_s, session, request, outcome)


def wrote(began_s: float, ended_s: float, key: bytes, value: bytes, revision: int, **options: Any) -> Operation:
    return operation(
        began_s, ended_s, PutRequest(key=key, value=value, **options), PutResponse(header=header(revision))
    )


def lost(began_s: float, key: bytes, value: bytes) -> Operation:
    """A put whose outcome nobody knows."""
    return operation(began_s, began_s + 1, PutRequest(key=key, value=value), None)


def read(
    began_s: float, ended_s: float, key: bytes, at: int, *found: KeyValue, session: Session = ONE, **options: Any
) -> Operation:
    reply = RangeResponse(header=header(at), kvs=found, count=len(found))
    return operation(began_s, ended_s, RangeRequest(key=key, **options), reply, session)


REVISIONS = [
    Revision(2, (put(b"a", b"1", 2),)),
    Revision(3, (put(b"a", b"2", 3, 2, 2), put(b"b", b"2", 3))),
    Revision(4, (put(b"a", b"3", 4, 2, 3),)),
    Revision(5, (deleted(b"b", 5),)),
]
A1, A2, A3 = (revision.events[0].kv for revision in REVISIONS[:3])
TXN = TxnRequest(
    compare=[Compare(key=b"a", target="VALUE", value=b"1")],
    success=[RequestOp(request_put=PutRequest(key=key, value=b"2")) for key in (b"a", b"b")],
)
TXN_REPLY = TxnResponse(
    header=header(3),
    succeeded=True,
    responses=[ResponseOp(response_put=PutResponse(header=ResponseHeader(revision=3)))] * 2,
)
OPERATIONS = [
    wrote(0, 1, b"a", b"1", 2),
    operation(2, 3, TXN, TXN_REPLY),
    lost(4, b"a", b"3"),
    lost(4, b"a", b"never"),
    operation(6, 7, DeleteRangeRequest(key=b"b"), DeleteRangeResponse(header=header(5), deleted=1)),
    read(8, 9, b"a", 5, A3),
    read(8, 9, b"a", 3, A2, session=OTHER, serializable=True),
    read(8, 9, b"a", 5, A1, revision=2),
]


def problems(
    *more: Operation,
    revisions: list[Revision] = REVISIONS,
    operations: list[Operation] = OPERATIONS,
    watches: tuple[Watch, ...] = (),
) -> str:
    return "\n".join(check(History([*operations, *more], list(watches), revisions)))


def test_a_correct_run_passes() -> None:
    assert problems() == ""


# writes


def test_an_acknowledged_write_that_is_lost() -> None:
    assert "revision that was lost" in problems(wrote(10, 11, b"a", b"9", 6))


def test_an_acknowledged_write_at_a_revision_that_another_made() -> None:
    assert "both were acknowledged with revision 4" in problems(
        wrote(4, 11, b"a", b"3", 4), wrote(4, 11, b"a", b"9", 4)
    )


def test_split_brain_two_writes_with_one_revision() -> None:
    found = problems(wrote(3.5, 5, b"a", b"3", 4), wrote(3.5, 5, b"z", b"other", 4))
    assert "both were acknowledged" in found and "but revision 4 is" in found


def test_a_write_with_an_unknown_outcome_applied_twice() -> None:
    again = Revision(6, (put(b"a", b"3", 6, 2, 4),))
    assert "by one that made another revision" in problems(revisions=[*REVISIONS, again])


def test_an_acknowledged_write_applied_twice() -> None:
    again = Revision(6, (put(b"a", b"1", 6, 2, 4),))
    assert "made by no request" in problems(revisions=[*REVISIONS, again])


def test_unknown_outcomes_are_told_apart_by_what_they_could_have_made() -> None:
    """Two equal requests of unknown outcome: one may have come before a third that each revision needs."""
    log = [
        Revision(2, (put(b"a", b"x", 2),)),
        Revision(3, (put(b"a", b"x", 3, 2, 2),)),
        Revision(4, (put(b"a", b"x", 4, 2, 3),)),
    ]
    late = read(2, 3, b"a", 2, log[0].events[0].kv)
    early, last = [lost(0, b"a", b"x"), lost(0, b"a", b"x")], lost(5, b"a", b"x")
    assert problems(revisions=log, operations=[*early, late, last]) == ""
    assert "by one that made another" in problems(revisions=log, operations=[*early, late])
    assert "by one that made another" in problems(revisions=log, operations=[early[0], late, last, lost(5, b"b", b"x")])


def test_a_refused_write_that_was_done() -> None:
    refused = operation(0, 1, PutRequest(key=b"a", value=b"1"), errors.NO_SPACE)
    assert "made by no request" in problems(operations=[refused, *OPERATIONS[1:]])


def test_half_a_transaction() -> None:
    half = Revision(3, REVISIONS[1].events[:1])
    assert "but revision 3 is" in problems(revisions=[REVISIONS[0], half, *REVISIONS[2:]])


def test_a_transaction_that_took_the_wrong_branch() -> None:
    reply = TxnResponse(header=header(2), succeeded=False)
    assert "but was answered otherwise" in problems(operations=[OPERATIONS[0], operation(2, 3, TXN, reply)])


def test_an_order_of_writes_against_real_time() -> None:
    late = wrote(10, 11, b"a", b"3", 4)
    assert "stale: revision 5 was known" in problems(operations=[*OPERATIONS[:2], late, *OPERATIONS[4:]])


def test_an_unknown_write_that_began_after_its_revision_was_seen() -> None:
    late = lost(10, b"a", b"3")
    assert "revision 4 was made by no request" in problems(operations=[*OPERATIONS[:2], late, *OPERATIONS[4:]])


def test_a_delete_that_says_it_found_nothing() -> None:
    nothing = operation(6, 7, DeleteRangeRequest(key=b"b"), DeleteRangeResponse(header=header(4)))
    assert "but was answered otherwise" in problems(operations=[*OPERATIONS[:4], nothing, *OPERATIONS[5:]])


# the log


def test_a_gap_in_the_revisions() -> None:
    assert "revision 5 follows 3" in problems(revisions=[*REVISIONS[:2], REVISIONS[3]])


def test_versions_that_do_not_count_up() -> None:
    wrong = Revision(4, (put(b"a", b"3", 4, 2, 7),))
    assert "version or create revision are wrong" in problems(revisions=[*REVISIONS[:2], wrong, REVISIONS[3]])


def test_a_delete_of_what_is_not_there() -> None:
    assert "deletes what is not there" in problems(revisions=[*REVISIONS, Revision(6, (deleted(b"c", 6),))])


# reads


def test_a_stale_linearizable_read() -> None:
    assert "stale: revision 5 was known" in problems(read(8, 9, b"a", 4, A3))


def test_a_read_that_misses_what_another_read_had_seen() -> None:
    """Nobody was told of the write, but a reader had seen it."""
    reads = [read(5, 5.5, b"a", 4, A3), read(5.6, 5.7, b"a", 3, A2, session=OTHER)]
    assert "stale: revision 4 was known" in problems(*reads)


def test_a_read_that_misses_what_a_watcher_had_seen() -> None:
    watch = Watch(b"a", b"", 4, received=[Received(5.0, 4, REVISIONS[2].events)])
    assert "stale: revision 4 was known" in problems(read(5.6, 5.7, b"a", 3, A2), watches=(watch,))


def test_a_read_that_misses_what_the_recorder_saw_in_a_store() -> None:
    revisions = [*REVISIONS[:2], REVISIONS[2]._replace(seen_s=5.0), REVISIONS[3]]
    assert "stale: revision 4 was known" in problems(read(5.6, 5.7, b"a", 3, A2), revisions=revisions)


def test_a_dirty_read_of_what_never_was() -> None:
    assert "should have been answered with" in problems(read(8, 9, b"a", 5, kv(b"a", b"never", 4, 2, 3)))


def test_a_read_of_a_revision_before_it_was_made() -> None:
    """Seen before its write began, so that write cannot have made it."""
    early = read(1.2, 1.4, b"b", 3, REVISIONS[1].events[1].kv, session=OTHER)
    assert "stale: revision 3 was known" in problems(early)


def test_a_read_of_a_lost_revision() -> None:
    assert "revision that was lost" in problems(read(8, 9, b"a", 6, A3))


def test_a_serializable_read_may_be_old_but_not_wrong() -> None:
    assert problems(read(8, 9, b"a", 2, A1, session=Session(3, 1), serializable=True)) == ""
    wrong = read(8, 9, b"a", 2, A2, session=Session(3, 1), serializable=True)
    assert "should have been answered with" in problems(wrong)


def test_a_member_that_goes_back_in_time() -> None:
    back = read(9.5, 9.6, b"a", 2, A1, session=OTHER, serializable=True)
    assert "back in time" in problems(back)
    assert problems(read(9.5, 9.6, b"a", 2, A1, session=OTHER._replace(generation=2), serializable=True)) == ""


def test_a_read_of_an_old_revision_that_shows_another() -> None:
    assert "should have been answered with" in problems(read(8, 9, b"a", 5, A2, revision=2))


def test_reads_around_a_compaction() -> None:
    compaction = operation(10, 11, CompactionRequest(revision=4), CompactionResponse(header=header(5)))
    refused = operation(12, 13, RangeRequest(key=b"a", revision=3), errors.COMPACTED)
    assert problems(compaction, refused) == ""
    assert "nobody had compacted that" in problems(refused)
    assert "compacted before it began" in problems(compaction, read(12, 13, b"a", 5, A2, revision=3))
    assert problems(compaction, read(12, 13, b"a", 5, A3, revision=4)) == ""


# leases


GRANT = operation(0, 1, LeaseGrantRequest(ID=9, TTL=10), LeaseGrantResponse(header=header(1), ID=9, TTL=10))
LEASED = [
    Revision(2, (put(b"a", b"1", 2, lease=9),)),
    Revision(3, (put(b"b", b"1", 3, lease=9),)),
    Revision(4, (deleted(b"a", 4), deleted(b"b", 4)), seen_s=20.0),
]
USES = [GRANT, wrote(2, 3, b"a", b"1", 2, lease=9), wrote(2, 4, b"b", b"1", 3, lease=9)]


def renewed(began_s: float, ttl_s: int = 10) -> Operation:
    reply = LeaseKeepAliveResponse(header=header(3), ID=9, TTL=ttl_s)
    return operation(began_s, began_s + 1, LeaseKeepAliveRequest(ID=9), reply)


def test_a_lease_ends_when_its_time_is_over() -> None:
    assert problems(revisions=LEASED, operations=[*USES, renewed(9.9)]) == ""


def test_a_lease_that_ended_early() -> None:
    assert "revision 4 was made by no request" in problems(revisions=LEASED, operations=[*USES, renewed(10.1)])


def test_a_lease_that_was_gone_early() -> None:
    gone = [renewed(10.1), renewed(15.0, ttl_s=0)]
    assert "gone before its time" in problems(revisions=LEASED[:2], operations=[*USES, *gone])
    refused = operation(15, 16, PutRequest(key=b"c", lease=9), errors.LEASE_NOT_FOUND)
    assert "gone before its time" in problems(revisions=LEASED[:2], operations=[*USES, renewed(10.1), refused])


def test_a_lease_that_was_revoked() -> None:
    revoke = operation(12, 13, LeaseRevokeRequest(ID=9), LeaseRevokeResponse(header=header(4)))
    assert problems(revisions=LEASED, operations=[*USES, renewed(10.1), revoke]) == ""


def test_a_lease_that_ends_without_one_of_its_keys() -> None:
    part = LEASED[2]._replace(events=LEASED[2].events[:1])
    assert "made by no request" in problems(revisions=[*LEASED[:2], part], operations=USES)


def test_a_lease_whose_keys_go_in_another_order() -> None:
    swapped = LEASED[2]._replace(events=LEASED[2].events[::-1])
    assert "made by no request" in problems(revisions=[*LEASED[:2], swapped], operations=USES)


# watches


def watched(*received: Received, start: int = 2, seen_to: int = 0, **options: Any) -> str:
    return problems(watches=(Watch(b"a", b"z", start, received=list(received), seen_to=seen_to, **options),))


ANSWERS = [Received(9.0, 5, revision.events) for revision in REVISIONS]


def test_a_watcher_that_got_everything() -> None:
    assert watched(*ANSWERS, seen_to=5) == ""
    assert watched(Received(9.0, 5, sum((revision.events for revision in REVISIONS), ())), seen_to=5) == ""
    assert watched(Received(9.0, 5, ()), start=6, seen_to=5) == ""


def test_watchers_that_miss_repeat_swap_or_split() -> None:
    part = Received(9.0, 5, REVISIONS[1].events[:1])
    for wrong in (
        [ANSWERS[0], ANSWERS[2]],
        [*ANSWERS[:2], ANSWERS[1]],
        [ANSWERS[1], ANSWERS[0]],
        [ANSWERS[0], part],
        [ANSWERS[0], part, Received(9.0, 5, REVISIONS[1].events[1:])],
    ):
        assert "it received" in watched(*wrong)


def test_a_watcher_that_waits_in_vain() -> None:
    assert "never received" in watched(*ANSWERS[:3], seen_to=5)
    assert watched(*ANSWERS[:3], seen_to=4) == ""


def test_progress_that_promises_too_much() -> None:
    assert "it received nothing instead of" in watched(ANSWERS[0], Received(9.0, 3, ()))
    assert watched(ANSWERS[0], Received(9.0, 2, ())) == ""


def test_an_event_of_a_revision_that_was_lost() -> None:
    assert "which was lost" in watched(*ANSWERS, Received(9.0, 6, (put(b"a", b"9", 6, 2, 4),)))


def test_filters_and_previous_values() -> None:
    only_deletes = Received(
        9.0, 5, (Event(type=Event.DELETE, kv=deleted(b"b", 5).kv, prev_kv=REVISIONS[1].events[1].kv),)
    )
    assert watched(only_deletes, no_puts=True, prev_kv=True, seen_to=5) == ""
    wrong = Received(9.0, 5, (Event(type=Event.DELETE, kv=deleted(b"b", 5).kv, prev_kv=A1),))
    assert "it received" in watched(wrong, no_puts=True, prev_kv=True)
    assert "it received" in watched(only_deletes, no_puts=True)


def test_a_watch_resumes_after_what_it_has_seen() -> None:
    watch = Watch(b"a", b"z", 2)
    assert watch.resume_revision() == 2
    watch.received.append(ANSWERS[1])
    assert watch.resume_revision() == 4
    watch.received.append(Received(9.0, 7, ()))
    assert watch.resume_revision() == 8
    assert watch.seen_to == 0 and REVISIONS[0].seen_s == math.inf
