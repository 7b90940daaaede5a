"""Three members under load and faults: nothing acknowledged is lost, the history is linearizable, the stores are equal.

`KVORUM_CLUSTER_SECONDS=N` sets how long faults go on, `KVORUM_CRASH_SEED=S` replays their choice (the moments are the
machine's). After each fault it prints how long after its beginning and after its end writes were answered again: they
should be within about two election timeouts, which are 2 s here.

The reference, put in kvorum's place by KVORUM_SUBJECT, can fail: see `test_crash.py`.
"""

import os
import random
import time
from pathlib import Path

from loadtest import processes
from loadtest.launcher import Kind, wait_until
from tests.crash.clients import Clients, Lives
from tests.crash.faults import Scene, drawn, lasting
from tests.crash.verify import verify
from tests.servers import SUBJECT, start_kvorum_cluster

SECONDS = float(os.environ.get("KVORUM_CLUSTER_SECONDS", "15"))
SEED = int(os.environ.get("KVORUM_CRASH_SEED", random.SystemRandom().randrange(1 << 32)))
RECOVERY_S = 30.0
PACE_S = 0.02
FLAGS = {
    "snapshot-count": "100",
    "snapshot-catchup-entries": "50",
    "watch-progress-notify-interval": "500ms",
}


def served_again(clients: Clients, moment_s: float) -> float:
    """Seconds from that moment until a write that began later was acknowledged; waits for it."""
    wait_until(
        lambda: clients.failed.is_set() or clients.served_after(moment_s) is not None,
        "a write to be answered",
        RECOVERY_S,
    )
    return (clients.served_after(moment_s) or float("nan")) - moment_s


def test_faults_lose_and_repeat_nothing(tmp_path: Path) -> None:
    print(f"KVORUM_CRASH_SEED={SEED}")
    choose = random.Random(SEED)
    lives = Lives(3, lasting=SUBJECT is Kind.KVORUM)
    with start_kvorum_cluster(3, FLAGS, relayed=True, directory=tmp_path) as cluster:
        clients = Clients(cluster.addresses, SEED, lives, pace_s=PACE_S, probes=True)
        scene = Scene(cluster, lives, choose)
        faults = drawn(choose, bool(processes.children(cluster.members[0].pid)))
        until = time.monotonic() + SECONDS
        try:
            served_again(clients, time.monotonic())
            while time.monotonic() < until and not clients.failed.is_set():
                clients.failed.wait(choose.uniform(0.1, 1.0))
                with lasting(next(faults), scene) as what:
                    began_s = time.monotonic()
                    clients.failed.wait(choose.choice((0.2, 1.0, 2.5)))
                    ended_s = time.monotonic()
                over_s = time.monotonic()
                after_begin, after_end = served_again(clients, began_s), served_again(clients, ended_s)
                print(
                    f"{what} for {ended_s - began_s:.1f} s: writes answered {after_begin:.2f} s after its beginning, "
                    f"{after_end:.2f} s after its end (over after {over_s - ended_s:.2f} s)"
                )
        finally:
            last = clients.finish()
        print(f"{len(clients.operations)} calls recorded, {last} revisions")
        verify(clients, cluster.members, last, tmp_path)
