"""The proxy's figures: sums over workers, and the page."""

import gc

from kvorum.errors import Code
from kvorum.wire.routes import StreamRoute, UnaryRoute
from proxy import metrics
from proxy.metrics import SERIES, add, grpc_figures, total
from proxy.metrics_page import render


def test_numbers_add_up() -> None:
    assert add(1, 2) == 3
    one = [[["a", "x"], 1], [["b", "x"], 2]]
    other = [[["b", "x"], 3], [["c", "x"], 4]]
    assert add(one, other) == [[["a", "x"], 1], [["b", "x"], 5], [["c", "x"], 4]]
    assert total([{"p": 1, "q": 2}, {"p": 3}]) == {"p": 4, "q": 2}


def test_what_the_wire_counts() -> None:
    put = UnaryRoute("/etcdserverpb.KV/Put", lambda connection, stream_id, head, message: None)
    put.started, put.received, put.ok = 5, 4, 3
    put.failed = {Code.CANCELLED: 1, 99: 1}
    watch = StreamRoute("/etcdserverpb.Watch/Watch", None)  # type: ignore[arg-type]  # never opened here
    watch.started, watch.sent = 1, 7
    figures = grpc_figures({"/etcdserverpb.KV/Put": put, "/etcdserverpb.Watch/Watch": watch})
    labels = ["unary", "etcdserverpb.KV", "Put"]
    stream_labels = ["bidi_stream", "etcdserverpb.Watch", "Watch"]
    assert figures["grpc_server_started_total"] == [[labels, 5], [stream_labels, 1]]
    assert figures["grpc_server_handled_total"] == [
        [[*labels, "OK"], 3],
        [[*labels, "Canceled"], 1],
        [[*labels, "Code(99)"], 1],
    ]
    assert figures["grpc_server_msg_sent_total"] == [[labels, 3], [stream_labels, 7]]


def test_the_page_has_the_names_that_dashboards_know() -> None:
    figures: metrics.Figures = {name: 1 for name, series in SERIES.items() if not series.labels}
    lines = render(figures).decode().splitlines()
    for name, kind in (
        ("etcd_grpc_proxy_cache_hits_total", "gauge"),
        ("etcd_grpc_proxy_cache_misses_total", "gauge"),
        ("etcd_grpc_proxy_cache_keys_total", "gauge"),
        ("etcd_grpc_proxy_events_coalescing_total", "counter"),
        ("etcd_grpc_proxy_watchers_coalescing_total", "gauge"),
    ):
        assert f"# TYPE {name} {kind}" in lines
        assert f"{name} 1.0" in lines


def test_a_page_leaves_no_garbage_behind() -> None:
    figures: metrics.Figures = {"grpc_server_started_total": [[["unary", "s", "m"], 1]]}
    render(figures)
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            render(figures)
        assert gc.collect() == 0
    finally:
        gc.enable()
