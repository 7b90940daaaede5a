"""What a member says of itself at its start, and from when on it takes clients."""

import pytest

from kvorum import errors
from kvorum.pb.internal_pb2 import MembershipState, Publish
from kvorum.pb.rpc_pb2 import Member as MemberMessage
from node.front.announcement import Announcement
from node.front.calls import Calls, Sink
from node.front.member import Limits, Member
from node.requests import Op

ME, OTHER = 7, 8
OWN = Publish(member_id=ME, name="m1", client_urls=["http://127.0.0.1:2379"], version="3.7.0")


class Proposals:
    def __init__(self) -> None:
        self.made: list[tuple[Sink, int, bytes]] = []

    def propose(self, sink: Sink, _token: int, op: int, body: bytes) -> None:
        self.made.append((sink, op, body))

    def take(self) -> Sink:
        ((sink, op, body),) = self.made
        self.made.clear()
        assert (op, Publish.FromString(body)) == (Op.PUBLISH, OWN)
        return sink


class Under:
    def __init__(self, own: Publish | None) -> None:
        calls = Calls(
            origin=16,
            member=ME,
            incarnation=1,
            send=lambda *_: None,
            call_soon=lambda _callback: None,
            now=lambda: 0.0,
            timeout_s=7.0,
        )
        self.member = Member(ME, 1, Limits(1, 1, 1, 7.0), calls, leader=OTHER)
        self.proposals = Proposals()
        self.events: list[str] = []
        self.announcement = Announcement(
            self.member,
            self.proposals,
            own,
            on_published=lambda: self.events.append("published"),
            on_ready=lambda: self.events.append("ready"),
        )

    def members(self, name: str, version: str = "3.7.0", *, learner: bool = False) -> None:
        members = [MemberMessage(ID=ME, name=name, isLearner=learner), MemberMessage(ID=OTHER, name="other")]
        self.announcement.on_members(MembershipState(members=members, cluster_version=version))


@pytest.fixture
def first() -> Under:
    return Under(OWN)


def test_the_first_front_publishes_once_it_has_caught_up(first: Under) -> None:
    first.members("m1")
    first.announcement.go_on()
    assert first.proposals.made == []
    first.announcement.on_caught_up()
    first.announcement.go_on()
    sink = first.proposals.take()
    assert first.events == [], "what an earlier start published does not count"
    sink.reply(0, b"")
    assert first.events == ["published", "ready"]
    first.announcement.go_on()
    first.members("m1")
    assert first.events == ["published", "ready"] and first.proposals.made == []


def test_it_publishes_again_until_it_is_applied(first: Under) -> None:
    first.announcement.on_caught_up()
    first.proposals.take().fail(0, *errors.TIMEOUT)
    assert first.proposals.made == []
    first.announcement.go_on()
    sink = first.proposals.take()
    first.members("m1")
    sink.reply(0, b"")
    assert first.events == ["published", "ready"]


def test_M29_no_clients_before_the_cluster_has_a_version_and_a_leader(first: Under) -> None:
    first.member.leader = 0
    first.announcement.on_caught_up()
    first.proposals.take().reply(0, b"")
    first.members("m1", version="")
    assert first.events == ["published"]
    first.members("m1")
    assert first.events == ["published"]
    first.member.leader = OTHER
    first.announcement.go_on()
    assert first.events == ["published", "ready"]
    assert first.member.cluster_version == "3.7.0"


def test_the_other_fronts_wait_for_what_the_log_says() -> None:
    other = Under(None)
    other.announcement.on_caught_up()
    other.members("")
    assert other.events == []
    other.members("m1")
    assert other.events == ["ready"]
    assert other.proposals.made == []


def test_a_promoted_learner_hears_of_it(first: Under) -> None:
    first.members("", learner=True)
    assert first.member.is_learner
    first.members("m1")
    assert not first.member.is_learner
