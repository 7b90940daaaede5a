"""Tenants by the common name of the client's certificate."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.launcher import Server, reference_tool
from loadtest.proxies import Proxy
from tests.clients.etcdctl import environment
from tests.raft.peers.certificates import Authority
from tests.servers import SUBJECT

FILE = """
tenants:
  - {name: alpha, namespace: cn-alpha/, common_names: [alpha-client]}
  - {name: beta, namespace: cn-beta/, common_names: [beta-client]}
"""
TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "authority")


@pytest.fixture(scope="module")
def secured(kvorum_server: Server, authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy that takes only clients with a certificate."""
    directory = tmp_path_factory.mktemp("secured")
    path = directory / "tenants.yaml"
    path.write_text(FILE)
    files = authority.certificate("proxy")
    flags = {
        "cert-file": str(files.certificate),
        "key-file": str(files.key),
        "trusted-ca-file": str(authority.file),
        "namespaces-file": str(path),
    }
    with contextlib.closing(Proxy(SUBJECT, directory, [kvorum_server.address], flags)) as proxy:
        proxy.start()
        yield proxy


def test_each_certificate_has_the_keys_of_its_tenant(secured: Proxy, authority: Authority) -> None:
    def ask(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        files = authority.certificate(name)
        command = [str(reference_tool("etcdctl")), f"--endpoints=https://{secured.address}"]
        known = [f"--cacert={authority.file}", f"--cert={files.certificate}", f"--key={files.key}"]
        return subprocess.run(
            [*command, *known, *arguments],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env=environment(),
            check=False,
        )

    assert ask("alpha-client", "put", "k", "of alpha").stdout == "OK\n"
    assert ask("beta-client", "put", "k", "of beta").stdout == "OK\n"
    assert ask("alpha-client", "get", "--prefix", "").stdout == "k\nof alpha\n"
    assert ask("beta-client", "get", "--from-key", "a").stdout == "k\nof beta\n"
    stranger = ask("stranger", "get", "k")
    assert "no namespace is served to this caller" in stranger.stderr


def test_common_names_need_an_authority(tmp_path: Path) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_text(FILE)
    command = [sys.executable, "-m", "proxy", "start", "--listen-addr=127.0.0.1:0", f"--namespaces-file={path}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert ended.returncode == 1
    assert f"{path}: tenants[0].common_names: needs --trusted-ca-file" in ended.stderr
