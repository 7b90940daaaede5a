"""A member lives and dies as a whole (DESIGN section 2, behaviour S49-S54): real processes, with children that only
play their part.
"""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvorum.log import Level, LogFormat, Logger
from loadtest.launcher import wait_until
from loadtest.processes import alive
from node import datadir, generation
from node.child import Role
from node.first_start import founder
from node.flags import Start, parse
from node.flags.checks import read_initial_cluster
from node.identity import Identity, founding_bytes
from node.supervisor import Ending, Supervisor
from tests.node.members import READY, ROLES, TIMEOUT_S, Member

MakeMember = Callable[..., Member]

# What costs memory and time to import and has no business in the supervisor's part of a process.
HEAVY = {
    "google.protobuf",
    "zmq",
    "rocksdict",
    "uvloop",
    "cryptography",
    "dill",
    "yaml",
    "asyncio",
    "node.flags.table",
    "node.supervisor",
}


@pytest.fixture
def make_member(tmp_path: Path) -> Iterator[MakeMember]:
    members: list[Member] = []

    def make(silence_s: float = 10.0, stop_s: float = 10.0) -> Member:
        members.append(Member(tmp_path, silence_s, stop_s))
        return members[-1]

    yield make
    for member in members:
        member.close()


@pytest.fixture
def member(make_member: MakeMember) -> Member:
    return make_member()


