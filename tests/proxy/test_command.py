"""The command line of a proxy: flags to settings, and what is refused with which words (PX26)."""

import dataclasses
import signal
import socket
from pathlib import Path

import pytest

from kvorum.go_flags import run
from kvorum.log import Logger
from proxy import workers
from proxy.command import grpc_proxy
from proxy.config import Config
from proxy.upstream.endpoints import Endpoint


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The settings of what was started, instead of starting it."""
    configs: list[Config] = []

    def serve(config: Config, logger: Logger) -> int:
        configs.append(config)
        return -signal.SIGTERM

    monkeypatch.setattr(workers, "serve", serve)
    return configs


def start(*flags: str) -> int:
    return run(grpc_proxy, ["start", *flags], "kvorum grpc-proxy")


def config_of(started: list[Config], *flags: str) -> Config:
    assert start(*flags) == -signal.SIGTERM
    return started.pop()


DEFAULTS = {
    "endpoints": (Endpoint("127.0.0.1:2379", None),),
    "endpoints_auto_sync_interval_s": 0.0,
    "discovery_srv": "",
    "discovery_srv_name": "",
    "insecure_discovery": False,
    "listen_addr": "127.0.0.1:23790",
    "metrics_addr": None,
    "advertise_client_url": "127.0.0.1:23790",
    "resolver_prefix": "",
    "resolver_ttl_s": 0,
    "namespace": "",
    "namespaces_file": "",
    "data_dir": "default.proxy",
    "listen_tls": None,
    "auto_tls": False,
    "self_signed_cert_validity_years": 1,
    "max_send_bytes": 1572864,
    "max_recv_bytes": 2147483647,
    "max_concurrent_streams": 4294967295,
    "serializable_ordering": False,
    "leasing_prefix": "",
    "workers": 1,
    "debug": False,
}


def test_defaults(started: list[Config]) -> None:
    config = config_of(started)
    assert {name: getattr(config, name) for name in DEFAULTS} == DEFAULTS
    assert not config.upstream_tls.wanted
    assert dataclasses.astuple(config.keepalive) == (None, 20.0, False, 5.0, 7200.0, 20.0)


def test_every_setting_has_a_flag(started: list[Config]) -> None:
    config = config_of(
        started,
        "--endpoints=http://a:1,https://b:2",
        "--endpoints",
        "c:3",
        "--endpoints-auto-sync-interval=1m30s",
        "--insecure-discovery",
        "--listen-addr=0.0.0.0:1234",
        "--metrics-addr=http://127.0.0.1:9000",
        "--advertise-client-url=proxy:1234",
        "--resolver-prefix=/proxies",
        "--resolver-ttl=60",
        "--namespace=mine/",
        "--data-dir=dir",
        "--cert=c",
        "--key=k",
        "--cacert=ca",
        "--insecure-skip-tls-verify=true",
        "--cert-file=cf",
        "--key-file=kf",
        "--trusted-ca-file=tf",
        "--listen-cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
        "--self-signed-cert-validity=2",
        "--tls-min-version=TLS1.2",
        "--tls-max-version=TLS1.3",
        "--dial-keepalive-time=10s",
        "--dial-keepalive-timeout=1500ms",
        "--permit-without-stream",
        "--grpc-keepalive-min-time=1s",
        "--grpc-keepalive-interval=0",
        "--grpc-keepalive-timeout=2s",
        "--max-send-bytes=1000",
        "--max-recv-bytes=2000",
        "--max-concurrent-streams=10",
        "--experimental-serializable-ordering",
        "--experimental-leasing-prefix=leasing/",
        "--workers=3",
        "--debug",
    )
    assert config.endpoints == (Endpoint("a:1", False), Endpoint("b:2", True), Endpoint("c:3", None))
    assert config.endpoints_auto_sync_interval_s == 90.0
    assert config.listen_addr == "0.0.0.0:1234"
    assert str(config.metrics_addr) == "http://127.0.0.1:9000"
    assert (config.resolver_prefix, config.resolver_ttl_s) == ("/proxies", 60)
    assert config.upstream_tls.wanted and config.upstream_tls.skip_verify
    assert config.listen_tls is not None
    assert config.listen_tls.ciphers == ("ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-AES256-GCM-SHA384")
    assert config.listen_tls.max_version == "TLS1.3"
    assert dataclasses.astuple(config.keepalive) == (10.0, 1.5, True, 1.0, float("inf"), 2.0)
    assert (config.max_send_bytes, config.max_recv_bytes, config.max_concurrent_streams) == (1000, 2000, 10)
    assert (config.serializable_ordering, config.leasing_prefix, config.workers) == (True, "leasing/", 3)


@pytest.mark.parametrize("size", ["0", "-1", "-600000"])
def test_sizes_that_are_none_are_the_go_client_s(started: list[Config], size: str) -> None:
    config = config_of(started, f"--max-send-bytes={size}", f"--max-recv-bytes={size}", "--max-concurrent-streams=0")
    assert (config.max_send_bytes, config.max_recv_bytes) == (2 << 20, 2**31 - 1)
    assert config.max_concurrent_streams == 2**32 - 1


def test_a_domain_takes_the_place_of_endpoints(started: list[Config]) -> None:
    config = config_of(started, "--discovery-srv=example.com", "--discovery-srv-name=x")
    assert (config.endpoints, config.discovery_srv, config.discovery_srv_name) == ((), "example.com", "x")


def test_generated_certificates_lie_in_the_data_directory(started: list[Config]) -> None:
    config = config_of(started, "--auto-tls", "--data-dir=dir")
    assert config.auto_tls and config.listen_tls is not None
    assert config.listen_tls.cert_file == "dir/fixtures/proxy/cert.pem"
    config = config_of(started, "--auto-tls", "--cert-file=c", "--key-file=k")
    assert not config.auto_tls and config.listen_tls is not None
    assert config.listen_tls.cert_file == "c"


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--resolver-prefix=/p"], "invalid resolver-ttl 0"),
        (["--resolver-ttl=5"], 'invalid resolver-prefix ""'),
        (["--resolver-prefix=/p", "--resolver-ttl=5", "--advertise-client-url="], 'invalid advertise-client-url ""'),
        (["--endpoints="], "etcdclient: no available endpoints"),
        (["--endpoints=http://"], 'endpoint "http://": not of the form host:port'),
        (["--listen-addr=bad"], "listen tcp: address bad: missing port in address"),
        (["--listen-addr=127.0.0.1:99999"], "listen tcp: address 99999: invalid port"),
        (["--cert=c"], "KeyFile and CertFile must both be present[key: , cert: c]"),
        (["--key-file=k"], "KeyFile and CertFile must both be present[key: k, cert: ]"),
        (["--trusted-ca-file=t"], "--trusted-ca-file needs --cert-file and --key-file"),
        (
            ["--auto-tls", "--self-signed-cert-validity=0"],
            "selfSignedCertValidity is invalid,it should be greater than 0",
        ),
        (
            ["--auto-tls", "--tls-min-version=TLS1.1"],
            'unexpected TLS version "TLS1.1" (must be one of: TLS1.2, TLS1.3)',
        ),
        (
            ["--auto-tls", "--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"],
            "min version (TLS1.3) is greater than max version (TLS1.2)",
        ),
        (["--auto-tls", "--listen-cipher-suites=X"], 'unexpected TLS cipher suite "X"'),
        (["--client-crl-file=f"], "--client-crl-file is not supported"),
        (["--experimental-enable-grpc-logging"], "--experimental-enable-grpc-logging is not supported"),
        (["--metrics-addr=127.0.0.1:1"], 'cannot parse "127.0.0.1:1": '),
        (["--namespace=a", "--namespaces-file=f"], "--namespace and --namespaces-file cannot be used together"),
        (
            ["--advertise-client-url=", "--namespaces-file=f"],
            'invalid advertise-client-url "" with --namespaces-file',
        ),
        (
            ["--experimental-leasing-prefix=p", "--namespaces-file=f"],
            "--experimental-leasing-prefix and --namespaces-file cannot be used together",
        ),
        (
            ["--max-recv-bytes=1000"],
            "gRPC message recv limit (1000 bytes) must be greater than send limit (1572864 bytes)",
        ),
        (["--workers=0"], "invalid workers 0"),
        (["--workers=2", "--listen-addr=127.0.0.1:0"], "--workers=2 needs a --listen-addr with a port"),
    ],
)
def test_values_that_cannot_be_meant(
    started: list[Config], capsys: pytest.CaptureFixture[str], flags: list[str], text: str
) -> None:
    assert start(*flags) == 1
    assert capsys.readouterr().err.startswith(text)
    assert not started


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--bad", "Error: unknown flag: --bad\n"),
        ("--resolver-ttl=x", 'Error: invalid argument "x" for "--resolver-ttl" flag: strconv.ParseInt: parsing "x": '),
        ("--dial-keepalive-time=5", 'Error: invalid argument "5" for "--dial-keepalive-time" flag: time: invalid '),
        ("--debug=maybe", 'Error: invalid argument "maybe" for "--debug" flag: strconv.ParseBool: parsing "maybe": '),
        ("--max-concurrent-streams=4294967296", 'Error: invalid argument "4294967296" for "--max-concurrent-streams"'),
    ],
)
def test_flags_that_cannot_be_read(
    started: list[Config], capsys: pytest.CaptureFixture[str], flag: str, text: str
) -> None:
    assert start(flag) == 1
    error = capsys.readouterr().err
    assert error.startswith(text)
    assert "Usage: kvorum grpc-proxy start" in error
    assert not started


def test_help_says_what_each_flag_takes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert start("--help") == 0
    page = " ".join(capsys.readouterr().out.split())
    for line in (
        "Start the proxy.",
        "--endpoints strings The members, comma separated. [default: 127.0.0.1:2379]",
        "--listen-addr string Where clients connect to: host:port or unix://PATH. [default: 127.0.0.1:23790]",
        "--workers int Processes that serve together on --listen-addr. [default: 1]",
        "--auto-tls Serve clients with a certificate that the proxy makes itself.",
        "--self-signed-cert-validity uint Years for which a generated certificate is valid. [default: 1]",
        "--dial-keepalive-timeout duration Silence after such a ping that ends the connection. [default: 20s]",
        "--client-crl-file string Not supported.",
    ):
        assert line in page


def serve_with(*flags: str) -> int:
    """A start that comes to its end by itself."""
    return start("--listen-addr=127.0.0.1:0", *flags)


def test_files_that_cannot_be_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert serve_with(f"--cacert={missing}") == 1
    assert capsys.readouterr().err == f"open {missing}: no such file or directory\n"
    assert serve_with(f"--cert-file={missing}", f"--key-file={missing}") == 1
    assert capsys.readouterr().err == f"open {missing}: no such file or directory\n"
    garbage = tmp_path / "garbage"
    garbage.write_text("no certificate")
    assert serve_with(f"--cacert={garbage}") == 1
    assert capsys.readouterr().err.startswith(f"cannot use the TLS files --cert= --key= --cacert={garbage}: ")


def test_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for workers_flag in ("--workers=1", "--workers=2"):
            assert start(f"--listen-addr=127.0.0.1:{port}", workers_flag) == 1
            assert f"listen tcp 127.0.0.1:{port}: bind: address already in use\n" in capsys.readouterr().err
