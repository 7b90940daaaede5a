"""The way to the cluster, as services see it: an `Upstream`, or what stands before one and looks at what passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from kvorum.wire.calls import CallHandler, ClientStream, Fields, UnaryDone
from kvorum.wire.client import GivenMetadata
from proxy.upstream.upstream import Ticket


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
