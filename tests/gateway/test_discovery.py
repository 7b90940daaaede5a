"""Endpoints from SRV records (--discovery-srv and its flags; behaviour GW5)."""

import contextlib
import socket
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from gateway import command
from gateway.balance import Endpoint
from gateway.config import Config, StartFailed
from gateway.discovery import discover
from gateway.verify import verifier
from kvorum import dns_services
from kvorum.dns_services import Service
from kvorum.log import Logger, LogSettings
from kvorum.resolver import ResolveFailed
from kvorum.self_signed import write_certificate
from tests.gateway.backends import Backend

SSL = "_etcd-client-ssl._tcp.example.com"
PLAIN = "_etcd-client._tcp.example.com"


def config(insecure: bool = False, name: str = "") -> Config:
    return Config(
        listen_addr="127.0.0.1:23790",
        endpoints=("127.0.0.1:2379",),
        endpoints_given=False,
        discovery_srv="example.com",
        discovery_srv_name=name,
        insecure_discovery=insecure,
        trusted_ca_file="",
        retry_delay_s=60.0,
    )


class Domain:
    """Name servers that know these records, and endpoints of which some are bad."""

    def __init__(self, records: Mapping[str, Sequence[Service]], bad: Sequence[str] = ()) -> None:
        self.records = records
        self.bad = bad
        self.verified: list[str] = []

    def services(self, name: str) -> Sequence[Service]:
        if name not in self.records:
            raise ResolveFailed(f"lookup {name}: no such host")
        return self.records[name]

    def verify(self, endpoint: Endpoint) -> None:
        self.verified.append(endpoint.host)
        if endpoint.host in self.bad:
            raise OSError("connection refused")

    def discover(self, asked: Config) -> tuple[Endpoint, ...]:
        return discover(asked, self.services, self.verify, Logger.open(LogSettings(outputs=())))


def test_insecure_discovery_takes_all_records_with_priority_and_weight() -> None:
    domain = Domain({SSL: [Service("a.", 1, 10, 5)], PLAIN: [Service("b.", 2, 20, 0)]})
    assert domain.discover(config(insecure=True)) == (Endpoint("a", 1, 10, 5), Endpoint("b", 2, 20, 0))
    assert domain.verified == []


def test_otherwise_only_those_with_tls_that_are_found_good() -> None:
    domain = Domain({SSL: [Service("a.", 1, 0, 0), Service("b.", 1, 0, 0)], PLAIN: [Service("c.", 1, 0, 0)]}, bad=["a"])
    assert domain.discover(config()) == (Endpoint("b", 1),)
    assert domain.verified == ["a", "b"]


def test_one_service_of_the_two_is_enough() -> None:
    assert Domain({PLAIN: [Service("c.", 1, 0, 0)]}).discover(config(insecure=True)) == (Endpoint("c", 1),)


def test_the_service_name_is_appended() -> None:
    domain = Domain({"_etcd-client-ssl-blue._tcp.example.com": [Service("a.", 1, 0, 0)]})
    assert domain.discover(config(name="blue")) == (Endpoint("a", 1),)


def test_no_records_at_all() -> None:
    with pytest.raises(StartFailed) as failed:
        Domain({}).discover(config())
    assert str(failed.value) == f"dns lookup errors: lookup {SSL}: no such host and lookup {PLAIN}: no such host"


def test_a_target_that_is_the_root_says_that_there_is_no_service() -> None:
    assert Domain({SSL: [Service(".", 0, 0, 0)]}).discover(config(insecure=True)) == ()


class TestCommand:
    """What `gateway start` makes of it."""

    def run(self, monkeypatch: pytest.MonkeyPatch, domain: Domain, *flags: str) -> int:
        monkeypatch.setattr(dns_services, "srv_records", domain.services)
        return command.run(["start", "--discovery-srv=example.com", *flags], "kvorum gateway")

    def test_a_domain_without_records_ends_the_start(
        self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(monkeypatch, Domain({})) == 1
        assert capfd.readouterr().err.endswith(
            f"dns lookup errors: lookup {SSL}: no such host and lookup {PLAIN}: no such host\n"
        )

    def test_records_none_of_which_may_be_used_end_the_start(
        self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(monkeypatch, Domain({PLAIN: [Service("127.0.0.1", 1, 0, 0)]})) == 1
        error = capfd.readouterr().err
        assert '\\"http://127.0.0.1:1\\" is insecure' in error
        assert error.endswith("\nno endpoints found\n")

    def test_then_endpoints_that_are_given_stand_in(
        self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        domain = Domain({PLAIN: [Service("127.0.0.1", 1, 0, 0)]})
        assert self.run(monkeypatch, domain, "--endpoints=127.0.0.1:5", "--listen-addr=127.0.0.1:5") == 1
        assert "SRV or endpoint (127.0.0.1:5->127.0.0.1:5) should not" in capfd.readouterr().err

    def test_a_record_that_is_the_gateway_itself(
        self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        domain = Domain({PLAIN: [Service("localhost.", 23790, 0, 0)]})
        assert self.run(monkeypatch, domain, "--insecure-discovery") == 1
        assert capfd.readouterr().err.endswith(
            "SRV or endpoint (localhost:23790->127.0.0.1:23790) "
            "should not resolve to the gateway listen addr (127.0.0.1:23790)\n"
        )


class TestVerify:
    def test_without_a_file_it_is_enough_to_listen(self) -> None:
        verify = verifier("", "example.com")
        with Backend() as backend:
            verify(Endpoint("127.0.0.1", backend.port))
        with pytest.raises(OSError, match="refused"):
            verify(Endpoint("127.0.0.1", backend.port))

    def test_the_certificate_must_be_the_domains(self, tmp_path: Path) -> None:
        cert, key = str(tmp_path / "cert"), str(tmp_path / "key")
        write_certificate(cert, key, ["localhost"], 1)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(cert, key)

        def serve(connection: socket.socket) -> None:
            with contextlib.suppress(ssl.SSLError):
                tls.wrap_socket(connection, server_side=True).close()

        with Backend(serve) as backend:
            at = Endpoint("127.0.0.1", backend.port)
            verifier(cert, "localhost")(at)
            with pytest.raises(ssl.SSLCertVerificationError):
                verifier(cert, "example.com")(at)

    @pytest.mark.parametrize(
        ("content", "error"), [(None, "open {}: no such file or directory"), (b"x", "cannot use {}")]
    )
    def test_a_file_that_cannot_be_used(self, tmp_path: Path, content: bytes | None, error: str) -> None:
        path = tmp_path / "ca"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(StartFailed, match=f"^{error.format(path)}"):
            verifier(str(path), "example.com")
