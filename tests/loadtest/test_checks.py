"""The checks of the load tests find what they are there for: planted faults, and none in what is right."""

from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.pb.mvcc_pb2 import Event, KeyValue
from kvorum.pb.rpc_pb2 import ResponseHeader, WatchResponse
from loadtest.checks import AckedWrites, Fault, FaultKind, LeaseCheck, LockCheck, RevisionFloor, WatchCheck

DISORDERED, ENDED, LOST = FaultKind.DISORDERED, FaultKind.ENDED, FaultKind.LOST


class History:
    """A store's keys from revision 1 on; each write is acknowledged and gives its event, with the previous value."""

    def __init__(self) -> None:
        self.revision = 1
        self.living: dict[bytes, KeyValue] = {}
        self.acked = AckedWrites()

    def write(self, *changes: tuple[bytes, bool], acked: bool = True) -> WatchResponse:
        """One revision: each key is put (True), or deleted (False) if it lives."""
        self.revision += 1
        events = [event for key, put in changes for event in self._change(key, put)]
        if not events:
            self.revision -= 1
        elif acked:
            self.acked.add(self.revision)
        return WatchResponse(header=ResponseHeader(revision=self.revision), events=events)

    def _change(self, key: bytes, put: bool) -> Iterator[Event]:
        before = self.living.pop(key, None)
        if put:
            created = before.create_revision if before is not None else self.revision
            version = before.version + 1 if before is not None else 1
            kv = KeyValue(key=key, create_revision=created, mod_revision=self.revision, version=version)
            self.living[key] = kv
            yield Event(kv=kv, prev_kv=before)
        elif before is not None:
            yield Event(type=Event.DELETE, kv=KeyValue(key=key, mod_revision=self.revision), prev_kv=before)

    def watch(self) -> WatchCheck:
        """A watcher that has just listed everything."""
        return WatchCheck("w", self.revision, self.living.values(), self.acked)


def kinds(faults: Iterable[Fault]) -> set[FaultKind]:
    return {fault.kind for fault in faults}


def deliver(check: WatchCheck, replies: Iterable[WatchResponse]) -> set[FaultKind]:
    """The kinds of faults that these replies and the end of the run show."""
    faults = [fault for reply in replies for fault in check.take(reply)]
    return kinds(faults + check.finish())


def without_prev_kv(reply: WatchResponse) -> WatchResponse:
    for event in reply.events:
        event.ClearField("prev_kv")
    return reply


@pytest.fixture
def history() -> History:
    """A store in which the key a lives, in its second version."""
    history = History()
    history.write((b"a", True))
    history.write((b"a", True))
    return history


# What a watcher gets.


def test_everything_once_and_in_order_has_no_fault(history: History) -> None:
    check = history.watch()
    replies = [history.write((b"a", True)), history.write((b"b", True)), history.write((b"a", False), (b"b", False))]
    assert deliver(check, replies) == set()
    assert check.complete
    assert check.position == history.revision == 6


def test_several_revisions_may_come_in_one_reply(history: History) -> None:
    check = history.watch()
    both = history.write((b"a", True))
    both.MergeFrom(history.write((b"a", True)))
    assert deliver(check, [both]) == set()


@pytest.mark.parametrize("dropped", range(5))
def test_a_dropped_event_is_found(history: History, dropped: int) -> None:
    check = history.watch()
    replies = [history.write((b"ab"[number % 2 : number % 2 + 1], True)) for number in range(5)]
    del replies[dropped]
    assert deliver(check, replies) == {LOST}


def test_a_dropped_event_is_found_at_once_by_the_next_of_its_key(history: History) -> None:
    check = history.watch()
    history.write((b"a", True))
    assert kinds(check.take(history.write((b"a", True)))) == {LOST}


def test_an_event_dropped_from_a_revision_of_several_is_found(history: History) -> None:
    check = history.watch()
    reply = history.write((b"a", True), (b"b", True))
    del reply.events[0]
    assert deliver(check, [reply, history.write((b"a", True))]) == {LOST}


@pytest.mark.parametrize("swapped", range(4))
def test_two_events_in_the_wrong_order_are_found(history: History, swapped: int) -> None:
    check = history.watch()
    replies = [history.write((b"%d" % number, True)) for number in range(5)]
    replies[swapped], replies[swapped + 1] = replies[swapped + 1], replies[swapped]
    assert deliver(check, replies) == {DISORDERED}


def test_the_wrong_order_within_a_reply_is_found(history: History) -> None:
    check = history.watch()
    first, second = history.write((b"x", True)), history.write((b"y", True))
    second.MergeFrom(first)
    assert deliver(check, [second]) == {DISORDERED}


