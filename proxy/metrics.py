"""The proxy's own figures; `metrics_page` makes the page /proxy/metrics of them.

Services hand theirs over as plain dicts, `name -> number`, or `name -> [[label values], number]` for a series with
labels. Figures of one name from several workers add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from kvorum.errors import CODE_NAMES
from kvorum.wire.routes import Route
from proxy.paths import HEALTH_WATCH, KEEP_ALIVE, OBSERVE, RANGE_STREAM, SNAPSHOT, WATCH

Figures = dict[str, Any]

Measure = Callable[[], Figures]
"""What a service counts, now."""


class Series(NamedTuple):
    """One published series."""

    is_counter: bool
    help: str
    labels: tuple[str, ...] = ()


SERIES: Final[dict[str, Series]] = {
    "etcd_grpc_proxy_cache_hits_total": Series(False, "Total number of cache hits"),
    "etcd_grpc_proxy_cache_misses_total": Series(False, "Total number of cache misses"),
    "etcd_grpc_proxy_cache_keys_total": Series(False, "Total number of keys/ranges cached"),
    "etcd_grpc_proxy_events_coalescing_total": Series(True, "Total number of events coalescing"),
    "etcd_grpc_proxy_watchers_coalescing_total": Series(False, "Total number of current watchers coalescing"),
    "kvorum_grpc_proxy_cache_bytes": Series(False, "Bytes of the cached replies"),
    "kvorum_grpc_proxy_leasing_keys": Series(False, "Keys that the proxy owns"),
    "kvorum_grpc_proxy_leasing_hits_total": Series(True, "Reads answered from owned keys"),
    "kvorum_grpc_proxy_endpoint_changes_total": Series(True, "Times that another endpoint came into use"),
    "kvorum_grpc_proxy_endpoint_serving": Series(False, "1 while the endpoint in use is not known to be down"),
    "kvorum_grpc_proxy_client_connections": Series(False, "Open connections of clients"),
    "kvorum_grpc_proxy_client_received_bytes_total": Series(True, "Bytes received from clients"),
    "kvorum_grpc_proxy_client_sent_bytes_total": Series(True, "Bytes sent to clients"),
    "kvorum_grpc_proxy_workers": Series(False, "Workers that told their figures"),
    "kvorum_grpc_proxy_tenant_requests_total": Series(True, "Calls of a tenant", ("tenant",)),
    "kvorum_grpc_proxy_tenant_refused_total": Series(
        True, "Calls of a tenant that one of its limits refused", ("tenant", "limit")
    ),
    "kvorum_grpc_proxy_tenant_watches": Series(False, "Open watches of a tenant", ("tenant",)),
    "kvorum_grpc_proxy_tenant_keys": Series(
        False, "Keys that the cluster holds of a tenant whose keys or bytes are limited", ("tenant",)
    ),
    "kvorum_grpc_proxy_tenant_bytes": Series(
        False, "Bytes of these keys, without the namespace, and of their values", ("tenant",)
    ),
    "grpc_server_started_total": Series(
        True, "Total number of RPCs started on the server.", ("grpc_type", "grpc_service", "grpc_method")
    ),
    "grpc_server_handled_total": Series(
        True,
        "Total number of RPCs completed on the server, regardless of success or failure.",
        ("grpc_type", "grpc_service", "grpc_method", "grpc_code"),
    ),
    "grpc_server_msg_received_total": Series(
        True,
        "Total number of RPC stream messages received on the server.",
        ("grpc_type", "grpc_service", "grpc_method"),
    ),
    "grpc_server_msg_sent_total": Series(
        True,
        "Total number of gRPC stream messages sent by the server.",
        ("grpc_type", "grpc_service", "grpc_method"),
    ),
}
"""Names, types and help of all that is published. The first five are gauges or counters as dashboards know them."""

BIDIRECTIONAL: Final = frozenset({WATCH, KEEP_ALIVE})
SERVER_STREAMS: Final = frozenset({RANGE_STREAM, SNAPSHOT, OBSERVE, HEALTH_WATCH})


def add(one: Any, other: Any) -> Any:
    """The sum of two figures of the same series."""
    if not isinstance(one, list):
        return one + other
    sums = {tuple(values): number for values, number in one}
    for values, number in other:
        sums[tuple(values)] = sums.get(tuple(values), 0) + number
    return [[list(values), number] for values, number in sums.items()]


def total(parts: Iterable[Figures]) -> Figures:
    """The sums of all figures."""
    sums: Figures = {}
    for part in parts:
        for name, figure in part.items():
            sums[name] = add(sums[name], figure) if name in sums else figure
    return sums


def grpc_figures(routes: Mapping[str, Route]) -> Figures:
    """What the wire counts for each method."""
    started, handled, received, sent = [], [], [], []
    for path, route in routes.items():
        labels = [_kind(path), route.service, route.method]
        started.append([labels, route.started])
        received.append([labels, route.received])
        sent.append([labels, route.sent_messages])
        for code, count in {0: route.ok, **route.failed}.items():
            if count:
                handled.append([[*labels, CODE_NAMES.get(code, f"Code({code})")], count])
    return {
        "grpc_server_started_total": started,
        "grpc_server_handled_total": handled,
        "grpc_server_msg_received_total": received,
        "grpc_server_msg_sent_total": sent,
    }


def _kind(path: str) -> str:
    if path in SERVER_STREAMS:
        return "server_stream"
    return "bidi_stream" if path in BIDIRECTIONAL else "unary"
