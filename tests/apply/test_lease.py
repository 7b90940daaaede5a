"""Leases, row by row of behaviour.md section 13 as far as the core decides them; `L…` are its rows."""

import gc
import math

import pytest

from kvorum import errors
from kvorum.errors import ApiError, Status
from node.apply.lease import (
    ATTACHED_TABLE,
    IN_FLIGHT,
    LEASE_TABLE,
    MAX_TTL_S,
    NOT_PRIMARY,
    PASS_REVOKES,
    TOGETHER,
    WAIT,
    Lessor,
    TimeToLive,
)

ELECTION_S = 1.0
LATEST_S = 0.25  # leases fall due in slots of this length


def leader(*leases: tuple[int, int], now: float = 100.0) -> Lessor:
    """A lessor that leads, with leases (id, TTL) granted at `now`."""
    lessor = Lessor()
    lessor.promote(now - 0.5, ELECTION_S)
    for lease_id, ttl_s in leases:
        lessor.grant(lease_id, ttl_s)
    lessor.turn(now)
    return lessor


def run(lessor: Lessor, begin: float, end: float, step_s: float = 0.125) -> list[tuple[float, int]]:
    """Turns from `begin` to `end`; (when, lease) of every revoke asked for."""
    count = round((end - begin) / step_s)
    return [
        (now, lease_id)
        for now in (begin + step_s * step for step in range(1, count + 1))
        for lease_id in lessor.expired(now)
    ]


class TestGrant:
    def test_l2_the_largest_ttl_and_one_more(self) -> None:
        lessor = leader()
        lessor.grant(1, MAX_TTL_S)
        with pytest.raises(ApiError) as caught:
            lessor.grant(2, MAX_TTL_S + 1)
        assert caught.value.status == errors.LEASE_TTL_TOO_LARGE
        assert not lessor.exists(2)

    def test_l2_too_large_is_found_before_exists(self) -> None:
        lessor = leader((1, 5))
        with pytest.raises(ApiError) as caught:
            lessor.grant(1, MAX_TTL_S + 1)
        assert caught.value.status == errors.LEASE_TTL_TOO_LARGE

    def test_l4_an_id_is_taken_as_is_but_only_once(self) -> None:
        lessor = leader()
        for lease_id in (-7, 7, 2**63 - 1, -(2**63)):
            lessor.grant(lease_id, 5)
            assert lessor.exists(lease_id)
            with pytest.raises(ApiError) as caught:
                lessor.grant(lease_id, 5)
            assert caught.value.status == errors.LEASE_EXIST

    def test_l4_an_id_is_free_again_after_its_revoke(self) -> None:
        lessor = leader((1, 5))
        lessor.attach(b"k", 1)
        assert lessor.revoke(1) == [b"k"]
        lessor.detach(b"k", 1)
        lessor.grant(1, 9)
        assert lessor.time_to_live(1, 100.0, keys=True) == TimeToLive(8, 9, [])

    def test_a_refused_grant_leaves_no_row(self) -> None:
        lessor = leader((1, 5))
        lessor.drain_rows()
        for lease_id, ttl_s in ((1, 5), (2, MAX_TTL_S + 1)):
            with pytest.raises(ApiError):
                lessor.grant(lease_id, ttl_s)
        assert lessor.drain_rows() == []


