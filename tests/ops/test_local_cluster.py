"""`make cluster`'s command as a user has it: its output, its exit status, what it leaves."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest import processes
from loadtest.cluster import ask
from loadtest.launcher import Kind, Port, reference_tool, wait_until
from ops.local_cluster import ClusterError, prepare
from tests.servers import SUBJECT

PUT = {"key": "aw==", "value": "dg=="}
GET = {"key": "aw=="}
PROGRAMS = {Kind.KVORUM: [], Kind.REFERENCE: ["--program", str(reference_tool("etcd"))]}


def address(port: int) -> str:
    return f"127.0.0.1:{port}"


class Run:
    """One run of the command, whose lines come as they are written."""

    def __init__(self, kind: Kind, folder: Path, *options: str) -> None:
        command = [sys.executable, "-m", "ops.local_cluster", "--folder", str(folder), *PROGRAMS[kind], *options]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self.lines: list[str] = []

    def until(self, text: str) -> str:
        """The first line with that text."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if text in line:
                return line
        assert self.process.stderr is not None
        raise AssertionError(f"no line with {text!r} in {self.lines}; {self.process.stderr.read()}")

    def pids(self) -> list[int]:
        """Of the members, as printed."""
        return [int(line.split(" pid ")[1].split()[0]) for line in self.lines if " pid " in line]

    def interrupt(self) -> int:
        """Ctrl-C; the exit status."""
        self.process.send_signal(signal.SIGINT)
        out, _ = self.process.communicate(timeout=60)
        self.lines += out.splitlines()
        return self.process.returncode


@pytest.fixture
def ports() -> Iterator[list[int]]:
    """Client ports of three members; the next ones are free too."""
    taken: list[Port] = []
    found: list[int] = []
    try:
        while len(found) < 3:
            taken.append(Port())
            if len(taken) > 1 and taken[-2].number == taken[-1].number - 1 and taken[-2].number - 1 not in found:
                found.append(taken[-2].number)
        yield found
    finally:
        for port in taken:
            port.release()


@contextlib.contextmanager
def run(kind: Kind, folder: Path, *options: str) -> Iterator[Run]:
    one = Run(kind, folder, *options)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            one.interrupt()
        for stream in (one.process.stdout, one.process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture(params=list(Kind), ids=lambda kind: kind.value)
def kind(request: pytest.FixtureRequest) -> Kind:
    kind: Kind = request.param
    return SUBJECT if kind is Kind.KVORUM else kind


def option(ports: list[int]) -> str:
    return f"--ports={','.join(map(str, ports))}"


def test_three_members_serve_stop_and_go_on(kind: Kind, tmp_path: Path, ports: list[int]) -> None:
    folder = tmp_path / "c.kvorum"
    with run(kind, folder, option(ports), "--", "--heartbeat-interval=50") as cluster:
        line = cluster.until("etcdctl")
        assert all(f"127.0.0.1:{port}" in line for port in ports)
        members = ask(address(ports[0]), "/v3/cluster/member/list", {})["members"]
        assert sorted(member["name"] for member in members) == ["infra0", "infra1", "infra2"]
        ask(address(ports[1]), "/v3/kv/put", PUT, 10.0)
        pids = [pid for root in cluster.pids() for pid in processes.tree(root)]
        assert "--heartbeat-interval=50" in processes.title(cluster.pids()[0])
        assert cluster.interrupt() == 0
        assert [line for line in cluster.lines if "stopped" in line] == [f"infra{at} stopped" for at in (2, 1, 0)]
        assert not any(map(processes.alive, pids))
    with run(kind, folder) as cluster:
        cluster.until("etcdctl")
        assert len(cluster.pids()) == 3
        assert ask(address(ports[2]), "/v3/kv/range", GET, 10.0)["count"] == "1"
        assert cluster.interrupt() == 0


def test_a_member_that_dies_is_reported_and_the_others_go_on(kind: Kind, tmp_path: Path, ports: list[int]) -> None:
    with run(kind, tmp_path / "c.kvorum", option(ports)) as cluster:
        cluster.until("etcdctl")
        for pid in processes.tree(cluster.pids()[2]):
            os.kill(pid, signal.SIGKILL)
        assert "infra2 ended with signal SIGKILL" in cluster.until("ended")
        assert "--name=infra2" in cluster.until("--name")
        wait_until(lambda: serves(ports[0]), "two members to serve")
        for root in cluster.pids()[:2]:
            for pid in processes.tree(root):
                os.kill(pid, signal.SIGKILL)
        _, error = cluster.process.communicate(timeout=60)
        assert "no member is left" in error
        assert cluster.process.returncode == 1


def serves(port: int) -> bool:
    try:
        ask(address(port), "/v3/kv/put", PUT)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("one", list(Kind), ids=lambda kind: kind.value)
def test_a_member_that_cannot_start_ends_the_command_with_its_words(
    one: Kind, tmp_path: Path, ports: list[int]
) -> None:
    with (
        socket.create_server(("127.0.0.1", ports[0])),
        run(SUBJECT if one is Kind.KVORUM else one, tmp_path / "c.kvorum", f"--ports={ports[0]}") as cluster,
    ):
        out, error = cluster.process.communicate(timeout=60)
        assert cluster.process.returncode == 1
        assert "infra0 ended with status 1 before it served" in error
        assert "address already in use" in error
        assert out == ""


def test_fresh_removes_all_data(tmp_path: Path, ports: list[int]) -> None:
    folder = tmp_path / "c.kvorum"
    with run(SUBJECT, folder, f"--ports={ports[0]}") as cluster:
        cluster.until("etcdctl")
        ask(address(ports[0]), "/v3/kv/put", PUT)
        assert cluster.interrupt() == 0
    with run(SUBJECT, folder, "--fresh", f"--ports={ports[1]}") as cluster:
        cluster.until("etcdctl")
        assert "count" not in ask(address(ports[1]), "/v3/kv/range", GET)


def test_what_the_folder_was_made_with_stays(tmp_path: Path) -> None:
    folder = tmp_path / "c.kvorum"
    assert prepare(folder, None, None, False) == [2379, 22379, 32379]
    assert prepare(folder, 3, None, False) == [2379, 22379, 32379]
    with pytest.raises(ClusterError, match="holds 3 members, not 5"):
        prepare(folder, 5, None, False)
    with pytest.raises(ClusterError, match="has the client ports"):
        prepare(folder, None, [1, 3, 5], False)
    assert prepare(folder, 5, None, True) == [2379, 22379, 32379, 42379, 52379]
    assert prepare(folder, None, None, False) == [2379, 22379, 32379, 42379, 52379]
    shutil.rmtree(folder)
    assert prepare(folder, 1, [7000], False) == [7000]


def test_a_folder_that_is_no_cluster_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    for fresh in (False, True):
        with pytest.raises(ClusterError, match="is no cluster of this command"):
            prepare(tmp_path, None, None, fresh)
    assert (tmp_path / "precious").exists()


def test_size_and_ports_must_fit(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="3 members, but 2 ports"):
        prepare(tmp_path / "c", 3, [1, 3], False)


@pytest.mark.parametrize("bad", ["--size=0", "--size=6", "--size=x", "--ports=1,2", "--ports=0", "--ports=65535"])
def test_options_that_make_no_cluster_are_refused(bad: str, tmp_path: Path) -> None:
    with run(SUBJECT, tmp_path / "c", bad) as cluster:
        _, error = cluster.process.communicate(timeout=60)
        assert cluster.process.returncode == 2
        assert f"argument {bad.partition('=')[0]}" in error
        assert not (tmp_path / "c").exists()
