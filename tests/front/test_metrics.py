"""The page /metrics against the table of series that dashboards read."""

from __future__ import annotations

import gc
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvorum.errors import CODE_NAMES, Code
from kvorum.wire.server_connection import Route
from node.frames import Process
from node.front.json_routes import METHODS
from node.front.metrics import client_request_figures, grpc_figures, grpc_type, member_figures
from node.front.metrics_page import render
from node.front.process_figures import figures_of
from node.stats import SERIES, Figures, SeriesType, histogram
from tests.front.metrics_table import ABSENT, OWN, PUBLISHED, REFERENCE, families, labels_of


def every_figure() -> Figures:
    """A figure for each series that a process gives, as the processes would."""
    figures: Figures = {}
    for series in SERIES.values():
        figure: Any = histogram(series.name).snapshot() if series.type is SeriesType.HISTOGRAM else 1
        figures[series.name] = [[["x"] * len(series.labels), figure]] if series.labels else figure
    del figures["kvorum_process_up"]
    return figures


def samples(page: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def test_names_types_and_labels_are_those_of_the_reference() -> None:
    page = families(render({1: every_figure()}, [1], {}).decode())
    published = {name: (family.type, labels_of(family)) for name, family in page.items()}
    assert {name: row for name, row in published.items() if name not in OWN} == PUBLISHED
    assert published.keys() >= OWN


def test_what_is_absent_is_in_the_reference() -> None:
    assert ABSENT.keys() <= REFERENCE.keys()
    assert all(ABSENT.values())


def test_every_series_has_a_help_line() -> None:
    page = render({1: every_figure()}, [1], {}).decode()
    for name, series in SERIES.items():
        assert f"# HELP {name} {series.help}\n# TYPE {name} {series.type}\n{name}" in page


@pytest.mark.parametrize(
    ("name", "first", "last", "count"),
    [
        ("etcd_disk_wal_fsync_duration_seconds", "0.001", "8.192", 14),
        ("etcd_disk_wal_write_duration_seconds", "0.001", "8.192", 14),
        ("etcd_disk_backend_commit_duration_seconds", "0.001", "8.192", 14),
        ("etcd_disk_backend_defrag_duration_seconds", "0.1", "409.6", 13),
        ("etcd_disk_backend_snapshot_duration_seconds", "0.01", "655.36", 17),
        ("etcd_mvcc_hash_duration_seconds", "0.01", "163.84", 15),
        ("etcd_mvcc_hash_rev_duration_seconds", "0.01", "163.84", 15),
        ("etcd_debugging_lease_ttl_total", "1", "8.388608e+06", 24),
        ("etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds", "1", "4096", 13),
        ("etcd_debugging_mvcc_db_compaction_total_duration_milliseconds", "100", "819200", 14),
        ("etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds", "0.5", "4096", 14),
        ("etcd_network_peer_round_trip_time_seconds", "0.0001", "3.2768", 16),
        ("etcd_network_snapshot_send_total_duration_seconds", "0.1", "51.2", 10),
        ("etcd_network_snapshot_receive_total_duration_seconds", "0.1", "51.2", 10),
        ("etcd_snap_fsync_duration_seconds", "0.001", "8.192", 14),
        ("etcd_snap_db_fsync_duration_seconds", "0.001", "8.192", 14),
        ("etcd_snap_db_save_total_duration_seconds", "0.1", "51.2", 10),
        ("etcd_debugging_snap_save_marshalling_duration_seconds", "0.001", "8.192", 14),
        ("etcd_debugging_snap_save_total_duration_seconds", "0.001", "8.192", 14),
    ],
)
def test_buckets_are_those_of_the_reference(name: str, first: str, last: str, count: int) -> None:
    snapshot: Any = histogram(name).snapshot()
    labels = SERIES[name].labels
    page = render({1: {name: [[["x"] * len(labels), snapshot]] if labels else snapshot}}, [], {}).decode()
    bounds = [line.partition('le="')[2].partition('"')[0] for line in page.splitlines() if "_bucket{" in line]
    assert (bounds[0], bounds[-2], bounds[-1], len(bounds)) == (first, last, "+Inf", count + 1)


def test_a_histogram_is_cumulative_and_its_bounds_are_inclusive() -> None:
    durations = histogram("etcd_disk_wal_fsync_duration_seconds")
    for seconds in (0.0, 0.001, 0.0011, 8.192, 9.0, 100.0):
        durations.observe(seconds)
    page = samples(render({1: {"etcd_disk_wal_fsync_duration_seconds": durations.snapshot()}}, [], {}))
    name = "etcd_disk_wal_fsync_duration_seconds"
    buckets = {le: page[f"{name}_bucket", (("le", le),)] for le in ("0.001", "0.002", "4.096", "8.192", "+Inf")}
    assert buckets == {"0.001": 2, "0.002": 3, "4.096": 3, "8.192": 4, "+Inf": 6}
    assert page[f"{name}_count", ()] == 6
    assert page[f"{name}_sum", ()] == pytest.approx(117.1941)


def test_a_histogram_with_labels_is_one_for_each_of_their_values() -> None:
    name = "etcd_network_peer_round_trip_time_seconds"
    near, far = histogram(name), histogram(name)
    near.observe(0.0001)
    far.observe(0.3)
    figure = [[["a"], near.snapshot()], [["b"], far.snapshot()]]
    page = samples(render({1: {name: figure}, 2: {name: [[["b"], far.snapshot()]]}}, [], {}))
    assert page[f"{name}_bucket", (("To", "a"), ("le", "0.0001"))] == 1
    assert page[f"{name}_count", (("To", "a"),)] == 1
    assert page[f"{name}_bucket", (("To", "b"), ("le", "0.2048"))] == 0
    assert page[f"{name}_count", (("To", "b"),)] == 2
    assert page[f"{name}_sum", (("To", "b"),)] == pytest.approx(0.6)


def test_figures_of_several_processes_add_up() -> None:
    durations = histogram("etcd_disk_wal_fsync_duration_seconds")
    durations.observe(0.5)
    one: Figures = {
        "etcd_server_health_success": 2,
        "etcd_disk_wal_fsync_duration_seconds": durations.snapshot(),
        **client_request_figures({("3.7", "unary"): 5, ("unknown", "unary"): 1}),
    }
    two: Figures = {
        "etcd_server_health_success": 3,
        "etcd_disk_wal_fsync_duration_seconds": durations.snapshot(),
        **client_request_figures({("3.7", "unary"): 7, ("3.7", "stream"): 1}),
    }
    text = render({16: one, 17: two}, [], {})
    page = samples(text)
    assert b"etcd_server_health_success 5.0\n" in text
    assert page["etcd_disk_wal_fsync_duration_seconds_sum", ()] == 1.0
    assert page["etcd_disk_wal_fsync_duration_seconds_count", ()] == 2
    requests = "etcd_server_client_requests_total"
    assert {labels: value for (name, labels), value in page.items() if name == requests} == {
        (("client_api_version", "3.7"), ("type", "unary")): 12,
        (("client_api_version", "3.7"), ("type", "stream")): 1,
        (("client_api_version", "unknown"), ("type", "unary")): 1,
    }


def test_a_process_that_does_not_answer_is_named_and_its_series_are_left_out() -> None:
    asked = [Process.RAFT, Process.APPLY, Process.WATCH, Process.FRONT, Process.FRONT + 1]
    page = samples(render({Process.RAFT: {"etcd_server_has_leader": 1}, Process.FRONT: {}}, asked, {}))
    up = {dict(labels)["process"]: value for (name, labels), value in page.items() if name == "kvorum_process_up"}
    assert up == {"raft": 1, "apply": 0, "watch": 0, "front0": 1, "front1": 0}
    assert ("etcd_server_has_leader", ()) in page
    assert ("etcd_mvcc_put_total", ()) not in page


def test_a_figure_that_no_series_names_is_a_broken_invariant() -> None:
    with pytest.raises(AssertionError, match="etcd_mvcc_putt_total"):
        render({1: {"etcd_mvcc_putt_total": 1}}, [], {})


def test_label_values_are_escaped() -> None:
    version = 'a"b\\c\nd é'
    page = samples(render({1: client_request_figures({(version, "unary"): 1})}, [], {}))
    assert page["etcd_server_client_requests_total", (("client_api_version", version), ("type", "unary"))] == 1


@pytest.mark.parametrize("value", [0, 1, 1.0, 0.1, 1e-9, 1e15, 1.5e300, float("inf"), (1 << 53) - 1, 1 << 62])
def test_numbers_read_back(value: float) -> None:
    page = samples(render({1: {"etcd_server_proposals_pending": value}}, [], {}))
    assert page["etcd_server_proposals_pending", ()] == value


def test_grpc_counts_name_every_method_and_code() -> None:
    paths = [*METHODS, "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"]
    routes = {path: Route(path) for path in paths}
    put = routes["/etcdserverpb.KV/Put"]
    put.started, put.received, put.sent, put.ok = 9, 8, 7, 5
    put.count_failed(Code.INVALID_ARGUMENT)
    put.count_failed(99)
    page = samples(render({16: grpc_figures(routes)}, [], {}))
    labels = (("grpc_method", "Put"), ("grpc_service", "etcdserverpb.KV"), ("grpc_type", "unary"))
    assert page["grpc_server_started_total", labels] == 9
    assert page["grpc_server_msg_received_total", labels] == 8
    assert page["grpc_server_msg_sent_total", labels] == 7
    handled = {
        dict(key)["grpc_code"]: value
        for (name, key), value in page.items()
        if name == "grpc_server_handled_total" and set(labels) <= set(key)
    }
    assert handled == dict.fromkeys(CODE_NAMES.values(), 0) | {"OK": 5, "InvalidArgument": 1, "Unknown": 1}
    assert sum(name == "grpc_server_started_total" for name, _ in page) == len(paths)
    assert sum(name == "grpc_server_handled_total" for name, _ in page) == len(paths) * 17


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/etcdserverpb.KV/Range", "unary"),
        ("/etcdserverpb.KV/RangeStream", "server_stream"),
        ("/etcdserverpb.Watch/Watch", "bidi_stream"),
        ("/etcdserverpb.Lease/LeaseKeepAlive", "bidi_stream"),
        ("/etcdserverpb.Maintenance/Snapshot", "server_stream"),
        ("/grpc.health.v1.Health/Check", "unary"),
        ("/grpc.health.v1.Health/Watch", "server_stream"),
    ],
)
def test_grpc_types(path: str, kind: str) -> None:
    assert grpc_type(path) == kind