class TestKeepAlive:
    def test_l7_renews_to_the_full_ttl(self) -> None:
        lessor = leader((1, 5))
        for step in range(10):
            now = 100.0 + 0.5 * step
            assert lessor.keep_alive(1, now) == 5
        assert run(lessor, 104.5, 109.375) == []
        assert [lease_id for _, lease_id in run(lessor, 109.375, 110.0)] == [1]

    def test_l8_an_unknown_id_is_zero(self) -> None:
        lessor = leader((1, 5))
        assert lessor.keep_alive(2, 100.1) == 0
        assert lessor.keep_alive(0, 100.1) == 0

    def test_l9_waits_while_the_revoke_is_under_way_then_zero(self) -> None:
        lessor = leader((1, 2))
        assert [lease_id for _, lease_id in run(lessor, 100.0, 102.5)] == [1]
        assert lessor.keep_alive(1, 102.6) == WAIT
        assert lessor.keep_alive(1, 102.7) == WAIT
        lessor.revoke(1)
        assert lessor.keep_alive(1, 102.8) == 0

    def test_l9_is_not_early_a_revoke_not_yet_proposed_lets_the_lease_live(self) -> None:
        """A turn reads keep-alives before it looks for expiries."""
        lessor = leader((1, 2))
        run(lessor, 100.0, 102.0)
        assert lessor.keep_alive(1, 102.9) == 2
        assert run(lessor, 102.9, 104.8) == []

    def test_also_when_it_is_already_in_line(self) -> None:
        lessor = leader(*((lease_id, 2) for lease_id in range(1, IN_FLIGHT + 2)))
        asked = [lease_id for _, lease_id in run(lessor, 100.0, 102.5)]
        assert asked == list(range(1, IN_FLIGHT + 1))
        assert lessor.keep_alive(IN_FLIGHT + 1, 102.5) == 2
        for lease_id in asked:
            lessor.revoke(lease_id)
        assert run(lessor, 102.5, 104.5) == []
        assert [lease_id for _, lease_id in run(lessor, 104.5, 104.875)] == [IN_FLIGHT + 1]

    @pytest.mark.parametrize("now", [150.0, 160.0])
    def test_l33_not_without_confirmed_leadership(self, now: float) -> None:
        lessor = leader((1, 5))
        lessor.promote(149.9, ELECTION_S, valid_until=150.0)
        for lease_id in (1, 2):
            with pytest.raises(ApiError) as caught:
                lessor.keep_alive(lease_id, now)
            assert caught.value.status == NOT_PRIMARY == Status(2, "not a primary lessor")

    def test_l25_not_on_a_follower(self) -> None:
        lessor = Lessor()
        lessor.grant(1, 5)
        with pytest.raises(ApiError) as caught:
            lessor.keep_alive(1, 1.0)
        assert caught.value.status == NOT_PRIMARY


class TestTimeToLive:
    def test_l14_an_unknown_id(self) -> None:
        assert leader().time_to_live(9, 100.0, keys=True) == TimeToLive(-1, 0, ())

    def test_l15_whole_seconds_cut_off(self) -> None:
        lessor = leader((1, 5))
        for now, left_s in ((100.0, 4), (100.01, 4), (100.99, 4), (101.5, 3), (102.4, 2), (103.3, 1), (104.2, 0)):
            assert lessor.time_to_live(1, now).ttl_s == left_s

    def test_l15_expired_and_not_revoked_is_zero_or_less(self) -> None:
        lessor = leader((1, 2))
        run(lessor, 100.0, 105.0)
        assert lessor.time_to_live(1, 105.0).ttl_s == -3
        assert lessor.time_to_live(1, 105.0).granted_ttl_s == 2

    def test_l15_granted_in_this_very_turn(self) -> None:
        lessor = leader()
        lessor.turn(100.5)
        lessor.grant(1, 5)
        assert lessor.time_to_live(1, 100.5) == TimeToLive(4, 5, ())

    def test_l16_keys_only_when_asked_for(self) -> None:
        lessor = leader((1, 5), (2, 5))
        for key in (b"b", b"a", b"c"):
            lessor.attach(key, 1)
        assert lessor.time_to_live(1, 100.0).keys == ()
        assert sorted(lessor.time_to_live(1, 100.0, keys=True).keys) == [b"a", b"b", b"c"]
        assert lessor.time_to_live(2, 100.0, keys=True).keys == []

    def test_l17_not_on_a_follower(self) -> None:
        lessor = Lessor()
        lessor.grant(1, 5)
        with pytest.raises(ApiError) as caught:
            lessor.time_to_live(1, 1.0)
        assert caught.value.status == NOT_PRIMARY


class TestLeases:
    def test_l18_by_remaining_time_on_the_leader(self) -> None:
        lessor = leader((1, 30), (2, 10), (3, 20))
        assert lessor.leases() == [2, 3, 1]
        lessor.keep_alive(2, 100.9)
        lessor.turn(101.8)
        lessor.grant(4, 9)
        assert lessor.leases() == [4, 2, 3, 1]

    def test_l18_all_of_them_on_a_follower(self) -> None:
        lessor = Lessor()
        assert lessor.leases() == []
        for lease_id in (3, 1, 2):
            lessor.grant(lease_id, 5)
        assert sorted(lessor.leases()) == [1, 2, 3]
        assert len(lessor) == 3