class TestStart:
    def test_every_child_gets_what_it_needs(self, member: Member) -> None:
        member.start("--front-workers=2")
        reports = {name: member.report(name) for name in ("apply0", "raft0", "watch0", "front0", "front1")}
        assert len(member.children()) == 5
        assert {report["pid"] for report in reports.values()} == set(member.children())
        assert len({report["run_dir"] for report in reports.values()}) == 1
        assert len({report["incarnation"] for report in reports.values()}) == 1
        assert 0 <= reports["raft0"]["incarnation"] < 2**48
        assert reports["apply0"]["member_id"] == 0x8E9E05C52164694D
        assert reports["apply0"]["cluster_id"] == 0xCDF818194E3A8C32
        for name, report in reports.items():
            served = {"front": [["unix://k.sock", "grpc+http"]], "raft0": [["unix://p.sock", "peers"]]}
            assert report["listeners"] == served.get(name.rstrip("01") if "front" in name else name, [])
            assert report["title"] == f"kvorum-{name if name.startswith('front') else name[:-1]}"

    def test_children_import_little(self, member: Member) -> None:
        member.start()
        heavy = HEAVY & set(member.report("raft0")["modules"])
        assert heavy == set()

    def test_the_log_says_that_clients_are_served(self, member: Member) -> None:
        """SL6, SL8, SL9."""
        member.start("--listen-metrics-urls=unix://metrics.sock")
        for message in ("serving client traffic insecurely; this is strongly discouraged!", "serving metrics"):
            member.wait_for(message)
        lines = member.lines()
        messages = [line["msg"] for line in lines]
        assert messages.count("ready to serve client requests") == 1
        assert messages.index("starting an etcd server") < messages.index("ready to serve client requests")
        insecure = lines[messages.index("serving client traffic insecurely; this is strongly discouraged!")]
        assert (insecure["traffic"], insecure["address"]) == ("grpc+http", "k.sock")
        assert lines[messages.index("serving metrics")]["address"] == "unix://metrics.sock"
        assert {line["level"] for line in lines} <= {"info", "warn"}

    def test_systemd_is_told_once(self, member: Member, tmp_path: Path) -> None:
        """S54."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
            name = f"\0kvorum-test-{os.getpid()}"
            daemon.bind(name)
            daemon.settimeout(TIMEOUT_S)
            member.start(environ={"NOTIFY_SOCKET": "@" + name[1:]})
            assert daemon.recv(100) == b"READY=1"
            member.wait_for("successfully notified init daemon")
            os.kill(member.report("raft0")["pid"], signal.SIGKILL)
            member.wait_for(READY, 2)
            assert member.count("notifying init daemon") == 1

    def test_founders_of_a_cluster_begin_with_the_same_entry(self, member: Member, make_member: MakeMember) -> None:
        """CL-3."""
        cluster = "--initial-cluster=b=http://127.0.0.1:2,m=http://127.0.0.1:1"
        member.start(cluster, "--initial-advertise-peer-urls=http://127.0.0.1:1")
        identity = founder("m", read_initial_cluster(cluster.partition("=")[2]), "etcd-cluster")
        report = member.report("raft0")
        assert bytes.fromhex(report["founding"]) == founding_bytes(identity)
        assert report["member_id"] == identity.member_id
        assert report["remotes"] == [
            [first.id, list(first.peer_urls)] for first in identity.members if first.name == "b"
        ]

    def test_ids_stay_what_they_were_at_the_first_start(self, member: Member) -> None:
        """S40."""
        member.start("--initial-cluster-token=t")
        first = member.report("raft0")
        member.signal(signal.SIGTERM)
        member.status()
        member.start("--initial-cluster-token=u", "--initial-cluster=x=http://x:1", "--initial-cluster-state=existing")
        second = member.report("raft0")
        assert second["incarnation"] != first["incarnation"]
        for key in ("member_id", "cluster_id", "founding", "remotes"):
            assert second[key] == first[key]


class TestOneFaultDomain:
    @pytest.mark.parametrize("role", ROLES)
    def test_a_killed_child_begins_a_new_generation(self, member: Member, role: str) -> None:
        member.start()
        before = member.report("front0")
        pids = member.children()
        os.kill(member.report(f"{role}0")["pid"], signal.SIGKILL)
        member.wait_for(READY, 2)
        after = member.report("front0")
        assert after["incarnation"] != before["incarnation"]
        assert after["run_dir"] != before["run_dir"]
        assert not Path(before["run_dir"]).exists()
        assert not any(alive(pid) for pid in pids)
        assert len(member.children()) == len(ROLES)
        assert member.incarnation_served() == after["incarnation"]
        failure = next(line for line in member.lines() if line["level"] == "error")
        assert failure["reason"] == "killed by signal 9"
        assert failure["process"] == ("front0" if role == "front" else role)

    def test_clients_queue_while_no_front_runs(self, member: Member) -> None:
        member.start()
        os.kill(member.report("front0")["pid"], signal.SIGSTOP)
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(TIMEOUT_S)
            client.connect(f"/proc/{member.pid}/cwd/k.sock")
            before = member.report("front0")
            os.kill(member.report("apply0")["pid"], signal.SIGKILL)
            member.wait_for(READY, 2)
            served = int(client.recv(100))
        assert served == member.report("front0")["incarnation"] != before["incarnation"]

    @pytest.mark.parametrize("role", ROLES)
    def test_a_silent_child_begins_a_new_generation(self, make_member: MakeMember, role: str) -> None:
        member = make_member(silence_s=2.0)
        member.start()
        pid = member.report(f"{role}0")["pid"]
        os.kill(pid, signal.SIGSTOP)
        member.wait_for(READY, 2)
        assert not alive(pid)
        failure = next(line for line in member.lines() if line["level"] == "error")
        assert failure["reason"] == "silent for 2 s"

    def test_children_outlive_a_supervisor_that_was_stopped_for_long(self, make_member: MakeMember) -> None:
        """What the children said meanwhile is read before their silence is judged."""
        member = make_member(silence_s=1.0)
        member.start()
        member.signal(signal.SIGSTOP)
        until_s = time.monotonic() + 1.5
        wait_until(lambda: time.monotonic() > until_s, "more than the limit to pass")
        member.signal(signal.SIGCONT)
        member.tell("finish-once-raft")
        assert member.status() == 0
        assert member.count(READY) == 1

    def test_a_generation_that_is_asked_for_is_no_failure(self, member: Member) -> None:
        member.start()
        first = member.report("raft0")
        member.tell("restart-once-raft")
        member.wait_for(READY, 2)
        assert member.report("raft0")["incarnation"] != first["incarnation"]
        assert not alive(first["pid"])
        again = next(line for line in member.lines() if line["msg"] == "all processes are started again")
        assert (again["level"], again["reason"]) == ("info", "told to ask for another generation")
        assert not [line for line in member.lines() if line["level"] in ("warn", "error")]

    def test_a_new_cluster_is_forced_until_it_is_there_and_never_again(self, member: Member) -> None:
        """S41: members that join it later must not be dropped because a process fails."""
        member.tell("die-once-watch")
        member.start("--force-new-cluster")
        assert member.count("a process of the member failed; all are started again") == 1
        assert member.report("raft0")["force_new_cluster"]
        member.tell("restart-once-raft")
        member.wait_for(READY, 2)
        assert not member.report("raft0")["force_new_cluster"]

    def test_a_failure_at_start_is_tried_again(self, member: Member) -> None:
        member.tell("die-once-apply")
        member.start()
        failure = next(line for line in member.lines() if line["level"] == "error")
        assert (failure["process"], failure["reason"]) == ("apply", "told to die (exited with 3)")
        assert not failure["was-ready"]

    @pytest.mark.parametrize(
        ("order", "reason"),
        [("die-watch", "watch: told to die (exited with 3)"), ("raise-raft", "raft: RuntimeError: told to raise")],
    )
    def test_three_generations_that_never_get_ready_end_the_member(
        self, member: Member, order: str, reason: str
    ) -> None:
        member.tell(order)
        member.launch()
        assert member.status() == 1
        lines = member.lines()
        assert sum("was-ready" in line for line in lines) == 3
        assert lines[-1]["level"] == "fatal"
        assert lines[-1]["error"].startswith(reason)
        assert READY not in member.messages()

    def test_an_exception_is_logged_with_its_traceback(self, member: Member) -> None:
        member.tell("raise-apply")
        member.launch()
        assert member.status() == 1
        told = next(line for line in member.lines() if line["msg"] == "process failed")
        assert told["process"] == "kvorum-apply"
        assert "in main" in told["stacktrace"]


class TestStop:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_stops_the_processes_in_order(self, member: Member, number: signal.Signals) -> None:
        """S49, S50; the terminal's Ctrl-C reaches the children too."""
        member.start()
        member.remember()
        run_dir = Path(member.report("raft0")["run_dir"])
        os.killpg(member.pid, number)
        assert member.status() == -number
        assert [line["role"] for line in member.lines() if line["msg"] == "child stops"] == [
            "front",
            "raft",
            "apply",
            "watch",
        ]
        messages = member.messages()
        assert messages.index("received signal; shutting down") < messages.index("closing etcd server")
        assert messages[-1] == "closed etcd server"
        assert member.all_gone()
        assert not run_dir.exists()
        assert not (member.directory / "k.sock").exists()

    def test_what_does_not_stop_is_killed_and_more_signals_change_nothing(self, make_member: MakeMember) -> None:
        member = make_member(stop_s=2.0)
        member.tell("linger-raft")
        member.start()
        member.remember()
        member.signal(signal.SIGTERM)
        member.wait_for("closing etcd server")
        member.signal(signal.SIGINT)
        member.signal(signal.SIGTERM)
        assert member.status() == -signal.SIGTERM
        killed = next(line for line in member.lines() if line["msg"].startswith("processes did not stop"))
        assert set(killed["processes"]) == {"raft", "apply", "watch"}
        assert member.all_gone()

    def test_a_member_that_is_not_ready_yet_stops_too(self, member: Member) -> None:
        member.tell("long-apply")
        member.launch()
        member.wait_for("long operation begins")
        member.signal(signal.SIGTERM)
        assert member.status() == -signal.SIGTERM
        assert READY not in member.messages()

    def test_a_member_whose_work_is_over_exits_with_0(self, member: Member) -> None:
        """S53, M18."""
        member.start()
        member.remember()
        member.tell("finish-once-raft")
        assert member.status() == 0
        assert member.all_gone()
        lines = member.lines()
        told = [line["msg"] for line in lines].index("server error")
        assert lines[told]["error"] == "the member has been permanently removed from the cluster"
        assert lines[told + 1]["msg"] == "data-dir used by this member must be removed"
        assert [line["role"] for line in lines if line["msg"] == "child stops"] == ["front", "raft", "apply", "watch"]

    def test_children_die_with_their_supervisor(self, member: Member) -> None:
        member.start()
        member.remember()
        left = Path(member.report("raft0")["run_dir"])
        member.signal(signal.SIGKILL)
        assert member.status() == -signal.SIGKILL
        wait_until(member.all_gone, "the children to die", TIMEOUT_S)
        assert left.exists()
        member.start()
        assert not left.exists()

    def test_a_stopped_child_dies_with_its_supervisor(self, member: Member) -> None:
        member.start()
        member.remember()
        os.kill(member.report("apply0")["pid"], signal.SIGSTOP)
        member.signal(signal.SIGKILL)
        member.status()
        wait_until(member.all_gone, "the children to die", TIMEOUT_S)


