"""The command line of `grpc-proxy`: flags to a `Config`, and the proxy's run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import click

from kvorum.ciphers import openssl_ciphers
from kvorum.endings import die_by
from kvorum.go_flags import (
    EXIT_FAILED,
    HELP,
    INT,
    UINT,
    UINT32,
    Command,
    duration,
    number,
    run,
    string,
    strings,
    switch,
)
from kvorum.log import Level, Logger, LogSettings
from kvorum.wire.frames import UNLIMITED_STREAMS
from proxy.config import (
    Config,
    Keepalive,
    ListenTls,
    StartFailed,
    UpstreamTls,
    check,
    read_endpoints,
    read_metrics_addr,
)

TLS_VERSIONS: Final = ("TLS1.2", "TLS1.3")

DEFAULT_SEND_BYTES: Final = 2 << 20
DEFAULT_RECV_BYTES: Final = 2**31 - 1
"""What the Go client takes for 0 and less; its server takes 0 streams for any number."""


@click.group(name="grpc-proxy", context_settings=HELP)
def grpc_proxy() -> None:
    """The gRPC proxy: many clients, few connections and streams to the members."""


@grpc_proxy.command(cls=Command, context_settings=HELP)
@strings("--endpoints", ["127.0.0.1:2379"], "The members, comma separated.")
@duration("--endpoints-auto-sync-interval", "0", "Ask the cluster for its members this often; 0: never.")
@string("--discovery-srv", "", "DNS domain whose SRV records name the members, instead of --endpoints.")
@string("--discovery-srv-name", "", "Suffix of the names of the services in DNS.")
@switch("--insecure-discovery", "Take members without TLS from SRV records too.")
@string("--listen-addr", "127.0.0.1:23790", "Where clients connect to: host:port or unix://PATH.")
@number("--workers", INT, 1, "Processes that serve together on --listen-addr.")
@string("--metrics-addr", "", "URL of one more listener for /metrics and /health, as http://host:port.")
@string("--namespace", "", "Prefix of all keys, which clients do not see.")
@string("--namespaces-file", "", "YAML file that maps users, certificates or authorities to namespaces and limits.")
@string("--advertise-client-url", "127.0.0.1:23790", "Address that clients reach this proxy at, to register.")
@string("--resolver-prefix", "", "Prefix under which the proxies of a cluster register.")
@number("--resolver-ttl", INT, 0, "Seconds for which a registration outlives its proxy.")
@string("--data-dir", "default.proxy", "Directory of generated certificates.")
@string("--cert", "", "Certificate file (PEM) to show to members.")
@string("--key", "", "Its key file.")
@string("--cacert", "", "Authorities (PEM) that the members' certificates must come from.")
@switch("--insecure-skip-tls-verify", "Take any certificate from members. For tests only.")
@string("--cert-file", "", "Certificate file (PEM) to show to clients.")
@string("--key-file", "", "Its key file.")
@string("--trusted-ca-file", "", "Authorities (PEM) that every client's certificate must come from.")
@strings("--listen-cipher-suites", [], "TLS 1.2 cipher suites towards clients, comma separated.")
@switch("--auto-tls", "Serve clients with a certificate that the proxy makes itself.")
@string("--client-crl-file", "", "Not supported.")
@number("--self-signed-cert-validity", UINT, 1, "Years for which a generated certificate is valid.")
@string("--tls-min-version", "TLS1.2", "Least TLS version towards clients: TLS1.2 or TLS1.3.")
@string("--tls-max-version", "", "Greatest TLS version towards clients; empty: any.")
@duration("--dial-keepalive-time", "0", "Ping a member after this much silence; 0: never.")
@duration("--dial-keepalive-timeout", "20s", "Silence after such a ping that ends the connection.")
@switch("--permit-without-stream", "Ping members also while no call is open.")
@duration("--grpc-keepalive-min-time", "5s", "Least time between the pings of a client.")
@duration("--grpc-keepalive-interval", "2h", "Ping a client after this much silence; 0: never.")
@duration("--grpc-keepalive-timeout", "20s", "Silence after such a ping that ends the connection.")
@number("--max-send-bytes", INT, 1572864, "Largest request that is passed on, without 512 KiB for gRPC.")
@number("--max-recv-bytes", INT, DEFAULT_RECV_BYTES, "Largest reply that is taken from a member.")
@number("--max-concurrent-streams", UINT32, UNLIMITED_STREAMS, "Calls that one client connection may have open.")
@switch("--experimental-serializable-ordering", "Serializable reads never go back in time, whichever member answers.")
@string("--experimental-leasing-prefix", "", "Prefix of the leases on keys that this proxy answers reads of itself.")
@switch("--experimental-enable-grpc-logging", "Not supported.")
@switch("--debug", "Log at debug level.")
def start(**flags: Any) -> int:
    """Start the proxy."""
    try:
        config = read(flags)
        check(config)
        from proxy.workers import serve  # after the flags are known to be right: it loads the rest

        return serve(config, Logger.open(LogSettings(level=Level.DEBUG if config.debug else Level.INFO)))
    except StartFailed as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_FAILED


def read(flags: dict[str, Any]) -> Config:
    """Flags by their names with underscores to settings. Raises StartFailed."""
    for name in ("client_crl_file", "experimental_enable_grpc_logging"):
        if flags[name]:
            raise StartFailed(f"--{name.replace('_', '-')} is not supported")
    return Config(
        endpoints=() if flags["discovery_srv"] else read_endpoints(flags["endpoints"]),
        endpoints_auto_sync_interval_s=flags["endpoints_auto_sync_interval"] / 1e9,
        discovery_srv=flags["discovery_srv"],
        discovery_srv_name=flags["discovery_srv_name"],
        insecure_discovery=flags["insecure_discovery"],
        listen_addr=flags["listen_addr"],
        metrics_addr=read_metrics_addr(flags["metrics_addr"]),
        advertise_client_url=flags["advertise_client_url"],
        resolver_prefix=flags["resolver_prefix"],
        resolver_ttl_s=flags["resolver_ttl"],
        namespace=flags["namespace"],
        namespaces_file=flags["namespaces_file"],
        data_dir=flags["data_dir"],
        upstream_tls=UpstreamTls(
            cert_file=flags["cert"],
            key_file=flags["key"],
            ca_file=flags["cacert"],
            skip_verify=flags["insecure_skip_tls_verify"],
        ),
        listen_tls=_listen_tls(flags),
        auto_tls=flags["auto_tls"] and not (flags["cert_file"] or flags["key_file"]),
        self_signed_cert_validity_years=flags["self_signed_cert_validity"],
        keepalive=Keepalive(
            dial_time_s=flags["dial_keepalive_time"] / 1e9 or None,
            dial_timeout_s=flags["dial_keepalive_timeout"] / 1e9,
            permit_without_stream=flags["permit_without_stream"],
            min_time_s=flags["grpc_keepalive_min_time"] / 1e9,
            interval_s=flags["grpc_keepalive_interval"] / 1e9 or float("inf"),
            timeout_s=flags["grpc_keepalive_timeout"] / 1e9 or float("inf"),
        ),
        max_send_bytes=flags["max_send_bytes"] if flags["max_send_bytes"] > 0 else DEFAULT_SEND_BYTES,
        max_recv_bytes=flags["max_recv_bytes"] if flags["max_recv_bytes"] > 0 else DEFAULT_RECV_BYTES,
        max_concurrent_streams=flags["max_concurrent_streams"] or UNLIMITED_STREAMS,
        serializable_ordering=flags["experimental_serializable_ordering"],
        leasing_prefix=flags["experimental_leasing_prefix"],
        workers=flags["workers"],
        debug=flags["debug"],
    )


def _listen_tls(flags: dict[str, Any]) -> ListenTls | None:
    cert_file, key_file = flags["cert_file"], flags["key_file"]
    if not (cert_file or key_file):
        if not flags["auto_tls"]:
            for name in ("trusted_ca_file", "listen_cipher_suites"):
                if flags[name]:
                    raise StartFailed(f"--{name.replace('_', '-')} needs --cert-file and --key-file")
            return None
        cert_file = f"{flags['data_dir']}/fixtures/proxy/cert.pem"
        key_file = f"{flags['data_dir']}/fixtures/proxy/key.pem"
    if bool(cert_file) != bool(key_file):
        raise StartFailed(f"KeyFile and CertFile must both be present[key: {key_file}, cert: {cert_file}]")
    least, most = flags["tls_min_version"], flags["tls_max_version"]
    for version in (least, most):
        if version and version not in TLS_VERSIONS:
            raise StartFailed(f'unexpected TLS version "{version}" (must be one of: TLS1.2, TLS1.3)')
    if most and most < (least or TLS_VERSIONS[0]):
        raise StartFailed(f"min version ({least}) is greater than max version ({most})")
    if least == "TLS1.3" and flags["listen_cipher_suites"]:
        raise StartFailed("cipher suites cannot be configured when only TLS1.3 is enabled")
    try:
        ciphers = openssl_ciphers(flags["listen_cipher_suites"])
    except ValueError as error:
        raise StartFailed(str(error)) from None
    return ListenTls(
        cert_file=cert_file,
        key_file=key_file,
        trusted_ca_file=flags["trusted_ca_file"],
        ciphers=ciphers,
        min_version=least or TLS_VERSIONS[0],
        max_version=most,
    )


def main(arguments: Sequence[str]) -> NoReturn:
    """Run `grpc-proxy` with these arguments, and end the process as it should end."""
    status = run(grpc_proxy, arguments, "kvorum grpc-proxy")
    if status < 0:
        die_by(-status)
    sys.exit(max(status, 0))
