"""LeaseKeepAlive streams of clients, and the one upstream stream that the callers of one kind share.

What a client sees is what a member does: a reply per request in the order of the requests (L7), TTL 0 for an unknown
lease (L8), OK after a half-close (L10), `no leader` where it asked for one (WP11). While upstream is away asks wait,
and are repeated.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

from google.protobuf.message import DecodeError

from kvorum import errors
from kvorum.errors import ApiError, Code, Status, unmarshal_error
from kvorum.pb.rpc_pb2 import LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseRevokeRequest
from kvorum.wire import grpc
from kvorum.wire.calls import ClientStream, Fields, UnaryDone
from kvorum.wire.head import Head
from kvorum.wire.routes import CancelReason, StreamHandler, StreamOpen, UnaryHandler
from kvorum.wire.server_calls import ServerStream
from proxy import calls
from proxy.callers import Caller, Callers
from proxy.lease.renewals import Renewals
from proxy.paths import KEEP_ALIVE, LEASE_REVOKE
from proxy.upstream.way import CallLater, CallSoon, Timer, Way

MAX_PENDING: Final = 1024
"""Keep-alives of one client stream that wait for their answer; beyond that the stream is not read."""

MAX_WAITING: Final = 100_000
"""Keep-alives of all streams that wait. Beyond that a stream that asks ends with `too many requests`."""

SEND_LEASES: Final = 1000
"""Renewals in one write, 16 kB: between two writes the stream may be no longer writable."""

STALLED_S: Final = 15.0
"""An upstream that owes an answer for so long is given up, and another stream opened. A member answers, or ends the
stream, within its request timeout of 7 s."""

FIRST_PAUSE_S: Final = 0.05
LAST_PAUSE_S: Final = 1.0
"""Between upstream streams that bring no answer; doubled each time."""

_TRANSPORT: Final = frozenset((Code.OK, Code.CANCELLED, Code.UNAVAILABLE, Code.INTERNAL, Code.RESOURCE_EXHAUSTED))
"""Ends of an upstream stream that are nobody's fault here, unless they carry a text of the API."""


class KeepAliveStream:
    """One client's LeaseKeepAlive stream."""

    def __init__(self, source: _Source, stream: ServerStream, number: int) -> None:
        self._source = source
        self._stream = stream
        self._number = number
        self._first_token = 0
        self._asks: deque[int] = deque()  # the leases, by token
        self._answers: deque[bytes | None] = deque()
        self._half_closed = False
        self._ended = False

    def on_message(self, message: bytes) -> None:
        if self._ended:
            return
        try:
            lease_id = LeaseKeepAliveRequest.FromString(message).ID
        except DecodeError as error:
            self.end(*unmarshal_error(error))
            return
        source = self._source
        answer = source.renewals.ask(self._number, self._first_token + len(self._asks), lease_id, source.service.now())
        self._asks.append(lease_id)
        self._answers.append(answer)
        if len(self._answers) == MAX_PENDING:
            self._stream.pause_reading()
        if answer is None:
            source.service.waiting += 1
            if source.service.waiting > MAX_WAITING:
                self.end(*errors.REQUEST_TOO_MANY_REQUESTS)
            source.wake()
        else:
            self._send()

    def on_half_close(self) -> None:
        self._half_closed = True
        if not self._answers:
            self.end(0, "")

    def on_cancel(self, reason: CancelReason | None) -> None:
        self._ended = True
        unanswered = [lease_id for lease_id, answer in zip(self._asks, self._answers, strict=True) if answer is None]
        self._source.service.waiting -= len(unanswered)
        self._source.leave(self._number, unanswered)

    def on_writable(self) -> None:
        self._send()

    def reply(self, token: int, message: bytes) -> None:
        """The answer to the ask `token`."""
        self._source.service.waiting -= 1
        self._answers[token - self._first_token] = message
        self._send()

    def end(self, code: int, text: str) -> None:
        """Ends the stream."""
        if not self._ended:
            self.on_cancel(None)
            self._stream.end(code, text)

    def _send(self) -> None:
        answers = self._answers
        full = len(answers) >= MAX_PENDING
        while not self._ended and answers and (answer := answers[0]) is not None and self._stream.writable:
            self._stream.send(answer)
            answers.popleft()
            self._asks.popleft()
            self._first_token += 1
        if full and len(answers) < MAX_PENDING and not self._ended:
            self._stream.resume_reading()
        if self._half_closed and not answers:
            self.end(0, "")