class TestRevoke:
    def test_l20_all_keys_in_order(self) -> None:
        lessor = leader((1, 5), (2, 5))
        for key in (b"b", b"a\xff", b"a", b"c"):
            lessor.attach(key, 1)
        lessor.attach(b"d", 2)
        keys = lessor.revoke(1)
        assert keys == [b"a", b"a\xff", b"b", b"c"]
        for key in keys:
            lessor.detach(key, 1)
        assert not lessor.exists(1)
        assert lessor.keys_of(1) == ()
        assert lessor.keys_of(2) == {b"d"}

    def test_l20_none_without_keys(self) -> None:
        assert leader((1, 5)).revoke(1) == []

    def test_l21_unknown_also_zero_and_twice(self) -> None:
        lessor = leader((1, 5))
        lessor.revoke(1)
        for lease_id in (1, 2, 0):
            with pytest.raises(ApiError) as caught:
                lessor.revoke(lease_id)
            assert caught.value.status == errors.LEASE_NOT_FOUND

    def test_a_revoked_lease_does_not_expire(self) -> None:
        lessor = leader((1, 2), (2, 2))
        lessor.revoke(1)
        assert [lease_id for _, lease_id in run(lessor, 100.0, 104.0)] == [2]

    def test_l28_a_key_moves(self) -> None:
        lessor = leader((1, 5), (2, 5))
        lessor.attach(b"k", 1)
        lessor.detach(b"k", 1)
        lessor.attach(b"k", 2)
        assert lessor.revoke(1) == []
        assert lessor.revoke(2) == [b"k"]

    def test_l28_the_keys_of_a_lease_are_unique(self) -> None:
        lessor = leader((1, 5))
        lessor.attach(b"k", 1)
        lessor.attach(b"k", 1)
        assert lessor.revoke(1) == [b"k"]

    def test_l30_a_put_that_waited_finds_no_lease(self) -> None:
        lessor = leader((1, 5))
        assert lessor.exists(1)
        lessor.revoke(1)
        assert not lessor.exists(1)


