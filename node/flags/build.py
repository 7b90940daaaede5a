"""From values by flag name to a checked Config."""

from collections.abc import Mapping
from typing import Final

from kvorum.ciphers import openssl_ciphers
from kvorum.durations import parse_duration_ns
from kvorum.log import LEVELS, Level, LogFormat, LogSettings
from kvorum.urls import Url, quote
from node.config import (
    AutoCompaction,
    ClientTls,
    ClusterState,
    CompactionMode,
    Config,
    MetricsDetail,
    PeerTls,
    TlsVersion,
)
from node.flags import checks
from node.flags.checks import CheckFailed, StartFailed
from node.flags.gates import GATES
from node.flags.notes import Note
from node.flags.table import FLAGS, Standing
from node.flags.values import READERS, parse_int

DEFAULT_QUOTA_BYTES: Final = 2 * 1024**3
SUGGESTED_QUOTA_MAX_BYTES: Final = 8 * 1024**3
FRONT_WORKERS_MAX: Final = 64
WITHOUT_TLS: Final = "key and cert files are given but the URL is http or unix; it is served without TLS"
_HOUR_NS: Final = 3_600_000_000_000
_NS_PER_S: Final = 1_000_000_000


class Values:
    """The value of every flag: as given, else its default; typed access by kind."""

    def __init__(self, given: Mapping[str, object]) -> None:
        self.given = given

    def _get(self, name: str) -> object:
        if name in self.given:
            return self.given[name]
        flag = FLAGS[name]
        return READERS[flag.kind](flag.default)

    def text(self, name: str) -> str:
        value = self._get(name)
        assert isinstance(value, str), name
        return value

    def number(self, name: str) -> int:
        """An integer; a duration's nanoseconds."""
        value = self._get(name)
        assert isinstance(value, int), name
        return value

    def duration_s(self, name: str) -> float:
        return self.number(name) / _NS_PER_S

    def switch(self, name: str) -> bool:
        value = self._get(name)
        assert isinstance(value, bool), name
        return value

    def urls(self, name: str) -> tuple[Url, ...]:
        value = self._get(name)
        assert isinstance(value, tuple), name
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = self._get(name)
        assert isinstance(value, tuple), name
        return value

    def gates(self) -> dict[str, bool]:
        value = self._get("feature-gates")
        assert isinstance(value, dict)
        return value


def build_log_settings(values: Values) -> LogSettings:
    """The log's settings alone. Raises CheckFailed."""
    outputs, level, form = values.texts("log-outputs"), values.text("log-level"), values.text("log-format")
    checks.check_logging(values.text("logger"), outputs, level, form)
    return LogSettings(LEVELS[level.lower()], LogFormat(form), outputs)


