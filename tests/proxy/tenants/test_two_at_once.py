"""Two tenants of one proxy run the differential rows of keys, watches, leases and compaction at once, under the same
names of keys.

Which rows hold beside another, and why others do not, says `tests/differential/behind_proxy.py`.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvorum.pb.rpc_pb2 import DeleteRangeRequest
from loadtest.launcher import Server
from tests.calls import Api
from tests.servers import start_proxy

ROOT = Path(__file__).resolve().parents[3]
FILE = """
tenants:
  - {name: one, namespace: one/, authorities: [127.0.0.1]}
  - {name: other, namespace: other/, authorities: [localhost]}
"""
DEADLINE_S = 300.0


@pytest.fixture
def proxies(kvorum_server: Server, direct: Api, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The addresses under which one and other reach their proxy; they have no keys."""
    for name in (b"one", b"other"):
        direct(DeleteRangeRequest(key=name + b"/", range_end=name + b"0"))
    path = tmp_path / "tenants.yaml"
    path.write_text(FILE)
    with start_proxy([kvorum_server.address], {"namespaces-file": str(path)}) as proxy:
        port = proxy.address.rpartition(":")[2]
        yield f"127.0.0.1:{port}", f"localhost:{port}"


def begin(proxy: str, rows: tuple[str, ...], **environment: str) -> subprocess.Popen[str]:
    """The rows of these files, asked through the proxy."""
    files = [f"tests/differential/test_{name}.py" for name in rows]
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "proxied", *files],
        cwd=ROOT,
        env={**os.environ, **environment, "KVORUM_PROXY": proxy},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def expect_success(*runs: subprocess.Popen[str]) -> None:
    try:
        said = [run.communicate(timeout=DEADLINE_S)[0] for run in runs]
    finally:
        for run in runs:
            run.kill()
            run.wait()
    for run, text in zip(runs, said, strict=True):
        assert run.returncode == 0, text[-4000:]


def test_each_sees_only_its_own(proxies: tuple[str, str]) -> None:
    rows = ("lease", "put_delete", "range", "txn", "watch", "watch_events")
    expect_success(*(begin(proxy, rows) for proxy in proxies))


def test_a_compaction_changes_nothing_for_who_does_not_look_back(
    proxies: tuple[str, str], kvorum_server: Server
) -> None:
    """For one an administrator compacts. Meanwhile other runs rows that read nothing of the past, as RangeStream
    and the `prev_kv` of events do."""
    one, other = proxies
    expect_success(
        begin(one, ("compact_hash", "watch", "watch_events"), KVORUM_MEMBER=kvorum_server.address),
        begin(other, ("put_delete", "txn", "watch")),
    )
