"""Every flag of a member: its name, type, default, group, what kvorum does with it, and one line of help.

One row per flag. Names, types and defaults are the reference's; the environment variable and the key in the
configuration file follow from the name.
"""

from enum import Enum
from typing import Final, NamedTuple

from node.flags.values import Kind

S, B, INT, U, U32, D, URLS, LIST = (
    Kind.STRING,
    Kind.BOOL,
    Kind.INT,
    Kind.UINT,
    Kind.UINT32,
    Kind.DURATION,
    Kind.URLS,
    Kind.STRINGS,
)


class Standing(Enum):
    """What kvorum does with a flag."""

    SUPPORTED = "supported"
    NOT_YET = "not yet"
    """Refused by name when it is given another value than its default."""
    NO_MEANING = "no meaning"
    """Turns something inside the reference server that kvorum has not: accepted with a warning."""


YES, NOT_YET, NO_MEANING = Standing.SUPPORTED, Standing.NOT_YET, Standing.NO_MEANING


class Flag(NamedTuple):
    """One flag. `default` is written as a user would write it; `choices` empty means any value."""

    name: str
    kind: Kind
    default: str
    standing: Standing
    help: str
    choices: tuple[str, ...] = ()

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return "ETCD_" + self.name.upper().replace("-", "_")


MEMBER: Final = (
    Flag("name", S, "default", YES, "A name for this member that people can read; unique in the cluster."),
    Flag("data-dir", S, "", YES, "Directory of all data. Empty: <name>.kvorum in the working directory."),
    Flag("wal-dir", S, "", YES, "Directory of the write-ahead log alone. Empty: inside the data directory."),
    Flag("listen-peer-urls", URLS, "http://localhost:2380", YES, "Where to listen for other members."),
    Flag("listen-client-urls", URLS, "http://localhost:2379", YES, "Where to listen for clients: gRPC and HTTP."),
    Flag("listen-client-http-urls", URLS, "", YES, "Where to serve HTTP alone; the client URLs then serve gRPC alone."),
    Flag("listen-metrics-urls", URLS, "", YES, "Further places to serve /metrics and the health checks."),
    Flag("front-workers", U, "1", YES, "kvorum's own: processes that serve client connections."),
    Flag("max-wals", U, "5", YES, "Log files kept when the log is cut; 0 keeps all."),
    Flag("max-snapshots", U, "5", NO_MEANING, "Deprecated: snapshot files kept; kvorum has none to keep."),
    Flag("snapshot-count", U, "10000", YES, "Applied entries after which the log is cut at a snapshot."),
    Flag("heartbeat-interval", U, "100", YES, "Milliseconds between a leader's heartbeats."),
    Flag("election-timeout", U, "1000", YES, "Milliseconds without a leader after which a member campaigns."),
    Flag("initial-election-tick-advance", B, "true", YES, "Shorten the first election's wait after a start."),
    Flag("quota-backend-bytes", INT, "0", YES, "Size of the data above which writes are refused; 0 is 2 GiB."),
    Flag("backend-bbolt-freelist-type", S, "", NO_MEANING, "Storage engine of the reference: kind of free list."),
    Flag("backend-batch-interval", D, "100ms", NO_MEANING, "Storage engine of the reference: time between commits."),
    Flag("backend-batch-limit", INT, "10000", NO_MEANING, "Storage engine of the reference: writes between commits."),
    Flag("max-txn-ops", U, "128", YES, "Operations that one transaction may have."),
    Flag("max-request-bytes", U, "1572864", YES, "Size that one request may have."),
    Flag("max-concurrent-streams", U32, "4294967295", YES, "Streams that one client connection may have open."),
    Flag("grpc-keepalive-min-time", D, "5s", YES, "Least time between two pings of a client."),
    Flag("grpc-keepalive-interval", D, "2h", YES, "Idle time after which the server pings a client; 0: never."),
    Flag("grpc-keepalive-timeout", D, "20s", YES, "Time that a client has to answer a ping before it is cut off."),
    Flag("socket-reuse-port", B, "false", YES, "Set SO_REUSEPORT on listeners, so that processes may share a port."),
    Flag("socket-reuse-address", B, "false", YES, "Set SO_REUSEADDR on listeners (kvorum always does)."),
    Flag("raft-read-timeout", D, "5s", NOT_YET, "Time that a read from another member's connection may take."),
    Flag("raft-write-timeout", D, "5s", NOT_YET, "Time that a write to another member's connection may take."),
)

