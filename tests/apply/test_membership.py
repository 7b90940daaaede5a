"""The members as the log makes them: founded, published, listed, and found again after a start."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvorum.pb.internal_pb2 import ClusterVersion, Founding, Publish
from kvorum.pb.rpc_pb2 import Member
from node.apply.membership import TABLE, Membership
from tests.apply.entries import MEMBER, MachineUnderTest, batch, founding, normal


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[MachineUnderTest]:
    opened = MachineUnderTest(tmp_path / "db")
    yield opened
    opened.close()


def test_a_founded_member_has_no_client_urls_until_it_publishes_them(machine: MachineUnderTest) -> None:
    machine.execute(founding(), normal())
    (member,) = machine.membership.members()
    assert (member.ID, list(member.clientURLs)) == (MEMBER, [])
    machine.execute(normal(batch(Publish(member_id=MEMBER, name="other", client_urls=["http://a:1", "http://b:2"]))))
    (member,) = machine.membership.members()
    assert (member.name, list(member.clientURLs)) == ("other", ["http://a:1", "http://b:2"])
    assert list(member.peerURLs) == ["http://127.0.0.1:2380"]


def test_members_and_the_cluster_version_are_found_after_a_start(machine: MachineUnderTest) -> None:
    machine.execute(founding(), normal(batch(ClusterVersion(version="3.7.0"))))
    before = machine.membership.members()
    machine.reopen()
    assert machine.membership.members() == before
    assert machine.membership.cluster_version == "3.7.0"


def test_one_that_is_no_member_publishes_nothing(machine: MachineUnderTest) -> None:
    machine.execute(founding(), normal(batch(Publish(member_id=MEMBER + 1, name="x"))))
    assert [member.name for member in machine.membership.members()] == ["m1"]


def test_M6_members_are_listed_by_id_and_learners_stay_learners() -> None:
    membership = Membership(())
    members = [Member(ID=1 << 63, name="c"), Member(ID=2, name="a", isLearner=True), Member(ID=9, name="b")]
    rows = membership.found(Founding(members=members).SerializeToString())
    assert len(rows) == 3
    assert {row[:1] for row, _ in rows} == {TABLE}
    rows += membership.publish(Publish(member_id=2, name="aa", client_urls=["http://a:1"]).SerializeToString())
    for found in (membership, Membership(dict(rows).items())):
        assert [(member.ID, member.name, member.isLearner) for member in found.members()] == [
            (2, "aa", True),
            (9, "b", False),
            (1 << 63, "c", False),
        ]
