"""An HTTP/1.1 exchange without a connection, a clock that is turned by hand, and services that record their calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar, cast

import orjson
from google.protobuf.message import Message

from kvorum.wire.server_connection import CancelReason
from node.front.exchange import Fields

T = TypeVar("T")


class FakeExchange:
    """Keeps what was answered: `status`, `reply_headers`, `chunks`, and whether the reply is `finished`."""

    def __init__(self, method: str, target: str, headers: dict[str, str] | None = None) -> None:
        self.method = method
        self.target = target
        self.headers = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
        self.writable = True
        self.on_disconnect: Callable[[], None] | None = None
        self.on_writable: Callable[[], None] | None = None
        self.body_readers: tuple[Callable[[bytes], None], Callable[[], None]] | None = None
        self.paused = False
        self.status: int | None = None
        self.reply_headers: dict[str, str] = {}
        self.chunks: list[bytes] = []
        self.chunked = False
        self.finished = False
        self.gone = False
        self.has_body = False
        self.switched: asyncio.Protocol | None = None

    def stream_body(self, on_chunk: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        assert self.body_readers is None
        self.body_readers = (on_chunk, on_end)

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False

    def respond(self, status: int, headers: Fields, body: bytes) -> None:
        if not self.gone:
            self.start(status, headers)
            self.chunked = False
            self.chunks.append(body)
            self.finish()

    def start(self, status: int, headers: Fields) -> None:
        if self.gone:
            return
        assert self.status is None, "answered twice"
        self.status = status
        self.chunked = True
        self.reply_headers = {name.decode().lower(): value.decode() for name, value in headers}
        assert len(self.reply_headers) == len(headers), "a header stands twice"

    def write(self, chunk: bytes) -> None:
        if self.gone:
            return
        assert self.status is not None and not self.finished
        self.chunks.append(chunk)

    def finish(self) -> None:
        if self.gone:
            return
        assert self.status is not None and not self.finished
        self.finished = True
        self._release()

    def switch(self, headers: Fields, protocol: asyncio.Protocol) -> bool:
        if self.has_body:
            return False
        self.start(101, headers)
        self.switched = protocol
        self._release()
        self.transport = FakeTransport()
        protocol.connection_made(cast(asyncio.Transport, self.transport))
        return True

    def _release(self) -> None:
        self.on_disconnect = self.on_writable = self.body_readers = None

    # what a test does

    def body(self, *chunks: bytes, end: bool = True) -> None:
        """The client sends its body, and by default ends it. Nobody hears what comes after the reply."""
        for chunk in chunks:
            if self.body_readers is not None:
                self.body_readers[0](chunk)
        if end and self.body_readers is not None:
            self.body_readers[1]()

    def disconnect(self) -> None:
        assert not self.finished
        self.gone = True
        on_disconnect = self.on_disconnect
        self._release()
        if on_disconnect is not None:
            on_disconnect()

    @property
    def reply(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def json(self) -> Any:
        return orjson.loads(self.reply)

    @property
    def lines(self) -> list[Any]:
        """The reply as a stream's lines."""
        assert self.reply == b"" or self.reply.endswith(b"\n")
        return [orjson.loads(line) for line in self.reply.splitlines()]


class FakeTransport:
    """The transport of a connection that was switched: keeps what is written, and what is done to it."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.unsent_bytes = 0
        self.paused = False
        self.closed = False
        self.aborted = False

    def write(self, data: bytes) -> None:
        assert not self.is_closing()
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True


class FakeTimer:
    def __init__(self, delay_s: float, callback: Callable[[], None]) -> None:
        self.delay_s = delay_s
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    def fire(self) -> None:
        assert not self.cancelled
        self.callback()


class FakeClock:
    """Collects timers; a test fires them."""

    def __init__(self) -> None:
        self.timers: list[FakeTimer] = []

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> FakeTimer:
        self.timers.append(FakeTimer(delay_s, callback))
        return self.timers[-1]

    @property
    def running(self) -> list[FakeTimer]:
        return [timer for timer in self.timers if not timer.cancelled]


def run_inline(work: Callable[[], T], done: Callable[[T], None]) -> None:
    """A side thread that is never busy."""
    done(work())


class HeldThread:
    """A side thread whose works wait until a test lets them run."""

    def __init__(self) -> None:
        self.held: list[tuple[Callable[[], Any], Callable[[Any], None]]] = []

    def run(self, work: Callable[[], T], done: Callable[[T], None]) -> None:
        self.held.append((work, done))

    def release(self) -> None:
        """Does the first of the works."""
        work, done = self.held.pop(0)
        done(work())


class FakeUnary:
    """A unary handler that answers at once with `answer`: a message, an error, or None for not yet."""

    def __init__(self, request: type[Message]) -> None:
        self.request = request
        self.answer: Message | tuple[int, str] | None = None
        self.calls: list[tuple[Any, int, Any, Message]] = []

    def __call__(self, sink: Any, token: int, head: Any, message: bytes) -> None:
        self.calls.append((sink, token, head, self.request.FromString(message)))
        if isinstance(self.answer, tuple):
            sink.fail(token, *self.answer)
        elif self.answer is not None:
            sink.reply(token, self.answer.SerializeToString())

    @property
    def asked(self) -> Any:
        """The one request there was."""
        (call,) = self.calls
        return call[3]


class FakeStreams:
    """Opens streams and records what each is told: ("message", request), ("half_close",), ("cancel", why), ..."""

    def __init__(self, request: type[Message]) -> None:
        self.request = request
        self.told: list[tuple[Any, ...]] = []
        self.stream: Any = None
        self.head: Any = None
        self.on_message_do: Callable[[Any], None] = lambda _request: None

    def __call__(self, stream: Any, head: Any) -> FakeStreams:
        self.stream = stream
        self.head = head
        return self

    def on_message(self, message: bytes) -> None:
        request = self.request.FromString(message)
        self.told.append(("message", request))
        self.on_message_do(request)

    def on_half_close(self) -> None:
        self.told.append(("half_close",))

    def on_cancel(self, reason: CancelReason) -> None:
        self.told.append(("cancel", reason))

    def on_writable(self) -> None:
        self.told.append(("writable",))

    @property
    def requests(self) -> list[Any]:
        return [told[1] for told in self.told if told[0] == "message"]
