"""What a front knows of its member, and the checks that every call passes first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from kvorum import errors
from kvorum.wire.routes import CancelReason
from node.front.calls import Calls, Sink


class Head(Protocol):
    """The part of a call's decoded headers that services read."""

    @property
    def metadata(self) -> Mapping[str, tuple[str | bytes, ...]]:
        """Lower-case names and their values."""


UnaryHandler = Callable[[Sink, int, Head, bytes], None]
"""(sink, token, head, message): answers `token` at the sink once, now or later."""


@dataclass(slots=True)
class Limits:
    """The limits of requests, from the member's flags."""

    max_request_bytes: int
    max_txn_ops: int
    min_lease_ttl_s: int
    request_timeout_s: float


class Stoppable(Protocol):
    """A stream that this member may end."""

    def stop(self, status: errors.Status) -> None:
        """Ends the stream with `status`."""


WATCH: Final = "watch"
KEEP_ALIVE: Final = "lease-keepalive"
RECEIVE: Final = "receive"
SEND: Final = "send"
"""Labels of etcd_network_server_stream_failures_total."""


@dataclass(slots=True)
class Member:
    """Shared by all services of a front. `leader` is 0 while the member knows none."""

    member_id: int
    cluster_id: int
    limits: Limits
    calls: Calls
    term: int = 0
    leader: int = 0
    cluster_version: str = ""
    is_learner: bool = False
    streams: dict[Stoppable, None] = field(default_factory=dict)
    """Open streams that a stopping member ends at once (watches are kept by their own service)."""
    leader_streams: dict[Stoppable, None] = field(default_factory=dict)
    """Open streams whose clients asked for a leader with `hasleader` (likewise)."""
    requests_by_version: dict[tuple[str, str], int] = field(default_factory=dict)
    """Counts for etcd_server_client_requests_total: (client API version, kind of call) -> calls."""
    stream_failures: dict[tuple[str, str], int] = field(
        default_factory=lambda: {(api, way): 0 for api in (WATCH, KEEP_ALIVE) for way in (RECEIVE, SEND)}
    )
    """Counts for etcd_network_server_stream_failures_total: (service, way) -> streams."""

    def count_stream_end(self, api: str, reason: CancelReason | None) -> None:
        """A stream of `api` ended before its handler ended it: the client's leaving is no failure."""
        if reason is CancelReason.FAULT:
            self.stream_failures[api, RECEIVE] += 1
        elif reason is CancelReason.OVERFLOW:
            self.stream_failures[api, SEND] += 1


LOGGED_OVERHEAD_BYTES: Final = 18
"""What the reference's internal request adds to a request's own bytes: its limit holds for the sum (P3)."""


def too_large(limits: Limits, body: bytes) -> bool:
    """Whether a request to be logged is over the request limit."""
    return len(body) + LOGGED_OVERHEAD_BYTES > limits.max_request_bytes


def needs_leader(head: Head) -> bool:
    """Whether the client wants no answer, and no stream, from a member without a leader (WP13)."""
    given = head.metadata.get("hasleader")
    return given is not None and given[0] == "true"


def admit(member: Member, head: Head, kind: str) -> errors.Status | None:
    """The checks of metadata that come before most others (P1): None, or what the call is refused with."""
    metadata = head.metadata
    version = "unknown"
    if metadata:
        given = metadata.get("client-api-version")
        if given:
            first = given[0]
            try:
                version = first.decode() if isinstance(first, bytes) else first.encode().decode()
            except UnicodeError:  # bytes that are no UTF-8 come as surrogates
                return errors.INVALID_CLIENT_API_VERSION
        if not member.leader and needs_leader(head):
            return errors.NO_LEADER
    counts = member.requests_by_version
    if len(counts) >= MAX_CLIENT_VERSIONS and (version, kind) not in counts:
        version = "other"
    counts[version, kind] = counts.get((version, kind), 0) + 1
    return None


MAX_CLIENT_VERSIONS: Final = 100
"""Clients choose the label, so the number of them needs a bound."""


def guarded(
    member: Member, handler: UnaryHandler, learner_serves: Callable[[bytes], bool] = lambda _message: False
) -> UnaryHandler:
    """A unary handler behind the checks of metadata; `learner_serves` tells which requests a learner answers (M25)."""

    def handle(sink: Sink, token: int, head: Head, message: bytes) -> None:
        if member.is_learner and not learner_serves(message):
            sink.fail(token, *errors.NOT_SUPPORTED_FOR_LEARNER)
            return
        refused = admit(member, head, "unary")
        if refused is None:
            handler(sink, token, head, message)
        else:
            sink.fail(token, *refused)

    return handle


def admitted(member: Member, stream: Any, head: Head) -> bool:
    """The same checks for a stream, none of which a learner serves; one that is refused has been ended."""
    refused = errors.NOT_SUPPORTED_FOR_LEARNER if member.is_learner else admit(member, head, "stream")
    if refused is not None:
        stream.end(*refused)
    return refused is None
