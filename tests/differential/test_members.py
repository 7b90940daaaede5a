"""Rows M: the members of a cluster, as far as one server that runs alone shows them."""

import json
import time
import urllib.request
from hashlib import sha1
from typing import Any

import pytest
from google.protobuf.message import Message

from kvorum import errors
from kvorum.errors import Code, Status
from kvorum.pb.rpc_pb2 import (
    Member,
    MemberAddRequest,
    MemberListRequest,
    MemberPromoteRequest,
    MemberRemoveRequest,
    MemberUpdateRequest,
    MoveLeaderRequest,
    StatusRequest,
)
from loadtest.launcher import Kind, wait_until
from tests.differential.side import Side, differs
from tests.servers import SUBJECT, start

UNKNOWN = 7
ELSEWHERE = "http://127.0.0.1:1"
"""Nobody listens there: a member with this URL never starts."""


def ask(api: Side, request: Message) -> Any:
    """The reply to a change of members, or the status it failed with.

    3.5.1 drops one that comes before raft knows that the change before is applied: there it is asked again.
    """
    if api.kind is Kind.KVORUM and SUBJECT is Kind.KVORUM:
        return api.outcome(request)
    for _ in range(10):
        outcome = api.outcome(request, timeout_s=2.0)
        if not (isinstance(outcome, Status) and outcome.code == Code.DEADLINE_EXCEEDED):
            return outcome
    raise TimeoutError(f"never answered: {request}")


def members(api: Side) -> list[Member]:
    return list(api(MemberListRequest(linearizable=True)).members)


def add_learner(api: Side, *urls: str) -> Member:
    added: Member = ask(api, MemberAddRequest(peerURLs=urls or [ELSEWHERE], isLearner=True)).member
    return added


@pytest.mark.parametrize(
    "urls",
    [
        [],
        ["127.0.0.1:1"],
        ["http://127.0.0.1"],
        ["http://127.0.0.1:1/path"],
        ["ftp://127.0.0.1:1"],
        [ELSEWHERE, "x"],
        [""],
    ],
)
def test_M1_urls_of_an_added_member(api: Side, urls: list[str]) -> None:
    before = members(api)
    assert ask(api, MemberAddRequest(peerURLs=urls)) == errors.MEMBER_BAD_URLS
    assert ask(api, MemberAddRequest(peerURLs=urls, isLearner=True)) == errors.MEMBER_BAD_URLS
    assert members(api) == before


def test_M1_M2_M6_M7_an_added_member(fresh: Side) -> None:
    (founder,) = members(fresh)
    urls = ["http://127.0.0.1:2", " http://127.0.0.1:1", "unix://localhost:3"]
    reply = ask(fresh, MemberAddRequest(peerURLs=urls, isLearner=True))
    added = reply.member
    assert added == Member(ID=added.ID, peerURLs=sorted(url.strip() for url in urls), isLearner=True)
    assert (reply.header.revision, reply.header.member_id) == (0, founder.ID)
    assert reply.header.raft_term == fresh(StatusRequest()).raftTerm
    assert list(reply.members) == sorted([founder, added], key=lambda member: member.ID)
    assert members(fresh) == list(reply.members)


def test_M3_the_id_of_an_added_member_is_of_its_urls_and_the_second(fresh: Side) -> None:
    before = int(time.time())
    added = add_learner(fresh, "http://127.0.0.1:2", "http://127.0.0.1:1")
    seconds = range(before, int(time.time()) + 1)
    texts = [f"http://127.0.0.1:1http://127.0.0.1:2{second}" for second in seconds]
    assert added.ID in [int.from_bytes(sha1(text.encode()).digest()[:8], "big") for text in texts]