def build_config(values: Values, log: LogSettings) -> tuple[Config, list[Note]]:
    """Check everything, in the reference's order, and make the Config with what is to be logged about it.

    Raises CheckFailed and StartFailed.
    """
    given = values.given
    peers, clients = values.urls("listen-peer-urls"), values.urls("listen-client-urls")
    http_only, metrics = values.urls("listen-client-http-urls"), values.urls("listen-metrics-urls")
    for urls in (peers, clients, http_only, metrics):
        checks.check_bind_urls(urls)
    advertise_peers, advertise_clients = (
        values.urls("initial-advertise-peer-urls"),
        values.urls("advertise-client-urls"),
    )
    checks.check_host_urls("initial-advertise-peer-urls", advertise_peers)
    checks.check_host_urls("advertise-client-urls", advertise_clients)
    checks.check_bootstrap(given)
    checks.check_timing(values.number("heartbeat-interval"), values.number("election-timeout"))
    checks.check_advertised(given)
    mode = values.text("auto-compaction-mode")
    if mode not in tuple(CompactionMode):
        raise CheckFailed(f"unknown auto-compaction-mode {quote(mode)}")
    state = values.text("initial-cluster-state")
    if state not in tuple(ClusterState):
        raise CheckFailed(f"unexpected clusterState {quote(state)}")
    gates = values.gates()
    checks.check_gates(gates)
    for flag in ("compact-hash-check-time", "watch-progress-notify-interval"):
        checks.check_positive_duration(flag, values.number(flag))
    checks.check_batch_limit("compaction-batch-limit", values.number("compaction-batch-limit"))
    least, most = values.text("tls-min-version"), values.text("tls-max-version")
    checks.check_tls_versions(least, most, values.texts("cipher-suites"))
    if not 1 <= values.number("front-workers") <= FRONT_WORKERS_MAX:
        raise CheckFailed(f"--front-workers must be 1 to {FRONT_WORKERS_MAX} (set to {values.number('front-workers')})")
    detail = values.text("metrics")
    if detail not in tuple(MetricsDetail):
        raise CheckFailed(f"unknown metrics {quote(detail)}, must be one of: basic, extensive")
    checks.check_standing(given)

    retention = _auto_compaction(CompactionMode(mode), values.text("auto-compaction-retention"))
    try:
        ciphers = openssl_ciphers(values.texts("cipher-suites"))
    except ValueError as error:
        raise StartFailed(str(error)) from None
    name = values.text("name")
    data_dir = values.text("data-dir") or f"{name}.kvorum"
    cert_file, key_file = values.text("cert-file"), values.text("key-file")
    auto_tls = values.switch("auto-tls") and not (cert_file or key_file)
    has_certificate = auto_tls or bool(cert_file and key_file)
    peer_tls = _peer_tls(values, data_dir, ciphers)
    checks.check_peer_listeners(peers, peer_tls)
    checks.check_client_listeners(clients, http_only, metrics, has_certificate)
    if auto_tls:
        cert_file, key_file = f"{data_dir}/fixtures/client/cert.pem", f"{data_dir}/fixtures/client/key.pem"
    secure = any(url.is_secure for url in (*clients, *http_only, *metrics))
    client_tls = ClientTls(
        cert_file=cert_file,
        key_file=key_file,
        trusted_ca_file=values.text("trusted-ca-file"),
        client_cert_auth=values.switch("client-cert-auth"),
        min_version=TlsVersion(least or TlsVersion.TLS12),
        max_version=TlsVersion(most) if most else None,
        cipher_suites=ciphers,
    )
    initial_cluster = values.text("initial-cluster")
    discovery_srv = values.text("discovery-srv")
    cluster = checks.read_initial_cluster(initial_cluster) if initial_cluster else {name: advertise_peers}
    quota = values.number("quota-backend-bytes")
    config = Config(
        name=name,
        data_dir=data_dir,
        wal_dir=values.text("wal-dir"),
        front_workers=values.number("front-workers"),
        listen_client_urls=clients,
        listen_client_http_urls=http_only,
        listen_metrics_urls=metrics,
        listen_peer_urls=peers,
        advertise_client_urls=advertise_clients,
        initial_advertise_peer_urls=advertise_peers,
        initial_cluster=() if discovery_srv else tuple(cluster.items()),
        discovery_srv=discovery_srv,
        discovery_srv_name=values.text("discovery-srv-name"),
        initial_cluster_token=values.text("initial-cluster-token"),
        initial_cluster_state=ClusterState(state),
        force_new_cluster=values.switch("force-new-cluster"),
        strict_reconfig_check=values.switch("strict-reconfig-check"),
        max_learners=values.number("max-learners"),
        heartbeat_interval_s=values.number("heartbeat-interval") / 1000,
        election_timeout_s=values.number("election-timeout") / 1000,
        initial_election_tick_advance=values.switch("initial-election-tick-advance"),
        pre_vote=values.switch("pre-vote"),
        snapshot_count=values.number("snapshot-count"),
        snapshot_catchup_entries=values.number("snapshot-catchup-entries"),
        max_wals=values.number("max-wals"),
        unsafe_no_fsync=values.switch("unsafe-no-fsync"),
        quota_backend_bytes=None if quota < 0 else quota or DEFAULT_QUOTA_BYTES,
        max_txn_ops=values.number("max-txn-ops"),
        max_request_bytes=values.number("max-request-bytes"),
        max_concurrent_streams=values.number("max-concurrent-streams"),
        grpc_keepalive_min_time_s=values.duration_s("grpc-keepalive-min-time"),
        grpc_keepalive_interval_s=values.duration_s("grpc-keepalive-interval"),
        grpc_keepalive_timeout_s=values.duration_s("grpc-keepalive-timeout"),
        socket_reuse_port=values.switch("socket-reuse-port"),
        socket_reuse_address=values.switch("socket-reuse-address"),
        client_tls=client_tls if secure else None,
        peer_tls=peer_tls,
        auto_tls=auto_tls,
        self_signed_cert_validity_years=values.number("self-signed-cert-validity"),
        cors=frozenset(values.texts("cors")),
        host_whitelist=frozenset(values.texts("host-whitelist")),
        enable_grpc_gateway=values.switch("enable-grpc-gateway"),
        auto_compaction=retention,
        compaction_batch_limit=values.number("compaction-batch-limit"),
        compaction_sleep_interval_s=values.duration_s("compaction-sleep-interval"),
        watch_progress_notify_interval_s=values.duration_s("watch-progress-notify-interval"),
        warning_apply_duration_s=values.duration_s("warning-apply-duration"),
        warning_unary_request_duration_s=values.duration_s("warning-unary-request-duration"),
        metrics=MetricsDetail(detail),
        feature_gates=frozenset(name for name, on in gates.items() if on),
        log=log,
    )
    return config, _warnings(values, config, cert_file or key_file)


