"""The way to the cluster, as services see it: an `Upstream`, or what stands before one and looks at what passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from kvorum.wire.calls import CallHandler, ClientStream, Fields, UnaryDone
from kvorum.wire.client import GivenMetadata
from proxy.upstream.upstream import Ticket


class Timer(Protocol):
    """What a loop's `call_later` gives."""

    def cancel(self) -> object:
        """It will not come."""


CallSoon = Callable[[Callable[[], None]], object]
CallLater = Callable[[float, Callable[[], None]], Timer]
"""A loop's methods."""


class UnaryCalls(Protocol):
    """All that some use of the way: calls that nobody ends early."""

    def call(
        self,
        path: str,
        message: bytes,
        done: UnaryDone,
        metadata: Fields | None = None,
        timeout_s: float | None = None,
        /,
    ) -> object:
        """A unary call; see `UnaryWay`."""


class Stream(Protocol):
    """All that some use of a client stream."""

    def send(self, message: bytes, /) -> None:
        """One message."""

    def cancel(self) -> None:
        """End it; its handler is told CANCELLED."""


class Calls(UnaryCalls, Protocol):
    """`UnaryCalls`, and streams."""

    def open(self, path: str, handler: CallHandler, metadata: Fields | None = None, /) -> Stream:
        """A stream to the endpoint in use; see `Way`."""


class UnaryWay(Protocol):
    """Unary calls to the cluster; see `Upstream`."""

    def call(
        self,
        path: str,
        message: bytes,
        done: UnaryDone,
        metadata: GivenMetadata | Fields | None = None,
        timeout_s: float | None = None,
    ) -> Ticket:
        """A unary call; `done` gets (code, text, message), never within this call."""


class Way(UnaryWay, Protocol):
    """Calls to the cluster; see `Upstream`."""

    def cancel(self, ticket: Ticket) -> None:
        """End a call now; it is told CANCELLED."""

    def open(
        self,
        path: str,
        handler: CallHandler,
        metadata: GivenMetadata | Fields | None = None,
        timeout_s: float | None = None,
    ) -> ClientStream:
        """A stream to the endpoint in use. When that is lost the handler gets UNAVAILABLE, and opens it again."""

    def flush(self) -> None:
        """Write what calls have produced."""

    def on_change(self, listener: Callable[[], None]) -> None:
        """`listener` is called whenever another endpoint has come into use."""
