"""etcdctl, every subcommand that means something on one member: kvorum's answers are the reference's.

Each scenario is a list of command lines run in order at both servers, which see nothing else, so that even revisions
agree. A lease's id is the server's choice: `LEASE` in a line stands for the id that the scenario's grant has given.
"""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from kvorum.pb.rpc_pb2 import LeaseTimeToLiveRequest, PutResponse, RangeRequest, RangeResponse
from loadtest.launcher import Server, reference_tool, wait_until
from tests.calls import Api
from tests.clients.etcdctl import Running, comparable, run
from tests.servers import start_kvorum, start_reference


class Two(NamedTuple):
    """The two servers side by side."""

    kvorum: Server
    reference: Server


def now(server: Server) -> int:
    """The current revision."""
    with Api(server.address) as api:
        return int(api(RangeRequest(key=b"any")).header.revision)


@pytest.fixture(scope="module")
def pairs() -> Iterator[list[tuple[ExitStack, Two]]]:
    """The pair in use, if any, and what ends it."""
    pairs: list[tuple[ExitStack, Two]] = []
    yield pairs
    for stack, _ in pairs:
        stack.close()


@pytest.fixture
def two(pairs: list[tuple[ExitStack, Two]]) -> Two:
    """Both servers at the same revision: new ones when a failed test has left them apart."""
    if pairs and now(pairs[0][1].kvorum) != now(pairs[0][1].reference):
        pairs.pop()[0].close()
    if not pairs:
        with ExitStack() as stack:
            made = Two(stack.enter_context(start_kvorum()), stack.enter_context(start_reference()))
            pairs.append((stack.pop_all(), made))
    return pairs[0][1]


SCENARIOS: dict[str, list[str | tuple[str, str]]] = {
    "put": [
        "put a 1",
        "put a 2 --prev-kv",
        "put a 3 --prev-kv -w json",
        "put -w fields a 4",
        ("put from-stdin", "the value"),
        "put a",
        "put",
        "put a --ignore-value",
        "put a --ignore-lease 5",
        "put absent --ignore-value",
        "put a x --lease=4d2",
        "put -- -dash -v",
        "get a -w json",
    ],
    "get": [
        *(f"put get/{name} {value}" for name, value in zip("caebd", "35142", strict=True)),
        "put get/c 9",
        "get get/a",
        "get get/nothing",
        "get get/a --print-value-only",
        "get get/a --hex",
        "get get/a -w json",
        "get get/a -w fields",
        "get get/ --prefix",
        "get get/ --prefix --keys-only",
        "get get/ --prefix --count-only -w fields",
        "get get/ --prefix --limit 2",
        "get get/ --prefix --limit 2 -w json",
        "get get/b get/d",
        "get get/d --from-key --limit 2",
        "get get/ --prefix --order=DESCEND",
        "get get/ --prefix --sort-by=VALUE --order=ASCEND",
        "get get/ --prefix --sort-by=MODIFY --order=DESCEND --limit=3",
        "get get/ --prefix --sort-by=CREATE",
        "get get/ --prefix --sort-by=VERSION --order=DESCEND --limit=1",
        "get get/a --consistency=s",
        "get get/c --rev=2",
        "get get/c --rev=99999999",
        "get",
        "get ''",
    ],
    "del": [
        *(f"put del/{name} {name}" for name in "abcdef"),
        "del del/a",
        "del del/a",
        "del del/b --prev-kv",
        "del del/c del/e",
        "del del/ --prefix --prev-kv -w json",
        "del del/zzz --from-key -w fields",
        "get del/ --prefix --count-only -w fields",
    ],
    "txn": [
        "put txn/a 1",
        ("txn", 'value("txn/a") = "1"\n\nput txn/b "yes"\nget txn/a\n\nput txn/b "no"\n\n'),
        ("txn", 'mod("txn/none") > "0"\n\nput txn/b "yes"\n\nget txn/b\ndel txn/a --prev-kv\n\n'),
        ("txn -w json", 'create("txn/b") > "0"\nversion("txn/b") = "1"\n\nget txn/ --prefix\n\n\n'),
        ("txn", 'lease("txn/b") = "0"\n\nput txn/c "1"\n\n\n'),
        ("txn", '\n\nput txn/c "1"\nput txn/c "2"\n\n\n'),
        ("txn --interactive", 'value("txn/b") = "yes"\n\nget txn/b\n\nget txn/c\n\n'),
        "get txn/ --prefix",
    ],
    "lease": [
        "lease grant 600",
        "lease timetolive LEASE",
        "put lease/a 1 --lease=LEASE",
        "put lease/b 1 --lease=LEASE",
        "lease timetolive LEASE --keys",
        "lease keep-alive --once LEASE",
        "lease keep-alive --once 4d2",
        "lease list",
        "get lease/ --prefix --keys-only",
        "lease revoke LEASE",
        "lease revoke LEASE",
        "lease timetolive LEASE",
        "get lease/ --prefix --keys-only",
        "lease list",
        "lease grant 99999999999",
    ],
    "compaction": [
        "put compaction/a 1",
        "put compaction/a 2",
        "compaction 3",
        "compaction 3",
        "compaction 4 --physical",
        "compaction 9999999",
        "get compaction/a --rev=3",
        "watch compaction/a --rev=2",
    ],
    "maintenance": [
        "put maintenance/a 1",
        "compaction NOW --physical",  # drops the rows that have a lease's id, which is each server's own
        "put maintenance/a 2",
        "defrag",
        "endpoint health",
        "endpoint health -w json",
        "endpoint health -w table",
        "endpoint hashkv",
        "endpoint hashkv -w json",
        "endpoint hashkv -w table",
        "endpoint hashkv --rev 99999999",
        "member list",
        "member list -w json",
        "member list -w table",
        "member list -w fields",
        "member remove 1",
        "member promote 1",
        "alarm list",
        "alarm disarm",
        "move-leader 1",
        "version",
    ],
}