def test_M3_M4_the_same_addition_again(fresh: Side) -> None:
    """Refused by the id while the second lasts, then by the URL; the limit of learners would come last."""
    wait_until(lambda: time.time() % 1 < 0.3, "the beginning of a second")
    again = MemberAddRequest(peerURLs=[ELSEWHERE], isLearner=True)
    until = int(time.time()) + 1
    add_learner(fresh)
    early = ask(fresh, again)
    assert early == errors.MEMBER_EXIST or time.time() > until
    wait_until(lambda: time.time() > until, "the next second")
    assert ask(fresh, again) == errors.PEER_URL_EXIST
    other = [ELSEWHERE, "http://127.0.0.1:2"]
    assert ask(fresh, MemberAddRequest(peerURLs=other, isLearner=True)) == errors.PEER_URL_EXIST


def test_M11_one_learner_is_allowed(fresh: Side) -> None:
    add_learner(fresh)
    second = MemberAddRequest(peerURLs=["http://127.0.0.1:2"], isLearner=True)
    assert ask(fresh, second) == errors.TOO_MANY_LEARNERS


@differs("X35")
def test_M11_max_learners(kind: Kind) -> None:
    with start(kind, {"max-learners": "2"}) as server, Side(kind, server) as api:
        add_learner(api, "http://127.0.0.1:1")
        add_learner(api, "http://127.0.0.1:2")
        third = MemberAddRequest(peerURLs=["http://127.0.0.1:3"], isLearner=True)
        assert ask(api, third) == errors.TOO_MANY_LEARNERS


def test_M16_M17_removal(fresh: Side) -> None:
    assert ask(fresh, MemberRemoveRequest(ID=UNKNOWN)) == errors.MEMBER_NOT_FOUND
    (founder,) = members(fresh)
    learner = add_learner(fresh)
    reply = ask(fresh, MemberRemoveRequest(ID=learner.ID))
    assert list(reply.members) == [founder] == members(fresh)
    assert reply.header.revision == 0
    for request in (
        MemberRemoveRequest(ID=learner.ID),
        MemberUpdateRequest(ID=learner.ID, peerURLs=["http://127.0.0.1:2"]),
        MemberPromoteRequest(ID=learner.ID),
    ):
        assert ask(fresh, request) == errors.MEMBER_NOT_FOUND
    assert add_learner(fresh, "http://127.0.0.1:1", "http://127.0.0.1:2").ID != learner.ID  # its URL is free again


def test_M15_the_only_voter_stays(fresh: Side) -> None:
    (founder,) = members(fresh)
    assert ask(fresh, MemberRemoveRequest(ID=founder.ID)) == errors.MEMBER_NOT_ENOUGH_STARTED
    add_learner(fresh)
    assert ask(fresh, MemberRemoveRequest(ID=founder.ID)) == errors.MEMBER_NOT_ENOUGH_STARTED


@differs("M15")
def test_M15_no_option_lets_the_only_voter_go(kind: Kind) -> None:
    with start(kind, {"strict-reconfig-check": "false"}) as server, Side(kind, server) as api:
        (founder,) = members(api)
        assert ask(api, MemberRemoveRequest(ID=founder.ID)) == errors.MEMBER_NOT_ENOUGH_STARTED
        assert members(api) == [founder]


def test_M20_an_update_of_the_urls(fresh: Side) -> None:
    assert ask(fresh, MemberUpdateRequest(ID=UNKNOWN, peerURLs=[ELSEWHERE])) == errors.MEMBER_NOT_FOUND
    (founder,) = members(fresh)
    learner = add_learner(fresh)
    taken = MemberUpdateRequest(ID=founder.ID, peerURLs=learner.peerURLs)
    assert ask(fresh, taken) == errors.PEER_URL_EXIST
    assert ask(fresh, MemberUpdateRequest(ID=founder.ID, peerURLs=founder.peerURLs)).header.revision == 0
    founder.peerURLs.append("http://127.0.0.1:2")
    reply = ask(fresh, MemberUpdateRequest(ID=founder.ID, peerURLs=founder.peerURLs))
    assert founder in reply.members
    assert members(fresh) == list(reply.members)
    fresh.put("a")


