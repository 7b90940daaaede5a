"""What a member was told: typed, checked values that every process of it reads.

`node.flags.parse` makes a Config. Field names are those of the flags; a duration ends in `_s` and is in seconds.
"""

from dataclasses import dataclass
from enum import StrEnum

from kvorum.log import LogSettings
from kvorum.urls import Url


class ClusterState(StrEnum):
    """Whether the first start forms a cluster or joins one."""

    NEW = "new"
    EXISTING = "existing"


class CompactionMode(StrEnum):
    """What the retention of automatic compaction counts."""

    PERIODIC = "periodic"
    REVISION = "revision"


class MetricsDetail(StrEnum):
    """`extensive` adds the histograms of gRPC calls."""

    BASIC = "basic"
    EXTENSIVE = "extensive"


class TlsVersion(StrEnum):
    """A TLS protocol version as the flags name it."""

    TLS12 = "TLS1.2"
    TLS13 = "TLS1.3"


@dataclass(frozen=True, slots=True)
class AutoCompaction:
    """Automatic compaction keeps a period's history, or a number of revisions; the other field is 0."""

    mode: CompactionMode
    retention_s: float
    retention_revisions: int

    @property
    def enabled(self) -> bool:
        return self.retention_s > 0 or self.retention_revisions > 0


@dataclass(frozen=True, slots=True)
class ClientTls:
    """TLS on the client and metrics listeners. Files are PEM; `cipher_suites` are OpenSSL's names, () its default."""

    cert_file: str
    key_file: str
    trusted_ca_file: str
    client_cert_auth: bool
    min_version: TlsVersion
    max_version: TlsVersion | None
    cipher_suites: tuple[str, ...]

    @property
    def requires_client_cert(self) -> bool:
        """A file of authorities alone asks for certificates too, as the reference does."""
        return self.client_cert_auth or bool(self.trusted_ca_file)


@dataclass(frozen=True, slots=True)
class PeerTls:
    """TLS between members, on the peer listeners and on connections to other members' https URLs.

    Files are PEM, "" is none (without `cert_file` no peer listener is https or unixs); `cipher_suites` are OpenSSL's
    names, () its default. The `client_` files are what this member shows where it connects; they are `cert_file` and
    `key_file` unless given apart.
    """

    cert_file: str
    key_file: str
    client_cert_file: str
    client_key_file: str
    trusted_ca_file: str
    client_cert_auth: bool
    allowed_cns: tuple[str, ...]
    """Common names that the certificate of a member that connects may have; () is any."""
    allowed_hostnames: tuple[str, ...]
    """Names or addresses of which such a certificate must hold one; () is any. Only one of the two is given."""
    skip_client_san_verification: bool
    """Do not ask that such a certificate names the address that the connection comes from."""
    auto: bool
    """The certificate is one that each member makes itself (--peer-auto-tls): nobody checks another's."""
    min_version: TlsVersion
    max_version: TlsVersion | None
    cipher_suites: tuple[str, ...]

    @property
    def requires_client_cert(self) -> bool:
        """A file of authorities alone asks for certificates too, as the reference does."""
        return self.client_cert_auth or bool(self.trusted_ca_file)


@dataclass(frozen=True, slots=True)
class Config:
    """One member's settings. `data_dir` and `wal_dir` are paths; an empty `wal_dir` means inside `data_dir`."""

    name: str
    data_dir: str
    wal_dir: str
    front_workers: int

    listen_client_urls: tuple[Url, ...]
    listen_client_http_urls: tuple[Url, ...]
    listen_metrics_urls: tuple[Url, ...]
    listen_peer_urls: tuple[Url, ...]
    advertise_client_urls: tuple[Url, ...]
    initial_advertise_peer_urls: tuple[Url, ...]

    initial_cluster: tuple[tuple[str, tuple[Url, ...]], ...]
    """Peer URLs by name; () when the members are found by `discovery_srv`."""
    discovery_srv: str
    """A DNS domain whose SRV records list the first members; "" is none."""
    discovery_srv_name: str
    initial_cluster_token: str
    initial_cluster_state: ClusterState
    force_new_cluster: bool
    """Keep the data and drop all other members."""
    strict_reconfig_check: bool
    max_learners: int

    heartbeat_interval_s: float
    election_timeout_s: float
    initial_election_tick_advance: bool
    """The first election of a member that has not heard of a leader waits for less than an election timeout."""
    pre_vote: bool
    snapshot_count: int
    snapshot_catchup_entries: int
    max_wals: int
    """Files of the log that are kept when it is cut; 0 keeps all."""
    unsafe_no_fsync: bool

    quota_backend_bytes: int | None
    """None: no quota. 0 on the command line is 2 GiB here."""
    max_txn_ops: int
    max_request_bytes: int
    max_concurrent_streams: int
    grpc_keepalive_min_time_s: float
    grpc_keepalive_interval_s: float
    grpc_keepalive_timeout_s: float
    socket_reuse_port: bool
    socket_reuse_address: bool

    client_tls: ClientTls | None
    """None when no client or metrics listener is https or unixs."""
    peer_tls: PeerTls
    auto_tls: bool
    """The certificate of `client_tls` is one that the member makes itself, if its file is not there yet."""
    self_signed_cert_validity_years: int
    cors: frozenset[str]
    host_whitelist: frozenset[str]
    enable_grpc_gateway: bool

    auto_compaction: AutoCompaction
    compaction_batch_limit: int
    compaction_sleep_interval_s: float
    watch_progress_notify_interval_s: float
    warning_apply_duration_s: float
    warning_unary_request_duration_s: float
    metrics: MetricsDetail
    feature_gates: frozenset[str]
    """Names of the gates that are on."""

    log: LogSettings

    @property
    def wal_path(self) -> str:
        """Where the log's segments lie."""
        return self.wal_dir or f"{self.data_dir}/member/wal"

    @property
    def snap_path(self) -> str:
        """Where snapshots lie."""
        return f"{self.data_dir}/member/snap"

    @property
    def db_path(self) -> str:
        """Where apply's database lies."""
        return f"{self.data_dir}/member/db"