CLUSTERING: Final = (
    Flag(
        "initial-advertise-peer-urls",
        URLS,
        "http://localhost:2380",
        YES,
        "This member's peer URLs as the others are told them.",
    ),
    Flag(
        "advertise-client-urls",
        URLS,
        "http://localhost:2379",
        YES,
        "This member's client URLs as clients are told them; required beside --listen-client-urls.",
    ),
    Flag(
        "initial-cluster", S, "", YES, "All first members, NAME=URL,…; empty: this one with its advertised peer URLs."
    ),
    Flag(
        "initial-cluster-state",
        S,
        "new",
        YES,
        "Form a cluster (new) or join one (existing).",
        choices=("new", "existing"),
    ),
    Flag("initial-cluster-token", S, "etcd-cluster", YES, "Makes the ids of clusters with the same URLs differ."),
    Flag("strict-reconfig-check", B, "true", YES, "Refuse membership changes that would lose the quorum."),
    Flag("pre-vote", B, "true", YES, "Ask for votes on trial before an election, so that a rejoin disturbs nobody."),
    Flag("max-learners", INT, "1", YES, "Learners that the cluster may have at a time."),
    Flag("snapshot-catchup-entries", U, "5000", YES, "Entries kept behind a snapshot for slow followers."),
    Flag("discovery-endpoints", LIST, "", NOT_YET, "Endpoints of a cluster that helps this one to form."),
    Flag("discovery-token", S, "", NOT_YET, "Names the cluster to be formed at the discovery endpoints."),
    Flag("discovery-dial-timeout", D, "2s", NOT_YET, "Discovery: time to connect."),
    Flag("discovery-request-timeout", D, "5s", NOT_YET, "Discovery: time for a request."),
    Flag("discovery-keepalive-time", D, "2s", NOT_YET, "Discovery: time between pings."),
    Flag("discovery-keepalive-timeout", D, "6s", NOT_YET, "Discovery: time for an answer to a ping."),
    Flag("discovery-insecure-transport", B, "true", NOT_YET, "Discovery: connect without TLS."),
    Flag(
        "discovery-insecure-skip-tls-verify", B, "false", NOT_YET, "Discovery: do not check the server's certificate."
    ),
    Flag("discovery-cert", S, "", NOT_YET, "Discovery: file of the client certificate."),
    Flag("discovery-key", S, "", NOT_YET, "Discovery: file of the client key."),
    Flag("discovery-cacert", S, "", NOT_YET, "Discovery: file of the authority's certificate."),
    Flag("discovery-user", S, "", NOT_YET, "Discovery: user:password."),
    Flag("discovery-password", S, "", NOT_YET, "Discovery: password."),
    Flag("discovery-srv", S, "", YES, "DNS domain whose SRV records name the first members."),
    Flag("discovery-srv-name", S, "", YES, "Suffix of the service's name in those records."),
    Flag("discovery-fallback", S, "exit", NOT_YET, "What happens when discovery fails: exit.", choices=("exit",)),
)

SECURITY: Final = (
    Flag("cert-file", S, "", YES, "File of the certificate shown to clients (PEM)."),
    Flag("key-file", S, "", YES, "File of its key (PEM)."),
    Flag("client-cert-auth", B, "false", YES, "Ask clients for a certificate."),
    Flag("trusted-ca-file", S, "", YES, "File of the authorities that client certificates must come from (PEM)."),
    Flag("auto-tls", B, "false", YES, "Serve clients with a certificate that the member makes itself."),
    Flag("self-signed-cert-validity", U, "1", YES, "Years that such a certificate is valid."),
    Flag("client-cert-file", S, "", NOT_YET, "File of a separate certificate for the member's own client calls."),
    Flag("client-key-file", S, "", NOT_YET, "File of its key."),
    Flag("client-crl-file", S, "", NOT_YET, "File of revoked client certificates."),
    Flag("client-cert-allowed-hostname", LIST, "", NOT_YET, "Host names that a client certificate may have."),
    Flag("cipher-suites", LIST, "", YES, "TLS 1.2 cipher suites, by their IANA names; empty: the library's choice."),
    Flag("tls-min-version", S, "TLS1.2", YES, "Least TLS version: TLS1.2 or TLS1.3."),
    Flag("tls-max-version", S, "", YES, "Greatest TLS version; empty: no limit."),
    Flag("cors", LIST, "*", YES, "Origins that browsers may call from; * is all."),
    Flag("host-whitelist", LIST, "*", YES, "Host names that plain HTTP requests may carry; * is all."),
    Flag("peer-cert-file", S, "", YES, "File of the certificate shown to other members."),
    Flag("peer-key-file", S, "", YES, "File of its key."),
    Flag("peer-client-cert-file", S, "", YES, "File of a separate certificate for calls to other members."),
    Flag("peer-client-key-file", S, "", YES, "File of its key."),
    Flag("peer-client-cert-auth", B, "false", YES, "Ask other members for a certificate."),
    Flag("peer-trusted-ca-file", S, "", YES, "File of the authorities that members' certificates come from."),
    Flag("peer-auto-tls", B, "false", YES, "Talk to other members with a certificate made by the member itself."),
    Flag("peer-crl-file", S, "", NOT_YET, "File of revoked certificates of members."),
    Flag("peer-cert-allowed-cn", LIST, "", YES, "Common names that a member's certificate may have."),
    Flag("peer-cert-allowed-hostname", LIST, "", YES, "Host names that a member's certificate may have."),
    Flag("peer-skip-client-san-verification", B, "false", YES, "Do not compare a member's address and certificate."),
)