@differs("Z3")
def test_M21_an_update_with_a_bad_url(api: Side) -> None:
    (founder,) = members(api)
    for urls in ([], ["x"], ["127.0.0.1:1"], ["http://127.0.0.1:1/path"]):
        assert ask(api, MemberUpdateRequest(ID=founder.ID, peerURLs=urls)) == errors.MEMBER_BAD_URLS
        assert ask(api, MemberUpdateRequest(ID=UNKNOWN, peerURLs=urls)) == errors.MEMBER_BAD_URLS
    assert members(api) == [founder]


@differs("X38")
def test_M22_a_learner_stays_one_when_its_urls_change(fresh: Side) -> None:
    learner = add_learner(fresh)
    ask(fresh, MemberUpdateRequest(ID=learner.ID, peerURLs=["http://127.0.0.1:2"]))
    learner.peerURLs[:] = ["http://127.0.0.1:2"]
    assert learner in members(fresh)
    assert ask(fresh, MemberPromoteRequest(ID=learner.ID)) == errors.LEARNER_NOT_READY


def test_M24_promotion_of_what_is_not_ready(fresh: Side) -> None:
    assert ask(fresh, MemberPromoteRequest(ID=UNKNOWN)) == errors.MEMBER_NOT_FOUND
    (founder,) = members(fresh)
    assert ask(fresh, MemberPromoteRequest(ID=founder.ID)) == errors.MEMBER_NOT_LEARNER
    assert ask(fresh, MemberPromoteRequest(ID=add_learner(fresh).ID)) == errors.LEARNER_NOT_READY


def test_M27_a_learner_cannot_be_led_by(fresh: Side) -> None:
    learner = add_learner(fresh)
    assert fresh.status(MoveLeaderRequest(targetID=learner.ID)) == errors.BAD_LEADER_TRANSFEREE


def test_M28_the_cluster_id_outlives_every_change(fresh: Side) -> None:
    (founder,) = members(fresh)
    before = fresh(MemberListRequest()).header.cluster_id
    assert before == int.from_bytes(sha1(founder.ID.to_bytes(8, "big")).digest()[:8], "big")
    learner = add_learner(fresh)
    assert fresh(MemberListRequest()).header.cluster_id == before
    assert ask(fresh, MemberRemoveRequest(ID=learner.ID)).header.cluster_id == before


def test_M14_M12_a_second_voter_that_never_starts_takes_the_quorum(fresh: Side) -> None:
    """So a third is refused, and it is the strict rule that says so: nothing can be logged any more."""
    (founder,) = members(fresh)
    second = ask(fresh, MemberAddRequest(peerURLs=[ELSEWHERE])).member
    assert second == Member(ID=second.ID, peerURLs=[ELSEWHERE])
    third = MemberAddRequest(peerURLs=["http://127.0.0.1:2"])
    assert ask(fresh, third) == errors.MEMBER_NOT_ENOUGH_STARTED
    assert ask(fresh, MemberRemoveRequest(ID=founder.ID)) == errors.MEMBER_NOT_ENOUGH_STARTED
    listed = fresh(MemberListRequest()).members  # M9: what this member knows, without asking anybody
    assert list(listed) == sorted([founder, second], key=lambda member: member.ID)


def test_M29_the_cluster_version_has_no_patch_level(api: Side) -> None:
    with urllib.request.urlopen(f"http://{api.server.address}/version") as response:
        version = json.loads(response.read())
    level = version["etcdserver"].rpartition(".")[0]
    assert version["etcdcluster"] == f"{level}.0"


def test_M8_a_member_is_started_once_it_published(api: Side) -> None:
    (founder,) = members(api)
    assert founder.name == api.server.name
    assert list(founder.clientURLs) == [f"http://{api.server.address}"]
    assert list(founder.peerURLs) == [f"http://{api.server.peer_address}"]
