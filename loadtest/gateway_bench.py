"""The benchmark's cases of the gateways, kvorum's and the reference's. Both stand in front of the same servers: a
member of kvorum, and for bytes alone a sink."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

from loadtest import processes
from loadtest.launcher import Kind, Server, running
from loadtest.loads import LOADS, MIB, Load, Measured, Sizes, own_load, run_client
from loadtest.proxies import running_gateway

BYTES = 4_000_000_000
BYTES_CONNECTIONS = {"gateway-bytes": 8, "gateway-bytes-one": 1}

LOADS_THROUGH: Mapping[str, Load] = {
    "gateway-get": LOADS["get"],
    "gateway-get-serial": LOADS["get-serial"],
    "gateway-get-connections": LOADS["get"]._replace(connections=500, streams=1),
}


class GatewayBench:
    """The cases over one pair of gateways in front of a member, and one in front of a sink."""

    def __init__(self, sizes: Sizes, to_member: Mapping[Kind, Server], to_sink: Mapping[Kind, Server]) -> None:
        self._sizes = sizes
        self._to_member = to_member
        self._to_sink = to_sink

    def prepare(self, cases: Sequence[str]) -> None:
        """What the cases read."""
        own_load([self._to_member[Kind.KVORUM]], LOADS["put"]._replace(requests=200))

    def measure(self, case: str, kind: Kind) -> Measured:
        """One round of one case through one gateway; the CPU is the gateway's."""
        if case in BYTES_CONNECTIONS:
            return byte_stream(self._to_sink[kind], int(BYTES * self._sizes.share), BYTES_CONNECTIONS[case])
        if case == "gateway-idle":
            return {"memory (PSS)": processes.pss_bytes(self._to_member[kind].pid) / MIB}
        load = LOADS_THROUGH[case]
        requests = max(2 * load.connections, int(load.requests * self._sizes.share))
        return own_load([self._to_member[kind]], load._replace(requests=requests))


def byte_stream(gateway: Server, size: int, connections: int) -> Measured:
    """One way through a gateway in front of a sink."""
    arguments = ["--bytes", str(size), "--connections", str(connections)]
    measured, cpu = run_client([gateway], "loadtest.byte_stream", *arguments)
    giga = measured["bytes"] / 1e9
    return {"throughput": giga / measured["seconds"], "server CPU": cpu / giga}


@contextlib.contextmanager
def running_sink() -> Iterator[str]:
    """The address of a process that reads whatever comes."""
    command = [sys.executable, "-m", "loadtest.byte_stream", "sink"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sink:
        assert sink.stdin is not None and sink.stdout is not None
        yield sink.stdout.readline().strip()
        sink.stdin.close()


@contextlib.contextmanager
def of_gateways(sizes: Sizes) -> Iterator[GatewayBench]:
    with contextlib.ExitStack() as stack:
        member = stack.enter_context(running(Kind.KVORUM))
        sink = stack.enter_context(running_sink())
        to_member = {kind: stack.enter_context(running_gateway(kind, [member.address])) for kind in Kind}
        to_sink = {kind: stack.enter_context(running_gateway(kind, [sink])) for kind in Kind}
        yield GatewayBench(sizes, to_member, to_sink)