def test_a_signal_between_two_generations_ends_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: the signal comes with the line that the log writes just before the wait."""
    monkeypatch.setattr(generation, "BACK_OFF_S", (3600.0,))
    parsed = parse(["kvorum", f"--data-dir={tmp_path}"], {}, lambda path: b"")
    assert isinstance(parsed, Start)

    def sink(level: Level, line: bytes) -> None:
        if level is Level.ERROR and b"all are started again" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    log = Logger((sink,), Level.INFO, LogFormat.JSON)
    datadir.prepare(str(tmp_path), "", log)
    lock_fd = datadir.lock(str(tmp_path))
    handler = signal.getsignal(signal.SIGTERM)
    entries = {Role.RAFT: "tests.node.no_such_module:main"}
    supervisor = Supervisor(
        parsed.config, Identity(1, 2, True, ()), (), lock_fd, log, on_ready=lambda: None, entries=entries
    )
    try:
        assert supervisor.run() == Ending(signal.SIGTERM)
    finally:
        os.close(lock_fd)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not (tmp_path / "member" / "run").is_symlink()


class TestLock:
    def test_a_second_member_on_the_directory_ends_with_1(self, member: Member, make_member: MakeMember) -> None:
        """Q9."""
        member.start()
        second = make_member()
        second.launch("--listen-client-urls=unix://other.sock")
        assert second.status() == 1
        last = second.lines()[-1]
        assert (last["level"], last["msg"]) == ("fatal", "discovery failed")
        assert last["error"] == "data directory d is in use by another process (d/member/lock is locked)"
        assert member.count(READY) == 1

    def test_every_child_holds_the_lock(self, member: Member) -> None:
        member.start()
        lock = (member.data_dir / "member" / "lock").stat()
        for pid in member.children():
            held = [fd for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.exists() and fd.stat().st_ino == lock.st_ino]
            assert len(held) == 1
            assert "FLOCK" in Path(f"/proc/{pid}/fdinfo/{held[0].name}").read_text()


def test_children_inherit_nothing_else(member: Member) -> None:
    """Besides the standard streams: the lock, its line, its listeners, and the library's two pipes."""
    member.start()
    for name, sockets in (("apply0", 1), ("front0", 2), ("raft0", 2)):
        pid = member.report(name)["pid"]
        links = [str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir() if int(fd.name) > 2]
        kinds = sorted(link.partition(":")[0] for link in links if link != "/dev/null")
        assert kinds == sorted([str(member.data_dir / "member" / "lock"), "pipe", "pipe", *["socket"] * sockets])