class TestExpiry:
    def test_l22_never_early_and_at_most_a_slot_late(self) -> None:
        for offset in range(20):
            begin = 100.0 + offset / 80
            lessor = leader((1, 2), now=begin)
            ((at, lease_id),) = run(lessor, begin, begin + 2.5, step_s=0.0125)
            assert lease_id == 1
            assert 2.0 <= at - begin <= 2.0 + LATEST_S + 0.0125 + 1e-9

    def test_l22_at_most_16_under_way(self) -> None:
        lessor = leader(*((lease_id, 2) for lease_id in range(1, 41)))
        asked = [lease_id for _, lease_id in run(lessor, 100.0, 103.0)]
        assert asked == list(range(1, IN_FLIGHT + 1))
        lessor.revoke(5)
        lessor.revoke(40)
        assert lessor.expired(103.1) == [IN_FLIGHT + 1]
        for lease_id in (1, 2, 3):
            lessor.revoke(lease_id)
        assert lessor.expired(103.2) == [18, 19, 20]

    def test_one_revoked_while_in_line_is_passed_over(self) -> None:
        lessor = leader(*((lease_id, 2) for lease_id in range(1, 20)))
        asked = [lease_id for _, lease_id in run(lessor, 100.0, 103.0)]
        lessor.revoke(17)
        lessor.revoke(18)
        lessor.grant(18, 2)
        for lease_id in asked:
            lessor.revoke(lease_id)
        assert lessor.expired(103.1) == [19]
        assert lessor.leases() == [19, 18]

    def test_one_in_line_twice_is_asked_for_once(self) -> None:
        lessor = leader(*((lease_id, 2) for lease_id in range(1, 18)))
        run(lessor, 100.0, 102.5)
        assert lessor.keep_alive(17, 102.5) == 2
        run(lessor, 102.5, 105.0)
        for lease_id in range(1, 17):
            lessor.revoke(lease_id)
        assert run(lessor, 105.0, 106.0) == [(105.125, 17)]

    def test_l22_at_most_500_in_a_pass_of_half_a_second(self) -> None:
        lessor = leader(*((lease_id, 2) for lease_id in range(1, 1201)))
        run(lessor, 100.0, 102.0)
        counts: list[int] = []
        for begin in (102.5, 103.0, 103.5):
            counts.append(0)
            for turn in range(60):
                asked = lessor.expired(begin + turn / 128)
                assert len(asked) <= IN_FLIGHT
                counts[-1] += len(asked)
                for lease_id in asked:
                    lessor.revoke(lease_id)
        assert counts == [PASS_REVOKES, PASS_REVOKES, 200]
        assert len(lessor) == 0

    def test_the_limit_holds_for_repeated_ones_too(self) -> None:
        lessor = leader(*((lease_id, 2) for lease_id in range(1, 21)))
        assert [lease_id for _, lease_id in run(lessor, 100.0, 102.5)] == list(range(1, 17))
        run(lessor, 102.5, 105.0)
        assert lessor.expired(105.6, limit=10) == list(range(1, 11))
        assert lessor.expired(105.7, limit=10) == []
        assert lessor.expired(106.2, limit=10) == list(range(11, 17))

    def test_l31_again_after_three_seconds(self) -> None:
        lessor = leader((1, 2))
        times = [now for now, _ in run(lessor, 100.0, 112.0)]
        assert times == [102.25, 105.25, 108.25, 111.25]
        lessor.revoke(1)
        assert run(lessor, 112.0, 120.0) == []

    def test_a_grant_counts_from_the_first_time_told_after_it(self) -> None:
        """An entry of the log brings no time with it, so nothing earlier can be known."""
        lessor = leader()
        lessor.grant(1, 2)
        lessor.turn(100.0)  # told before
        assert lessor.leases() == [1]
        assert lessor.time_to_live(1, 100.0).ttl_s == 1
        lessor.turn(100.75)
        assert [now for now, _ in run(lessor, 100.75, 103.25)] == [103.0]

    def test_ids_that_come_back_are_new_leases(self) -> None:
        lessor = leader((1, 2))
        run(lessor, 100.0, 102.0)
        lessor.revoke(1)
        lessor.grant(1, 2)
        assert run(lessor, 102.0, 104.0) == []
        assert [now for now, _ in run(lessor, 104.0, 104.5)] == [104.25]


