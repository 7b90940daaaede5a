"""What can happen to a cluster: each kind begins, lasts while clients go on, and is over."""

import contextlib
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Final

from loadtest import processes
from loadtest.cluster import Cluster, RefusedError
from loadtest.launcher import Server, wait_until
from loadtest.peer_links import PeerLinks
from tests.crash.clients import Lives

RECOVERY_S = 30.0


class Scene:
    """The cluster, and by what its faults are drawn."""

    def __init__(self, cluster: Cluster, lives: Lives, choose: random.Random) -> None:
        assert cluster.links is not None
        self.cluster = cluster
        self.links: PeerLinks = cluster.links
        self.choose = choose
        self._lives = lives

    def victim(self) -> tuple[Server, str]:
        """A member, as often the leader as a follower, and how to call it."""
        leader = self.cluster.leader(timeout_s=0.5)
        followers = [member for member in self.cluster.members if member is not leader]
        if leader is not None and self.choose.random() < 0.5:
            return leader, f"the leader {leader.name}"
        follower = self.choose.choice(followers)
        return follower, f"the follower {follower.name}"

    def life_ends(self, member: Server) -> AbstractContextManager[None]:
        return self._lives.change(self.cluster.members.index(member))


Fault = Callable[[Scene], Iterator[str]]
"""A generator: it begins, yields what it is, goes on when it shall end, and returns when it is over."""


def kill(scene: Scene) -> Iterator[str]:
    victim, name = scene.victim()
    with scene.life_ends(victim):
        victim.kill()
        yield f"killed {name}"
        victim.start()


def kill_root(scene: Scene) -> Iterator[str]:
    victim, name = scene.victim()
    with scene.life_ends(victim):
        victim.kill_root()
        yield f"killed the root of {name}"
        victim.start()


def kill_majority(scene: Scene) -> Iterator[str]:
    first, name = scene.victim()
    second = scene.choose.choice([member for member in scene.cluster.members if member is not first])
    with scene.life_ends(first), scene.life_ends(second):
        first.kill()
        second.kill()
        yield f"killed {name} and {second.name}"
        scene.cluster.start()


def kill_all(scene: Scene) -> Iterator[str]:
    with contextlib.ExitStack() as stack:
        for member in scene.cluster.members:
            stack.enter_context(scene.life_ends(member))
        for member in scene.cluster.members:
            member.kill()
        yield "killed all members"
        scene.cluster.start()


def kill_child(scene: Scene) -> Iterator[str]:
    victim, name = scene.victim()
    with scene.life_ends(victim):
        child = scene.choose.choice(processes.children(victim.pid))
        role = processes.title(child).split()[-1]
        generations = victim.ready_count()
        os.kill(child, signal.SIGKILL)
        yield f"killed the process {role} of {name}"
        wait_until(lambda: victim.ready_count() > generations, f"the next generation of {name}", RECOVERY_S)


def suspend(scene: Scene) -> Iterator[str]:
    victim, name = scene.victim()
    victim.suspend()
    yield f"suspended {name}"
    victim.resume()


def suspend_child(scene: Scene) -> Iterator[str]:
    """For less than the time after which a silent process is ended."""
    victim, name = scene.victim()
    child = scene.choose.choice(processes.children(victim.pid))
    role = processes.title(child).split()[-1]
    os.kill(child, signal.SIGSTOP)
    yield f"suspended the process {role} of {name}"
    os.kill(child, signal.SIGCONT)


def isolate(scene: Scene) -> Iterator[str]:
    victim, name = scene.victim()
    scene.links.isolate(victim.name)
    yield f"isolated {name}"
    scene.links.heal()


def mute(scene: Scene) -> Iterator[str]:
    victim, name = scene.victim()
    scene.links.block(*((victim.name, other.name) for other in scene.cluster.members if other is not victim))
    yield f"nobody hears {name}"
    scene.links.heal()


def deafen(scene: Scene) -> Iterator[str]:
    victim, name = scene.victim()
    scene.links.block(*((other.name, victim.name) for other in scene.cluster.members if other is not victim))
    yield f"{name} hears nobody"
    scene.links.heal()


def cut_one_link(scene: Scene) -> Iterator[str]:
    """Everybody reaches a majority, but not everybody everybody."""
    one, other = scene.choose.sample([member.name for member in scene.cluster.members], 2)
    scene.links.block((one, other), (other, one))
    yield f"cut the link of {one} and {other}"
    scene.links.heal()


