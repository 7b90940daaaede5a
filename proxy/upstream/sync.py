"""Takes the endpoints from the cluster's own list of members (--endpoints-auto-sync-interval)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from kvorum.log import Logger
from kvorum.pb.rpc_pb2 import Member, MemberListRequest, MemberListResponse
from proxy.paths import MEMBER_LIST
from proxy.upstream.endpoints import Endpoint, parse_endpoint
from proxy.upstream.replies import read_as
from proxy.upstream.upstream import Upstream

REQUEST: Final = MemberListRequest(linearizable=True).SerializeToString()


def endpoints_of(members: Sequence[Member]) -> tuple[Endpoint, ...]:
    """The client URLs of the members that serve clients: those that have started and are no learners."""
    urls = [url for member in members if member.name and not member.isLearner for url in member.clientURLs]
    found: dict[Endpoint, None] = {}
    for url in urls:
        try:
            found[parse_endpoint(url)] = None
        except ValueError:
            continue  # advertised by somebody's mistake: nobody can connect to it
    return tuple(found)


class Sync:
    """Asks each `interval_s`. A list that cannot be had, or is empty, changes nothing."""

    def __init__(self, upstream: Upstream, interval_s: float, logger: Logger) -> None:
        self._upstream = upstream
        self._interval_s = interval_s
        self._logger = logger
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(interval_s, self._ask)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ask(self) -> None:
        self._upstream.call(
            MEMBER_LIST, REQUEST, read_as(MemberListResponse, self._answered), None, max(1.0, self._interval_s)
        )

    def _answered(self, code: int, text: str, response: MemberListResponse) -> None:
        if self._timer is None:
            return
        self._timer = self._loop.call_later(self._interval_s, self._ask)
        if code:
            self._logger.warn("cannot get the members of the cluster", code=code, error=text)
            return
        endpoints = endpoints_of(response.members)
        if endpoints and set(endpoints) != set(self._upstream.endpoints.all):
            self._logger.info("endpoints follow the members", endpoints=[one.address for one in endpoints])
            self._upstream.replace(endpoints)