def test_an_event_that_comes_twice_is_found(history: History) -> None:
    check = history.watch()
    reply = history.write((b"a", True))
    assert deliver(check, [reply, reply]) == {DISORDERED}


def test_a_revision_cut_in_two_is_found(history: History) -> None:
    check = history.watch()
    reply = history.write((b"a", True), (b"b", True))
    parts = [WatchResponse(header=reply.header, events=[event]) for event in reply.events]
    assert deliver(check, parts) == {DISORDERED}


def test_an_event_from_before_the_start_is_found(history: History) -> None:
    old = history.write((b"a", True))
    assert deliver(history.watch(), [old]) == {DISORDERED}


def test_an_event_that_never_comes_is_found_at_the_end_alone(history: History) -> None:
    check = history.watch()
    history.write((b"a", True))
    assert check.settle() == []
    assert not check.complete
    assert kinds(check.finish()) == {LOST}


def test_an_acknowledgement_may_come_after_its_event(history: History) -> None:
    check = history.watch()
    reply = history.write((b"a", True), acked=False)
    assert check.take(reply) == check.settle() == []
    history.acked.add(reply.header.revision)
    assert check.finish() == []


def test_a_write_that_was_never_acknowledged_may_come_or_not(history: History) -> None:
    check = history.watch()
    assert deliver(check, [history.write((b"a", True), acked=False)]) == set()
    check = history.watch()
    history.write((b"b", True), acked=False)
    assert deliver(check, []) == set()


def test_writes_from_before_the_start_are_not_expected(history: History) -> None:
    history.write((b"a", True))
    check = history.watch()
    assert check.complete
    assert check.finish() == []


def test_a_lost_end_of_a_key_is_found_though_nobody_acknowledged_it(history: History) -> None:
    """As when its lease ended."""
    check = history.watch()
    history.write((b"a", False), acked=False)
    assert deliver(check, [history.write((b"a", True))]) == {LOST}


def test_a_lost_creation_is_found(history: History) -> None:
    check = history.watch()
    history.write((b"n", True), acked=False)
    assert deliver(check, [history.write((b"n", True))]) == {LOST}
    check = history.watch()
    history.write((b"m", True), acked=False)
    assert deliver(check, [history.write((b"m", False))]) == {LOST}


def test_a_key_that_was_made_anew_unseen_is_found(history: History) -> None:
    """Its version is one more than the last one seen, its create revision is another."""
    check = history.watch()
    for put in (False, True, True):
        history.write((b"a", put), acked=False)
    reply = without_prev_kv(history.write((b"a", True)))
    assert reply.events[0].kv.version == 3
    assert deliver(check, [reply]) == {LOST}


def test_a_lost_write_before_a_delete_is_found_by_the_previous_value(history: History) -> None:
    check = history.watch()
    history.write((b"a", True), acked=False)
    assert deliver(check, [history.write((b"a", False))]) == {LOST}


def test_a_whole_life_that_was_lost_is_found_by_its_acknowledgements(history: History) -> None:
    check = history.watch()
    history.write((b"n", True))
    history.write((b"n", False))
    assert deliver(check, [history.write((b"a", True))]) == {LOST}


def test_no_event_may_come_after_progress_past_it(history: History) -> None:
    check = history.watch()
    late = history.write((b"a", True))
    progress = WatchResponse(header=late.header)
    assert kinds(check.take(progress)) == set()
    assert kinds(check.settle()) == {LOST}
    assert kinds(check.take(late)) == {DISORDERED}


def test_progress_for_another_watch_of_the_stream_changes_nothing(history: History) -> None:
    check = history.watch()
    before = history.revision
    assert deliver(check, [history.write((b"a", True)), WatchResponse(header=ResponseHeader(revision=before))]) == set()
    assert check.position == history.revision


def test_what_is_settled_is_forgotten(history: History) -> None:
    check = history.watch()
    for _ in range(3 * WatchCheck.SETTLE_AT):
        assert check.take(history.write((b"a", True))) == []
    assert len(check._seen) <= WatchCheck.SETTLE_AT