def words(line: str, server: Server, lease: str) -> list[str]:
    """The arguments, with LEASE and NOW (the current revision) filled in."""
    if "NOW" in line:
        line = line.replace("NOW", str(now(server)))
    return shlex.split(line.replace("LEASE", lease))


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_is_answered_alike(two: Two, name: str) -> None:
    leases = ["", ""]
    for step in SCENARIOS[name]:
        line, stdin = step if isinstance(step, tuple) else (step, "")
        said = [
            run(server, *words(line, server, lease), stdin=stdin) for server, lease in zip(two, leases, strict=True)
        ]
        if line.startswith("lease grant"):
            leases = [found[1] if (found := re.search(r"lease ([0-9a-f]+) ", one.out)) else "" for one in said]
        ours, theirs = (
            (one.status, comparable(one.out, server).replace("#s", "#"), comparable(one.error, server))
            for one, server in zip(said, two, strict=True)
        )
        assert ours == theirs, line


def test_endpoint_status_in_every_form(two: Two) -> None:
    for server in two:
        (status,) = json.loads(run(server, "endpoint", "status", "-w", "json").out)
        assert status["Endpoint"] == server.address
        assert status["Status"]["leader"] == status["Status"]["header"]["member_id"]
        for form in ("simple", "table", "fields"):
            said = run(server, "endpoint", "status", "-w", form)
            assert (said.status, said.error) == (0, "")
            assert f"{status['Status']['leader']:x}" in said.out or str(status["Status"]["leader"]) in said.out
        assert run(server, "endpoint", "status", "--cluster").status == 0


WATCHES = {
    "key": "watch w/a --rev={revision}",
    "prefix": "watch w/ --prefix --rev={revision}",
    "prev-kv": "watch w/ --prefix --prev-kv --rev={revision}",
    "range": "watch w/a w/c --rev={revision}",
    "json": "watch w/ --prefix --prev-kv -w json --rev={revision}",
    "fields": "watch w/ --prefix -w fields --rev={revision}",
    "command": "watch w/ --prefix --rev={revision} -- sh -c 'echo $ETCD_WATCH_KEY $ETCD_WATCH_VALUE'",
    "progress": "watch w/ --prefix --progress-notify --rev={revision}",
}
WRITES = ["put w/a 1", "put w/b 2", "put w/c 3", "put w/a 4", "del w/b", "del w/ --prefix", "put w/a end"]
END = re.compile("end|ZW5k")  # as text, and as JSON has it


def events(name: str, out: str) -> list[object]:
    """What was said of the events, without the headers: how many events share one is a matter of pace."""
    lines = out.splitlines()
    if name == "command":  # it runs after all events of a reply were printed, so the order of lines is pace as well
        return [*sorted(lines)]
    if name == "json":
        return [event for line in lines for event in json.loads(line)["Events"]]
    header = ('"ClusterID"', '"MemberID"', '"Revision"', '"RaftTerm"')
    return [line for line in lines if line and not line.startswith(header)]


@pytest.mark.parametrize("name", [*WATCHES, "interactive"])
def test_watch(two: Two, name: str) -> None:
    heard = []
    for server in two:
        run(server, "del", "w/", "--prefix")  # else the first event's previous value might be taken for the end
        line = WATCHES.get(name, "watch -i").format(revision=now(server) + 1)
        with Running(server, *shlex.split(line)) as watching:
            if name == "interactive":
                watching.write(f"watch w/ --prefix --rev={now(server) + 1}\n")
            for write in WRITES:
                assert run(server, *shlex.split(write)).status == 0
            ends = 2 if name == "command" else 1  # the event, and what the command says of it
            wait_until(lambda watching=watching, ends=ends: len(END.findall(watching.out)) >= ends, "the last event")  # type: ignore[misc]
        heard.append(events(name, watching.out))
    assert heard[0] == heard[1]
    assert len(heard[0]) >= 7


