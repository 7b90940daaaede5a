"""The session of a leasing proxy: its lease, and the watch by which it learns of its leasing keys.

Both are needed for ownership, so when either fails all ownership ends, the lease is revoked, and a new session begins:
that also holds when the endpoint in use is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from google.protobuf.message import DecodeError

from kvorum.log import Logger
from kvorum.pb.mvcc_pb2 import Event
from kvorum.pb.rpc_pb2 import (
    LeaseGrantRequest,
    LeaseGrantResponse,
    LeaseKeepAliveRequest,
    LeaseKeepAliveResponse,
    LeaseRevokeRequest,
    WatchCreateRequest,
    WatchRequest,
    WatchResponse,
)
from kvorum.wire import grpc
from kvorum.wire.calls import ClientStream
from proxy.leasing.guards import LeasingKeys
from proxy.leasing.ownership import Ownership
from proxy.paths import KEEP_ALIVE, LEASE_GRANT, LEASE_REVOKE, WATCH
from proxy.upstream.replies import read_as
from proxy.upstream.way import CallLater, Timer, Way

TTL_S: Final = 15
"""Of the session's lease. When a proxy dies, writers elsewhere wait for so long for what it owned."""

MARGIN: Final = 0.9
"""The part of the TTL in which ownership is believed: the clocks of proxy and member may differ by a tenth in speed."""

FIRST_PAUSE_S: Final = 0.1
LAST_PAUSE_S: Final = 10.0
"""Between sessions that never became ready; doubled each time."""

CALL_TIMEOUT_S: Final = 7.0


class Upstream(Way, Protocol):
    """What is used of the way to the cluster."""

    def flush(self) -> None:
        """Write what calls have produced."""


class Session:
    """Keeps the ownership's lease and its `valid_until`. `on_event` gets the events of all leasing keys, in order."""

    def __init__(
        self,
        upstream: Upstream,
        leasing: LeasingKeys,
        ownership: Ownership,
        on_event: Callable[[Event], None],
        *,
        now: Callable[[], float],
        call_later: CallLater,
        logger: Logger,
    ) -> None:
        self._upstream = upstream
        self._leasing = leasing
        self._ownership = ownership
        self._on_event = on_event
        self._now = now
        self._call_later = call_later
        self._logger = logger
        self._lease = 0
        self._number = 0
        """Of the session: what comes of an older one is not looked at."""
        self._granted_until = 0.0
        self._streams: list[ClientStream] = []
        self._keep_alive: ClientStream | None = None
        self._asked_at: float | None = None
        self._timer: Timer | None = None
        self._pause_s = 0.0
        self._stopped = False

    def start(self) -> None:
        """Begins the first session."""
        self._number += 1
        sent_at = self._now()
        number = self._number

        def granted(code: int, text: str, answer: LeaseGrantResponse) -> None:
            if number != self._number:
                return
            if code:
                self._lost(f"no lease: {text}")
                return
            self._lease = answer.ID
            self._granted_until = sent_at + answer.TTL * MARGIN
            self._watch(answer.header.revision + 1)

        request = LeaseGrantRequest(TTL=TTL_S).SerializeToString()
        self._upstream.call(LEASE_GRANT, request, read_as(LeaseGrantResponse, granted), (), CALL_TIMEOUT_S)

    def stop(self) -> None:
        """Gives up everything: writers elsewhere need not wait."""
        self._stopped = True
        self._end()

    def _watch(self, start_revision: int) -> None:
        create = WatchCreateRequest(key=self._leasing.start, range_end=self._leasing.end, start_revision=start_revision)
        stream = self._open(WATCH, self._on_watch)
        stream.send(WatchRequest(create_request=create).SerializeToString())

    def _on_watch(self, message: bytes) -> None:
        response = WatchResponse.FromString(message)
        if response.canceled:
            self._lost(f"the watch of the leasing keys was canceled: {response.cancel_reason}")
        elif response.created:
            self._pause_s = 0.0
            self._ownership.lease = self._lease
            self._ownership.valid_until = self._granted_until
            self._logger.info("leasing session begins", lease=f"{self._lease:016x}")
            self._keep_alive = self._open(KEEP_ALIVE, self._on_renewed)
            self._renew()
        for event in response.events:
            self._on_event(event)

    def _renew(self) -> None:
        self._timer = None
        now = self._now()
        if self._asked_at is not None:
            if now >= self._ownership.valid_until:
                self._lost("the lease was not renewed in time")
            else:
                self._timer = self._call_later(self._ownership.valid_until - now, self._renew)
            return
        assert self._keep_alive is not None
        self._asked_at = now
        self._keep_alive.send(LeaseKeepAliveRequest(ID=self._lease).SerializeToString())
        self._timer = self._call_later(TTL_S / 3, self._renew)

    def _on_renewed(self, message: bytes) -> None:
        reply = LeaseKeepAliveResponse.FromString(message)
        asked_at, self._asked_at = self._asked_at, None
        if reply.TTL <= 0 or asked_at is None:
            self._lost("the lease is gone")
        else:
            self._ownership.valid_until = asked_at + reply.TTL * MARGIN

    def _open(self, path: str, on_message: Callable[[bytes], None]) -> ClientStream:
        stream = self._upstream.open(path, _Replies(self, self._number, on_message), ())
        self._streams.append(stream)
        return stream

    def received(self, number: int, on_message: Callable[[bytes], None], message: bytes) -> None:
        """A message of a stream of session `number`."""
        if number != self._number:
            return
        try:
            on_message(message)
        except DecodeError as error:
            self._lost(f"no message of the API: {error}")

    def ended(self, number: int, text: str) -> None:
        """A stream of session `number` has ended."""
        if number == self._number:
            self._lost(text or "the stream ended")

    def _lost(self, reason: str) -> None:
        """The session is over: another begins."""
        self._logger.info("leasing session over", reason=reason)
        self._end()
        pause_s, self._pause_s = self._pause_s, min(max(FIRST_PAUSE_S, 2 * self._pause_s), LAST_PAUSE_S)
        if not self._stopped:
            self._timer = self._call_later(max(pause_s, FIRST_PAUSE_S), self.start)

    def _end(self) -> None:
        self._number += 1
        self._ownership.end_all()
        lease, self._lease = self._lease, 0
        self._asked_at = None
        self._keep_alive = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        streams, self._streams = self._streams, []
        for stream in streams:
            stream.cancel()
        if lease:
            # When it does not arrive the lease ends by itself.
            request = LeaseRevokeRequest(ID=lease).SerializeToString()
            self._upstream.call(LEASE_REVOKE, request, _ignored, (), CALL_TIMEOUT_S)
            self._upstream.flush()


def _ignored(_code: int, _text: str, _reply: bytes) -> None:
    """The outcome changes nothing."""


class _Replies:
    """The handler of a stream."""

    def __init__(self, session: Session, number: int, on_message: Callable[[bytes], None]) -> None:
        self._session = session
        self._number = number
        self._on_message: Callable[[bytes], None] | None = on_message

    def on_message(self, message: bytes) -> None:
        if self._on_message is not None:
            self._session.received(self._number, self._on_message, message)

    def on_end(self, _code: int, text: str, _trailers: grpc.Metadata) -> None:
        self._on_message = None
        self._session.ended(self._number, text)

    def on_writable(self) -> None:
        """Messages are few and small."""