@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.booleans()), min_size=1, max_size=3), min_size=2
    ),
    st.lists(st.booleans()),
    st.data(),
)
def test_whatever_is_written_one_fault_is_found_and_none_without(
    writes: list[list[tuple[bytes, bool]]], settled: list[bool], data: st.DataObject
) -> None:
    history = History()
    right, wrong = history.watch(), history.watch()
    replies = [reply for write in writes if (reply := history.write(*dict(write).items())).events]
    faults = []
    for number, reply in enumerate(replies):
        faults += right.take(reply)
        if number < len(settled) and settled[number]:
            faults += right.settle()
    assert faults + right.finish() == []
    if len(replies) < 2:
        return
    index = data.draw(st.integers(0, len(replies) - 2))
    match data.draw(st.sampled_from(["drop", "swap", "repeat"])):
        case "drop":
            del replies[index]
        case "swap":
            replies[index], replies[index + 1] = replies[index + 1], replies[index]
        case "repeat":
            replies.insert(data.draw(st.integers(index + 1, len(replies))), replies[index])
    assert deliver(wrong, replies) & {LOST, DISORDERED}


# What a linearizable call answers.


def test_a_reply_may_not_be_older_than_one_given_before_the_call_began() -> None:
    floor = RevisionFloor()
    assert floor.end("Put", floor.begin(), 7, wrote=True) == []
    began = floor.begin()
    assert floor.end("Range", began, 7, wrote=False) == []
    assert kinds(floor.end("Range", began, 6, wrote=False)) == {FaultKind.STALE}


def test_a_write_makes_a_revision_of_its_own() -> None:
    floor = RevisionFloor()
    floor.end("Put", floor.begin(), 7, wrote=True)
    assert kinds(floor.end("Put", floor.begin(), 7, wrote=True)) == {FaultKind.STALE}


def test_calls_at_one_time_may_answer_in_any_order() -> None:
    floor = RevisionFloor()
    first, second = floor.begin(), floor.begin()
    assert floor.end("Put", second, 9, wrote=True) == []
    assert floor.end("Put", first, 8, wrote=True) == []
    assert kinds(floor.end("Range", floor.begin(), 8, wrote=False)) == {FaultKind.STALE}


# Locks.


def test_a_lock_goes_from_hand_to_hand_in_order() -> None:
    check = LockCheck()
    for create_revision, key in enumerate((b"x", b"y", b"x"), 5):
        assert check.acquired(b"l", key, create_revision) == []
        check.released(b"l", key)
    assert check.acquired(b"other", b"x", 2) == []


def test_a_lock_held_twice_is_found() -> None:
    check = LockCheck()
    check.acquired(b"l", b"x", 5)
    assert kinds(check.acquired(b"l", b"y", 6)) == {FaultKind.HELD_TWICE}


def test_overtaking_is_found() -> None:
    check = LockCheck()
    check.acquired(b"l", b"y", 6)
    check.released(b"l", b"y")
    assert kinds(check.acquired(b"l", b"x", 5)) == {FaultKind.OVERTAKEN}


# Leases.


def test_each_ask_has_its_reply() -> None:
    check = LeaseCheck("u")
    check.granted(1)
    check.asked(1, 10.0)
    check.asked(1, 11.0)
    assert not check.complete
    assert check.answered(1, 60, 60) == (10.0, [])
    assert check.answered(1, 59, 60) == (11.0, [])
    assert check.complete
    assert check.finish() == []


def test_an_ask_without_a_reply_is_found() -> None:
    check = LeaseCheck("u")
    check.granted(1)
    check.asked(1, 10.0)
    assert kinds(check.finish()) == {FaultKind.UNANSWERED}


def test_asks_of_a_stream_that_ended_are_not_waited_for() -> None:
    check = LeaseCheck("u")
    check.granted(1)
    check.asked(1, 10.0)
    check.broken()
    assert check.complete


@pytest.mark.parametrize("ttl_s", [0, -1, 61])
def test_a_lease_that_ended_is_found_by_its_ttl(ttl_s: int) -> None:
    check = LeaseCheck("u")
    check.granted(1)
    check.asked(1, 10.0)
    assert kinds(check.answered(1, ttl_s, 60)[1]) == {ENDED}


def test_a_reply_that_nobody_asked_for_is_found() -> None:
    check = LeaseCheck("u")
    check.granted(1)
    for lease_id in (1, 2):
        asked, faults = check.answered(lease_id, 60, 60)
        assert asked is None
        assert kinds(faults) == {FaultKind.WRONG}


def test_a_key_that_goes_although_its_lease_lives_is_found() -> None:
    check = LeaseCheck("u")
    check.granted(1, b"k")
    assert kinds(check.deleted(b"k")) == {ENDED}


def test_a_revoked_lease_may_go_also_while_it_is_asked_for() -> None:
    check = LeaseCheck("u")
    check.granted(1, b"k")
    check.asked(1, 10.0)
    check.revoking(1, b"k")
    assert check.deleted(b"k") == []
    assert check.answered(1, 0, 60) == (10.0, [])
    assert check.complete
