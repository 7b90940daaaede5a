"""grpc.health.v1.Health: the whole server, named by the empty service, is SERVING (G15)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError

from kvorum import errors
from kvorum.errors import Code, unmarshal_error
from kvorum.pb.health_pb2 import HealthCheckRequest, HealthCheckResponse
from node.front.calls import Sink
from node.front.member import Head, Member, UnaryHandler, admitted, needs_leader

SERVING = HealthCheckResponse(status=HealthCheckResponse.SERVING).SerializeToString()
SERVICE_UNKNOWN = HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN).SerializeToString()

CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"


def unary() -> dict[str, UnaryHandler]:
    """The unary method by path."""

    def check(sink: Sink, token: int, _head: Head, message: bytes) -> None:
        try:
            request = HealthCheckRequest.FromString(message)
        except DecodeError as error:
            sink.fail(token, *unmarshal_error(error))
            return
        if request.service:
            sink.fail(token, Code.NOT_FOUND, "unknown service")
        else:
            sink.reply(token, SERVING)

    return {CHECK: check}


class HealthWatch:
    """One Watch call: says the state at once, and would say each change; a member that serves has none."""

    def __init__(self, member: Member, stream: Any) -> None:
        self._member = member
        self._stream = stream
        self._asked = False
        self._ended = False
        member.streams[self] = None

    def on_message(self, message: bytes) -> None:
        if self._asked or self._ended:
            return  # the wire refuses a second message of a server-streaming call
        self._asked = True
        try:
            request = HealthCheckRequest.FromString(message)
        except DecodeError as error:
            self._end(*unmarshal_error(error))
            return
        self._stream.send(SERVICE_UNKNOWN if request.service else SERVING)

    def on_half_close(self) -> None:
        if not self._asked:
            self._end(Code.INTERNAL, "cardinality violation: expected one request message")

    def on_cancel(self, _reason: object) -> None:
        self._ended = True
        self._member.streams.pop(self, None)
        self._member.leader_streams.pop(self, None)

    def stop(self, status: errors.Status) -> None:
        """See Stoppable."""
        self._end(*status)

    def _end(self, code: int, text: str) -> None:
        if not self._ended:
            self.on_cancel(None)
            self._stream.end(code, text)

    def on_writable(self) -> None:
        pass


def watch(member: Member) -> Callable[[Any, Head], HealthWatch]:
    """Opens Watch calls. A learner serves `Check`, but no stream of this kind (M25, M26)."""

    def open_(stream: Any, head: Head) -> HealthWatch:
        handler = HealthWatch(member, stream)
        if not admitted(member, stream, head):
            handler.on_cancel(None)
        elif needs_leader(head):
            member.leader_streams[handler] = None
        return handler

    return open_
