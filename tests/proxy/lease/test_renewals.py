"""Which keep-alives become renewals, and what those who ask are told."""

from __future__ import annotations

import gc
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvorum.pb.rpc_pb2 import LeaseKeepAliveResponse, ResponseHeader
from proxy.lease import renewals as module
from proxy.lease.renewals import MAX_IN_FLIGHT, MAX_INTERVAL_S, REPEAT_S, Renewals

A, B, C = 1, 2, 3
LEASE = 77
ROUNDING_S = 1e-9


def reply(lease: int = LEASE, ttl_s: int = 9) -> LeaseKeepAliveResponse:
    return LeaseKeepAliveResponse(header=ResponseHeader(revision=5, member_id=8), ID=lease, TTL=ttl_s)


def ttl_of(message: bytes | None) -> int:
    assert message is not None
    answer = LeaseKeepAliveResponse.FromString(message)
    assert (answer.header.revision, answer.header.member_id) == (5, 8)
    return answer.TTL


def renewed(core: Renewals, at: float = 0.0, lease: int = LEASE, ttl_s: int = 9, stream: int = A) -> None:
    """A lease that `stream` has just had renewed."""
    assert core.ask(stream, 0, lease, at) is None
    assert core.take(at, 10) == [lease]
    assert core.answered(reply(lease, ttl_s)) == [(stream, 0)]


def test_asks_while_a_renewal_is_under_way_share_its_reply() -> None:
    core = Renewals()
    assert core.ask(A, 0, LEASE, 0.0) is None
    assert core.ask(B, 0, LEASE, 0.0) is None
    assert core.take(0.0, 10) == [LEASE]
    assert core.ask(C, 0, LEASE, 0.1) is None
    assert core.ask(A, 1, LEASE, 0.1) is None
    assert not core.queued
    assert core.answered(reply()) == [(A, 0), (A, 1), (B, 0), (C, 0)]


@pytest.mark.parametrize(("age_s", "left_s"), [(0.0, 9), (0.1, 8), (1.0, 8), (2.9, 6)])
def test_an_ask_soon_after_a_renewal_is_told_what_is_left_rounded_down(age_s: float, left_s: int) -> None:
    core = Renewals()
    renewed(core)
    assert ttl_of(core.ask(B, 0, LEASE, age_s)) == left_s
    assert not core.queued


def test_the_rest_counts_from_the_sending_of_the_renewal() -> None:
    core = Renewals()
    core.ask(A, 0, LEASE, 0.0)
    core.take(0.0, 10)
    core.answered(reply())  # comes at 2.0
    assert ttl_of(core.ask(B, 0, LEASE, 2.0)) == 7


def test_who_was_told_what_is_left_is_owed_a_renewal_at_the_end_of_the_interval() -> None:
    core = Renewals()
    renewed(core)
    core.ask(B, 0, LEASE, 1.0)
    assert core.due_at == 3.0
    core.tick(2.9)
    assert not core.queued
    core.tick(3.0)
    assert core.take(3.0, 10) == [LEASE]
    assert core.answered(reply()) == []
    core.tick(6.0)
    assert core.idle  # nobody asked again


def test_a_lease_nobody_asks_for_again_is_not_renewed() -> None:
    core = Renewals()
    renewed(core)
    core.tick(3.0)
    assert core.idle and core.due_at is None


def test_a_stream_that_asks_again_gets_another_renewal() -> None:
    core = Renewals()
    renewed(core)
    assert core.ask(A, 1, LEASE, 1.0) is None
    assert core.take(1.0, 10) == [LEASE]
    assert core.answered(reply()) == [(A, 1)]
    assert ttl_of(core.ask(B, 0, LEASE, 1.5)) == 8
    core.tick(3.0)
    assert not core.queued
    core.tick(4.0)  # the interval goes from the last renewal
    assert core.take(4.0, 10) == [LEASE]


