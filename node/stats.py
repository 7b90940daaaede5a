"""The figures a member publishes: every series with its type, labels and buckets, and the histogram that is counted in.

Names, types and labels are those that dashboards and alerts for this API read. A process hands its figures over as a
plain dict, `name -> figure`: a number; for a histogram what `Histogram.snapshot` gives; for a series with labels a list
of `[[label values], number or snapshot]`. Figures of one name from several processes add up.
"""

from __future__ import annotations

from bisect import bisect_left
from enum import StrEnum
from typing import Any, Final, NamedTuple

Figures = dict[str, Any]


class Histogram:
    """Counts observations into buckets with fixed upper bounds (inclusive), and adds them up.

    `observe` takes 0.15 us: no count of its own, the buckets' sum is that; bisect is in C.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """One observation, in the unit of the series."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def snapshot(self) -> dict[str, Any]:
        """{"buckets": [observations in each bucket, the last without bound], "sum": …, "count": …}."""
        return {"buckets": list(self.counts), "sum": self.sum, "count": sum(self.counts)}


class SeriesType(StrEnum):
    """Types of the text format."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Series(NamedTuple):
    """One published series; `bounds` belong to a histogram."""

    name: str
    type: SeriesType
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


def _doubling(start: float, count: int) -> tuple[float, ...]:
    return tuple([start * 2**i for i in range(count)])


FSYNC_BOUNDS_S: Final = _doubling(0.001, 14)
DEFRAG_BOUNDS_S: Final = _doubling(0.1, 13)
SNAPSHOT_BOUNDS_S: Final = _doubling(0.01, 17)
HASH_BOUNDS_S: Final = _doubling(0.01, 15)
APPLY_BOUNDS_S: Final = _doubling(0.0001, 20)
LEASE_TTL_BOUNDS_S: Final = _doubling(1, 24)
COMPACTION_PAUSE_BOUNDS_MS: Final = _doubling(1, 13)
COMPACTION_TOTAL_BOUNDS_MS: Final = _doubling(100, 14)
INDEX_PAUSE_BOUNDS_MS: Final = _doubling(0.5, 14)
TRANSFER_BOUNDS_S: Final = _doubling(0.1, 10)
ROUND_TRIP_BOUNDS_S: Final = _doubling(0.0001, 16)


def _counter(name: str, text: str, *labels: str) -> Series:
    return Series(name, SeriesType.COUNTER, text, labels)


def _gauge(name: str, text: str, *labels: str) -> Series:
    return Series(name, SeriesType.GAUGE, text, labels)


def _histogram(name: str, bounds: tuple[float, ...], text: str, *labels: str) -> Series:
    return Series(name, SeriesType.HISTOGRAM, text, labels, bounds)


_RAFT: Final = (
    _histogram("etcd_disk_wal_fsync_duration_seconds", FSYNC_BOUNDS_S, "Duration of syncs of the write-ahead log."),
    _histogram(
        "etcd_debugging_snap_save_marshalling_duration_seconds",
        FSYNC_BOUNDS_S,
        "Duration of encoding the log's records of snapshots.",
    ),
    _histogram(
        "etcd_debugging_snap_save_total_duration_seconds",
        FSYNC_BOUNDS_S,
        "Duration of saving the log's records of snapshots.",
    ),
    _histogram(
        "etcd_snap_fsync_duration_seconds", FSYNC_BOUNDS_S, "Duration of syncs of the log's records of snapshots."
    ),
    _histogram("etcd_snap_db_fsync_duration_seconds", FSYNC_BOUNDS_S, "Duration of syncs of received snapshots."),
    _histogram(
        "etcd_snap_db_save_total_duration_seconds", TRANSFER_BOUNDS_S, "Duration of receiving and saving snapshots."
    ),
    _histogram("etcd_disk_wal_write_duration_seconds", FSYNC_BOUNDS_S, "Duration of writes to the write-ahead log."),
    _gauge("etcd_disk_wal_write_bytes_total", "Bytes written to the write-ahead log."),
    _gauge("etcd_server_has_leader", "1 while this member knows a leader."),
    _gauge("etcd_server_is_leader", "1 while this member leads."),
    _gauge("etcd_server_is_learner", "1 while this member is a learner."),
    _counter("etcd_server_leader_changes_seen_total", "Changes of the leader that this member saw."),
    _counter("etcd_server_heartbeat_send_failures_total", "Heartbeats that the leader sent late."),
    _gauge("etcd_server_proposals_committed_total", "Index of the last committed entry."),
    _counter("etcd_server_read_indexes_failed_total", "Read index asks whose leader changed before the answer."),
    _counter("etcd_server_slow_read_indexes_total", "Read index asks that had to be repeated."),
    _counter("etcd_server_learner_promote_successes", "Learners promoted while this member led."),
    _counter("etcd_server_learner_promote_failures", "Promotions refused while this member led.", "Reason"),
    _gauge("etcd_network_known_peers", "1 for each other member.", "Local", "Remote"),
    _gauge("etcd_network_active_peers", "1 for each other member that takes messages.", "Local", "Remote"),
    _counter("etcd_network_disconnected_peers_total", "Connections to other members lost.", "Local", "Remote"),
    _counter("etcd_network_peer_sent_bytes_total", "Bytes of messages sent to a member.", "To"),
    _counter("etcd_network_peer_sent_failures_total", "Messages to a member that were dropped.", "To"),
    _counter("etcd_network_peer_received_bytes_total", "Bytes of messages received from a member.", "From"),
    _counter("etcd_network_peer_received_failures_total", "Batches of a member that were no messages.", "From"),
    _gauge("etcd_network_snapshot_send_inflights_total", "Snapshots that are being sent to a member.", "To"),
    _counter("etcd_network_snapshot_send_success", "Snapshots sent to a member.", "To"),
    _counter("etcd_network_snapshot_send_failures", "Snapshots that could not be sent to a member.", "To"),
    _histogram(
        "etcd_network_snapshot_send_total_duration_seconds", TRANSFER_BOUNDS_S, "Duration of sending a snapshot.", "To"
    ),
    _gauge("etcd_network_snapshot_receive_inflights_total", "Snapshots that a member is sending here.", "From"),
    _counter("etcd_network_snapshot_receive_success", "Snapshots received from a member.", "From"),
    _counter("etcd_network_snapshot_receive_failures", "Snapshots of a member that did not arrive.", "From"),
    _histogram(
        "etcd_network_snapshot_receive_total_duration_seconds",
        TRANSFER_BOUNDS_S,
        "Duration of receiving a snapshot.",
        "From",
    ),
    _histogram(
        "etcd_network_peer_round_trip_time_seconds", ROUND_TRIP_BOUNDS_S, "Round trips of probes to a member.", "To"
    ),
)

_APPLY: Final = (
    _gauge("etcd_server_proposals_applied_total", "Index of the last applied entry."),
    _counter("etcd_server_slow_apply_total", "Requests whose execution took longer than the warning limit."),
    _gauge("etcd_server_quota_backend_bytes", "Quota of the store."),
    _gauge("etcd_server_snapshot_apply_in_progress_total", "1 while a received snapshot is being installed."),
    _gauge("etcd_mvcc_db_total_size_in_bytes", "Bytes the store takes on disk."),
    _gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "Bytes of the store that hold live data."),
    _gauge("etcd_mvcc_db_open_read_transactions", "Reads of the store that are open."),
    _counter("etcd_mvcc_put_total", "Puts this member executed."),
    _counter("etcd_mvcc_delete_total", "Deletes this member executed."),
    _counter("etcd_mvcc_range_total", "Ranges this member executed."),
    _counter("etcd_mvcc_txn_total", "Transactions this member executed."),
    _histogram("etcd_mvcc_hash_duration_seconds", HASH_BOUNDS_S, "Duration of hashing the whole store."),
    _histogram("etcd_mvcc_hash_rev_duration_seconds", HASH_BOUNDS_S, "Duration of hashing the store at a revision."),
    _histogram("etcd_disk_backend_commit_duration_seconds", FSYNC_BOUNDS_S, "Duration of writes of the store."),
    _histogram("etcd_disk_backend_defrag_duration_seconds", DEFRAG_BOUNDS_S, "Duration of defragmentations."),
    _histogram("etcd_disk_backend_snapshot_duration_seconds", SNAPSHOT_BOUNDS_S, "Duration of making snapshots."),
    _gauge("etcd_disk_defrag_inflight", "1 while a defragmentation runs."),
    _gauge("etcd_debugging_mvcc_keys_total", "Live keys."),
    _counter("etcd_debugging_mvcc_range_total", "Ranges this member executed."),
    _gauge("etcd_debugging_mvcc_total_put_size_in_bytes", "Bytes of keys and values this member was given in puts."),
    _gauge("etcd_debugging_mvcc_current_revision", "Revision of the store."),
    _gauge("etcd_debugging_mvcc_compact_revision", "Revision of the last compaction."),
    _counter("etcd_debugging_mvcc_db_compaction_keys_total", "Versions of keys removed by compactions."),
    _gauge("etcd_debugging_mvcc_db_compaction_last", "Unix time of the last compaction; 0 before the first."),
    _histogram(
        "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds",
        COMPACTION_PAUSE_BOUNDS_MS,
        "Duration of the slices in which compactions run.",
    ),
    _histogram(
        "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
        COMPACTION_TOTAL_BOUNDS_MS,
        "Duration of whole compactions.",
    ),
    _histogram(
        "etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds",
        INDEX_PAUSE_BOUNDS_MS,
        "Duration of the pauses that compacting the key index makes.",
    ),
    _counter("etcd_debugging_lease_granted_total", "Leases granted."),
    _counter("etcd_debugging_lease_revoked_total", "Leases revoked."),
    _counter("etcd_debugging_lease_renewed_total", "Leases renewed while this member led."),
    _histogram("etcd_debugging_lease_ttl_total", LEASE_TTL_BOUNDS_S, "TTLs of the leases granted."),
    _counter("etcd_debugging_server_lease_expired_total", "Leases that expired while this member led."),
    _gauge("etcd_debugging_auth_revision", "Revision of users and roles."),
)

_WATCH: Final = (
    _counter("etcd_debugging_mvcc_events_total", "Events sent to watchers by this member."),
    _gauge("etcd_debugging_mvcc_pending_events_total", "Events that wait to be sent."),
    _gauge("etcd_debugging_mvcc_slow_watcher_total", "Watchers that are behind and catch up."),
    _gauge("etcd_debugging_mvcc_watch_stream_total", "Open watch streams."),
    _gauge("etcd_debugging_mvcc_watcher_total", "Open watchers."),
)

_METHOD_LABELS: Final = ("grpc_method", "grpc_service", "grpc_type")

_FRONT: Final = (
    _gauge("etcd_server_proposals_pending", "Proposals that wait for their answer."),
    _counter("etcd_server_proposals_failed_total", "Proposals refused or not answered in time."),
    _counter("etcd_server_client_requests_total", "Calls by the client's API version.", "client_api_version", "type"),
    _counter("etcd_server_health_success", "Checks of /health that succeeded."),
    _counter("etcd_server_health_failures", "Checks of /health that failed."),
    _counter("etcd_server_healthchecks_total", "Checks of /livez and /readyz by outcome.", "name", "status", "type"),
    _counter("etcd_network_server_stream_failures_total", "Streams of clients that broke.", "API", "Type"),
    _counter("etcd_network_client_grpc_received_bytes_total", "Bytes received from clients."),
    _counter("etcd_network_client_grpc_sent_bytes_total", "Bytes sent to clients."),
    _counter("grpc_server_started_total", "Calls begun.", *_METHOD_LABELS),
    _counter("grpc_server_handled_total", "Calls ended, by status.", "grpc_code", *_METHOD_LABELS),
    _counter("grpc_server_msg_received_total", "Messages received in calls.", *_METHOD_LABELS),
    _counter("grpc_server_msg_sent_total", "Messages sent in calls.", *_METHOD_LABELS),
)

_MEMBER: Final = (
    _gauge("etcd_cluster_version", "The cluster's version, as a label.", "cluster_version"),
    _gauge("etcd_server_version", "The API level of this server, as a label.", "server_version"),
    _gauge("etcd_server_id", "This member's id in hexadecimal, as a label.", "server_id"),
    _gauge("etcd_server_healthcheck", "1 where the last check of /livez or /readyz passed.", "name", "type"),
    _gauge("kvorum_process_up", "1 for each process of the member whose figures are in this page.", "process"),
    _gauge("os_fd_limit", "Limit of file descriptors of the process nearest to its own."),
    _gauge("os_fd_used", "File descriptors in use in that process."),
    _counter("process_cpu_seconds_total", "CPU time of the member's processes."),
    _gauge("process_resident_memory_bytes", "Resident memory of the member's processes, shared pages once for each."),
    _gauge("process_virtual_memory_bytes", "Virtual memory of the member's processes."),
    _gauge("process_start_time_seconds", "Unix time at which the first of the member's processes began."),
    _gauge("process_open_fds", "File descriptors in use in the process nearest to its limit."),
    _gauge("process_max_fds", "Limit of file descriptors of that process."),
)

SERIES: Final[dict[str, Series]] = {
    series.name: series
    for series in sorted((*_RAFT, *_APPLY, *_WATCH, *_FRONT, *_MEMBER), key=lambda series: series.name)
}
"""Every series by name, in the order they are published."""


def histogram(name: str) -> Histogram:
    """An empty histogram for the series `name`."""
    bounds = SERIES[name].bounds
    assert bounds, f"{name} is not a histogram"
    return Histogram(bounds)


def add(total: Any, figure: Any) -> Any:
    """Two figures of one series as one."""
    if isinstance(figure, dict):
        return {
            "buckets": [a + b for a, b in zip(total["buckets"], figure["buckets"], strict=True)],
            "sum": total["sum"] + figure["sum"],
            "count": total["count"] + figure["count"],
        }
    if isinstance(figure, list):
        sums = {tuple(labels): value for labels, value in total}
        for labels, value in figure:
            key = tuple(labels)
            sums[key] = add(sums[key], value) if key in sums else value
        return [[list(key), value] for key, value in sums.items()]
    return total + figure
