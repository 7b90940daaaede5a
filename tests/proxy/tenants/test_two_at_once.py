"""Two tenants of one proxy run the differential rows of keys and watches at once, under the same names of keys."""

import os
import subprocess
import sys
from pathlib import Path

from loadtest.launcher import Server
from tests.servers import start_proxy

ROOT = Path(__file__).resolve().parents[3]
FILE = """
tenants:
  - {name: one, namespace: one/, authorities: [127.0.0.1]}
  - {name: other, namespace: other/, authorities: [localhost]}
"""
ROWS = [f"tests/differential/test_{name}.py" for name in ("put_delete", "range", "txn", "watch", "watch_events")]
DEADLINE_S = 300.0


def test_each_sees_only_its_own(kvorum_server: Server, tmp_path: Path) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_text(FILE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "proxied", *ROWS]
    with start_proxy([kvorum_server.address], {"namespaces-file": str(path)}) as proxy:
        port = proxy.address.rpartition(":")[2]
        runs = [
            subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "KVORUM_PROXY": f"{host}:{port}"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for host in ("127.0.0.1", "localhost")
        ]
        try:
            said = [run.communicate(timeout=DEADLINE_S)[0] for run in runs]
        finally:
            for run in runs:
                run.kill()
                run.wait()
    for run, text in zip(runs, said, strict=True):
        assert run.returncode == 0, text[-4000:]
