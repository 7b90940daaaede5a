"""A member is killed again and again under load: nothing acknowledged is lost, no revision repeats or is skipped.

`KVORUM_CRASH_ROUNDS=N` sets the number of crashes, `KVORUM_CRASH_SEED=S` replays the choices of a run (the moments of
the kills are the machine's). A crash takes one of the member's processes, the root alone, or all at once; the member
must come back by itself after the first, and on its data after the others.
"""

import functools
import os
import random
import signal
from collections.abc import Callable, Iterator

import pytest

from kvorum.errors import ApiError
from kvorum.pb.rpc_pb2 import RangeRequest, WatchCreateRequest, WatchRequest
from loadtest import processes
from loadtest.launcher import Kind, Server, wait_until
from tests.calls import Api
from tests.crash.history import Event, check
from tests.crash.workload import END, MARK, PREFIX, Workload
from tests.servers import SUBJECT, start

ROUNDS = int(os.environ.get("KVORUM_CRASH_ROUNDS", "5"))
SEED = int(os.environ.get("KVORUM_CRASH_SEED", random.SystemRandom().randrange(1 << 32)))
RECOVERY_S = 30.0


@pytest.fixture
def server() -> Iterator[Server]:
    """kvorum alone. The reference, put in its place by KVORUM_SUBJECT, passed short runs; in one run of 25 rounds this
    check counted 126 problems at it, acknowledged writes that were gone among them; the cause is not known.
    """
    with start(Kind.KVORUM) as server:
        yield server


def serves(server: Server) -> bool:
    """True when a linearizable read on a new connection is answered."""
    try:
        with Api(server.address) as api:
            api(RangeRequest(key=PREFIX), timeout_s=1.0)
    except ApiError:
        return False
    return True


def kill_child(server: Server, choose: random.Random) -> str:
    victim = choose.choice(processes.children(server.pid))
    name = processes.title(victim).split()[-1]  # the last word names the role
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: not processes.alive(victim), f"{name} to die", RECOVERY_S)
    return f"killed {name}"


def kill_root(server: Server, _: random.Random) -> str:
    server.kill_root()
    server.start()
    return "killed the root"


def kill_all(server: Server, _: random.Random) -> str:
    server.kill()
    server.start()
    return "killed all"


def crash(server: Server, choose: random.Random) -> str:
    """One crash, and what it was; returns when the member serves again."""
    ways: list[Callable[[Server, random.Random], str]] = [kill_root, kill_all]
    if processes.children(server.pid):
        ways += [kill_child] * 4
    what = choose.choice(ways)(server, choose)
    wait_until(lambda: serves(server), f"service after: {what}", RECOVERY_S)
    return what


def whole_history(server: Server, last: int) -> list[Event]:
    """Every event from the first revision on, by a watcher that has seen no crash."""
    found: list[Event] = []
    create = WatchCreateRequest(key=PREFIX, range_end=END, start_revision=1)
    with Api(server.address) as api, api.watch_unread([WatchRequest(create_request=create)]) as replies:
        for reply in replies:
            assert not reply.canceled, reply
            found += [Event(event.kv.mod_revision, event.kv.key, event.kv.value) for event in reply.events]
            if found and found[-1].revision >= last:
                return found
    raise AssertionError(f"the stream ended at {found[-1:]}")


def verify(server: Server, workload: Workload) -> None:
    """All that the clients saw against the history that the member has in the end."""
    last = workload.writes[-1][0].revision
    assert last is not None
    history = whole_history(server, last)
    assert history[-1].key == MARK
    problems = check(
        history,
        [write for writes in workload.writes for write in writes],
        [read for reads in workload.reads for read in reads],
        workload.watched,
    )
    assert not problems, "\n".join([f"{len(problems)} problems", *problems[:10]])


def under_load(server: Server, workload: Workload, choose: random.Random) -> None:
    """Returns after some more acknowledged writes: the moment of the next crash."""
    target = workload.acknowledged + choose.randrange(20, 400)
    wait_until(lambda: workload.acknowledged >= target, f"{target} acknowledged writes", RECOVERY_S)


def test_crashes_lose_and_repeat_nothing(server: Server) -> None:
    print(f"KVORUM_CRASH_SEED={SEED}")
    choose = random.Random(SEED)
    workload = Workload(server.address, SEED)
    try:
        for round_number in range(ROUNDS):
            under_load(server, workload, choose)
            print(f"round {round_number}: {crash(server, choose)}; {workload.acknowledged} acknowledged")
        under_load(server, workload, choose)
    finally:
        workload.finish()
    verify(server, workload)


def replaced(server: Server, before: list[int]) -> bool:
    """True when none of the children of before is left: a member's processes live and die together."""
    return not set(before) & set(processes.children(server.pid))


def test_every_child_is_replaced_after_a_kill() -> None:
    """Each process of a member in turn, so that no role depends on the luck of the draw."""
    with start(Kind.KVORUM) as server:
        roles = len(processes.children(server.pid))
        if SUBJECT is Kind.KVORUM:
            assert roles >= 2
        workload = Workload(server.address, SEED)
        try:
            for role in range(roles):
                under_load(server, workload, random.Random(role))
                before = processes.children(server.pid)
                os.kill(before[role], signal.SIGKILL)
                wait_until(functools.partial(replaced, server, before), "a new generation", RECOVERY_S)
                wait_until(lambda: serves(server), "service again", RECOVERY_S)
        finally:
            workload.finish()
        verify(server, workload)


def test_a_stopped_child_is_noticed_and_replaced() -> None:
    with start(Kind.KVORUM) as server:
        workload = Workload(server.address, SEED, writers=1, readers=1, watchers=1)
        try:
            under_load(server, workload, random.Random(SEED))
            children = processes.children(server.pid)
            if children:  # the reference, in kvorum's place, has none
                victim = random.Random(SEED).choice(children)
                os.kill(victim, signal.SIGSTOP)
                wait_until(lambda: not processes.alive(victim), "the stopped process to be ended", RECOVERY_S)
                wait_until(lambda: serves(server), "service again", RECOVERY_S)
            under_load(server, workload, random.Random(SEED))
        finally:
            workload.finish()
        verify(server, workload)


def test_a_graceful_restart_is_as_clean(server: Server) -> None:
    choose = random.Random(SEED)
    workload = Workload(server.address, SEED)
    try:
        for _ in range(2):
            under_load(server, workload, choose)
            server.restart()
    finally:
        workload.finish()
    verify(server, workload)


def test_what_is_on_disk_survives_a_crash_without_load(server: Server) -> None:
    workload = Workload(server.address, SEED)
    under_load(server, workload, random.Random(SEED))
    workload.finish()
    server.kill()
    server.start()
    verify(server, workload)
