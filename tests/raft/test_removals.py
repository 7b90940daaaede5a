"""When a removed member goes, so that those that stay can always elect a leader (M17, M18)."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from kvorum.pb.internal_pb2 import MemberChange
from node.raft.core import EntryType, Message, MessageType
from node.raft.core.messages import HardState
from node.raft.start import starting_state
from node.raft.wal.errors import LogFull
from node.raft.wal.log import WriteAheadLog
from node.requests import Op
from tests.raft.driver_group import A, B, D, Group, RaftUnderTest, founded, url
from tests.raft.simulated_disk import SimulatedDirectory, SimulatedDisk


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Group]:
    made = Group(tmp_path, "--strict-reconfig-check=false", founders=(A, B))
    yield made
    made.close()


def remove(group: Group, asked: int, member: int) -> None:
    group.ask(asked, Op.MEMBER_REMOVE, MemberChange(ID=member))


def step(group: Group) -> None:
    """Every message that is on its way arrives, and every disk is done once."""
    group.network.deliver()
    for member in group.members.values():
        member.disk_thread.finish()


def until_removed(group: Group, member: int, removed: int) -> RaftUnderTest:
    """Until `member` has executed the removal, and nobody has heard of that."""
    for _ in range(20):
        if group[member].driver.membership.is_removed(removed):
            return group[member]
        step(group)
    raise AssertionError("it is not executed")


def after_power_loss(group: Group, member: int, random: Random) -> RaftUnderTest:
    """What a member is that has lost all it could; its store has lost all but the founding."""
    disk = group[member].disk.crash(random)
    return RaftUnderTest(group.child, disk, member=member, members=(), clock=group.clock).start(1, 1, founded(A, B))


def test_a_sole_voter_that_is_left_leads_after_a_loss_of_power_without_the_one_that_it_sent_away(two: Group) -> None:
    two.elect(A)
    remove(two, A, B)
    leader = until_removed(two, A, B)
    assert leader.wire.removed == {B}, "it hears of it, and is gone"
    for seed in range(20):
        again = after_power_loss(two, A, Random(seed))
        assert again.driver.leads
        again.stop()


def test_also_when_the_one_that_is_removed_led(two: Group) -> None:
    two.elect(A)
    remove(two, A, A)
    two.network.deliver()
    follower = two[B]
    assert follower.disk_thread.finish()
    term, _ = follower.driver.standing
    heartbeat = Message(MessageType.HEARTBEAT, B, A, term, commit=follower.wal.last_index)
    follower.driver.on_messages(A, [heartbeat])
    assert follower.wire.removed == {A}
    for seed in range(20):
        again = after_power_loss(two, B, Random(seed))
        assert again.driver.leads
        again.stop()


def test_nobody_is_sent_away_while_there_is_no_room_to_remember_it(two: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    leader = two.elect(A)
    append = leader.wal.append

    def no_room(entries: object, hard_state: HardState | None = None) -> int:
        if not entries:
            raise LogFull("no room")
        return append(entries, hard_state)  # type: ignore[arg-type]  # as it was given

    with monkeypatch.context() as patched:
        patched.setattr(leader.wal, "append", no_room)
        remove(two, A, B)
        until_removed(two, A, B)
        leader.driver.tick()
        assert leader.wire.removed == set()
        assert set(leader.wire.members) == set()
    leader.driver.tick()
    assert leader.wire.removed == {B}


def test_of_two_voters_the_removed_one_goes_when_the_other_one_says_so(two: Group) -> None:
    """Until it knows of the removal the other one needs this one's vote."""
    leader = two.elect(A)
    remove(two, A, A)
    until_removed(two, A, A)
    two.network.cut = {B}
    two.tick(50)
    assert leader.ended == []
    assert not two[B].driver.membership.is_removed(A)
    two.network.cut = set()
    two.tick(30)
    assert two[B].driver.leads
    assert two[B].wire.removed == {A}
    leader.driver.on_removed()
    assert "permanently removed" in leader.ended[0]


def test_who_learns_from_a_sole_voter_tells_nobody_that_it_was_removed(two: Group) -> None:
    """The voter itself may not know it yet."""
    leader = two.elect(A)
    two.add(D, ()).start()
    two.ask(A, Op.MEMBER_ADD, MemberChange(ID=D, peerURLs=[url(D)], isLearner=True))
    two.tick(5)
    remove(two, A, B)
    two.tick(5)
    assert leader.wire.removed == {B}
    assert two[D].driver.membership.is_removed(B)
    assert two[D].wire.removed == set()
    two.ask(A, Op.MEMBER_PROMOTE, MemberChange(ID=D))
    two.tick(5)
    assert not two[D].driver.state()["is_learner"]
    assert two[D].wire.removed == {B}, "it votes now, and had to know for that"


CHANGE, NORMAL = EntryType.CONF_CHANGE, EntryType.NORMAL


@pytest.mark.parametrize(
    ("types", "known", "commit"),
    [
        ((), 1, 1),
        ((NORMAL, NORMAL), 1, 1),
        ((NORMAL, CHANGE), 1, 1),
        ((NORMAL, CHANGE, NORMAL, CHANGE, NORMAL), 1, 3),
        ((CHANGE, CHANGE, CHANGE), 1, 3),
        ((CHANGE, CHANGE, NORMAL), 2, 2),
        ((CHANGE, CHANGE, NORMAL), 4, 4),
    ],
)
def test_all_changes_in_the_log_but_the_last_are_committed(
    types: tuple[EntryType, ...], known: int, commit: int
) -> None:
    """A leader had applied each of them when it proposed the next one."""
    with WriteAheadLog.create(SimulatedDirectory(SimulatedDisk()), b"") as log:
        log.append([(1, 1, EntryType.FOUNDING, b"")], HardState(1, 0, 1))
        log.append([(2, 2 + place, type_, b"x") for place, type_ in enumerate(types)], HardState(2, A, 1))
        assert starting_state(log, known) == HardState(2, A, commit)
