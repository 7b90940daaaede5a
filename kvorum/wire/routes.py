"""What a server serves: handlers by path, what they are called with, and the counts of each method."""

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from kvorum.errors import Code
from kvorum.wire.deadlines import Deadlines
from kvorum.wire.head import Head, Refusal
from kvorum.wire.limits import ServerLimits

if TYPE_CHECKING:
    from kvorum.wire.http2 import Http2Handler
    from kvorum.wire.server_calls import ServerStream
    from kvorum.wire.server_connection import ServerConnection


class CancelReason(Enum):
    """Why a stream ended before its handler ended it."""

    RESET = "reset by the client"
    DEADLINE = "deadline exceeded"
    LOST = "connection lost"
    FAULT = "a message that cannot be read"
    OVERFLOW = "the client does not read what is sent"


class StreamHandler(Protocol):
    """What a streaming method does; the wire calls it, synchronously."""

    def on_message(self, message: bytes) -> None:
        """One message of the client's, in order."""

    def on_half_close(self) -> None:
        """The client has sent its last message."""

    def on_cancel(self, reason: CancelReason) -> None:
        """The stream ended before `end()`; called once, and nothing after it."""

    def on_writable(self) -> None:
        """`writable` is true again after it was false."""


class ReplyStream(Protocol):
    """What a streaming method writes to: a ServerStream, or what stands for one."""

    @property
    def writable(self) -> bool:
        """False when enough is buffered; then `on_writable` is called later."""
        ...

    def send(self, message: bytes, /) -> None:
        """One message."""

    def send_framed(self, framed: bytes, messages: int, /) -> None:
        """Messages with their prefixes, joined."""

    def end(self, code: int, text: str, /) -> None:
        """Ends the stream."""

    def pause_reading(self) -> None:
        """No more `on_message`."""

    def resume_reading(self) -> None:
        """Go on."""


UnaryHandler = Callable[["ServerConnection", int, Head, bytes], None]
"""(connection, stream id, head, message). Answers now or later by `connection.reply` or `connection.fail`."""

StreamOpen = Callable[["ServerStream", Head], StreamHandler | None]
"""Called when the request's headers have arrived. May already end the stream; then there need be no handler."""


class Route:
    """One method and its counts."""

    __slots__ = ("failed", "method", "ok", "received", "sent", "service", "started")

    def __init__(self, path: str) -> None:
        self.service, _, self.method = path.removeprefix("/").rpartition("/")
        self.started = 0
        self.received = 0
        """Messages from clients."""
        self.sent = 0
        """Messages to clients, without those of unary calls that ended well: see `sent_messages`."""
        self.ok = 0
        self.failed: dict[int, int] = {}
        """Calls by the gRPC code they ended with, other than OK. Cancelled by the client: CANCELLED."""

    @property
    def sent_messages(self) -> int:
        """Messages to clients."""
        return self.sent

    def count_failed(self, code: int) -> None:
        self.failed[code] = self.failed.get(code, 0) + 1


class UnaryRoute(Route):
    """A method with one message each way."""

    __slots__ = ("handler",)

    def __init__(self, path: str, handler: UnaryHandler) -> None:
        super().__init__(path)
        self.handler = handler

    @property
    def sent_messages(self) -> int:
        """Messages to clients: each call that ended well sent one."""
        return self.ok


class StreamRoute(Route):
    """A method with a stream in at least one direction."""

    __slots__ = ("open",)

    def __init__(self, path: str, open_stream: StreamOpen) -> None:
        super().__init__(path)
        self.open = open_stream


class ServerShared:
    """What all connections of a server have in common."""

    __slots__ = ("deadlines", "http", "limits", "routes", "services")

    def __init__(
        self,
        unary: dict[str, UnaryHandler],
        streams: dict[str, StreamOpen],
        limits: ServerLimits,
        http: "Http2Handler | None" = None,
    ) -> None:
        self.limits = limits
        self.http = http
        """Serves the requests that are not gRPC; None: they are refused."""
        self.deadlines = Deadlines()
        self.routes: dict[str, Route] = {path: UnaryRoute(path, handler) for path, handler in unary.items()}
        self.routes.update({path: StreamRoute(path, open_stream) for path, open_stream in streams.items()})
        self.services = {route.service for route in self.routes.values()}

    def find(self, path: str) -> Route | Refusal:
        """What serves a path."""
        route = self.routes.get(path)
        if route is not None:
            return route
        service, slash, method = path.removeprefix("/").rpartition("/")
        if not slash:
            return Refusal(Code.UNIMPLEMENTED, f'malformed method name: "{path}"')
        if service in self.services:
            return Refusal(Code.UNIMPLEMENTED, f"unknown method {method} for service {service}")
        return Refusal(Code.UNIMPLEMENTED, f"unknown service {service}")