class TestLeadership:
    def test_l23_nothing_expires_without_a_leader(self) -> None:
        lessor = Lessor()
        lessor.grant(1, 2)
        assert run(lessor, 0.0, 100.0) == []

    def test_l23_l26_full_ttl_and_the_election_timeout_after_a_promotion(self) -> None:
        lessor = Lessor()
        lessor.grant(1, 2)
        run(lessor, 0.0, 50.0)
        lessor.promote(50.0, ELECTION_S)
        assert [now for now, _ in run(lessor, 50.0, 54.0)] == [53.25]

    def test_l25_a_demoted_member_counts_nothing_down(self) -> None:
        lessor = leader((1, 2), (2, 2))
        run(lessor, 100.0, 101.875)
        lessor.demote()
        lessor.grant(3, 2)
        assert run(lessor, 101.875, 110.0) == []
        lessor.promote(110.0, ELECTION_S)
        assert run(lessor, 110.0, 113.0) == []
        assert sorted(lease_id for _, lease_id in run(lessor, 113.0, 113.5)) == [1, 2, 3]

    def test_a_revoke_under_way_is_forgotten_with_the_leadership(self) -> None:
        lessor = leader((1, 2))
        assert run(lessor, 100.0, 102.5) != []
        lessor.demote()
        lessor.promote(103.0, ELECTION_S)
        assert lessor.keep_alive(1, 103.0) == 2

    def test_l24_more_than_a_thousand_are_spread(self) -> None:
        lessor = Lessor()
        for lease_id in range(1, 3501):
            lessor.grant(lease_id, 10)
        lessor.promote(100.0, ELECTION_S)
        due: list[float] = []
        for step in range(1, 20 * 64):
            now = 100.0 + step / 64
            for lease_id in lessor.expired(now, limit=10**6):
                lessor.revoke(lease_id)
                due.append(now)
            while asked := lessor.expired(now, limit=10**6):
                for lease_id in asked:
                    lessor.revoke(lease_id)
                    due.append(now)
        assert len(due) == 3500
        assert min(due) >= 111.0
        for second in range(111, 116):
            assert sum(second <= now < second + 1 for now in due) <= TOGETHER + TOGETHER * LATEST_S
        assert max(due) <= 114.0 + LATEST_S + 1 / 64

    def test_l24_a_thousand_are_not(self) -> None:
        lessor = Lessor()
        for lease_id in range(1, TOGETHER + 1):
            lessor.grant(lease_id, 10)
        lessor.promote(100.0, ELECTION_S)
        assert {lessor.time_to_live(lease_id, 100.0).ttl_s for lease_id in range(1, TOGETHER + 1)} == {10}

    def test_time_is_kept_only_before_the_moment_leadership_is_confirmed_to(self) -> None:
        lessor = Lessor()
        lessor.grant(1, 4)
        lessor.promote(100.0, ELECTION_S, valid_until=101.0)
        assert run(lessor, 100.0, 120.0) == []
        # At 101 there were 4 s left; from 120 on they pass, until the next confirmation ends, and from 130 on again.
        lessor.renew_leadership(120.0, 122.0)
        assert lessor.time_to_live(1, 120.0).ttl_s == 3
        assert run(lessor, 120.0, 130.0) == []
        lessor.renew_leadership(130.0, math.inf)
        assert [now for now, _ in run(lessor, 130.0, 133.0)] == [132.25]

    def test_a_renewal_after_such_a_gap_is_for_the_full_ttl_and_no_more(self) -> None:
        lessor = Lessor()
        lessor.grant(1, 4)
        lessor.promote(100.0, ELECTION_S, valid_until=101.0)
        run(lessor, 100.0, 120.0)
        lessor.renew_leadership(120.0, math.inf)
        assert lessor.keep_alive(1, 120.5) == 4
        assert lessor.time_to_live(1, 120.5).ttl_s == 3
        assert [now for now, _ in run(lessor, 120.5, 125.0)] == [124.75]

    def test_an_older_confirmation_takes_nothing_back(self) -> None:
        lessor = leader((1, 4))
        lessor.promote(100.0, ELECTION_S, valid_until=110.0)
        lessor.renew_leadership(101.0, 105.0)
        assert lessor.keep_alive(1, 101.5) == 4
        assert [now for now, _ in run(lessor, 101.5, 109.0)] == [105.75, 108.75]

    def test_a_gap_between_turns_extends_like_a_promotion(self) -> None:
        lessor = leader((1, 2), (2, 20))
        run(lessor, 100.0, 101.0)
        assert lessor.expired(102.0) == []  # a second exactly is none
        assert lessor.expired(150.0) == []
        assert [now for now, _ in run(lessor, 150.0, 153.5)] == [153.25]
        assert lessor.time_to_live(2, 153.5).ttl_s == 17

    def test_a_gap_counts_whatever_ends_it(self) -> None:
        lessor = leader((1, 2))
        assert lessor.time_to_live(1, 150.0).ttl_s == 2
        assert lessor.keep_alive(9, 190.0) == 0
        assert lessor.time_to_live(1, 190.0).ttl_s == 2

    def test_a_revoke_under_way_over_a_gap_stays_under_way(self) -> None:
        lessor = leader((1, 2))
        assert run(lessor, 100.0, 102.5) != []
        assert lessor.expired(110.0) == [1]
        assert lessor.keep_alive(1, 110.1) == WAIT

    def test_a_clock_told_late_changes_nothing(self) -> None:
        lessor = leader((1, 2))
        lessor.turn(101.0)
        assert lessor.keep_alive(1, 100.5) == 2
        assert run(lessor, 101.0, 103.0) == []
        assert [lease_id for _, lease_id in run(lessor, 103.0, 103.5)] == [1]


