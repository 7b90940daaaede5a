"""One HTTP/1.1 request as the front's pages and the JSON gateway see it, on top of what the wire gives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

Fields = Sequence[tuple[bytes, bytes]]
"""Header fields: (name, value)."""


class Exchange(Protocol):
    """One request and its reply: `kvorum.wire.http1.Http1Exchange`, as far as it is used here.

    The wire adds Date and the framing of the body, and drops what is written after the reply's end or the client's.
    """

    method: str
    target: str
    """Path and query as they came, or an absolute URL."""
    headers: list[tuple[bytes, bytes]]
    """The request's header fields; names in lower case."""
    on_disconnect: Callable[[], None] | None
    """Called once when the client goes before the reply is finished."""
    on_writable: Callable[[], None] | None
    """Called when `writable` turned true again."""

    @property
    def writable(self) -> bool:
        """False while more waits to be sent than the connection's high-water mark."""

    def stream_body(self, on_chunk: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        """Begins to deliver the body: each part as it comes, then its end, also of a body that is empty."""

    def pause_reading(self) -> None:
        """No more of the body until `resume_reading`."""

    def resume_reading(self) -> None:
        """Ends a pause."""

    def respond(self, status: int, headers: Fields, body: bytes) -> None:
        """The whole reply, with its length; a HEAD request gets no body."""

    def start(self, status: int, headers: Fields) -> None:
        """Status and headers of a reply whose length is not known: chunked."""

    def write(self, chunk: bytes) -> None:
        """One chunk, sent at once."""

    def finish(self) -> None:
        """The end of a chunked reply."""

    def switch(self, headers: Fields, protocol: asyncio.Protocol) -> bool:
        """Answers 101 with these headers, and the connection is `protocol`'s from then on; False, and nothing is done,
        when that cannot be."""


TEXT: Final = (b"Content-Type", b"text/plain; charset=utf-8")
JSON: Final = (b"Content-Type", b"application/json")
NO_SNIFF: Final = (b"X-Content-Type-Options", b"nosniff")


class Request:
    """An exchange with its target taken apart, and the headers (CORS) that every reply to it carries."""

    __slots__ = ("always", "exchange", "method", "path", "query")

    def __init__(self, exchange: Exchange, always: Fields = ()) -> None:
        self.exchange = exchange
        self.method = exchange.method
        self.always = tuple(always)
        try:
            parts = urlsplit(exchange.target)
        except ValueError:  # such as an unfinished IPv6 host in an absolute URL
            self.path = ""
            self.query: dict[str, list[str]] = {}
            return
        self.path = unquote(parts.path)
        try:
            self.query = parse_qs(parts.query, keep_blank_values=True, max_num_fields=1000) if parts.query else {}
        except ValueError:
            self.query = {}

    def header(self, name: bytes) -> str | None:
        """The first value of a header field, or None."""
        return field_value(self.exchange.headers, name)

    def respond(self, status: int, headers: Fields, body: bytes) -> None:
        """Answers with a whole reply."""
        self.exchange.respond(status, (*self.always, *headers), body)

    def text(self, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
        """Answers with plain text, as the API's plain errors come."""
        self.respond(status, (*headers, TEXT, NO_SNIFF), text.encode())

    def not_found(self) -> None:
        """Answers what no path matched (HT20)."""
        self.text(404, "404 page not found\n")

    def only(self, method: str) -> bool:
        """Whether the request has this method; else it is answered (HT4)."""
        if self.method == method:
            return True
        self.text(405, "Method Not Allowed\n", (b"Allow", method.encode()))
        return False


def field_value(fields: Fields, name: bytes) -> str | None:
    """The first value of the field `name` (lower-case), or None."""
    for field_name, value in fields:
        if field_name == name:
            return value.decode("utf-8", "replace")
    return None


def field_values(fields: Fields, name: bytes) -> list[str]:
    """Every value of the field `name` (lower-case), in order."""
    return [value.decode("utf-8", "replace") for field_name, value in fields if field_name == name]
