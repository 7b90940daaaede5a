"""Bytes through both gateways, as the benchmark sends them: all arrive, and the gateway's CPU is what is counted."""

import pytest

from loadtest.gateway_bench import byte_stream, running_sink
from loadtest.launcher import Kind
from loadtest.proxies import running_gateway


@pytest.mark.parametrize("kind", Kind)
def test_a_stream_of_bytes_is_measured(kind: Kind) -> None:
    with running_sink() as sink, running_gateway(kind, [sink]) as gateway:
        measured = byte_stream(gateway, 20_000_000, 2)
    assert set(measured) == {"throughput", "server CPU"}
    assert measured["throughput"] > 0
    assert measured["server CPU"] > 0


def test_bytes_that_do_not_arrive_fail_the_round() -> None:
    with running_sink() as sink:
        host, _, port = sink.rpartition(":")
    with (
        running_gateway(Kind.KVORUM, [f"{host}:{port}"]) as gateway,
        pytest.raises(SystemExit, match="byte_stream failed"),
    ):
        byte_stream(gateway, 1_000_000, 1)
