"""What a proxy is told to do, and the checks of it that need nothing but the values (PX26)."""

from __future__ import annotations

from dataclasses import dataclass

from kvorum.urls import Url, parse_url, split_host_port
from proxy.upstream.endpoints import Endpoint, parse_endpoint


class StartFailed(Exception):
    """The proxy cannot start; the text is all that is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamTls:
    """TLS towards the members: files, and whether their certificates are looked at."""

    cert_file: str
    key_file: str
    ca_file: str
    skip_verify: bool

    @property
    def wanted(self) -> bool:
        """Whether endpoints without a scheme speak TLS."""
        return bool(self.cert_file or self.key_file or self.ca_file or self.skip_verify)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenTls:
    """TLS towards the clients; with `trusted_ca_file` each must show a certificate of that authority."""

    cert_file: str
    key_file: str
    trusted_ca_file: str
    ciphers: tuple[str, ...]
    """OpenSSL's names, TLS 1.2."""
    min_version: str
    max_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Keepalive:
    """Pings: what is sent to members, and what clients may send and get."""

    dial_time_s: float | None
    dial_timeout_s: float
    permit_without_stream: bool
    min_time_s: float
    interval_s: float
    timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of `grpc-proxy start`. Fields are named as the flags are, with units."""

    endpoints: tuple[Endpoint, ...]
    endpoints_auto_sync_interval_s: float
    discovery_srv: str
    discovery_srv_name: str
    insecure_discovery: bool
    listen_addr: str
    """`host:port`, or `unix://PATH`."""
    metrics_addr: Url | None
    advertise_client_url: str
    resolver_prefix: str
    resolver_ttl_s: int
    namespace: str
    """With the bytes of the command line that are no UTF-8 as `os.fsencode` takes them; so are the other prefixes."""
    namespaces_file: str
    data_dir: str
    upstream_tls: UpstreamTls
    listen_tls: ListenTls | None
    auto_tls: bool
    self_signed_cert_validity_years: int
    keepalive: Keepalive
    max_send_bytes: int
    max_recv_bytes: int
    max_concurrent_streams: int
    serializable_ordering: bool
    leasing_prefix: str
    workers: int
    debug: bool


def check(config: Config) -> None:
    """Raises StartFailed."""
    if config.resolver_prefix and config.resolver_ttl_s < 1:
        raise StartFailed(f"invalid resolver-ttl {config.resolver_ttl_s}")
    if not config.resolver_prefix and config.resolver_ttl_s > 0:
        raise StartFailed('invalid resolver-prefix ""')
    if config.resolver_prefix and not config.advertise_client_url:
        raise StartFailed('invalid advertise-client-url ""')
    if not config.endpoints and not config.discovery_srv:
        raise StartFailed("etcdclient: no available endpoints")
    if not config.listen_addr.startswith("unix:"):
        parts = split_host_port(config.listen_addr)
        if parts is None:
            raise StartFailed(f"listen tcp: address {config.listen_addr}: missing port in address")
        port = parts[1]
        if not (port.isascii() and port.isdigit()) or len(port) > 5 or int(port) > 65535:
            raise StartFailed(f"listen tcp: address {port}: invalid port")
    tls = config.upstream_tls
    if bool(tls.cert_file) != bool(tls.key_file):
        raise StartFailed(f"KeyFile and CertFile must both be present[key: {tls.key_file}, cert: {tls.cert_file}]")
    if config.max_recv_bytes < config.max_send_bytes:
        raise StartFailed(
            f"gRPC message recv limit ({config.max_recv_bytes} bytes) must be greater than "
            f"send limit ({config.max_send_bytes} bytes)"
        )
    if config.auto_tls and config.self_signed_cert_validity_years == 0:
        raise StartFailed("selfSignedCertValidity is invalid,it should be greater than 0")
    if config.namespace and config.namespaces_file:
        raise StartFailed("--namespace and --namespaces-file cannot be used together")
    if config.namespaces_file and not config.advertise_client_url:
        # MemberList would send tenants past the proxy.
        raise StartFailed('invalid advertise-client-url "" with --namespaces-file')
    if config.leasing_prefix and config.namespaces_file:
        raise StartFailed("--experimental-leasing-prefix and --namespaces-file cannot be used together")
    if config.workers < 1:
        raise StartFailed(f"invalid workers {config.workers}")
    if config.workers > 1 and (_ends_in_port_0(config.listen_addr) or config.listen_addr.startswith("unix:")):
        raise StartFailed(f"--workers={config.workers} needs a --listen-addr with a port")


def _ends_in_port_0(address: str) -> bool:
    return address.rpartition(":")[2].strip("0") == ""


def read_endpoints(texts: tuple[str, ...]) -> tuple[Endpoint, ...]:
    """Each endpoint once. Raises StartFailed."""
    try:
        return tuple(dict.fromkeys(parse_endpoint(text) for text in texts))
    except ValueError as error:
        raise StartFailed(str(error)) from None


def read_metrics_addr(text: str) -> Url | None:
    """Raises StartFailed."""
    if not text:
        return None
    try:
        return parse_url(text)
    except ValueError as error:
        raise StartFailed(f'cannot parse "{text}": {error}') from None
