"""The figures that a front gives for the page /metrics: its calls, its clients, and what is one for the member."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from kvorum.errors import CODE_NAMES
from node.frames import Process
from node.front.json_routes import METHODS
from node.stats import Figures

GRPC_TYPES: Final = {(False, False): "unary", (False, True): "server_stream", (True, True): "bidi_stream"}
"""The label grpc_type, by which side streams: (client, server)."""


class RouteCounts(Protocol):
    """What the wire counts of one method (`kvorum.wire.server_connection.Route`)."""

    @property
    def started(self) -> int:
        """Calls begun."""

    @property
    def received(self) -> int:
        """Messages from clients."""

    @property
    def sent_messages(self) -> int:
        """Messages to clients."""

    @property
    def ok(self) -> int:
        """Calls that ended well."""

    @property
    def failed(self) -> Mapping[int, int]:
        """Other ends by gRPC code."""


def grpc_figures(routes: Mapping[str, RouteCounts]) -> Figures:
    """The grpc_server_* figures of a front, from its server's counts by path; what never happened is there with 0."""
    started, handled, received, sent = [], [], [], []
    for path, route in routes.items():
        service, _, method = path[1:].partition("/")
        labels = [method, service, grpc_type(path)]
        started.append([labels, route.started])
        received.append([labels, route.received])
        sent.append([labels, route.sent_messages])
        counts = dict.fromkeys(CODE_NAMES.values(), 0)
        counts["OK"] = route.ok
        for code, count in route.failed.items():
            counts[CODE_NAMES.get(code, "Unknown")] += count
        handled += [[[name, *labels], count] for name, count in counts.items()]
    return {
        "grpc_server_started_total": started,
        "grpc_server_handled_total": handled,
        "grpc_server_msg_received_total": received,
        "grpc_server_msg_sent_total": sent,
    }


def grpc_type(path: str) -> str:
    """The label grpc_type of a method."""
    route = METHODS.get(path)
    if route is not None:
        return GRPC_TYPES[route.client_streaming, route.server_streaming]
    return "server_stream" if path == "/grpc.health.v1.Health/Watch" else "unary"


def client_request_figures(counts: Mapping[tuple[str, str], int]) -> Figures:
    """etcd_server_client_requests_total, from (client API version, kind of call) -> calls."""
    return {"etcd_server_client_requests_total": [[list(labels), count] for labels, count in counts.items()]}


def stream_failure_figures(counts: Mapping[tuple[str, str], int]) -> Figures:
    """etcd_network_server_stream_failures_total, from (service, way) -> streams."""
    return {"etcd_network_server_stream_failures_total": [[list(labels), count] for labels, count in counts.items()]}


def member_figures(*, member_id: int, api_version: str, cluster_version: str | None) -> Figures:
    """The figures that are one for the whole member; `cluster_version` is MAJOR.MINOR, or None when not yet known."""
    return {
        "etcd_server_id": [[[f"{member_id:x}"], 1]],
        "etcd_server_version": [[[api_version], 1]],
        "etcd_cluster_version": [[[cluster_version], 1]] if cluster_version else [],
    }


def process_name(process: int) -> str:
    """The label `process`: raft, apply, watch, front0 and so on."""
    return f"front{process - Process.FRONT}" if process >= Process.FRONT else Process(process).name.lower()
