"""Rows whose service kvorum does not serve yet: README's table says the same.

Each is expected to fail at kvorum, strictly: one that begins to pass has to leave this table. What such a call is
answered with meanwhile is tested in `test_grpc.py`.
"""

from typing import Final

NOT_YET: Final = {
    "test_gateway.py::test_J22_P15_a_deadline_ends_a_call_that_waits": "Lock",
    "test_gateway.py::test_J24_an_error_before_the_first_line_sets_the_status": "Election",
    "test_gateway.py::test_MA23_snapshot_over_http": "Snapshot",
    "test_maintenance.py::test_MA20_MA21_a_snapshot_counts_down_and_ends_with_its_checksum": "Snapshot",
    "test_maintenance.py::test_MA20_a_snapshot_names_its_version": "Snapshot",
    "test_maintenance.py::test_MA26_the_format_of_a_downgrade_s_version": "Downgrade",
    "test_maintenance.py::test_MA27_only_the_minor_version_below_is_a_target": "Downgrade",
    "test_maintenance.py::test_MA28_MA30_the_reply_names_the_cluster_version_and_cancel_needs_no_job": "Downgrade",
    "test_maintenance.py::test_MA29_enable_twice": "Downgrade",
    "test_maintenance.py::test_MA31_an_unknown_downgrade_action": "Downgrade",
    "test_maintenance.py::test_MA32_a_running_downgrade_is_told_in_status": "Downgrade",
    "test_revisions.py::test_V10_V11_replies_without_revision_and_without_header": "Snapshot",
    "test_libraries.py::test_grpcio_server_stream": "Snapshot",
    "test_libraries.py::test_rust_client_locks_one_at_a_time": "Lock",
    "test_etcdctl.py::test_snapshot_save_and_what_etcdutl_reads_in_it": "Snapshot",
}


def reason(node_id: str) -> str | None:
    """What a test of that id waits for at kvorum, or None."""
    name, _, parameters = node_id.partition("[")
    if parameters.startswith("reference"):
        return None
    return next((what for row, what in NOT_YET.items() if name.endswith(row)), None)