def test_a_stream_that_asks_again_and_again_waits_for_a_moment_each_time() -> None:
    core = Renewals()
    renewed(core)
    assert core.ask(A, 1, LEASE, 0.01) is None
    assert core.ask(A, 2, LEASE, 0.02) is None
    assert not core.queued and core.due_at == REPEAT_S
    assert ttl_of(core.ask(B, 0, LEASE, 0.03)) == 8
    core.tick(REPEAT_S)
    assert core.take(REPEAT_S, 10) == [LEASE]
    assert core.answered(reply()) == [(A, 1), (A, 2)]


def test_when_less_than_a_second_is_left_the_lease_is_renewed() -> None:
    core = Renewals()
    renewed(core, ttl_s=1)
    assert core.ask(B, 0, LEASE, 0.2) is None
    assert core.take(0.2, 10) == [LEASE]


def test_an_unknown_lease_answers_0_to_its_askers_alone_and_is_asked_for_anew() -> None:
    core = Renewals()
    core.ask(A, 0, LEASE, 0.0)
    core.ask(A, 1, 5, 0.0)
    assert core.take(0.0, 10) == [LEASE, 5]
    assert core.answered(reply(ttl_s=0)) == [(A, 0)]
    assert core.answered(reply(5)) == [(A, 1)]
    assert core.ask(B, 0, LEASE, 0.0) is None
    assert core.take(0.0, 10) == [LEASE]


def test_the_interval_of_a_long_lease_is_bounded() -> None:
    core = Renewals()
    renewed(core, ttl_s=9_000_000_000)
    assert core.due_at == MAX_INTERVAL_S
    assert ttl_of(core.ask(B, 0, LEASE, 1.5)) == 8_999_999_998


def test_a_revoked_lease_is_forgotten() -> None:
    core = Renewals()
    renewed(core)
    core.forget(LEASE)
    assert core.ask(B, 0, LEASE, 0.1) is None
    assert core.take(0.1, 10) == [LEASE]
    assert core.answered(reply(ttl_s=0)) == [(B, 0)]


def test_an_answer_that_may_be_older_than_a_revoke_is_for_earlier_askers_alone() -> None:
    core = Renewals()
    core.ask(A, 0, LEASE, 0.0)
    core.take(0.0, 10)
    core.forget(LEASE)
    core.ask(B, 0, LEASE, 0.1)
    assert core.take(0.1, 10) == [LEASE]
    assert core.answered(reply()) == [(A, 0)]
    assert core.answered(reply(ttl_s=0)) == [(B, 0)]
    assert core.idle


def test_a_revoke_while_a_stream_waits_to_repeat_its_ask() -> None:
    core = Renewals()
    renewed(core)
    core.ask(A, 1, LEASE, 0.01)
    core.forget(LEASE)
    assert core.take(0.02, 10) == [LEASE]
    assert core.answered(reply(ttl_s=0)) == [(A, 1)]
    core.tick(10.0)
    assert core.idle and core.due_at is None


def test_what_was_under_way_when_upstream_was_lost_is_sent_again_first() -> None:
    core = Renewals()
    core.ask(A, 0, 1, 0.0)
    core.ask(A, 1, 2, 0.0)
    core.take(0.0, 10)
    core.ask(A, 2, 3, 0.0)
    core.lost()
    assert core.oldest_sent_at is None
    assert core.take(5.0, 10) == [1, 2, 3]
    assert core.oldest_sent_at == 5.0
    assert [core.answered(reply(lease)) for lease in (1, 2, 3)] == [[(A, 0)], [(A, 1)], [(A, 2)]]


def test_upstream_lost_between_a_revoke_and_the_answer() -> None:
    core = Renewals()
    core.ask(A, 0, LEASE, 0.0)
    core.take(0.0, 10)
    core.forget(LEASE)
    core.ask(B, 0, LEASE, 0.1)
    core.take(0.1, 10)
    core.lost()
    assert core.take(1.0, 10) == [LEASE]
    assert sorted(core.answered(reply(ttl_s=0))) == [(A, 0), (B, 0)]


