"""One Watch stream to a member: the upstream watches on it, and what their replies mean.

A line outlives its stream: when that is lost, whoever owns the line opens it again, and every watch is created anew
from where its clients stand.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from google.protobuf.message import DecodeError

from kvorum.errors import Code
from kvorum.pb.rpc_pb2 import WatchCancelRequest, WatchProgressRequest, WatchRequest, WatchResponse
from kvorum.wire import grpc
from proxy.watch.batch import ReplyKind, header_field, kind_of
from proxy.watch.spec import create_message

if TYPE_CHECKING:
    from proxy.watch.cohort import Cohort
    from proxy.watch.group import Group

NO_WATCH: Final = -1
SEND_BYTES: Final = 32 << 10
"""Requests are joined up to about this size."""

PROGRESS_ASK: Final = grpc.frame(WatchRequest(progress_request=WatchProgressRequest()).SerializeToString())


class UpstreamWatch:
    """A watch at a member: of a group, or of a cohort that catches up."""

    __slots__ = ("closed", "cohort", "created_after", "exact", "group", "number")

    def __init__(self, group: Group, cohort: Cohort | None, *, exact: bool) -> None:
        self.group = group
        self.cohort = cohort
        self.exact = exact
        """Whether it may begin only with the revision that is needed next."""
        self.number = 0
        """Its id on the stream; 0: the create has not left yet."""
        self.created_after = -1
        """How many progress requests had been sent when it was created; -1: it is not yet."""
        self.closed = False

    @property
    def start(self) -> int:
        """The revision to create it from.

        One before what is needed, where that may be had: a member says nothing of the progress of a stream with a watch
        that begins in the future (WP4). What comes twice is dropped.
        """
        needed = self.group.position + 1 if self.cohort is None else self.cohort.next
        return needed if self.exact else max(needed - 1, 1)


class UpstreamStream(Protocol):
    """What is used of the wire's client stream."""

    @property
    def writable(self) -> bool: ...

    def send_framed(self, framed: bytes, /) -> None: ...

    def cancel(self) -> None: ...


class LineOwner(Protocol):
    """Who is told what is not about one watch."""

    def on_line_message(self, line: Line) -> None:
        """Something has come: the stream is well."""

    def on_line_progress(self, line: Line, covered: int, revision: int, header: bytes) -> None:
        """An answer to a progress request: all watches of the stream that were created before request `covered` have
        been given everything up to the revision."""

    def on_line_lost(self, line: Line, code: int, text: str) -> None:
        """The stream has ended."""


