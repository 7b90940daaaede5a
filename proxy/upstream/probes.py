"""Asks each endpoint now and then whether it serves, so that the proxy need not find out by its clients' calls.

A probe is a linearizable read of one key: only a member that has a leader and keeps up can answer it in time.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from kvorum import errors
from kvorum.errors import Code
from kvorum.pb.rpc_pb2 import RangeRequest
from proxy.paths import RANGE
from proxy.upstream.endpoints import Endpoint
from proxy.upstream.upstream import Upstream

INTERVAL_S: Final = 2.0
TIMEOUT_S: Final = 4.0

REQUEST: Final = RangeRequest(key=b"health", limit=1, keys_only=True).SerializeToString()

_SILENT: Final = (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELLED)


def serves(code: int, text: str) -> bool:
    """Whether an answer shows a member that serves: one that refuses us (auth) does, a learner does not."""
    return code not in _SILENT and text != errors.NOT_SUPPORTED_FOR_LEARNER.message


class Probes:
    """Probes all endpoints of an upstream while it has more than one: with one there is nothing to choose."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._loop = asyncio.get_running_loop()
        self._asked: set[Endpoint] = set()
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(INTERVAL_S, self._round)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _round(self) -> None:
        self._timer = self._loop.call_later(INTERVAL_S, self._round)
        upstream = self._upstream
        endpoints = upstream.endpoints.all
        if len(endpoints) < 2:
            return
        for endpoint in endpoints:
            if endpoint not in self._asked:
                self._asked.add(endpoint)
                upstream.channel(endpoint).call(RANGE, REQUEST, partial(self._answered, endpoint), None, TIMEOUT_S)

    def _answered(self, endpoint: Endpoint, code: int, text: str, message: bytes) -> None:
        self._asked.discard(endpoint)
        if self._timer is not None:
            self._upstream.on_probe(endpoint, serves(code, text))