class TestRows:
    def test_a_grant_an_attached_key_and_their_end(self) -> None:
        lessor = Lessor()
        lessor.grant(-2, 5)
        lessor.attach(b"key", -2)
        lease_id = b"\xff" * 7 + b"\xfe"
        assert lessor.drain_rows() == [
            (LEASE_TABLE + lease_id, (5).to_bytes(8, "big")),
            (ATTACHED_TABLE + lease_id + b"key", b""),
        ]
        assert lessor.drain_rows() == []
        lessor.revoke(-2)
        lessor.detach(b"key", -2)
        assert lessor.drain_rows() == [(LEASE_TABLE + lease_id, None), (ATTACHED_TABLE + lease_id + b"key", None)]

    def test_the_last_change_of_a_row_counts(self) -> None:
        lessor = Lessor()
        lessor.grant(1, 5)
        lessor.attach(b"key", 1)
        lessor.detach(b"key", 1)
        lessor.revoke(1)
        lessor.grant(1, 7)
        assert dict(lessor.drain_rows()) == {
            LEASE_TABLE + (1).to_bytes(8, "big"): (7).to_bytes(8, "big"),
            ATTACHED_TABLE + (1).to_bytes(8, "big") + b"key": None,
        }

    def test_time_leaves_no_rows(self) -> None:
        lessor = leader((1, 2))
        lessor.drain_rows()
        lessor.keep_alive(1, 100.5)
        run(lessor, 100.5, 105.0)
        lessor.demote()
        assert lessor.drain_rows() == []

    def test_an_attached_key_without_its_lease_is_a_broken_invariant(self) -> None:
        with pytest.raises(AssertionError, match="lease 1f, which is not there"):
            Lessor().restore([], [(ATTACHED_TABLE + (31).to_bytes(8, "big") + b"key", b"")])

    def test_the_keys_of_a_revoked_lease_must_go_before_the_next_revoke(self) -> None:
        lessor = leader((1, 5), (2, 5))
        lessor.attach(b"key", 1)
        lessor.revoke(1)
        with pytest.raises(AssertionError):
            lessor.revoke(2)

    def test_a_key_can_only_leave_the_lease_it_is_attached_to(self) -> None:
        lessor = leader((1, 5), (2, 5))
        lessor.attach(b"key", 1)
        lessor.attach(b"other", 2)
        with pytest.raises(KeyError):
            lessor.detach(b"key", 2)
        lessor.revoke(1)
        with pytest.raises(AssertionError):
            lessor.detach(b"key", 3)


class TestBounds:
    def test_renewing_for_ever_holds_no_memory(self) -> None:
        lessor = leader((1, MAX_TTL_S), (2, 60))
        for turn in range(4000):
            now = 100.0 + turn / 4
            assert lessor.keep_alive(1, now) == MAX_TTL_S
            assert lessor.keep_alive(2, now) == 60
            assert lessor.expired(now) == []
        assert len(lessor._slots) == 2
        assert len(lessor._slot_heap) <= 2 * len(lessor._slots) + 65
        assert not lessor._due
        assert not lessor._fresh

    def test_nor_does_granting_and_revoking(self) -> None:
        lessor = leader()
        for turn in range(1000):
            lessor.grant(1, MAX_TTL_S)
            lessor.grant(2, MAX_TTL_S)
            lessor.revoke(1)
            assert lessor.expired(100.0 + turn / 2) == []
            lessor.revoke(2)
            lessor.drain_rows()
        assert not lessor._slots
        assert len(lessor._slot_heap) <= 66
        assert not lessor._rows

    def test_no_cyclic_garbage(self) -> None:
        lessor = leader()
        gc.collect()
        gc.disable()
        try:
            for lease_id in range(1, 50):
                now = 100.0 + lease_id / 2
                lessor.grant(lease_id, 2)
                lessor.attach(b"key", lease_id)
                lessor.keep_alive(lease_id, now)
                lessor.time_to_live(lease_id, now, keys=True)
                for expired_id in lessor.expired(now):
                    for key in lessor.revoke(expired_id):
                        lessor.detach(key, expired_id)
                lessor.drain_rows()
            assert len(lessor) < 10
            assert gc.collect() == 0
        finally:
            gc.enable()
