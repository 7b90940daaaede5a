"""The way to the cluster, as services see it: an `Upstream`, or what stands before one and looks at what passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from kvorum.wire.calls import CallHandler, ClientStream, Fields, UnaryDone


class Timer(Protocol):
    """What a loop's `call_later` gives."""

    def cancel(self) -> object:
        """It will not come."""


CallSoon = Callable[[Callable[[], None]], object]
CallLater = Callable[[float, Callable[[], None]], Timer]
"""A loop's methods."""


Call = Callable[[str, bytes, UnaryDone, Fields, float | None], object]
"""(path, message, done, metadata, timeout_s): see `UnaryCalls.call`."""


class UnaryCalls(Protocol):
    """Unary calls to the cluster; see `Upstream`."""

    def call(
        self,
        path: str,
        message: bytes,
        done: UnaryDone,
        metadata: Fields | None = None,
        timeout_s: float | None = None,
        /,
    ) -> object:
        """A unary call; `done` gets (code, text, message), never within this call."""


class Stream(Protocol):
    """All that some use of a client stream."""

    def send(self, message: bytes, /) -> None:
        """One message."""

    def cancel(self) -> None:
        """End it; its handler is told CANCELLED."""


class Calls(UnaryCalls, Protocol):
    """`UnaryCalls`, and streams of which no more is used than that."""

    def open(self, path: str, handler: CallHandler, metadata: Fields | None = None, /) -> Stream:
        """A stream to the endpoint in use; see `Way`."""


class Way(UnaryCalls, Protocol):
    """`UnaryCalls`, and streams; see `Upstream`."""

    def open(
        self, path: str, handler: CallHandler, metadata: Fields | None = None, timeout_s: float | None = None, /
    ) -> ClientStream:
        """A stream to the endpoint in use. When that is lost the handler gets UNAVAILABLE, and opens it again."""
