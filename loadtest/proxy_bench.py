"""The benchmark's cases of the gRPC proxies, kvorum's and the reference's, each in front of a member of its kind."""

import contextlib
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from loadtest import processes
from loadtest.launcher import Kind, Server, running
from loadtest.loads import LOADS, MIB, Load, Measured, Sizes, fan_out, own_load
from loadtest.proxies import running_proxy

LOADS_THROUGH: Mapping[str, Load] = {
    "proxy-put": LOADS["put"],
    "proxy-get": LOADS["get"],
    "proxy-cached-get": LOADS["serializable-get"],
    "proxy-put-serial": LOADS["put-serial"],
    "proxy-get-serial": LOADS["get-serial"],
}

FAN_OUTS: Mapping[str, tuple[int, int]] = {
    "proxy-fan-out-one-stream": (1, 1000),
    "proxy-fan-out-streams": (100, 10),
    "proxy-fan-out-connections": (1000, 1),
}
"""Connections, and watchers on each."""

WATCHERS: Final = {f"watchers-{number}": number for number in (10, 100, 1_000, 10_000, 100_000)}
"""How the cost of an event grows with those who watch: by case, watchers."""

STREAMS: Final = 100
DELIVERIES: Final = 200_000


class ProxyBench:
    """The cases over one pair of proxies, each in front of its member."""

    def __init__(self, sizes: Sizes, members: Mapping[Kind, Server], proxies: Mapping[Kind, Server]) -> None:
        self._sizes = sizes
        self._members = members
        self._proxies = proxies

    def prepare(self, cases: Sequence[str]) -> None:
        """What the cases read."""
        for proxy in self._proxies.values():
            own_load([proxy], LOADS["put"]._replace(requests=200))

    def measure(self, case: str, kind: Kind) -> Measured:
        """One round of one case through one proxy; the CPU is the proxy's alone."""
        proxy, sizes = self._proxies[kind], self._sizes
        if case == "proxy-idle":
            return {"memory (PSS)": processes.pss_bytes(proxy.pid) / MIB}
        if case in FAN_OUTS:
            connections, watchers = FAN_OUTS[case]
            return fan_out(proxy, min(connections, sizes.connections_fan_out), watchers, sizes.puts_fan_out)
        if case in WATCHERS:
            connections, watchers, puts = shape(WATCHERS[case], sizes.share)
            return {
                f"{place} CPU": _cost(server, connections, watchers, puts)
                for place, server in (("member", self._members[kind]), ("proxy", proxy))
            }
        load = LOADS_THROUGH[case]
        return own_load([proxy], load._replace(requests=max(20, int(load.requests * sizes.share))))


def _cost(server: Server, connections: int, watchers: int, puts: int) -> float:
    """NaN where the reference gives up: its proxy ends a stream that has not taken a reply within 50 ms (PX15)."""
    try:
        return fan_out(server, connections, watchers, puts)["server CPU"]
    except SystemExit as error:
        if server.kind is Kind.KVORUM:
            raise
        print(f"no figure, the reference ended a watch: {error}", file=sys.stderr)
        return math.nan


def shape(watchers: int, share: float) -> tuple[int, int, int]:
    """So many watchers as (connections, watchers on each, puts): at most 100 streams, and much the same work each."""
    connections = max(1, min(STREAMS, watchers // 10))
    return connections, watchers // connections, max(2, min(200, int(DELIVERIES * share) // watchers))


@contextlib.contextmanager
def of_proxies(sizes: Sizes) -> Iterator[ProxyBench]:
    with contextlib.ExitStack() as stack:
        members = {kind: stack.enter_context(running(kind)) for kind in Kind}
        proxies = {kind: stack.enter_context(running_proxy(kind, [members[kind].address])) for kind in Kind}
        yield ProxyBench(sizes, members, proxies)
