"""The Lease service. Grants and revokes are logged; the rest goes to the apply process, which keeps the time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from google.protobuf.message import DecodeError

from kvorum import errors
from kvorum.errors import Status, unmarshal_error
from kvorum.pb.rpc_pb2 import (
    LeaseGrantRequest,
    LeaseKeepAliveRequest,
    LeaseLeasesRequest,
    LeaseRevokeRequest,
    LeaseTimeToLiveRequest,
)
from kvorum.wire.routes import CancelReason
from node.front.calls import Sink
from node.front.kv import parse_error
from node.front.member import KEEP_ALIVE, Head, Member, UnaryHandler, admitted, guarded, needs_leader
from node.requests import LINEARIZABLE, Op

MAX_TTL_S: Final = 9_000_000_000

QUESTION_BYTES: Final = 16
"""A lease's id and a flag take no more."""

MAX_PENDING_KEEP_ALIVES: Final = 1024
"""Keep-alives of one stream that wait for their answer; beyond that the stream is not read."""


def unary(member: Member, random_id: Callable[[], int]) -> dict[str, UnaryHandler]:
    """The unary methods of etcdserverpb.Lease by path; `random_id` draws 63 random bits for a lease's id."""
    calls = member.calls

    def grant(sink: Sink, token: int, _head: Head, message: bytes) -> None:
        try:
            request = LeaseGrantRequest.FromString(message)
        except DecodeError as error:
            sink.fail(token, *unmarshal_error(error))
            return
        if request.TTL > MAX_TTL_S:
            sink.fail(token, *errors.LEASE_TTL_TOO_LARGE)
            return
        # whatever is chosen is chosen here and logged, so that every member and every replay does the same
        while request.ID == 0:
            request.ID = random_id()
        if request.TTL < member.limits.min_lease_ttl_s:
            request.TTL = member.limits.min_lease_ttl_s
        calls.propose(sink, token, Op.LEASE_GRANT, request.SerializeToString())

    def forward(message_type: Any, op: Op) -> UnaryHandler:
        def handle(sink: Sink, token: int, _head: Head, message: bytes) -> None:
            status = parse_error(message_type, message)
            if status is not None:
                sink.fail(token, *status)
            elif op is Op.LEASE_REVOKE:
                calls.propose(sink, token, op, message)
            elif op is Op.LEASE_TIME_TO_LIVE:  # at the leader, once it has applied what was written anywhere before
                calls.leader_reads.ask(sink, token, op, known_fields(message_type, message), LINEARIZABLE)
            else:
                calls.read(sink, token, op, message)

        return handle

    methods = {
        "LeaseGrant": grant,
        "LeaseRevoke": forward(LeaseRevokeRequest, Op.LEASE_REVOKE),
        "LeaseTimeToLive": forward(LeaseTimeToLiveRequest, Op.LEASE_TIME_TO_LIVE),
        "LeaseLeases": forward(LeaseLeasesRequest, Op.LEASE_LEASES),
    }
    return {f"/etcdserverpb.Lease/{name}": guarded(member, handler) for name, handler in methods.items()}


def known_fields(message_type: Any, message: bytes) -> bytes:
    """A question as it travels to other members: a client may have put anything into it that nobody reads."""
    if len(message) <= QUESTION_BYTES:
        return message
    question = message_type.FromString(message)
    question.DiscardUnknownFields()
    kept = question.SerializeToString()
    assert isinstance(kept, bytes)
    return kept


class KeepAliveStream:
    """One LeaseKeepAlive stream: an answer per request, in the order of the requests (L7).

    Apply may hold one answer back (a lease whose revoke is under way), so later ones wait for it here.
    """

    def __init__(self, member: Member, stream: Any) -> None:
        self._member = member
        self._stream = stream
        self._next_token = 0
        self._first_token = 0
        self._answers: deque[bytes | None] = deque()
        self._half_closed = False
        self._ended = False
        member.streams[self] = None

    def on_message(self, message: bytes) -> None:
        if self._ended:
            return
        try:
            LeaseKeepAliveRequest.FromString(message)
        except DecodeError as error:
            self._member.count_stream_end(KEEP_ALIVE, CancelReason.FAULT)
            self._end(*unmarshal_error(error))
            return
        token = self._next_token
        self._next_token += 1
        self._answers.append(None)
        if len(self._answers) == MAX_PENDING_KEEP_ALIVES:
            self._stream.pause_reading()
        question = known_fields(LeaseKeepAliveRequest, message)
        self._member.calls.leader_reads.ask(self, token, Op.LEASE_KEEP_ALIVE, question)

    def on_half_close(self) -> None:
        self._half_closed = True
        if not self._answers:
            self._end(0, "")

    def on_cancel(self, reason: CancelReason | None) -> None:
        self._member.count_stream_end(KEEP_ALIVE, reason)
        self._ended = True
        self._member.streams.pop(self, None)
        self._member.leader_streams.pop(self, None)

    def stop(self, status: Status) -> None:
        """See Stoppable."""
        self._end(*status)

    def on_writable(self) -> None:
        self._send()

    def reply(self, token: int, message: bytes) -> None:
        """Apply answered the request `token`."""
        if self._ended:
            return
        self._answers[token - self._first_token] = message
        self._send()

    def fail(self, _token: int, code: int, text: str) -> None:
        """A keep-alive failed: that ends the stream."""
        self._end(code, text)

    def _send(self) -> None:
        answers = self._answers
        full = len(answers) >= MAX_PENDING_KEEP_ALIVES
        while not self._ended and answers and answers[0] is not None and self._stream.writable:
            self._stream.send(answers.popleft())
            self._first_token += 1
        if full and len(answers) < MAX_PENDING_KEEP_ALIVES and not self._ended:
            self._stream.resume_reading()
        if self._half_closed and not answers:
            self._end(0, "")

    def _end(self, code: int, text: str) -> None:
        if not self._ended:
            self.on_cancel(None)
            self._stream.end(code, text)


def keep_alive(member: Member) -> Callable[[Any, Head], KeepAliveStream]:
    """Opens LeaseKeepAlive streams."""

    def open_(stream: Any, head: Head) -> KeepAliveStream:
        handler = KeepAliveStream(member, stream)
        if not admitted(member, stream, head):
            handler.on_cancel(None)
        elif needs_leader(head):
            member.leader_streams[handler] = None
        return handler

    return open_