def test_lease_keep_alive_until_interrupted(two: Two) -> None:
    for server in two:
        lease = run(server, "lease", "grant", "60").out.split()[1]
        with Running(server, "lease", "keep-alive", lease) as renewing:
            assert renewing.wait_lines(1) == f"lease {lease} keepalived with TTL(60)\n"
            renewing.interrupt()
        assert run(server, "lease", "revoke", lease).status == 0


def test_lock_is_held_while_its_command_runs_and_by_one_at_a_time(two: Two) -> None:
    for server in two:
        said = run(server, "lock", "mutex", "--", "sh", "-c", "echo $ETCD_LOCK_KEY")
        assert (said.status, said.out.startswith("mutex/")) == (0, True)
        with Running(server, "lock", "mutex") as holder:
            held = holder.wait_lines(1).strip()
            with Running(server, "lock", "mutex") as waiter:
                with Api(server.address) as api:
                    queue = RangeRequest(key=b"mutex/", range_end=b"mutex0", count_only=True)
                    wait_until(lambda api=api, queue=queue: api(queue).count == 2, "the second to queue")  # type: ignore[misc]
                assert waiter.out == ""
                holder.interrupt()
                assert waiter.wait_lines(1).strip() not in ("", held)
                waiter.interrupt()


def test_elect_and_listen(two: Two) -> None:
    for server in two:
        with Running(server, "elect", "boss", "first") as leader:
            key, value = leader.wait_lines(2).splitlines()
            assert (key.startswith("boss/"), value) == (True, "first")
            with Running(server, "elect", "-l", "boss") as listener:
                assert listener.wait_lines(2).splitlines()[:2] == [key, "first"]
                with Running(server, "elect", "boss", "second") as next_leader:
                    leader.interrupt()
                    assert next_leader.wait_lines(2).splitlines()[1] == "second"
                    assert listener.wait_lines(4).splitlines()[3] == "second"


def test_make_mirror_copies_what_is_there_and_what_comes(two: Two) -> None:
    for server in two:
        run(server, "put", "source/a", "1")
        with (
            Running(server, "make-mirror", "--prefix", "source/", "--dest-prefix", "copy/", server.address),
            Api(server.address) as api,
        ):

            def copied(api: Api = api) -> dict[bytes, bytes]:
                found = api(RangeRequest(key=b"copy/", range_end=b"copy0")).kvs
                return {kv.key: kv.value for kv in found}

            wait_until(lambda copied=copied: copied() == {b"copy/a": b"1"}, "the first copy")  # type: ignore[misc]
            run(server, "put", "source/b", "2")
            run(server, "del", "source/a")
            wait_until(lambda copied=copied: copied() == {b"copy/b": b"2"}, "the changes")  # type: ignore[misc]


def test_snapshot_save_and_what_etcdutl_reads_in_it(two: Two, tmp_path: Path) -> None:
    for side, server in enumerate(two):
        keys = 30
        for number in range(keys):
            run(server, "put", f"snapshot/{number}", "x" * 1000)
        file = tmp_path / f"{side}.db"
        assert run(server, "snapshot", "save", str(file)).status == 0
        status = json.loads(
            subprocess.run(
                [reference_tool("etcdutl"), "snapshot", "status", file, "-w", "json"], capture_output=True, check=True
            ).stdout
        )
        assert status["revision"] == now(server)
        assert status["totalKey"] >= keys
        restored = tmp_path / f"{side}.restored"
        restore = [str(reference_tool("etcdutl")), "snapshot", "restore", str(file), "--data-dir", str(restored)]
        assert subprocess.run(restore, capture_output=True, check=False).returncode == 0
        assert (restored / "member" / "snap" / "db").stat().st_size > 0


def test_protobuf_output_is_the_reply(two: Two) -> None:
    for server in two:
        put = run(server, "put", "protobuf", "1", "-w", "protobuf").out.encode(errors="surrogateescape")
        got = run(server, "get", "protobuf", "-w", "protobuf").out.encode(errors="surrogateescape")
        (kv,) = RangeResponse.FromString(got).kvs
        assert (kv.value, kv.mod_revision) == (b"1", PutResponse.FromString(put).header.revision)


def test_get_of_many_keys_and_of_a_large_value(two: Two) -> None:
    for server in two:
        large = "x" * 100_000
        assert run(server, "put", "large", stdin=large).status == 0
        assert run(server, "get", "large", "--print-value-only").out == large + "\n"


def test_a_lease_made_by_etcdctl_is_the_api_s(two: Two) -> None:
    for server in two:
        lease = run(server, "lease", "grant", "600").out.split()[1]
        with Api(server.address) as api:
            assert api(LeaseTimeToLiveRequest(ID=int(lease, 16))).grantedTTL == 600
        run(server, "lease", "revoke", lease)