class _Source:
    """The upstream stream for callers with the same metadata: a token, and whether they want a leader."""

    def __init__(self, service: KeepAliveService, caller: Caller) -> None:
        self.service = service
        self.renewals = Renewals()
        self.clients: dict[int, KeepAliveStream] = {}
        self.metadata = caller.metadata
        self._wants_leader = caller.hasleader
        self._stream: ClientStream | None = None
        self._flush_armed = False
        self._pause_s = 0.0
        self._pause: Timer | None = None
        self._timer: Timer | None = None
        self._timer_at = 0.0

    @property
    def idle(self) -> bool:
        return not self.clients and self.renewals.idle

    def join(self, client: KeepAliveStream, number: int) -> None:
        """A client's stream was opened."""
        self.clients[number] = client
        if self._wants_leader:
            self.wake()

    def leave(self, number: int, unanswered: list[int]) -> None:
        """A client's stream has ended."""
        self.clients.pop(number, None)
        self.renewals.leave(number, unanswered)
        if self.idle:
            self.close()

    def wake(self) -> None:
        """Something may have to be sent: what one turn of the loop brings goes out in one write."""
        if not self._flush_armed and self._pause is None:
            self._flush_armed = True
            self.service.call_soon(self._flush)

    def close(self) -> None:
        """Ends the upstream stream and the timers."""
        self.service.drop(self)
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel()
        for timer in (self._timer, self._pause):
            if timer is not None:
                timer.cancel()
        self._timer = self._pause = None

    def _flush(self) -> None:
        self._flush_armed = False
        renewals = self.renewals
        if self._pause is not None or self.idle:
            return
        if self._stream is None:
            if not renewals.wanted and not (self._wants_leader and self.clients):
                return
            handler = _Answers(self)
            handler.stream = self._stream = self.service.upstream.open(KEEP_ALIVE, handler, self.metadata)
        stream = self._stream
        while renewals.queued and stream is self._stream and stream.writable:
            now = self.service.now()
            leases = renewals.take(now, SEND_LEASES)
            stream.send_framed(
                b"".join([grpc.frame(LeaseKeepAliveRequest(ID=lease_id).SerializeToString()) for lease_id in leases])
            )
        self._arm()

    def _arm(self) -> None:
        """Sees that `_tick` comes when something is due."""
        at = self.renewals.due_at
        sent_at = self.renewals.oldest_sent_at
        if sent_at is not None and (at is None or sent_at + STALLED_S < at):
            at = sent_at + STALLED_S
        if at is None or (self._timer is not None and self._timer_at <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self.service.call_later(max(0.0, at - self.service.now()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self.service.now()
        self.renewals.tick(now)
        sent_at = self.renewals.oldest_sent_at
        if sent_at is not None and now >= sent_at + STALLED_S and self._stream is not None:
            self._stream.cancel()
        if self.idle:
            self.close()
            return
        self._arm()
        if self.renewals.queued:
            self.wake()

    # For the upstream stream.

    def answer(self, stream: ClientStream | None, message: bytes) -> None:
        if stream is None or stream is not self._stream:
            return
        try:
            asks = self.renewals.answered(LeaseKeepAliveResponse.FromString(message))
        except (DecodeError, ValueError):  # what follows cannot be matched with what was asked
            stream.cancel()
            return
        self._pause_s = 0.0
        clients = self.clients
        for number, token in asks:
            client = clients.get(number)
            if client is not None:
                client.reply(token, message)
        if self.renewals.queued:
            self.wake()
        self._arm()

    def ended(self, stream: ClientStream | None, code: int, text: str) -> None:
        if stream is not self._stream:
            return
        self._stream = None
        renewals = self.renewals
        if code == Code.UNAUTHENTICATED or (
            code == Code.UNAVAILABLE and text.startswith("etcdserver: ") and text != errors.STOPPED.message
        ):
            failed = renewals.fail()
        elif code in _TRANSPORT:
            failed = []
            renewals.lost()
        else:
            failed = renewals.refused()
        leaderless = self._wants_leader and (code, text) == errors.NO_LEADER
        numbers = list(self.clients) if leaderless else [number for number, _ in failed]
        pause_s, self._pause_s = self._pause_s, min(max(FIRST_PAUSE_S, 2 * self._pause_s), LAST_PAUSE_S)
        self._pause = self.service.call_later(pause_s, self._resume)
        for number in numbers:
            client = self.clients.get(number)
            if client is not None:
                client.end(code, text)

    def _resume(self) -> None:
        self._pause = None
        self.wake()


class _Answers:
    """What comes on one upstream stream."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        self.stream: ClientStream | None = None

    def on_message(self, message: bytes) -> None:
        self._source.answer(self.stream, message)

    def on_end(self, code: int, text: str, _trailers: grpc.Metadata) -> None:
        stream, self.stream = self.stream, None
        self._source.ended(stream, code, text)

    def on_writable(self) -> None:
        self._source.wake()


class KeepAliveService:
    """LeaseKeepAlive for all clients of a worker, and LeaseRevoke, after which nothing of the lease is remembered.

    `now` is the clock of `call_later`, in seconds.
    """

    def __init__(
        self,
        upstream: Way,
        callers: Callers,
        *,
        now: Callable[[], float],
        call_soon: CallSoon,
        call_later: CallLater,
    ) -> None:
        self.upstream = upstream
        self.now = now
        self.call_soon = call_soon
        self.call_later = call_later
        self.waiting = 0
        """Keep-alives that wait for their answer."""
        self._callers = callers
        self._sources: dict[Fields, _Source] = {}
        self._numbers = 0

    def unary(self) -> dict[str, UnaryHandler]:
        """The unary method of etcdserverpb.Lease that is looked at."""
        return calls.pass_through(self._revoke, self._callers, (LEASE_REVOKE,))

    def streams(self) -> dict[str, StreamOpen]:
        """The streaming method of etcdserverpb.Lease."""
        return {KEEP_ALIVE: self._open}

    def forget(self, lease_id: int) -> None:
        """The lease has been revoked."""
        for source in self._sources.values():
            source.renewals.forget(lease_id)
            if source.renewals.queued:
                source.wake()

    def stop(self, status: Status) -> None:
        """Ends all streams with this status."""
        for source in list(self._sources.values()):
            for client in list(source.clients.values()):
                client.end(*status)
            source.close()

    def drop(self, source: _Source) -> None:
        """The source is closed."""
        if self._sources.get(source.metadata) is source:
            del self._sources[source.metadata]

    def _open(self, stream: ServerStream, head: Head) -> StreamHandler | None:
        try:
            caller = self._callers.resolve(stream.connection, head)
        except ApiError as error:
            stream.end(*error.status)
            return None
        source = self._sources.get(caller.metadata)
        if source is None:
            source = self._sources[caller.metadata] = _Source(self, caller)
        self._numbers += 1
        client = KeepAliveStream(source, stream, self._numbers)
        source.join(client, self._numbers)
        return client

    def _revoke(self, path: str, message: bytes, done: UnaryDone, metadata: Fields, timeout_s: float | None) -> None:
        self.upstream.call(path, message, partial(self._revoked, message, done), metadata, timeout_s)

    def _revoked(self, message: bytes, done: UnaryDone, code: int, text: str, reply: bytes) -> None:
        # Also after an error: the revoke may have been done, or the lease may be unknown.
        try:
            self.forget(LeaseRevokeRequest.FromString(message).ID)
        except DecodeError:
            assert code, "a member cannot read more than the proxy"
        done(code, text, reply)
