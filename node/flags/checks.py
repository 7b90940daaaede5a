"""The checks on a member's settings, in the order and with the texts of the reference (behaviour S16-S36)."""

from collections.abc import Mapping, Sequence
from typing import Final, Never

from kvorum.durations import format_duration
from kvorum.log import DEFAULT, LEVELS
from kvorum.urls import Url, is_ip, parse_url, quote
from node.config import PeerTls
from node.flags.gates import GATES
from node.flags.table import FLAGS, Standing
from node.flags.values import READERS
from node.peer_urls import quoted

ELECTION_TIMEOUT_MAX_MS: Final = 50_000


class CheckFailed(Exception):
    """Settings that cannot be: logged as `failed to verify flags`, exit 1 (behaviour S16)."""


class StartFailed(Exception):
    """A member that cannot start: logged as `discovery failed`, exit 1 (behaviour S17).

    `bare`: the text goes to standard error as it is, without a line of the log.
    """

    def __init__(self, text: str, bare: bool = False) -> None:
        super().__init__(text)
        self.bare = bare


def _refuse(text: str) -> Never:
    raise CheckFailed(text)


def check_logging(logger: str, outputs: Sequence[str], level: str, form: str) -> None:
    """The log's own flags come first: the other failures need it."""
    if logger != "zap":
        _refuse(f"unknown logger option {quote(logger)}")
    if len(outputs) > 1 and DEFAULT in outputs:
        _refuse(f"multi logoutput for {quote(DEFAULT)} is not supported yet")
    if level.lower() not in LEVELS:
        _refuse(f"unrecognized level: {quote(level)}")
    if form not in ("json", "console"):
        _refuse(f"unknown log format: {quote(form)}, supported values json, console")


def check_bind_urls(urls: Sequence[Url]) -> None:
    """A listener needs an address of this machine, not a name, except localhost (S21)."""
    for url in urls:
        if not url.is_unix and url.address[0] != "localhost" and not is_ip(url.address[0]):
            _refuse(f"expected IP in URL for binding ({url})")


def check_host_urls(flag: str, urls: Sequence[Url]) -> None:
    """What is advertised needs a host."""
    for url in urls:
        if not url.is_unix and not url.address[0]:
            text = quote(",".join(map(str, urls)))
            _refuse(f'--{flag} {text} must be "host:port" (unexpected empty host ({url}))')


def check_bootstrap(given: Mapping[str, object]) -> None:
    """At most one way to find the first members (S23, S27)."""
    ways = [name for name in ("initial-cluster", "discovery-endpoints", "discovery-srv") if given.get(name)]
    if len(ways) > 1:
        _refuse(
            "multiple discovery or bootstrap flags are set. "
            'Choose one of "initial-cluster", "discovery-endpoints" or "discovery-srv"'
        )
    endpoints, token = given.get("discovery-endpoints"), given.get("discovery-token")
    if endpoints and isinstance(endpoints, tuple) and "" in endpoints:
        _refuse("--discovery-endpoints must not contain empty endpoints")
    if bool(endpoints) != bool(token):
        _refuse("both --discovery-token and --discovery-endpoints must be set")


def check_timing(heartbeat_ms: int, election_ms: int) -> None:
    """The election must be several heartbeats long, and end some day (S18, S19)."""
    if heartbeat_ms == 0:
        _refuse("--heartbeat-interval must be >0 (set to 0ms)")
    if election_ms == 0:
        _refuse("--election-timeout must be >0 (set to 0ms)")
    if 5 * heartbeat_ms > election_ms:
        _refuse(
            f"--election-timeout[{election_ms}ms] should be at least as 5 times "
            f"as --heartbeat-interval[{heartbeat_ms}ms]"
        )
    if election_ms > ELECTION_TIMEOUT_MAX_MS:
        _refuse(
            f"--election-timeout[{election_ms}ms] is too long, and should be set less than {ELECTION_TIMEOUT_MAX_MS}ms"
        )


def check_advertised(given: Mapping[str, object]) -> None:
    """Who listens elsewhere must say where clients find it (S20)."""
    if "listen-client-urls" in given and not given.get("advertise-client-urls"):
        _refuse("--advertise-client-urls is required when --listen-client-urls is set explicitly")