def cut_all_links(scene: Scene) -> Iterator[str]:
    for member in scene.cluster.members:
        scene.links.isolate(member.name)
    yield "cut all links"
    scene.links.heal()


def drop_connections(scene: Scene) -> Iterator[str]:
    scene.links.drop_connections()
    yield "dropped all connections of peers"


def restart_one_by_one(scene: Scene) -> Iterator[str]:
    for member in scene.cluster.members:
        with scene.life_ends(member):
            member.restart()
    yield "restarted one by one"


def move_leader(scene: Scene) -> Iterator[str]:
    leader = scene.cluster.wait_for_leader()
    target = scene.choose.choice([member for member in scene.cluster.members if member is not leader])
    try:
        scene.cluster.move_leader(target, timeout_s=10.0)
    except (RefusedError, OSError) as error:  # leadership has moved by itself meanwhile
        yield f"did not move leadership to {target.name}: {error}"
        return
    yield f"moved leadership from {leader.name} to {target.name}"


def replace(scene: Scene) -> Iterator[str]:
    victim, name = scene.victim()
    with scene.life_ends(victim):
        scene.cluster.replace(victim)
        yield f"replaced {name} by a new member"


def kill_beside_isolated(scene: Scene) -> Iterator[str]:
    """The third member waits alone; the killed one comes back, and finds a majority, before the isolated one does."""
    isolated, name = scene.victim()
    killed, third = scene.choose.sample([member for member in scene.cluster.members if member is not isolated], 2)
    scene.links.isolate(isolated.name)
    with scene.life_ends(killed):
        killed.kill()
        yield f"isolated {name} and killed {killed.name}, {third.name} is left"
        killed.start()
    scene.links.heal()


def kill_leader_as_a_follower_returns(scene: Scene) -> Iterator[str]:
    """The follower has fallen behind, perhaps beyond the log, and must follow a new leader at once, or be it."""
    leader = scene.cluster.wait_for_leader()
    follower = scene.choose.choice([member for member in scene.cluster.members if member is not leader])
    follower.suspend()
    yield f"suspended the follower {follower.name}, then killed the leader {leader.name} when it came back"
    with scene.life_ends(leader):
        leader.kill()
        follower.resume()
        scene.cluster.wait_for_leader(lambda member: member is not leader)
        leader.start()


def kill_leader_as_a_member_joins(scene: Scene) -> Iterator[str]:
    """What the new member was sent may have been half of a snapshot: another leader begins anew."""
    leader = scene.cluster.wait_for_leader()
    replaced = scene.choose.choice([member for member in scene.cluster.members if member is not leader])
    with scene.life_ends(replaced), scene.life_ends(leader):
        scene.cluster.replace(replaced, wait=False)
        threading.Event().wait(scene.choose.uniform(0.2, 1.5))  # how far the join has come is the point
        leader.kill()
        yield f"replaced the follower {replaced.name} and killed the leader {leader.name} as the new one joined"
        leader.launch()
        for member in (replaced, leader):
            wait_until(member.is_ready, f"{member.name} to be ready", RECOVERY_S)


FAULTS: Final[tuple[Fault, ...]] = (
    kill,
    isolate,
    suspend,
    kill_root,
    mute,
    deafen,
    move_leader,
    replace,
    kill_majority,
    cut_one_link,
    restart_one_by_one,
    drop_connections,
    cut_all_links,
    kill_all,
    kill_beside_isolated,
    kill_leader_as_a_follower_returns,
    kill_leader_as_a_member_joins,
)
OF_CHILDREN: Final[tuple[Fault, ...]] = (kill_child, suspend_child)
"""Where a member has several processes."""


def drawn(choose: random.Random, has_children: bool) -> Iterator[Fault]:
    """Without end, each kind once before any comes again."""
    kinds = [*FAULTS, *(OF_CHILDREN * 2 if has_children else ())]
    while True:
        choose.shuffle(kinds)
        yield from kinds


@contextlib.contextmanager
def lasting(fault: Fault, scene: Scene) -> Iterator[str]:
    """The fault as a context; it is over on exit, whatever happens inside."""
    course = fault(scene)
    what = next(course)
    try:
        yield what
    finally:
        for _ in course:
            raise AssertionError(f"{what}: went on for a second time")
