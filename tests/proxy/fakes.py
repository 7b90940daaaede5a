"""An upstream and a clock without I/O: tests see what is asked, and answer it."""

import heapq
from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from kvorum.wire import grpc
from kvorum.wire.calls import CallHandler, Fields, UnaryDone


class FakeStream:
    """A stream to a member."""

    def __init__(self, path: str, handler: CallHandler, metadata: Fields | None) -> None:
        self.path = path
        self.handler = handler
        self.metadata = metadata
        self.ended = False
        self._sent: list[bytes] = []

    def send(self, message: bytes) -> None:
        assert not self.ended
        self._sent.append(message)

    def cancel(self) -> None:
        self.end(1, "context canceled")

    def take(self) -> list[bytes]:
        """What was sent since the last look."""
        sent, self._sent = self._sent, []
        return sent

    def end(self, code: int, text: str) -> None:
        if not self.ended:
            self.ended = True
            self.handler.on_end(code, text, grpc.NO_METADATA)


class FakeUpstream:
    """Holds the calls until a test answers them, oldest of a path first."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bytes, UnaryDone, Fields | None]] = []
        self.streams: list[FakeStream] = []

    def call(
        self,
        path: str,
        message: bytes,
        done: UnaryDone,
        metadata: Fields | None = None,
        timeout_s: float | None = None,
    ) -> object:
        assert timeout_s is not None
        self.calls.append((path, message, done, metadata))
        return None

    def open(self, path: str, handler: CallHandler, metadata: Fields | None = None) -> FakeStream:
        self.streams.append(FakeStream(path, handler, metadata))
        return self.streams[-1]

    def waits(self, path: str) -> int:
        """How many calls of that path wait for an answer."""
        return sum(call[0] == path for call in self.calls)

    def answer(self, path: str, reply: Message) -> bytes:
        """Answer a call; its request."""
        return self._end(path, 0, "", reply.SerializeToString())

    def answer_last(self, path: str, reply: Message) -> bytes:
        """Answer the youngest call of a path."""
        index = max(index for index, call in enumerate(self.calls) if call[0] == path)
        self.calls.insert(0, self.calls.pop(index))
        return self.answer(path, reply)

    def refuse(self, path: str, code: int, text: str) -> bytes:
        """End a call with an error; its request."""
        return self._end(path, code, text, b"")

    def _end(self, path: str, code: int, text: str, reply: bytes) -> bytes:
        index = next(index for index, call in enumerate(self.calls) if call[0] == path)
        _, message, done, _ = self.calls.pop(index)
        done(code, text, reply)
        return message


class _Timer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Timers:
    """A loop's timers, moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self._timers: list[tuple[float, int, _Timer]] = []
        self._made = 0

    def time(self) -> float:
        return self.now

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Any:
        self._made += 1
        timer = _Timer(callback)
        heapq.heappush(self._timers, (self.now + delay_s, self._made, timer))
        return timer

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        until = self.now + seconds
        while self._timers and self._timers[0][0] <= until + 1e-9:
            self.now, _, timer = heapq.heappop(self._timers)
            if timer.callback is not None:
                timer.callback()
        self.now = until