def check_gates(gates: Mapping[str, bool]) -> None:
    """Gates that need another one (S28)."""
    if gates["LeaseCheckpointPersist"] and not gates["LeaseCheckpoint"]:
        _refuse("enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint")


def check_positive_duration(flag: str, duration_ns: int) -> None:
    """S29."""
    if duration_ns <= 0:
        _refuse(f"--{flag} must be >0 (set to {format_duration(duration_ns)})")


def check_batch_limit(flag: str, number: int) -> None:
    """A batch of nothing would never come to an end."""
    if number <= 0:
        _refuse(f"--{flag} must be >0 (set to {number})")


def check_tls_versions(least: str, most: str, cipher_suites: Sequence[str]) -> None:
    """S30."""
    for version in (least, most):
        if version not in ("", "TLS1.2", "TLS1.3"):
            _refuse(f"unexpected TLS version {quote(version)}, must be one of: TLS1.2, TLS1.3")
    if most and least > most:
        _refuse(f"min version ({least}) is greater than max version ({most})")
    if least == "TLS1.3" and cipher_suites:
        _refuse("cipher suites cannot be configured when only TLS1.3 is enabled")


def check_standing(given: Mapping[str, object]) -> None:
    """Flags and gates that kvorum does not have yet are refused, never ignored."""
    for name, value in given.items():
        flag = FLAGS[name]
        if flag.standing is Standing.NOT_YET and value != READERS[flag.kind](flag.default):
            _refuse(f"--{name} is not supported by kvorum yet")
    gates = given.get("feature-gates")
    if isinstance(gates, dict):
        for name, state in gates.items():
            if state != GATES[name].default and not GATES[name].inherent:
                _refuse(f"feature gate {name} is not supported by kvorum yet")


def check_peer_tls(
    files: tuple[str, str], client_files: tuple[str, str], cns: Sequence[str], hostnames: Sequence[str]
) -> None:
    """Certificate and key come together; names are asked for in one way. Raises StartFailed."""
    cert, key = files
    if bool(cert) != bool(key):
        raise StartFailed(f"KeyFile and CertFile must both be present[key: {key}, cert: {cert}]")
    cert, key = client_files
    if bool(cert) != bool(key):
        raise StartFailed(
            f"ClientKeyFile and ClientCertFile must both be present or both absent: key: {key}, cert: {cert}]"
        )
    if cns and hostnames:
        given = f"cns={quoted(cns)}, hostnames={quoted(hostnames)}"
        raise StartFailed(f"AllowedCNs and AllowedHostnames are mutually exclusive ({given})")


def check_peer_listeners(peers: Sequence[Url], tls: PeerTls) -> None:
    """S34 for peer URLs. Raises StartFailed."""
    for url in peers:
        if url.is_secure and not tls.cert_file:
            raise StartFailed(f"cannot listen on TLS for {url.host}: KeyFile and CertFile are not presented")


def check_client_listeners(
    clients: Sequence[Url], http_only: Sequence[Url], metrics: Sequence[Url], has_certificate: bool
) -> None:
    """What the listeners need that only shows when they are made (S34, S36). Raises StartFailed."""
    for url in http_only:
        if url in clients:
            raise StartFailed(
                f"cannot bind both --listen-client-urls and --listen-client-http-urls on the same url {url}"
            )
    for url in (*clients, *http_only):
        if url.is_secure and not has_certificate:
            raise StartFailed(
                f"TLS key/cert (--cert-file, --key-file) must be provided for client url {url} with HTTPS scheme"
            )
    for url in metrics:
        if url.is_secure and not has_certificate:
            raise StartFailed("client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url")


def read_initial_cluster(text: str) -> dict[str, tuple[Url, ...]]:
    """Read `NAME=URL,NAME=URL,…`; a name may come several times. Raises StartFailed."""
    urls: dict[str, set[Url]] = {}
    for part in text.split(","):
        name, _, url = part.strip().partition("=")
        try:
            urls.setdefault(name, set()).add(parse_url(url))
        except ValueError as error:
            raise StartFailed(f"error setting up initial cluster: {error}") from None
    return {name: tuple(sorted(urls[name], key=str)) for name in sorted(urls)}


def cluster_text(cluster: Mapping[str, Sequence[Url]]) -> str:
    """The members as `--initial-cluster` writes them, sorted."""
    return ",".join(sorted(f"{name}={url}" for name, urls in cluster.items() for url in urls))