LOGGING: Final = (
    Flag("logger", S, "zap", YES, "Form of the log; zap (structured lines) is the only one."),
    Flag("log-outputs", LIST, "default", YES, "default, stderr, stdout, systemd/journal, or files."),
    Flag("log-level", S, "info", YES, "debug, info, warn, error, panic or fatal."),
    Flag("log-format", S, "json", YES, "json or console."),
    Flag("enable-log-rotation", B, "false", NOT_YET, "Rotate the log's file."),
    Flag(
        "log-rotation-config-json",
        S,
        '{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}',
        NOT_YET,
        "How to rotate it.",
    ),
)

AUTH: Final = (
    Flag("auth-token", S, "simple", NOT_YET, "Kind of tokens: simple, or jwt with its options."),
    Flag("bcrypt-cost", U, "10", NOT_YET, "Cost of password hashes, 4 to 31."),
    Flag("auth-token-ttl", U, "300", NOT_YET, "Seconds that a simple token lives."),
)

SERVICE: Final = (
    Flag("enable-grpc-gateway", B, "true", YES, "Serve the API as JSON over HTTP too."),
    Flag("auto-compaction-mode", S, "periodic", YES, "What the retention counts: periodic (time) or revision."),
    Flag("auto-compaction-retention", S, "0", YES, "History kept: hours, a duration, or revisions; 0 keeps all."),
    Flag("compaction-batch-limit", INT, "1000", YES, "Revisions that a compaction deletes at a time."),
    Flag("compaction-sleep-interval", D, "10ms", YES, "Pause between those batches."),
    Flag("watch-progress-notify-interval", D, "10m", YES, "Time between progress messages to an idle watch."),
    Flag("warning-apply-duration", D, "100ms", YES, "Time to apply a request above which the log says so."),
    Flag("warning-unary-request-duration", D, "300ms", YES, "Time of a call above which the log says so."),
    Flag("corrupt-check-time", D, "0s", NOT_YET, "Time between comparisons of the members' data; 0: never."),
    Flag("compact-hash-check-time", D, "1m", NOT_YET, "Time between comparisons of the hashes of compactions."),
    Flag("downgrade-check-time", D, "5s", NOT_YET, "Time between looks at whether a downgrade is finished."),
    Flag("bootstrap-defrag-threshold-megabytes", U, "0", NO_MEANING, "Storage engine of the reference: at start."),
    Flag("memory-mlock", B, "false", NO_MEANING, "Storage engine of the reference: keep its mapped file in memory."),
    Flag("feature-gates", Kind.GATES, "", YES, "Name=true,…: turn single features."),
)

MONITORING: Final = (
    Flag("metrics", S, "basic", YES, "basic, or extensive: with histograms of gRPC calls."),
    Flag("enable-pprof", B, "false", NO_MEANING, "Profiler of the reference's language runtime."),
    Flag("enable-distributed-tracing", B, "false", NOT_YET, "Send traces to a collector."),
    Flag("distributed-tracing-address", S, "localhost:4317", NOT_YET, "The collector's address."),
    Flag("distributed-tracing-service-name", S, "etcd", NOT_YET, "Name of the service in traces."),
    Flag("distributed-tracing-instance-id", S, "", NOT_YET, "Name of the member in traces."),
    Flag("distributed-tracing-sampling-rate", INT, "0", NOT_YET, "Traces per million requests."),
)

UNSAFE: Final = (
    Flag("unsafe-no-fsync", B, "false", YES, "Do not wait for the disk. Data is lost when the machine stops."),
    Flag("force-new-cluster", B, "false", YES, "Keep the data, drop all other members."),
)

START: Final = (
    Flag("config-file", S, "", YES, "YAML file of all settings; other flags and variables are then ignored."),
    Flag("version", B, "false", YES, "Show the versions and exit."),
)

GROUPS: Final = {
    "Member": MEMBER,
    "Clustering": CLUSTERING,
    "Security": SECURITY,
    "Logging": LOGGING,
    "Auth": AUTH,
    "Service": SERVICE,
    "Monitoring and tracing": MONITORING,
    "Unsafe": UNSAFE,
    "Start": START,
}

FLAGS: Final = {flag.name: flag for group in GROUPS.values() for flag in group}

IGNORED: Final = {
    name: Flag(name, Kind.IGNORED, "", YES, "")
    for name in (
        "cluster-active-size",
        "cluster-remove-delay",
        "cluster-sync-interval",
        "config",
        "force",
        "max-result-buffer",
        "max-retry-attempts",
        "peer-heartbeat-interval",
        "peer-election-timeout",
        "retry-interval",
        "snapshot",
        "v",
        "vv",
    )
}
"""Flags of long ago, accepted and ignored (behaviour S44); they take no argument of their own."""
