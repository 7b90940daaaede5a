"""Why a request was not answered in time, and how long nobody led."""

import pytest

from kvorum import errors
from kvorum.errors import Code, Status
from node.front.leaders import Leaders

ME, OTHER, THIRD = 7, 8, 9
ELECTION_S = 1.0


@pytest.fixture
def leaders() -> Leaders:
    made = Leaders(ME, ELECTION_S)
    made.voters = (ME, OTHER, THIRD)
    return made


def test_P11_a_request_that_no_leader_ever_saw_was_not_proposed(leaders: Leaders) -> None:
    not_proposed = Status(Code.DEADLINE_EXCEEDED, "context deadline exceeded")
    assert leaders.why_late(100) == not_proposed, "nobody has led yet"
    leaders.on_leadership(OTHER, 50)
    leaders.on_leadership(0, 100)
    assert leaders.why_late(100) == not_proposed
    assert leaders.why_late(99) == errors.TIMEOUT, "that one may have been"


@pytest.mark.parametrize(
    ("sent_at", "status"),
    [
        (108.0, errors.TIMEOUT),
        (108.1, errors.TIMEOUT_DUE_TO_LEADER_FAIL),
        (109.9, errors.TIMEOUT_DUE_TO_LEADER_FAIL),
        (110.0, errors.TIMEOUT),
    ],
)
@pytest.mark.parametrize("still_leads", [True, False])
def test_P12_requests_from_just_before_an_election(
    leaders: Leaders, sent_at: float, status: Status, still_leads: bool
) -> None:
    leaders.on_leadership(OTHER, 50)
    leaders.on_leadership(0, 109)
    leaders.on_leadership(THIRD, 110)
    leaders.on_leadership(THIRD, 112)
    if not still_leads:
        leaders.on_leadership(0, 113)
    assert leaders.why_late(sent_at) == status


@pytest.mark.parametrize(
    ("leader", "connected_since", "status"),
    [
        (OTHER, None, errors.TIMEOUT),
        (OTHER, {OTHER: 99.0}, errors.TIMEOUT),
        (OTHER, {OTHER: 101.0, THIRD: 5.0}, errors.TIMEOUT_DUE_TO_CONNECTION_LOST),
        (OTHER, {}, errors.TIMEOUT_DUE_TO_CONNECTION_LOST),
        (ME, {OTHER: 99.0}, errors.TIMEOUT),
        (ME, {OTHER: 101.0, THIRD: 101.0}, errors.TIMEOUT_DUE_TO_CONNECTION_LOST),
        (ME, {55: 1.0}, errors.TIMEOUT_DUE_TO_CONNECTION_LOST),
    ],
)
def test_P12_a_member_that_was_cut_off(
    leaders: Leaders, leader: int, connected_since: dict[int, float] | None, status: Status
) -> None:
    leaders.on_leadership(leader, 50)
    leaders.connected_since = connected_since
    assert leaders.why_late(100) == status


def test_WP11_three_looks_in_a_row_without_a_leader(leaders: Leaders) -> None:
    assert [leaders.check() for _ in range(5)] == [False, False, True, False, False], "once"
    leaders.on_leadership(OTHER, 1)
    assert not leaders.check()
    leaders.on_leadership(0, 2)
    assert [leaders.check() for _ in range(2)] == [False, False]
    leaders.on_leadership(OTHER, 3)
    assert not leaders.check()
    leaders.on_leadership(0, 4)
    assert [leaders.check() for _ in range(3)] == [False, False, True]
