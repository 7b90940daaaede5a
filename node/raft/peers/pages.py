"""The HTTP pages of a peer listener (HT25, HT26): what a joining member, of whatever make, asks before it joins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import orjson

from kvorum import API_VERSION, __version__
from kvorum.pb.rpc_pb2 import Member
from node.front.exchange import JSON, Exchange, Request
from node.remote_cluster import CLUSTER_ID_HEADER, MAKE_HEADER

_NOT_DECIDED: Final = "not_decided"


class PeerPages:
    """Serves /version and /members; anything else is not found."""

    def __init__(
        self, cluster_id: int, members: Callable[[], Sequence[Member]], cluster_version: Callable[[], str]
    ) -> None:
        """`members` gives all members of the cluster as known here, `cluster_version` MAJOR.MINOR.PATCH, or "" when it
        is not known yet."""
        self._cluster = (
            (CLUSTER_ID_HEADER.encode(), b"%x" % cluster_id),
            (MAKE_HEADER.encode(), __version__.encode()),
        )
        self._members = members
        self._cluster_version = cluster_version
        self._pages = {"/version": self._version, "/members": self._members_page}

    def handle(self, exchange: Exchange) -> None:
        """Serves one request."""
        request = Request(exchange)
        page = self._pages.get(request.path)
        if page is None:
            request.not_found()
        elif request.only("GET"):
            page(request)

    def _version(self, request: Request) -> None:
        request.respond(200, (JSON,), version_page(self._cluster_version()))

    def _members_page(self, request: Request) -> None:
        body = orjson.dumps([as_json(member) for member in self._members()], option=orjson.OPT_APPEND_NEWLINE)
        request.respond(200, (JSON, *self._cluster), body)


def version_page(cluster_version: str) -> bytes:
    """The page /version; `cluster_version` is "" when it is not known yet."""
    versions = {
        "etcdserver": API_VERSION,
        "etcdcluster": cluster_version or _NOT_DECIDED,
        "storage": API_VERSION if cluster_version else "unknown",
    }
    return orjson.dumps(versions)


def as_json(member: Member) -> dict[str, Any]:
    """A member as the page shows it: its id as a number, without what is empty but the id and the peer URLs."""
    shown: dict[str, Any] = {"id": member.ID, "peerURLs": list(member.peerURLs)}
    if member.isLearner:
        shown["isLearner"] = True
    if member.name:
        shown["name"] = member.name
    if member.clientURLs:
        shown["clientURLs"] = list(member.clientURLs)
    return shown