class Line:
    """A Watch stream and its watches. The wire's handler of the stream's replies."""

    def __init__(self, owner: LineOwner, open_stream: Callable[[Line], UpstreamStream]) -> None:
        self._owner = owner
        self._open_stream = open_stream
        self._stream: UpstreamStream | None = None
        self._next_number = 1
        self._queue: deque[UpstreamWatch | bytes] = deque()
        self._unanswered: deque[UpstreamWatch] = deque()
        self._by_number: dict[int, UpstreamWatch] = {}
        self.watches: dict[UpstreamWatch, None] = {}
        """All that shall be there, created or not."""
        self.requests = 0
        """Progress requests sent on this stream."""
        self._first_open_request = 0
        """The earliest that the next progress reply may answer; 0: none is open."""

    @property
    def is_open(self) -> bool:
        return self._stream is not None

    @property
    def is_asking(self) -> bool:
        """Whether a progress request is open."""
        return self._first_open_request > 0

    def open(self) -> None:
        """Opens the stream and creates all watches on it."""
        assert self._stream is None
        self._next_number = 1
        self._queue.clear()
        self._unanswered.clear()
        self._by_number.clear()
        self.requests = self._first_open_request = 0
        for watch in self.watches:
            watch.number = 0
            watch.exact = watch.exact and watch.created_after < 0
            watch.created_after = -1
            self._queue.append(watch)
        self._stream = self._open_stream(self)
        self._pump()

    def close(self) -> None:
        """Ends the stream, if there is one; nobody is told."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel()

    def dispose(self) -> None:
        """Ends the stream, and forgets the owner, who has the line: together they would never be freed."""
        self.close()
        del self._owner, self._open_stream

    def create(self, watch: UpstreamWatch) -> None:
        """Creates a watch from where it stands."""
        self.watches[watch] = None
        if self._stream is not None:
            self._queue.append(watch)
            self._pump()

    def cancel(self, watch: UpstreamWatch) -> None:
        """Nothing more is wanted of a watch."""
        if watch.closed:
            return
        self._forget(watch)
        if watch.number and self._stream is not None:
            request = WatchRequest(cancel_request=WatchCancelRequest(watch_id=watch.number))
            self._queue.append(grpc.frame(request.SerializeToString()))
            self._pump()

    def _forget(self, watch: UpstreamWatch) -> None:
        watch.closed = True
        del self.watches[watch]
        if watch.number:
            self._by_number.pop(watch.number, None)

    def ask_progress(self) -> None:
        """Asks for the revision up to which all of the stream's watches are complete; it may never be answered."""
        if self._stream is None:
            return
        # One that is not answered may have been dropped, or not: then the next answer may be to either.
        self._first_open_request = self.requests if self._first_open_request else self.requests + 1
        self.requests += 1
        self._queue.append(PROGRESS_ASK)
        self._pump()

    def _pump(self) -> None:
        """Sends what is queued, as far as the stream takes it."""
        stream, queue = self._stream, self._queue
        while queue and stream is not None and stream.writable:
            parts: list[bytes] = []
            size_bytes = 0
            while queue and size_bytes < SEND_BYTES:
                item = queue.popleft()
                if isinstance(item, UpstreamWatch):
                    if item.closed:
                        continue
                    number = item.number = self._next_number
                    self._next_number += 1
                    self._by_number[number] = item
                    self._unanswered.append(item)
                    item = grpc.frame(create_message(item.group.spec, number, item.start))
                parts.append(item)
                size_bytes += len(item)
            if parts:
                stream.send_framed(b"".join(parts))

    # what the wire tells

    def on_writable(self) -> None:
        self._pump()

    def on_end(self, code: int, text: str, trailers: grpc.Metadata) -> None:
        if self._stream is not None:
            self._stream = None
            self._owner.on_line_lost(self, code, text)

    def on_message(self, message: bytes) -> None:
        if self._stream is None:
            return
        try:
            reply = WatchResponse.FromString(message)
        except DecodeError as error:
            self.close()
            self._owner.on_line_lost(self, Code.INTERNAL, f"a reply that cannot be read: {error}")
            return
        self._owner.on_line_message(self)
        kind = kind_of(reply)
        if kind is ReplyKind.EVENTS:
            watch = self._by_number.get(reply.watch_id)
            if watch is not None:
                if watch.cohort is None:
                    watch.group.on_events(reply)
                else:
                    watch.group.on_behind_events(watch.cohort, reply)
        elif kind is ReplyKind.PROGRESS:
            self._on_progress(reply)
        elif kind is ReplyKind.CREATED:
            watch = self._by_number.get(reply.watch_id)
            if watch is not None:
                watch.created_after = self.requests
                self._answered(watch)
            elif all(one.number != reply.watch_id for one in self._unanswered):
                # the reference's own proxy does so (PX9); nothing can be told apart on such a stream
                self.close()
                text = f"etcdserver: watch {reply.watch_id} was created, which was not asked for: is this a member?"
                self._owner.on_line_lost(self, Code.UNIMPLEMENTED, text)
        elif kind is ReplyKind.REFUSED:
            refused = self._by_number.get(reply.watch_id)
            if refused is not None:
                self._answered(refused)
            elif self._unanswered:  # a refused create has no id (W25), and creates are answered in their order
                refused = self._unanswered.popleft()
            if refused is not None:
                self._on_ended(refused, reply)
        else:
            canceled = self._by_number.get(reply.watch_id)
            if canceled is not None:
                self._on_ended(canceled, reply)

    def _answered(self, watch: UpstreamWatch) -> None:
        if self._unanswered and self._unanswered[0] is watch:
            self._unanswered.popleft()
        elif watch in self._unanswered:
            self._unanswered.remove(watch)

    def _on_progress(self, reply: WatchResponse) -> None:
        revision = reply.header.revision
        header = header_field(reply.header)
        if reply.watch_id != NO_WATCH:
            watch = self._by_number.get(reply.watch_id)
            if watch is None:
                return
            if watch.cohort is None:
                watch.group.on_progress(revision)
                watch.group.notify(revision, header)
            else:
                watch.group.advance(watch.cohort, revision + 1)
            return
        covered, self._first_open_request = self._first_open_request, 0
        if not covered:
            return
        # Only a watch that was created before the request was sent is surely covered: the reply may have overtaken,
        # or been overtaken by, the created reply of a later one.
        for watch in list(self.watches):
            if 0 <= watch.created_after < covered and not watch.closed:
                if watch.cohort is None:
                    watch.group.on_progress(revision)
                else:
                    watch.group.advance(watch.cohort, revision + 1)
        self._owner.on_line_progress(self, covered, revision, header)

    def _on_ended(self, watch: UpstreamWatch, reply: WatchResponse) -> None:
        """A member has ended a watch, or refused to create it."""
        if watch.closed:
            return
        self._forget(watch)
        if watch.cohort is None:
            watch.group.on_ended(reply)
        else:
            watch.group.on_behind_ended(watch.cohort, reply)
