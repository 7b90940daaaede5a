"""Range calls through the cache, and the way upstream on which the cache learns of all other calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from kvorum.errors import ApiError
from kvorum.wire import grpc
from kvorum.wire.calls import CallHandler, ClientStream, Fields, UnaryDone
from kvorum.wire.head import Head
from kvorum.wire.routes import StreamOpen, UnaryHandler
from kvorum.wire.server_connection import ServerConnection
from proxy import calls
from proxy.cache.learning import LESSONS, Learner, header_revision, linearizable
from proxy.callers import Caller, Callers
from proxy.namespaces.passage import Later, Passage
from proxy.paths import CAMPAIGN, LOCK, RANGE, RANGE_STREAM, WATCH
from proxy.upstream.way import Way

_LEARNT_STREAMS: Final = frozenset({RANGE_STREAM, LOCK, CAMPAIGN})


class LearningUpstream:
    """An upstream whose answers the cache is told of. Ranges are not: they are told of where they are kept."""

    def __init__(self, upstream: Way, learner: Learner) -> None:
        self._upstream = upstream
        self._learner = learner

    def call(
        self,
        path: str,
        message: bytes,
        done: UnaryDone,
        metadata: Fields | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """See Upstream."""
        if path in LESSONS:
            done = partial(self._learn, path, message, done)
        self._upstream.call(path, message, done, metadata, timeout_s)

    def open(
        self,
        path: str,
        handler: CallHandler,
        metadata: Fields | None = None,
        timeout_s: float | None = None,
    ) -> ClientStream:
        """See Upstream."""
        if path == WATCH:
            handler = _Watching(self._learner, handler)
        elif path in _LEARNT_STREAMS:
            handler = _Learning(self._learner, path, handler)
        return self._upstream.open(path, handler, metadata, timeout_s)

    def _learn(self, path: str, request: bytes, done: UnaryDone, code: int, text: str, reply: bytes) -> None:
        if code:
            self._learner.on_failure(path, request, code, text)
        else:
            self._learner.on_reply(path, request, reply)
        done(code, text, reply)


class _Learning:
    """The handler of a call that has its replies on a stream."""

    def __init__(self, learner: Learner, path: str, handler: CallHandler) -> None:
        self._learner = learner
        self._path = path
        self._handler = handler
        self._first = True
        self.on_writable = handler.on_writable

    def on_message(self, message: bytes) -> None:
        if self._first:
            self._first = False
            self._learner.on_first_part(self._path, message)
        self._handler.on_message(message)

    def on_end(self, code: int, text: str, trailers: grpc.Metadata) -> None:
        self._handler.on_end(code, text, trailers)


class _Watching:
    """The handler of a watch stream."""

    def __init__(self, learner: Learner, handler: CallHandler) -> None:
        self._learner = learner
        self._handler = handler
        self.on_writable = handler.on_writable

    def on_message(self, message: bytes) -> None:
        self._learner.on_events(message)
        self._handler.on_message(message)

    def on_end(self, code: int, text: str, trailers: grpc.Metadata) -> None:
        self._handler.on_end(code, text, trailers)


class CachedReads:
    """The Range method: serializable reads are answered from the cache, all others refresh it.

    With `ordered`, a member that answers a serializable read with an older state than this proxy has shown is not
    believed: the read is repeated as a linearizable one, which sees whatever was shown before it began.
    """

    def __init__(
        self,
        upstream: Way,
        callers: Callers,
        learner: Learner,
        *,
        ordered: bool,
        owned: Callable[[bytes], bytes | None] | None = None,
    ) -> None:
        """`owned` gives the reply to a read of a key that this proxy owns, or None."""
        self._call = upstream.call
        self._resolve = callers.resolve_or_wait
        self._learner = learner
        self._ordered = ordered
        self._owned = owned

    def unary(self) -> dict[str, UnaryHandler]:
        """The handler, by path."""
        return {RANGE: self._handle}

    def streams(self) -> dict[str, StreamOpen]:
        """RangeStream is not answered from the cache."""
        return {}

    def _handle(self, connection: ServerConnection, stream_id: int, head: Head, message: bytes) -> None:
        learner = self._learner
        try:
            caller = self._resolve(connection, head)
            request, passage = (message, None) if caller.plain else caller.enter(RANGE, message)
        except ApiError as error:
            connection.fail(stream_id, *error.status)
            return
        except Later as later:
            later.join(calls.again(self._handle, connection, stream_id, head, message), len(message))
            return
        serializable = False
        # Whoever asks for a leader is to be told when there is none: that only a member knows (WP10).
        if not caller.hasleader:
            if self._owned is not None and not caller.token:
                reply = self._owned(request)
                if reply is not None:
                    self._show(connection, stream_id, passage, 0, "", reply)
                    return
            kept, serializable = learner.ask(caller.token, caller.prefix, message, connection.now)
            if kept is not None:
                if passage is not None:
                    passage.end(0)
                connection.reply(stream_id, kept)
                return
        seen = learner.cache.newest if serializable and self._ordered else 0
        done = partial(self._answered, connection, stream_id, head, caller, message, request, passage, seen)
        self._call(RANGE, request, done, caller.metadata, head.timeout_s)

    def _answered(
        self,
        connection: ServerConnection,
        stream_id: int,
        head: Head,
        caller: Caller,
        message: bytes,
        request: bytes,
        passage: Passage | None,
        seen: int,
        code: int,
        text: str,
        reply: bytes,
    ) -> None:
        learner = self._learner
        if code:
            learner.on_failure(RANGE, request, code, text)
        elif seen and header_revision(reply) < seen:
            done = partial(self._answered, connection, stream_id, head, caller, message, request, passage, 0)
            self._call(RANGE, linearizable(request), done, caller.metadata, head.timeout_s)
            return
        shown = self._show(connection, stream_id, passage, code, text, reply)
        if shown is None:
            return
        if not caller.hasleader:
            learner.on_range(caller.token, caller.prefix, message, request, reply, shown, connection.now)
        else:
            learner.cache.saw(header_revision(reply))

    @staticmethod
    def _show(
        connection: ServerConnection, stream_id: int, passage: Passage | None, code: int, text: str, reply: bytes
    ) -> bytes | None:
        """Answers the client; the reply that it gets, or None for an error."""
        if passage is not None:
            code, text, reply = passage.settle(code, text, reply)
        if code:
            connection.fail(stream_id, code, text)
            return None
        connection.reply(stream_id, reply)
        return reply