def test_the_member_as_labels() -> None:
    page = samples(
        render({}, [], member_figures(member_id=0x8E9E05C52164694D, api_version="3.7.0", cluster_version="3.7"))
    )
    assert page["etcd_server_id", (("server_id", "8e9e05c52164694d"),)] == 1
    assert page["etcd_server_version", (("server_version", "3.7.0"),)] == 1
    assert page["etcd_cluster_version", (("cluster_version", "3.7"),)] == 1
    (python,) = [dict(labels) for name, labels in page if name == "python_info"]
    assert python["version"] == ".".join([python["major"], python["minor"], python["patchlevel"]])
    undecided = render({}, [], member_figures(member_id=1, api_version="3.7.0", cluster_version=None))
    assert b"etcd_cluster_version{" not in undecided


def test_figures_of_this_process() -> None:
    figures = figures_of([os.getpid()])
    assert {name for name in figures if name.startswith("process_")} == OWN - {"kvorum_process_up", "python_info"}
    assert figures["process_max_fds"] == figures["os_fd_limit"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert figures["os_fd_used"] == figures["process_open_fds"] > 2
    assert figures["process_resident_memory_bytes"] > 1 << 20


def fake_proc(proc: Path, pid: int, *, start: int, resident_pages: int, fds: int, limit: str) -> None:
    (proc / "stat").write_text("cpu 1 2 3\nbtime 1000\n")
    at = proc / str(pid)
    (at / "fd").mkdir(parents=True)
    for fd in range(fds):
        (at / "fd" / str(fd)).touch()
    fields = ["S", *["0"] * 10, "150", "50", *["0"] * 6, str(start), "4096", str(resident_pages)]
    (at / "stat").write_text(f"{pid} (a ) b) " + " ".join(fields))
    (at / "limits").write_text(f"Limit  Soft Limit  Hard Limit  Units\nMax open files  {limit}  {limit}  files\n")


def test_cpu_and_memory_add_up_and_descriptors_are_of_the_fullest_process(tmp_path: Path) -> None:
    ticks_per_s, page_bytes = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    fake_proc(tmp_path, 7, start=5 * ticks_per_s, resident_pages=1, fds=3, limit="10")
    fake_proc(tmp_path, 8, start=2 * ticks_per_s, resident_pages=2, fds=6, limit="100")
    fake_proc(tmp_path, 9, start=9 * ticks_per_s, resident_pages=3, fds=6, limit="1000")
    assert figures_of([7, 8, 9, 9, 404], str(tmp_path)) == {
        "os_fd_limit": 10,
        "os_fd_used": 3,
        "process_cpu_seconds_total": 3 * 200 / ticks_per_s,
        "process_resident_memory_bytes": 6 * page_bytes,
        "process_virtual_memory_bytes": 3 * 4096,
        "process_start_time_seconds": 1002,
        "process_open_fds": 3,
        "process_max_fds": 10,
    }


def test_processes_that_are_gone_have_no_figures(tmp_path: Path) -> None:
    assert figures_of([404], str(tmp_path)) == {}


def test_a_process_that_goes_while_it_is_read_has_no_figures(tmp_path: Path) -> None:
    fake_proc(tmp_path, 7, start=1, resident_pages=1, fds=1, limit="10")
    (tmp_path / "7" / "limits").unlink()
    assert figures_of([7], str(tmp_path)) == {}


def test_a_limit_that_cannot_be_read_does_not_cost_the_page(tmp_path: Path) -> None:
    fake_proc(tmp_path, 7, start=1, resident_pages=1, fds=1, limit="unlimited")
    assert figures_of([7], str(tmp_path)) == {}


def test_no_sample_beside_those_of_the_series() -> None:
    page = render({1: every_figure()}, [1], {}).decode()
    names = {re.split("[{ ]", line)[0] for line in page.splitlines() if not line.startswith("#")}
    histograms = {name for name, series in SERIES.items() if series.type is SeriesType.HISTOGRAM}
    expected = {f"{name}_{part}" for name in histograms for part in ("bucket", "sum", "count")}
    assert names == expected | (SERIES.keys() - histograms) | {"python_info"}


def test_a_counter_without_total_keeps_its_name_wherever_it_stands() -> None:
    page = render({1: {"etcd_server_health_success": 2}}, [], {}).decode()
    assert page.startswith(
        "# HELP etcd_server_health_success Checks of /health that succeeded.\n"
        "# TYPE etcd_server_health_success counter\n"
        "etcd_server_health_success 2.0\n"
    )


def test_neither_the_figures_nor_the_start_of_a_front_import_the_library() -> None:
    code = "import sys, node.front.process; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_pages_leave_no_reference_cycles() -> None:
    figures = every_figure()
    render({1: figures}, [1], {})
    gc.collect()
    gc.disable()
    try:
        render({1: figures}, [1], {})
        assert gc.collect() == 0
    finally:
        gc.enable()