def _peer_tls(values: Values, data_dir: str, ciphers: tuple[str, ...]) -> PeerTls:
    """Raises StartFailed where files or rules do not fit together."""
    cert_file, key_file = values.text("peer-cert-file"), values.text("peer-key-file")
    client_cert_file, client_key_file = values.text("peer-client-cert-file"), values.text("peer-client-key-file")
    cns, hostnames = values.texts("peer-cert-allowed-cn"), values.texts("peer-cert-allowed-hostname")
    checks.check_peer_tls((cert_file, key_file), (client_cert_file, client_key_file), cns, hostnames)
    auto = values.switch("peer-auto-tls") and not cert_file
    if auto:
        cert_file, key_file = f"{data_dir}/fixtures/peer/cert.pem", f"{data_dir}/fixtures/peer/key.pem"
    most = values.text("tls-max-version")
    return PeerTls(
        cert_file=cert_file,
        key_file=key_file,
        client_cert_file=client_cert_file or cert_file,
        client_key_file=client_key_file or key_file,
        trusted_ca_file=values.text("peer-trusted-ca-file"),
        client_cert_auth=values.switch("peer-client-cert-auth"),
        allowed_cns=cns,
        allowed_hostnames=hostnames,
        skip_client_san_verification=values.switch("peer-skip-client-san-verification"),
        auto=auto,
        min_version=TlsVersion(values.text("tls-min-version") or TlsVersion.TLS12),
        max_version=TlsVersion(most) if most else None,
        cipher_suites=ciphers,
    )


def _auto_compaction(mode: CompactionMode, text: str) -> AutoCompaction:
    """Read the retention (C12-C14): a bare number counts hours or revisions; anything else is a duration.

    A duration given to the mode `revision` counts its nanoseconds as revisions, as the reference does.
    """
    try:
        count = parse_int(text) if text.isascii() and text.lstrip("+-").isdigit() else -1
    except ValueError:
        count = -1
    if count < 0:
        try:
            count = parse_duration_ns(text)
        except ValueError:
            raise StartFailed(f"error parsing CompactionRetention: time: invalid duration {quote(text)}") from None
    elif mode is CompactionMode.PERIODIC:
        count *= _HOUR_NS
    if mode is CompactionMode.PERIODIC:
        return AutoCompaction(mode, count / _NS_PER_S, 0)
    return AutoCompaction(mode, 0.0, count)


def _warnings(values: Values, config: Config, tls_file: str) -> list[Note]:
    notes = [
        Note(Level.WARN, "flag has no meaning in kvorum and is ignored", {"flag": "--" + name})
        for name in values.given
        if FLAGS[name].standing is Standing.NO_MEANING
    ]
    gates = values.gates()
    fixed = [name for name, gate in GATES.items() if gate.inherent and gates[name] != gate.default]
    notes += [
        Note(Level.WARN, "feature gate has no meaning in kvorum and is ignored", {"gate": name}) for name in fixed
    ]
    if config.name == "default":
        msg = (
            "it isn't recommended to use default name, please set a value for --name. "
            "Members of one cluster need different names"
        )
        notes.append(Note(Level.WARN, msg, {}))
    if not values.text("data-dir"):
        notes.append(Note(Level.WARN, "'data-dir' was empty; using default", {"data_dir": config.data_dir}))
    quota = config.quota_backend_bytes
    if quota is not None and quota > SUGGESTED_QUOTA_MAX_BYTES:
        fields = {"quota_size_bytes": quota, "suggested_max_bytes": SUGGESTED_QUOTA_MAX_BYTES}
        notes.append(Note(Level.WARN, "quota exceeds the maximum that is suggested", fields))
    if values.switch("auto-tls") and not config.auto_tls:
        notes.append(Note(Level.WARN, "ignoring client auto TLS since certs given", {}))
    peer_tls = config.peer_tls
    if values.switch("peer-auto-tls") and not peer_tls.auto:
        notes.append(Note(Level.WARN, "ignoring peer auto TLS since certs given", {}))
    for url in (*config.listen_client_urls, *config.listen_client_http_urls):
        if tls_file and not url.is_secure:
            notes.append(Note(Level.WARN, WITHOUT_TLS, {"client_url": str(url)}))
    for url in config.listen_peer_urls:
        if peer_tls.cert_file and not url.is_secure:
            notes.append(Note(Level.WARN, WITHOUT_TLS, {"peer_url": str(url)}))
    return notes