def test_what_is_owed_is_renewed_when_upstream_is_back_while_it_was_promised() -> None:
    for back_at, sent in ((11.9, [LEASE]), (12.1, [])):
        core = Renewals()
        renewed(core)
        core.ask(B, 0, LEASE, 3.0)
        core.tick(3.0)
        assert core.take(3.0, 10) == [LEASE]
        core.lost()
        assert core.take(back_at, 10) == sent
        assert core.idle is not bool(sent)


def test_who_has_left_is_not_asked_for() -> None:
    core = Renewals()
    core.ask(A, 0, 1, 0.0)
    core.ask(A, 1, 2, 0.0)
    core.ask(B, 0, 2, 0.0)
    core.leave(A, [1, 2])
    assert core.take(0.0, 10) == [2]
    core.leave(B, [2])
    assert core.answered(reply(2)) == []
    core.tick(3.0)
    assert core.idle


def test_who_leaves_while_upstream_is_away_is_forgotten() -> None:
    core = Renewals()
    core.ask(A, 0, LEASE, 0.0)
    core.take(0.0, 10)
    core.leave(A, [LEASE])
    core.lost()
    assert core.idle


def test_an_error_with_one_renewal_under_way_is_for_its_askers() -> None:
    core = Renewals()
    core.ask(A, 0, LEASE, 0.0)
    core.ask(B, 0, LEASE, 0.0)
    core.take(0.0, 10)
    assert core.refused() == [(A, 0), (B, 0)]
    assert core.idle


def test_an_error_with_several_under_way_is_found_by_asking_one_by_one() -> None:
    core = Renewals()
    for token, lease in enumerate((1, 2, 3)):
        core.ask(A, token, lease, 0.0)
    core.take(0.0, 10)
    assert core.refused() == []
    assert core.take(0.0, 10) == [1]
    assert core.answered(reply(1)) == [(A, 0)]
    assert core.take(0.0, 10) == [2]
    assert core.refused() == [(A, 1)]
    assert core.take(0.0, 10) == [3]
    assert core.answered(reply(3)) == [(A, 2)]
    for token, lease in enumerate((4, 5)):
        core.ask(B, token, lease, 0.0)
    assert core.take(0.0, 10) == [4, 5]


def test_an_error_for_all_ends_all_waits_and_what_is_owed_stays() -> None:
    core = Renewals()
    renewed(core, lease=1)
    core.ask(B, 0, 1, 1.0)
    core.ask(A, 1, 2, 1.0)
    core.take(1.0, 10)
    core.ask(B, 1, 3, 1.0)
    assert sorted(core.fail()) == [(A, 1), (B, 1)]
    core.tick(3.0)
    assert core.take(3.0, 10) == [1]


def test_an_answer_out_of_turn_is_refused() -> None:
    core = Renewals()
    with pytest.raises(ValueError, match="which was not next"):
        core.answered(reply())
    core.ask(A, 0, 1, 0.0)
    core.ask(A, 1, 2, 0.0)
    core.take(0.0, 10)
    with pytest.raises(ValueError, match="0000000000000002"):
        core.answered(reply(2))


def test_no_more_than_a_window_of_renewals_is_under_way() -> None:
    core = Renewals()
    for lease in range(MAX_IN_FLIGHT + 5):
        core.ask(A, lease, lease, 0.0)
    assert len(core.take(0.0, 20_000)) == MAX_IN_FLIGHT
    assert not core.queued
    core.answered(reply(0))
    assert core.queued and core.take(0.0, 10) == [MAX_IN_FLIGHT]


def test_beyond_the_bound_of_leases_none_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LEASES", 2)
    core = Renewals()
    renewed(core, lease=1)
    renewed(core, lease=2)
    renewed(core, lease=3)
    assert core.ask(B, 0, 1, 0.1) is not None
    assert core.ask(B, 0, 3, 0.1) is None


