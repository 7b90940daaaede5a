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
from kvorum.pb.rpc_pb2 import RangeRequest
from loadtest import processes
from loadtest.launcher import Kind, Server, wait_until
from tests.calls import Api
from tests.crash.clients import PREFIX, Clients, Lives
from tests.crash.verify import verify
from tests.servers import SUBJECT, start

ROUNDS = int(os.environ.get("KVORUM_CRASH_ROUNDS", "5"))
SEED = int(os.environ.get("KVORUM_CRASH_SEED", random.SystemRandom().randrange(1 << 32)))
RECOVERY_S = 30.0


@pytest.fixture
def server() -> Iterator[Server]:
    """kvorum alone. The reference, put in its place by KVORUM_SUBJECT, passed 18 of 19 runs of 25 to 30 rounds.

    In the other one the check is right and 3.5.1 has lost a write: one acknowledged transaction was gone after a kill,
    and the 130 answers after it, up to the kill, name a revision one above what the store has now. So the log was
    whole, and one entry in its middle was not repeated at the start. Versions 3.5.0 to 3.5.2 do that (etcd issue 13766,
    mended in 3.5.3): the index of an entry that is being executed can reach the disk in a commit without its data.
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


def clients_of(server: Server, workers: int = 5, watchers: int = 3) -> Clients:
    """At full speed. A sole voter never goes back, not even over a crash."""
    return Clients([server.address], SEED, Lives(1, lasting=True), workers=workers, watchers=watchers)


def under_load(clients: Clients, choose: random.Random) -> None:
    """Returns after some more acknowledged writes: the moment of the next crash."""
    target = clients.acknowledged + choose.randrange(20, 400)
    wait_until(lambda: clients.acknowledged >= target, f"{target} acknowledged writes", RECOVERY_S)


def test_crashes_lose_and_repeat_nothing(server: Server) -> None:
    print(f"KVORUM_CRASH_SEED={SEED}")
    choose = random.Random(SEED)
    clients = clients_of(server)
    try:
        for round_number in range(ROUNDS):
            under_load(clients, choose)
            print(f"round {round_number}: {crash(server, choose)}; {clients.acknowledged} acknowledged")
        under_load(clients, choose)
    finally:
        last = clients.finish()
    verify(clients, [server], last)


def replaced(server: Server, before: list[int]) -> bool:
    """True when none of the children of before is left: a member's processes live and die together."""
    return not set(before) & set(processes.children(server.pid))


def test_every_child_is_replaced_after_a_kill() -> None:
    """Each process of a member in turn, so that no role depends on the luck of the draw."""
    with start(Kind.KVORUM) as server:
        roles = len(processes.children(server.pid))
        if SUBJECT is Kind.KVORUM:
            assert roles >= 2
        clients = clients_of(server)
        try:
            for role in range(roles):
                under_load(clients, random.Random(role))
                before = processes.children(server.pid)
                os.kill(before[role], signal.SIGKILL)
                wait_until(functools.partial(replaced, server, before), "a new generation", RECOVERY_S)
                wait_until(lambda: serves(server), "service again", RECOVERY_S)
        finally:
            last = clients.finish()
        verify(clients, [server], last)


def test_a_stopped_child_is_noticed_and_replaced() -> None:
    with start(Kind.KVORUM) as server:
        clients = clients_of(server, workers=1, watchers=1)
        try:
            under_load(clients, random.Random(SEED))
            children = processes.children(server.pid)
            if children:  # the reference, in kvorum's place, has none
                victim = random.Random(SEED).choice(children)
                os.kill(victim, signal.SIGSTOP)
                wait_until(lambda: not processes.alive(victim), "the stopped process to be ended", RECOVERY_S)
                wait_until(lambda: serves(server), "service again", RECOVERY_S)
            under_load(clients, random.Random(SEED))
        finally:
            last = clients.finish()
        verify(clients, [server], last)


def test_a_graceful_restart_is_as_clean(server: Server) -> None:
    choose = random.Random(SEED)
    clients = clients_of(server)
    try:
        for _ in range(2):
            under_load(clients, choose)
            server.restart()
    finally:
        last = clients.finish()
    verify(clients, [server], last)


def test_what_is_on_disk_survives_a_crash_without_load(server: Server) -> None:
    clients = clients_of(server)
    under_load(clients, random.Random(SEED))
    last = clients.finish()
    server.kill()
    server.start()
    verify(clients, [server], last)
