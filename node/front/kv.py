"""The KV service: checks what needs no state, and sends the request on as the bytes that came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError

from kvorum import errors
from kvorum.errors import ApiError, Status, unmarshal_error
from kvorum.pb.rpc_pb2 import CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, TxnRequest
from node import check
from node.front.calls import Sink
from node.front.member import Head, Member, UnaryHandler, admitted, guarded, needs_leader, too_large
from node.requests import LINEARIZABLE, Op


class PartStream:
    """The sink of a call that is answered by several messages on a server stream. `on_end` is called once."""

    def __init__(self, stream: Any, on_end: Callable[[], None]) -> None:
        self._stream = stream
        self._on_end = on_end
        self.ended = False

    def part(self, _token: int, message: bytes) -> None:
        """One more message."""
        if not self.ended:
            self._stream.send(message)

    def reply(self, _token: int, message: bytes) -> None:
        """The last message."""
        if not self.ended:
            self.cut()
            self._stream.send(message)
            self._stream.end(0, "")

    def fail(self, _token: int, code: int, text: str) -> None:
        """The call failed, perhaps after some messages."""
        if not self.ended:
            self.cut()
            self._stream.end(code, text)

    def cut(self) -> None:
        """Nothing more is said on the stream."""
        if not self.ended:
            self.ended = True
            self._on_end()


class RangeStreamCall:
    """One RangeStream call: a single request, then chunks from apply."""

    def __init__(self, member: Member, stream: Any) -> None:
        self._member = member
        self._sink = PartStream(stream, self._on_end)
        self._asked = False

    def on_message(self, message: bytes) -> None:
        if self._asked or self._sink.ended:
            return  # the wire refuses a second message of a server-streaming call
        self._asked = True
        try:
            request = RangeRequest.FromString(message)
            check.check_range_stream(request)
        except DecodeError as error:
            self._sink.fail(0, *unmarshal_error(error))
        except ApiError as error:
            self._sink.fail(0, *error.status)
        else:
            flags = 0 if request.serializable else LINEARIZABLE
            self._member.calls.read(self._sink, 0, Op.RANGE_STREAM, message, flags)

    def on_half_close(self) -> None:
        if not self._asked:
            self._sink.fail(0, errors.Code.INTERNAL, "cardinality violation: expected one request message")

    def on_cancel(self, _reason: object) -> None:
        self._sink.cut()

    def on_writable(self) -> None:
        pass

    def stop(self, status: Status) -> None:
        """See Stoppable."""
        self._sink.fail(0, *status)

    def _on_end(self) -> None:
        self._member.leader_streams.pop(self, None)


def unary(member: Member) -> dict[str, UnaryHandler]:
    """The unary methods of etcdserverpb.KV by path."""
    calls = member.calls
    limits = member.limits

    def range_(sink: Sink, token: int, _head: Head, message: bytes) -> None:
        # apply parses and checks it, and finds out whether it needs a read index: a read needs no second look here
        calls.read(sink, token, Op.RANGE, message)

    def logged(message_type: Any, check_fields: Callable[[Any], None], op: Op) -> UnaryHandler:
        """A method whose checked request is logged as it came."""

        def handle(sink: Sink, token: int, _head: Head, message: bytes) -> None:
            try:
                check_fields(message_type.FromString(message))
            except DecodeError as error:
                sink.fail(token, *unmarshal_error(error))
            except ApiError as error:
                sink.fail(token, *error.status)
            else:
                if too_large(limits, message):
                    sink.fail(token, *errors.REQUEST_TOO_LARGE)
                else:
                    calls.propose(sink, token, op, message)

        return handle

    def txn(sink: Sink, token: int, _head: Head, message: bytes) -> None:
        try:
            request = TxnRequest.FromString(message)
            check.check_txn(request, limits.max_txn_ops)
        except DecodeError as error:
            sink.fail(token, *unmarshal_error(error))
        except ApiError as error:
            sink.fail(token, *error.status)
        else:
            if check.is_read_only(request):
                flags = 0 if check.is_serializable(request) else LINEARIZABLE
                calls.read(sink, token, Op.TXN_READ, message, flags)
            elif too_large(limits, message):
                sink.fail(token, *errors.REQUEST_TOO_LARGE)
            else:
                calls.propose(sink, token, Op.TXN, message)

    methods = {
        "Range": range_,
        "Put": logged(PutRequest, check.check_put, Op.PUT),
        "DeleteRange": logged(DeleteRangeRequest, check.check_delete_range, Op.DELETE_RANGE),
        "Txn": txn,
        "Compact": logged(CompactionRequest, lambda _: None, Op.COMPACT),
    }
    guards = {name: guarded(member, handler) for name, handler in methods.items()}
    guards["Range"] = guarded(member, range_, learner_serves=is_serializable)
    return {f"/etcdserverpb.KV/{name}": handler for name, handler in guards.items()}


def is_serializable(message: bytes) -> bool:
    """Whether a RangeRequest asks for what this member has. One that does not parse is refused as such."""
    try:
        return RangeRequest.FromString(message).serializable
    except DecodeError:
        return True


def range_stream(member: Member) -> Callable[[Any, Head], RangeStreamCall]:
    """Opens RangeStream calls."""

    def open_(stream: Any, head: Head) -> RangeStreamCall:
        call = RangeStreamCall(member, stream)
        if not admitted(member, stream, head):
            call.on_cancel(None)
        elif needs_leader(head):
            member.leader_streams[call] = None
        return call

    return open_


def parse_error(message_type: Any, message: bytes) -> Status | None:
    """What a message that does not parse is refused with, or None."""
    try:
        message_type.FromString(message)
    except DecodeError as error:
        return unmarshal_error(error)
    return None