class Member:
    """Keeps the time of leases as a member does, and answers after a delay."""

    def __init__(self, ttls_s: dict[int, int]) -> None:
        self.ttls_s = ttls_s
        self.ends_at = {lease: float(ttl_s) for lease, ttl_s in ttls_s.items()}

    def renew(self, lease: int, now: float) -> LeaseKeepAliveResponse:
        if now >= self.ends_at.get(lease, 0.0):
            return reply(lease, 0)
        self.ends_at[lease] = now + self.ttls_s[lease]
        return reply(lease, self.ttls_s[lease])


asks = st.tuples(st.floats(0.0, 1.5), st.integers(1, 4), st.sampled_from((1, 2, 3, 99)))


@settings(max_examples=150, deadline=None)
@given(st.lists(asks, max_size=60), st.floats(0.0, 0.09))
def test_leases_live_as_at_a_member_with_fewer_renewals(schedule: list[tuple[float, int, int]], delay_s: float) -> None:
    core = Renewals()
    member = Member({1: 1, 2: 5, 3: 60})
    alone = dict(member.ends_at)  # how long each lease lives when every ask is a renewal
    now = 0.0
    answers_at: list[tuple[float, LeaseKeepAliveResponse]] = []
    waiting: set[tuple[int, int]] = set()
    sent: dict[int, list[float]] = {}
    repeated: set[int] = set()
    last_asker: dict[int, set[int]] = {}

    def check(lease: int, ttl_s: int, at: float) -> None:
        """What is told is true."""
        if ttl_s == 0:
            assert lease == 99 or member.ends_at[lease] <= at
        elif ttl_s < member.ttls_s[lease] or not delay_s:
            assert member.ends_at[lease] >= at + ttl_s - ROUNDING_S

    def run(until: float) -> None:
        nonlocal now
        while True:
            due_at = core.due_at
            if core.queued:
                for lease in core.take(now, 10):
                    sent.setdefault(lease, []).append(now)
                    answers_at.append((now + delay_s, member.renew(lease, now)))
            elif answers_at and answers_at[0][0] <= min(until, due_at if due_at is not None else until):
                at, answer = answers_at.pop(0)
                now = max(now, at)
                last_asker.pop(answer.ID, None)
                for ask in core.answered(answer):
                    waiting.remove(ask)
                    last_asker.setdefault(answer.ID, set()).add(ask[0])
                    check(answer.ID, answer.TTL, now)
            elif due_at is not None and due_at <= until:
                now = max(now, due_at)
                core.tick(now)
            else:
                now = until
                return

    for token, (pause_s, stream, lease) in enumerate(schedule):
        run(now + pause_s)
        if now < alone.get(lease, 0.0):
            alone[lease] = now + member.ttls_s[lease]
        if stream in last_asker.get(lease, ()):
            repeated.add(lease)
        told = core.ask(stream, token, lease, now)
        if told is None:
            waiting.add((stream, token))
        else:
            last_asker.setdefault(lease, set()).add(stream)
            check(lease, LeaseKeepAliveResponse.FromString(told).TTL, now)
    run(now + 70.0)
    assert not waiting
    for lease, ends_at in alone.items():
        assert member.ends_at[lease] >= ends_at - ROUNDING_S
        times = sent.get(lease, [])
        if times and ends_at > times[-1]:  # it did not end meanwhile
            shortest_s = REPEAT_S if lease in repeated or member.ttls_s[lease] == 1 else member.ttls_s[lease] / 3
            assert all(later - earlier >= shortest_s - ROUNDING_S for earlier, later in pairwise(times))
    assert core.idle


def test_the_core_makes_no_cyclic_garbage() -> None:
    core = Renewals()
    gc.collect()
    gc.disable()
    try:
        for lease in range(50):
            renewed(core, lease=lease)
            core.ask(B, 0, lease, 0.5)
        core.lost()
        core.fail()
        for lease in range(50):
            core.forget(lease)
        core.tick(100.0)
        assert gc.collect() == 0
    finally:
        gc.enable()
