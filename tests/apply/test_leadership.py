"""From when on a member serves, keeps the time of leases, and answers linearizable reads by itself."""

from math import inf

import pytest

from kvorum.errors import ApiError
from node.apply.leadership import Leadership
from node.apply.lease import NOT_PRIMARY, Lessor

ME, OTHER = 7, 8
ELECTION_S = 1.0


class Under:
    def __init__(self) -> None:
        self.now = 100.0
        self.lessor = Lessor()
        self.lessor.grant(1, 10)
        self.leadership = Leadership(ME, self.lessor, ELECTION_S)

    def tell(self, term: int, leader: int, catch_up_to: int = 0, *, solo: bool = False) -> bool:
        return self.leadership.on_leadership(term, leader, catch_up_to, solo, self.now)

    def applied(self, index: int, term: int) -> None:
        self.leadership.on_applied(index, term, self.now)

    def confirmed(self, term: int, for_s: float) -> None:
        self.leadership.on_confirmed(term, self.now + for_s, self.now)

    def renews(self) -> bool:
        """Whether a keep-alive is answered now."""
        try:
            return self.lessor.keep_alive(1, self.now) == 10
        except ApiError as error:
            assert error.status == NOT_PRIMARY
            return False


@pytest.fixture
def under() -> Under:
    return Under()


def test_a_follower_serves_once_it_has_applied_of_this_term_and_what_was_committed_at_start(under: Under) -> None:
    leadership = under.leadership
    assert leadership.settled
    under.tell(3, OTHER, 20)
    for index, term, serves in ((19, 2, False), (19, 3, False), (20, 3, True)):
        under.applied(index, term)
        assert (leadership.serving, leadership.settled) == (serves, serves)
    assert not leadership.is_primary and not leadership.granted
    under.tell(4, 0, 20)
    assert leadership.serving, "once and for all"


def test_nothing_is_served_before_anybody_led(under: Under) -> None:
    under.applied(5, 0)
    assert not under.leadership.serving


def test_a_leader_keeps_the_time_from_its_term_s_first_entry_on(under: Under) -> None:
    under.tell(3, ME)
    under.confirmed(3, 1.0)
    under.applied(10, 2)
    assert not under.renews()
    under.applied(11, 3)
    assert under.leadership.is_primary
    assert under.renews(), "what was confirmed before that counts"
    under.now += 1.0
    assert not under.renews(), "L33: it is not confirmed any more"
    under.confirmed(3, 1.0)
    assert under.renews()


def test_what_was_never_confirmed_is_not_certain(under: Under) -> None:
    under.tell(3, ME)
    under.applied(11, 3)
    assert under.leadership.is_primary and not under.renews()
    under.confirmed(2, 5.0)
    assert not under.renews(), "of another term"


@pytest.mark.parametrize(("term", "leader"), [(4, OTHER), (4, 0), (3, 0), (4, ME)])
def test_L25_whatever_ends_the_reign_ends_the_time(under: Under, term: int, leader: int) -> None:
    under.tell(3, ME)
    under.confirmed(3, 5.0)
    under.applied(11, 3)
    under.tell(term, leader)
    assert not under.leadership.is_primary and not under.renews()
    assert under.leadership.leads == (leader == ME)
    under.applied(12, 4)
    assert under.leadership.is_primary == (leader == ME)
    assert not under.renews(), "its own confirmation is needed"


def test_L23_a_new_reign_gives_every_lease_its_time_anew(under: Under) -> None:
    under.tell(3, ME)
    under.confirmed(3, inf)
    under.applied(11, 3)
    under.now += 0.9
    under.lessor.turn(under.now)
    under.tell(4, ME)
    under.confirmed(4, inf)
    under.applied(12, 4)
    assert under.lessor.time_to_live(1, under.now).ttl_s == 10


# the grant of a sole voter


def test_a_sole_voter_is_confirmed_for_good_and_reads_by_itself(under: Under) -> None:
    under.tell(3, ME, 10, solo=True)
    assert not under.leadership.granted
    under.applied(11, 3)
    assert under.leadership.granted and under.leadership.serving
    under.now += 0.9
    assert under.renews()


def test_a_grant_counts_from_when_all_that_others_acknowledged_is_applied(under: Under) -> None:
    """The last other voter was removed: it may have answered for entries that are not applied here yet."""
    under.tell(3, ME)
    under.applied(11, 3)
    under.tell(3, ME, 15, solo=True)
    assert not under.leadership.granted
    under.applied(14, 3)
    assert not under.leadership.granted
    under.applied(15, 3)
    assert under.leadership.granted


def test_a_grant_taken_back_is_gone_at_once_and_returned(under: Under) -> None:
    assert not under.tell(3, ME, solo=True)
    under.applied(11, 3)
    assert not under.tell(3, ME, solo=True)
    assert under.tell(3, ME)
    assert not under.leadership.granted
    assert not under.tell(3, ME), "once"
    assert under.leadership.is_primary and under.renews(), "the others need an election timeout"
    under.now += ELECTION_S
    assert not under.renews()
    under.confirmed(3, 0.5)
    assert under.renews()


def test_a_grant_that_never_counted_is_returned_too(under: Under) -> None:
    under.tell(3, ME, 50, solo=True)
    assert under.tell(3, 0)
