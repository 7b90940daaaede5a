"""Calls of a client, before and after they have a connection and a stream id."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from kvorum.errors import Code
from kvorum.wire import grpc, hpack
from kvorum.wire.flow import Stream
from kvorum.wire.reply_head import ReplyHead

if TYPE_CHECKING:
    from kvorum.wire.client_connection import ClientConnection

CANCELLED_TEXT: Final = "context canceled"

Fields = tuple[hpack.Field, ...]


class CallHandler(Protocol):
    """What a streaming call's replies go to; the wire calls it, synchronously."""

    def on_message(self, message: bytes) -> None:
        """One message of the server's, in order."""

    def on_end(self, code: int, text: str, trailers: grpc.Metadata) -> None:
        """The call has ended; called once, and nothing after it."""

    def on_writable(self) -> None:
        """`writable` is true again after it was false."""


UnaryDone = Callable[[int, str, bytes], None]
"""(code, text, message) of a unary call; the message is empty unless the code is OK."""


Settled = Callable[["ClientCall"], None]
"""Told of each call with a deadline as it ends."""


class ClientCall(Stream):
    """A call, before and after it has a connection and a stream id."""

    __slots__ = ("connection", "deadline_at", "fields", "head", "path", "reader", "retried", "slot")

    def __init__(self, path: str, fields: Fields, deadline_at: float | None) -> None:
        super().__init__(0, 0, 0)
        self.path = path
        self.fields = fields
        self.deadline_at = deadline_at
        """In the loop's time."""
        self.slot = 0
        self.retried = False
        self.connection: ClientConnection | None = None
        self.head: ReplyHead | None = None
        self.reader: grpc.MessageReader | None = None

    def begin(self, connection: "ClientConnection") -> None:
        """The headers are out: send what is there to send."""
        raise NotImplementedError

    def on_message(self, message: bytes) -> None:
        raise NotImplementedError

    def finish(self, code: int, text: str, trailers: grpc.Metadata) -> None:
        """The call has ended with this."""
        raise NotImplementedError

    @property
    def finished(self) -> bool:
        raise NotImplementedError


class UnaryClientCall(ClientCall):
    """One message each way."""

    __slots__ = ("done", "message", "reply", "settled")

    def __init__(
        self, path: str, fields: Fields, deadline_at: float | None, message: bytes, settled: Settled, done: UnaryDone
    ) -> None:
        # The base classes' fields are set here: two more calls of __init__ cost 0.3 us for each request.
        self.id = 0
        self.send_window = 0
        self.recv_window = 0
        self.remote_closed = False
        self.local_closed = False
        self.reading = True
        self.throttled = False
        self.queue = None
        self.queue_offset = 0
        self.queued_bytes = 0
        self.tail = None
        self.path = path
        self.fields = fields
        self.deadline_at = deadline_at
        self.slot = 0
        self.retried = False
        self.connection = None
        self.head = None
        self.reader = None
        self.message = message
        self.reply: bytes | None = None
        self.done: UnaryDone | None = done
        self.settled: Settled = settled

    def begin(self, connection: "ClientConnection") -> None:
        connection.send_only_message(self, self.message)

    def restart(self) -> None:
        """Forget the connection, so that the call can be started on another."""
        self.connection = None
        self.id = 0
        self.head = self.reader = None
        self.remote_closed = self.local_closed = self.throttled = False
        self.queue = self.tail = None
        self.queue_offset = self.queued_bytes = 0
        self.reply = None

    def on_message(self, message: bytes) -> None:
        if self.reply is not None:
            assert self.connection is not None
            self.connection.abandon(self, Code.INTERNAL, "grpc: more than one message in a unary reply")
            return
        self.reply = message

    def finish(self, code: int, text: str, trailers: grpc.Metadata) -> None:
        done = self.done
        if done is None:
            return
        self.done = None
        if self.slot:
            self.settled(self)
        if code:
            done(code, text, b"")
        elif self.reply is None:
            done(Code.INTERNAL, "grpc: no message in a unary reply", b"")
        else:
            done(0, text, self.reply)

    @property
    def finished(self) -> bool:
        return self.done is None


class ClientStream(ClientCall):
    """A call with a stream in at least one direction; what its owner writes to."""

    __slots__ = ("_early", "_half_closed", "handler", "initial_metadata", "settled")

    def __init__(
        self, path: str, fields: Fields, deadline_at: float | None, settled: Settled, handler: CallHandler
    ) -> None:
        super().__init__(path, fields, deadline_at)
        self.handler: CallHandler | None = handler
        self.initial_metadata: grpc.Metadata = grpc.NO_METADATA
        """The server's headers, once the first message or the end has come."""
        self.settled: Settled = settled
        self._early: list[bytes] = []
        self._half_closed = False

    @property
    def writable(self) -> bool:
        """False above the high-water mark, or while there is no connection or the socket takes nothing."""
        connection = self.connection
        if connection is None or self.throttled:
            return False
        if connection.congested:
            connection.throttle(self)
            return False
        return True

    @property
    def buffered_bytes(self) -> int:
        """Octets that have not left for want of a connection, a window or a faster socket."""
        return self.queued_bytes + sum([len(data) for data in self._early])

    def send(self, message: bytes) -> None:
        """One message; dropped when the call has ended. A sender that does not heed `writable` ends the call with
        RESOURCE_EXHAUSTED at `stream_queue_bytes`."""
        self.send_framed(grpc.frame(message))

    def send_framed(self, framed: bytes) -> None:
        """Messages with their prefixes, joined."""
        assert not self._half_closed
        if self.handler is None:
            return
        if self.connection is None:
            self._early.append(framed)
        elif not self.local_closed:
            self.connection.send_stream_data(self, framed)

    def half_close(self) -> None:
        """No more messages will be sent."""
        if self._half_closed or self.handler is None:
            return
        self._half_closed = True
        if self.connection is not None:
            self.connection.half_close(self)

    def cancel(self) -> None:
        """End the call now; the handler gets CANCELLED."""
        if self.handler is None:
            return
        if self.connection is not None:
            self.connection.abandon(self, Code.CANCELLED, CANCELLED_TEXT)
        else:
            self.finish(Code.CANCELLED, CANCELLED_TEXT, grpc.NO_METADATA)

    def pause_reading(self) -> None:
        """Stop `on_message`; at most the stream's window is held meanwhile."""
        self.reading = False

    def resume_reading(self) -> None:
        """Go on with what is held and what comes."""
        if not self.reading:
            self.reading = True
            if self.connection is not None:
                self.connection.resume(self)

    def begin(self, connection: "ClientConnection") -> None:
        early, self._early = self._early, []
        for framed in early:
            connection.send_stream_data(self, framed)
        if self._half_closed:
            connection.half_close(self)
        elif self.handler is not None:
            self.handler.on_writable()

    def on_message(self, message: bytes) -> None:
        if self.handler is not None:
            self.handler.on_message(message)

    def finish(self, code: int, text: str, trailers: grpc.Metadata) -> None:
        handler, self.handler = self.handler, None
        if handler is not None:
            if self.slot:
                self.settled(self)
            self._early = []
            handler.on_end(code, text, trailers)

    @property
    def finished(self) -> bool:
        return self.handler is None
