"""One call on its way through a namespace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from google.protobuf.message import DecodeError

from kvorum.errors import ApiError, Code, Status
from proxy.namespaces.calls import SERVER_STREAMS, UNARY, Outwards, StripReply
from proxy.namespaces.namespace import ForeignKeyError, Namespace
from proxy.upstream.replies import unreadable

OUTWARDS: Final[dict[str, Outwards]] = {**UNARY, **SERVER_STREAMS}

Retry = Callable[[Status | None], None]
"""Called once: with None to make the call again from its beginning, else with what it ends with."""


Join = Callable[[Retry, int], None]
"""Is given what makes the call again, and how many bytes it holds meanwhile. May call it at once."""


class Later(Exception):
    """Whether the call may go on is not known yet: `join(retry, size_bytes)`, and leave it."""

    def __init__(self, join: Join) -> None:
        super().__init__("not known yet")
        self.join = join


class Passage:
    """What the replies of one call go through: `reply` for each message, then `end`; `settle` does both for a unary
    call."""

    __slots__ = ("_namespace", "_strip")

    def __init__(self, namespace: Namespace, strip: StripReply | None) -> None:
        self._namespace = namespace
        self._strip = strip

    def reply(self, message: bytes) -> bytes:
        """A reply for the caller. Raises ApiError instead of showing what is not the caller's."""
        strip = self._strip
        if strip is None:
            return message
        try:
            return strip(self._namespace, message)
        except DecodeError as error:
            raise ApiError(unreadable(error)) from None
        except ForeignKeyError:
            # The text of the exception names a key that the caller must not see.
            raise ApiError(Status(Code.INTERNAL, "the reply holds keys outside of the namespace")) from None

    def end(self, code: int) -> None:
        """The call has ended with this gRPC code, CANCELLED if its caller left."""

    def settle(self, code: int, text: str, message: bytes) -> tuple[int, str, bytes]:
        """The answer to a unary call, for its caller."""
        if not code:
            try:
                message = self.reply(message)
            except ApiError as error:
                self.end(0)
                return *error.status, b""
        self.end(code)
        return code, text, message


def enter(namespace: Namespace, path: str, message: bytes) -> tuple[bytes, Passage | None]:
    """A call into a namespace: (the request for the server, what its replies go through, or None). Raises ApiError."""
    outwards = OUTWARDS.get(path)
    if outwards is None:
        return message, None
    message, strip = outwards(namespace, message)
    return message, None if strip is None else Passage(namespace, strip)
