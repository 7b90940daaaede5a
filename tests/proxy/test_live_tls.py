"""TLS on both sides of a proxy: etcdctl's to it, and its own to the member."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.launcher import Server, reference_tool
from loadtest.proxies import Proxy
from tests.clients.etcdctl import environment
from tests.raft.peers.certificates import Authority, Files
from tests.servers import SUBJECT

TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder, "authority")


@pytest.fixture(scope="module")
def nameless(authority: Authority) -> Files:
    """A certificate without a common name, for the proxy to show to members and clients."""
    return authority.certificate("")


@pytest.fixture(scope="module")
def member(folder: Path, authority: Authority) -> Iterator[Server]:
    """A member that takes only clients with a certificate."""
    (folder / "member").mkdir()
    server = Server(SUBJECT, folder / "member")
    files = authority.certificate("member")
    server.flags |= {
        "listen-client-urls": f"https://{server.address}",
        "advertise-client-urls": f"https://{server.address}",
        "cert-file": str(files.certificate),
        "key-file": str(files.key),
        "trusted-ca-file": str(authority.file),
        "client-cert-auth": "true",
    }
    with contextlib.closing(server):
        server.start()
        yield server


@contextlib.contextmanager
def proxy_of(folder: Path, name: str, endpoint: str, flags: dict[str, str]) -> Iterator[Proxy]:
    directory = folder / name
    directory.mkdir()
    with contextlib.closing(Proxy(SUBJECT, directory, [endpoint], flags)) as proxy:
        proxy.start()
        yield proxy


def ask(proxy: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    """etcdctl over TLS to the proxy."""
    return subprocess.run(
        [str(reference_tool("etcdctl")), f"--endpoints=https://{proxy.address}", *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env=environment(),
        check=False,
    )


def upstream_flags(authority: Authority, files: Files) -> dict[str, str]:
    return {"cacert": str(authority.file), "cert": str(files.certificate), "key": str(files.key)}


def listen_flags(files: Files) -> dict[str, str]:
    return {"cert-file": str(files.certificate), "key-file": str(files.key)}


def test_certificates_on_both_sides(folder: Path, authority: Authority, nameless: Files, member: Server) -> None:
    flags = {
        **upstream_flags(authority, nameless),
        **listen_flags(nameless),
        "trusted-ca-file": str(authority.file),
        "metrics-addr": "",
    }
    with proxy_of(folder, "both", f"https://{member.address}", flags) as proxy:
        client = authority.certificate("client")
        known = (f"--cacert={authority.file}", f"--cert={client.certificate}", f"--key={client.key}")
        assert ask(proxy, *known, "put", "tls/a", "1").stdout == "OK\n"
        assert ask(proxy, *known, "get", "tls/a").stdout == "tls/a\n1\n"
        stranger = ask(proxy, f"--cacert={authority.file}", "--dial-timeout=1s", "--command-timeout=2s", "get", "tls/a")
        assert stranger.returncode != 0, "a client without a certificate"


def test_an_endpoint_without_a_scheme_speaks_tls_when_files_are_given(
    folder: Path, authority: Authority, nameless: Files, member: Server
) -> None:
    flags = {**upstream_flags(authority, nameless), "auto-tls": "true"}
    with proxy_of(folder, "auto", member.address, flags) as proxy:
        assert (
            ask(proxy, "--insecure-transport=false", "--insecure-skip-tls-verify", "put", "tls/b", "2").stdout == "OK\n"
        )
        made = proxy.data_dir / "fixtures" / "proxy"
        assert (made / "cert.pem").exists() and (made / "key.pem").exists()
        assert ask(proxy, f"--cacert={made / 'cert.pem'}", "get", "tls/b").stdout == "tls/b\n2\n"
        page = subprocess.run(
            ["curl", "-s", "-k", f"https://{proxy.address}/health"], capture_output=True, timeout=TIMEOUT_S, check=True
        )
        assert json.loads(page.stdout) == {"health": "true", "reason": ""}


def test_a_member_of_another_authority_is_not_spoken_to(
    folder: Path, authority: Authority, nameless: Files, member: Server
) -> None:
    other = Authority(folder, "other")
    flags = {**upstream_flags(other, nameless), **listen_flags(nameless)}
    with proxy_of(folder, "wrong", member.address, flags) as proxy:
        known = (f"--cacert={authority.file}", "--command-timeout=2s")
        refused = ask(proxy, *known, "get", "tls/a")
        assert refused.returncode != 0
        page = subprocess.run(
            ["curl", "-s", "-k", f"https://{proxy.address}/health"], capture_output=True, timeout=TIMEOUT_S, check=True
        )
        assert json.loads(page.stdout)["health"] == "false"
        said = [json.loads(line) for line in proxy.log_path.read_text().splitlines()]
        [lost] = [line for line in said if line["msg"] == "an endpoint cannot be reached"][:1]
        assert (lost["level"], lost["endpoint"]) == ("warn", member.address)
        assert "certificate verify failed" in lost["error"]
    with proxy_of(folder, "any", member.address, {**flags, "insecure-skip-tls-verify": "true"}) as proxy:
        assert ask(proxy, f"--cacert={authority.file}", "put", "tls/c", "3").stdout == "OK\n"


def test_a_certificate_with_a_common_name_would_lend_every_client_its_user(
    folder: Path, authority: Authority, member: Server
) -> None:
    files = authority.certificate("root")
    with (
        pytest.raises(RuntimeError, match="cert has non empty Common Name \\(root\\)"),
        proxy_of(folder, "named", member.address, upstream_flags(authority, files)),
    ):
        raise AssertionError("it started")


def test_tls_versions(folder: Path, authority: Authority, nameless: Files, member: Server) -> None:
    flags = {**upstream_flags(authority, nameless), **listen_flags(nameless), "tls-min-version": "TLS1.3"}
    with proxy_of(folder, "versions", member.address, flags) as proxy:
        old = subprocess.run(
            ["curl", "-s", "-k", "--tls-max", "1.2", f"https://{proxy.address}/health"], timeout=TIMEOUT_S, check=False
        )
        assert old.returncode == 35, "the TLS handshake fails"
        subprocess.run(["curl", "-s", "-k", f"https://{proxy.address}/health"], timeout=TIMEOUT_S, check=True)
