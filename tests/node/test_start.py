"""The command `kvorum` from outside: exit codes, what it writes where, and what it needs to start (behaviour 22)."""

import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from loadtest.launcher import Port
from node import __main__ as command
from node.supervisor import Ending
from tests.node.members import READY, ROOT, TIMEOUT_S, Member

PEERS = "--listen-peer-urls=unix://p.sock"


def kvorum(*arguments: str, directory: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
    return subprocess.run(
        [sys.executable, "-m", "node", *arguments],
        cwd=directory,
        env={**clean, "PYTHONPATH": str(ROOT), **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@pytest.fixture
def member(tmp_path: Path) -> Iterator[Member]:
    made = Member(tmp_path)
    yield made
    made.close()


def last_line(done: subprocess.CompletedProcess[str]) -> tuple[str, str, str]:
    line = orjson.loads(done.stderr.splitlines()[-1])
    return line["level"], line["msg"], line["error"]


def test_help_and_version_go_to_standard_output(tmp_path: Path) -> None:
    for arguments, start in ((["--help"], "Usage:"), (["--version"], "etcd Version: 3.7.0\n")):
        done = kvorum(*arguments, directory=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(start)
    assert list(tmp_path.iterdir()) == []


def test_a_usage_error_goes_to_standard_error(tmp_path: Path) -> None:
    done = kvorum("--nope", directory=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("flag provided but not defined: -nope\nUsage:\n")


def test_a_failed_check_is_a_line_of_the_log(tmp_path: Path) -> None:
    done = kvorum("foo", directory=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert last_line(done) == ("warn", "failed to verify flags", '"foo" is not a valid flag')


def test_the_log_of_a_failure_has_the_form_that_was_asked_for(tmp_path: Path) -> None:
    done = kvorum("--log-format=console", "--heartbeat-interval=0", directory=tmp_path)
    assert done.returncode == 1
    assert done.stderr.split("\t")[1] == "warn"


def test_a_port_in_use(tmp_path: Path) -> None:
    """S37."""
    port = Port()
    try:
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # an earlier test may have used the port
            other.bind(("127.0.0.1", port.number))
            other.listen()
            url = f"http://127.0.0.1:{port.number}"
            urls = [f"--listen-client-urls={url}", f"--advertise-client-urls={url}", PEERS]
            done = kvorum(*urls, directory=tmp_path)
    finally:
        port.release()
    assert done.returncode == 1
    text = f"listen tcp 127.0.0.1:{port.number}: bind: address already in use"
    assert last_line(done) == ("fatal", "discovery failed", text)
    assert not (tmp_path / "default.kvorum" / "member" / "identity").exists()


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    done = kvorum("--data-dir=/proc/x", directory=tmp_path)
    assert done.returncode == 1
    text = "cannot access data directory: mkdir /proc/x: no such file or directory"
    assert last_line(done) == ("fatal", "discovery failed", text)


def test_a_cluster_that_does_not_fit(tmp_path: Path) -> None:
    """S31."""
    url = "unix://k.sock"
    flags = [f"--listen-client-urls={url}", "--advertise-client-urls=http://a:1", PEERS]
    done = kvorum("--name=a", "--initial-cluster=b=http://localhost:2380", *flags, directory=tmp_path)
    assert done.returncode == 1
    text = 'couldn\'t find local name "a" in the initial cluster configuration'
    assert last_line(done) == ("fatal", "discovery failed", text)


def test_a_cluster_that_nobody_speaks_of(tmp_path: Path) -> None:
    """S38: the port of the other member is refused, and nothing is decided."""
    with socket.socket() as unbound:
        unbound.bind(("127.0.0.1", 0))
        other = "http://{}:{}".format(*unbound.getsockname())
        flags = [PEERS, "--listen-client-urls=unix://k.sock", "--advertise-client-urls=http://a:1"]
        cluster = [f"--initial-cluster=default=http://a:1,b={other}", "--initial-cluster-state=existing"]
        done = kvorum(*flags, *cluster, directory=tmp_path)
    assert done.returncode == 1
    text = "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs"
    assert last_line(done) == ("fatal", "discovery failed", text)
    assert f"{other}/members" in done.stderr
    assert not (tmp_path / "default.kvorum" / "member" / "identity").exists()


def test_a_data_directory_of_another_program(tmp_path: Path) -> None:
    wal = tmp_path / "default.kvorum" / "member" / "wal"
    wal.mkdir(parents=True, mode=0o700)
    (wal / "0000000000000000-0000000000000000.wal").touch()
    flags = [PEERS, "--listen-client-urls=unix://k.sock", "--advertise-client-urls=http://a:1"]
    done = kvorum(*flags, directory=tmp_path)
    assert done.returncode == 1
    assert "holds no identity, but there is data" in last_line(done)[2]


def test_a_log_that_cannot_be_opened(tmp_path: Path) -> None:
    done = kvorum("--log-outputs=none/k.log", directory=tmp_path)
    assert done.returncode == 1
    assert last_line(done)[1] == "failed to verify flags"


def test_too_long_a_directory_for_sockets(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    flags = ["--listen-client-urls=unix://k.sock", "--advertise-client-urls=http://a:1", PEERS]
    done = kvorum(*flags, directory=tmp_path, XDG_RUNTIME_DIR=str(long))
    assert done.returncode == 1
    assert last_line(done)[2].endswith("set XDG_RUNTIME_DIR to a shorter directory")


def test_the_log_goes_where_it_is_told(member: Member) -> None:
    """SL4: every process writes to each output."""
    member.launch("--log-outputs=stderr,k.log")
    member.wait_for(READY)
    member.signal(signal.SIGTERM)
    member.status()
    assert (member.directory / "k.log").read_bytes() == member.log_path.read_bytes()
    assert member.count("child stops") == 4


class TestTls:
    URL = "unixs://tls.sock"
    PEER_FILES = ("cert-file", "key-file", "client-cert-file", "client-key-file")

    def test_a_file_that_cannot_be_read(self, tmp_path: Path) -> None:
        """S34."""
        flags = [f"--listen-client-urls={self.URL}", "--advertise-client-urls=http://a:1", PEERS]
        done = kvorum(*flags, "--cert-file=none", "--key-file=none", directory=tmp_path)
        assert done.returncode == 1
        assert last_line(done) == ("fatal", "discovery failed", "open none: no such file or directory")

    def test_a_member_makes_its_own_certificate_once(self, member: Member) -> None:
        flags = [f"--listen-client-urls={self.URL}", "--auto-tls"]
        member.start(*flags)
        assert "serving client traffic securely" in member.messages()
        cert, key = (member.data_dir / "fixtures" / "client" / name for name in ("cert.pem", "key.pem"))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        assert key.stat().st_mode & 0o777 == 0o600
        made = cert.read_bytes()
        member.signal(signal.SIGTERM)
        member.status()
        member.start(*flags)
        assert cert.read_bytes() == made
        assert "found invalid file under data directory" not in [
            line["msg"] for line in member.lines() if line.get("filename") == "fixtures"
        ]

    @pytest.mark.parametrize(
        "flag", ["cert-file", "key-file", "client-cert-file", "client-key-file", "trusted-ca-file"]
    )
    def test_a_file_for_members_that_cannot_be_read(self, tmp_path: Path, flag: str) -> None:
        (tmp_path / "there").touch()
        flags = dict.fromkeys(("cert-file", "key-file", "client-cert-file", "client-key-file"), "there") | {
            flag: "none"
        }
        given = [f"--peer-{name}={path}" for name, path in flags.items()]
        clients = ["--listen-client-urls=unix://k.sock", "--advertise-client-urls=http://a:1"]
        done = kvorum(PEERS, *clients, *given, directory=tmp_path)
        assert done.returncode == 1
        assert last_line(done) == ("fatal", "discovery failed", "open none: no such file or directory")

    def test_a_member_makes_its_own_certificate_for_other_members(self, member: Member) -> None:
        member.start("--listen-peer-urls=unixs://p.sock", "--peer-auto-tls")
        assert member.report("raft0")["listeners"] == [["unixs://p.sock", "peers"]]
        cert, key = (member.data_dir / "fixtures" / "peer" / name for name in ("cert.pem", "key.pem"))
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)

    def test_validity_in_years(self, member: Member) -> None:
        member.launch(f"--listen-client-urls={self.URL}", "--auto-tls", "--self-signed-cert-validity=0")
        assert member.status() == 1
        assert member.lines()[-1]["error"] == "--self-signed-cert-validity must be >0 (set to 0)"


class TestEnd:
    def test_pid_1_exits_with_0_after_a_signal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """S49: the kernel does not kill it by a signal that it does not handle."""
        monkeypatch.setattr(os, "getpid", lambda: 1)
        with pytest.raises(SystemExit) as raised:
            command.end(Ending(signal.SIGTERM))
        assert raised.value.code == 0

    def test_an_exit_code(self) -> None:
        with pytest.raises(SystemExit) as raised:
            command.end(Ending(None, 1, "why"))
        assert raised.value.code == 1
