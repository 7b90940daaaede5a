"""The same command lines to the reference server: its words, ours (behaviour 22, where both versions agree)."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import orjson
import pytest

from loadtest.launcher import reference_tool
from node.flags import Exit, parse

WORDS = {"failed to verify flags", "discovery failed"}


def asked(arguments: tuple[str, ...], environ: Mapping[str, str], directory: Path) -> tuple[int, str]:
    """The reference's exit code, and its error: the first line of a usage error, else the field of the last line."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
    done = subprocess.run(
        [str(reference_tool("etcd")), *arguments],
        env={**clean, **environ},
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=20,
        check=False,
    )
    lines = done.stderr.decode().splitlines()
    if done.returncode == 2:
        return 2, lines[0]
    logged = [orjson.loads(line) for line in lines if line.startswith("{")]
    errors = [line["error"] for line in logged if line["msg"] in WORDS]
    return done.returncode, errors[-1] if errors else lines[-1] if not logged else logged[-1]["msg"]


def answered(arguments: tuple[str, ...], environ: Mapping[str, str]) -> tuple[int, str]:
    """The same of kvorum."""
    result = parse(["kvorum", *arguments], environ, lambda path: Path(path).read_bytes())
    assert isinstance(result, Exit)
    if result.stderr:
        return result.code, result.stderr.splitlines()[0]
    note = result.notes[-1]
    return result.code, str(note.fields["error"]) if note.msg in WORDS else note.msg


@pytest.mark.parametrize(
    "arguments",
    [
        ("--nope",),
        ("---x",),
        ("-=x",),
        ("--heartbeat-interval",),
        ("--heartbeat-interval=abc",),
        ("-heartbeat-interval", "-1"),
        ("--pre-vote=maybe",),
        ("--snapshot-count=99999999999999999999999",),
        ("--max-request-bytes=08",),
        ("--quota-backend-bytes=1e3",),
        ("--grpc-keepalive-min-time=5",),
        ("--listen-client-urls=foo://a",),
        ("--listen-client-urls=http://a",),
        ("--listen-client-urls=http://::1:2",),
        ("--listen-client-urls=http://a:b",),
        ("--listen-client-urls=http://127.0.0.1:1/x",),
        ("--listen-client-urls=127.0.0.1:33",),
        ("--listen-client-urls=:33",),
        ("--listen-client-urls=http://127.0.0.1:1",),
        ("--listen-client-urls=http://example.com:2379", "--advertise-client-urls=http://a:1"),
        ("--advertise-client-urls=http://:2379",),
        ("--initial-cluster-state=foo",),
        ("--heartbeat-interval=0",),
        ("--election-timeout=0",),
        ("--election-timeout=100",),
        ("--election-timeout=60000",),
        ("--logger=foo",),
        ("--log-outputs=default,stderr",),
        ("--auto-compaction-mode=foo",),
        ("--auto-compaction-retention=xx",),
        ("--cipher-suites=foo",),
        ("--listen-client-urls=https://127.0.0.1:1", "--advertise-client-urls=https://127.0.0.1:1"),
        ("--initial-cluster=default",),
        ("--listen-peer-urls=https://127.0.0.1:0", "--peer-cert-file=c"),
        ("--listen-peer-urls=https://127.0.0.1:0", "--peer-key-file=k"),
        ("--config-file=none.yml",),
    ],
)
def test_same_words_same_exit_code(arguments: tuple[str, ...], tmp_path: Path) -> None:
    assert answered(arguments, {}) == asked(arguments, {}, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "environ"),
    [
        ((), {"ETCD_HEARTBEAT_INTERVAL": "abc"}),
        ((), {"ETCD_PRE_VOTE": "x"}),
        (("--name=y",), {"ETCD_NAME": "x"}),
        (("--name=y",), {"ETCD_NAME": ""}),
    ],
)
def test_same_words_about_variables(arguments: tuple[str, ...], environ: Mapping[str, str], tmp_path: Path) -> None:
    assert answered(arguments, environ) == asked(arguments, environ, tmp_path)


@pytest.mark.parametrize("text", ["listen-client-urls: foo://x\n", "initial-cluster-state: x\n"])
def test_same_words_about_a_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "f.yml"
    path.write_text(text)
    arguments = (f"--config-file={path}",)
    assert answered(arguments, {}) == asked(arguments, {}, tmp_path)
