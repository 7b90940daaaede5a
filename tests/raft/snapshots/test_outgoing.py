"""Which checkpoint is sent, how long it is held, and what the log must keep meanwhile."""

from kvorum.pb.internal_pb2 import MembershipState
from kvorum.pb.rpc_pb2 import Member
from node.frames import CHECKPOINT
from node.raft.core import ConfState
from node.raft.snapshots.outgoing import KEEP_S, RETRY_S, Outgoing

STATE = MembershipState(
    members=[Member(ID=1), Member(ID=2), Member(ID=3, isLearner=True)], cluster_version="3.7.0"
).SerializeToString()


def answer(number: int, index: int, path: str = "", term: int = 7) -> bytes:
    name = (path or f"snap/outgoing-{number}").encode()
    return CHECKPOINT.pack(number, index, term, len(name)) + name + STATE


def with_checkpoint(index: int, now: float = 0.0) -> Outgoing:
    outgoing = Outgoing()
    assert outgoing.snapshot(now, 0) is None
    assert outgoing.ask() == 1
    outgoing.on_checkpoint(answer(1, index), now)
    return outgoing


def test_nothing_is_made_before_it_is_needed() -> None:
    assert Outgoing().ask() is None
    assert Outgoing().floor is None


def test_the_first_wish_asks_apply_and_a_later_one_is_met() -> None:
    outgoing = Outgoing()
    assert outgoing.snapshot(0.0, 10) is None
    assert outgoing.ask() == 1
    assert outgoing.snapshot(0.0, 10) is None
    assert outgoing.ask() is None
    made = outgoing.on_checkpoint(answer(1, 25), 1.0)
    assert made is not None
    assert (made.index, made.term, made.data) == (25, 7, STATE)
    assert made.conf_state == ConfState(voters=(1, 2), learners=(3,))
    assert outgoing.snapshot(2.0, 10) is made
    assert outgoing.ask() is None


def test_several_members_share_one() -> None:
    outgoing = with_checkpoint(25)
    for member in (2, 3):
        snapshot = outgoing.snapshot(1.0, 0)
        assert snapshot is not None
        assert outgoing.begin(snapshot, member) == "snap/outgoing-1"
    outgoing.end(2, 100.0)
    assert outgoing.expire(1000.0) == []
    outgoing.end(3, 1000.0)
    assert outgoing.expire(1000.0 + KEEP_S - 1) == []
    assert outgoing.expire(1000.0 + KEEP_S) == ["snap/outgoing-1"]
    assert outgoing.expire(2000.0) == []


def test_one_older_than_the_last_change_of_members_is_made_anew() -> None:
    outgoing = with_checkpoint(25)
    old = outgoing.snapshot(1.0, 25)
    assert old is not None
    outgoing.begin(old, 2)
    assert outgoing.snapshot(1.0, 26) is None
    assert outgoing.ask() is None, "not as fast as the core asks"
    assert outgoing.snapshot(6.0, 26) is None
    assert outgoing.ask() == 2
    outgoing.on_checkpoint(answer(2, 30), 2.0)
    new = outgoing.snapshot(2.0, 26)
    assert new is not None
    assert new.index == 30
    assert outgoing.begin(new, 3) == "snap/outgoing-2"
    assert outgoing.floor == 25
    outgoing.end(2, 3.0)
    assert outgoing.expire(3.0 + KEEP_S) == ["snap/outgoing-1"]
    assert outgoing.floor == 30


def test_the_log_keeps_what_is_behind_it_until_it_is_removed() -> None:
    outgoing = with_checkpoint(25)
    assert outgoing.floor == 25
    outgoing.expire(KEEP_S - 1)
    assert outgoing.floor == 25
    outgoing.expire(KEEP_S)
    assert outgoing.floor is None


def test_one_that_is_about_to_be_removed_is_not_given_out() -> None:
    outgoing = with_checkpoint(25)
    assert outgoing.snapshot(KEEP_S, 0) is None
    assert outgoing.expire(KEEP_S) == ["snap/outgoing-1"]
    assert outgoing.ask() == 2


def test_a_wish_keeps_it_alive() -> None:
    """Between the core's wish and `begin` nothing may remove it."""
    outgoing = with_checkpoint(25)
    assert outgoing.snapshot(KEEP_S - 1, 0) is not None
    assert outgoing.expire(KEEP_S) == []


def test_a_member_that_is_sent_another_does_not_hold_the_first() -> None:
    outgoing = with_checkpoint(25)
    old = outgoing.snapshot(0.0, 0)
    assert old is not None
    outgoing.begin(old, 2)
    outgoing.snapshot(6.0, 30)
    assert outgoing.ask() == 2
    outgoing.on_checkpoint(answer(2, 30), 0.0)
    new = outgoing.snapshot(0.0, 30)
    assert new is not None
    outgoing.begin(new, 2)
    assert outgoing.expire(KEEP_S) == ["snap/outgoing-1"]


def test_after_a_failure_apply_is_asked_again_but_not_at_once() -> None:
    outgoing = Outgoing()
    assert outgoing.snapshot(0.0, 0) is None
    assert outgoing.ask() == 1
    assert outgoing.on_checkpoint(answer(1, 0, "the disk has 3 bytes left"), 1.0) is None
    assert outgoing.failure == "the disk has 3 bytes left"
    assert outgoing.snapshot(1.0 + RETRY_S - 0.1, 0) is None
    assert outgoing.ask() is None
    assert outgoing.snapshot(1.0 + RETRY_S, 0) is None
    assert outgoing.ask() == 2
    assert outgoing.on_checkpoint(answer(2, 9), 7.0) is not None
    assert outgoing.failure == ""


def test_the_end_of_what_never_began_is_nothing() -> None:
    outgoing = with_checkpoint(25)
    outgoing.end(9, 5.0)
    assert outgoing.expire(KEEP_S) == ["snap/outgoing-1"]
