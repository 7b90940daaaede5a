"""Everything that callers with the same credentials watch: its groups, and the upstream streams that serve them.

A group's own watches share the *live* line; what catches up has a line of its own, so that it never keeps the others
from being told of progress.

Every create first asks the member for its revision, by a transaction that checks the permission and reads nothing; the
creates of one turn share it, and one is under way at a time. Its reply is the header of the `created` reply, so that
this carries a revision the store had after the create was asked, and everything from there on is delivered. Cancels are
answered in their turn among the creates, with the same header.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from kvorum import errors
from kvorum.errors import Code, Status
from kvorum.pb.rpc_pb2 import (
    Compare,
    RangeRequest,
    RequestOp,
    StatusResponse,
    TxnRequest,
    TxnResponse,
)
from kvorum.wire.calls import CallHandler, Fields
from proxy.paths import STATUS, TXN, WATCH
from proxy.upstream.replies import read_as
from proxy.upstream.way import CallLater, CallSoon, Timer, UnaryCalls
from proxy.watch.batch import header_field
from proxy.watch.cohort import Cohort
from proxy.watch.group import ALL_KEPT_BYTES, Group
from proxy.watch.line import Line, UpstreamStream, UpstreamWatch
from proxy.watch.spec import Spec
from proxy.watch.versions import keeps_progress_promise, version_of

if TYPE_CHECKING:
    from proxy.watch.stream import WatchStream


CALL_TIMEOUT_S: Final = 7.0
MOST_ASKS: Final = 2000
"""Creates and cancels answered in one turn: 5 ms."""
MOST_RANGES: Final = 1000
RANGES_OF_TXN: Final = 100
"""Below the 128 operations that a member allows by default."""

RETRY_FIRST_S: Final = 0.05
RETRY_MOST_S: Final = 2.0
"""Before a stream or a call that failed is tried again: doubled each time."""

PROGRESS_FIRST_S: Final = 0.02
PROGRESS_MOST_S: Final = 1.0
"""Between two progress requests while somebody waits for one: doubled each time."""
PROGRESS_PATIENCE_S: Final = 1.0
"""A client's progress request that cannot be answered for so long is dropped, as a member drops it at once (WP6)."""
REFRESH_S: Final = 10.0
"""Between two progress requests for nobody: where groups stand must not fall behind the next compaction."""

REFUSALS: Final = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.PERMISSION_DENIED,
        Code.FAILED_PRECONDITION,
        Code.OUT_OF_RANGE,
        Code.UNIMPLEMENTED,
        Code.UNAUTHENTICATED,
    }
)
"""A call that fails with these would fail again at any member; with any other it is repeated."""

Range = tuple[bytes, bytes]


class Upstream(UnaryCalls, Protocol):
    """What is used of the way to the cluster."""

    def open(self, path: str, handler: CallHandler, metadata: Fields, /) -> UpstreamStream: ...


class Shared:
    """What all sessions of a worker have in common."""

    def __init__(
        self,
        upstream: Upstream,
        call_soon: CallSoon,
        call_later: CallLater,
        now: Callable[[], float],
    ) -> None:
        self.upstream = upstream
        self.call_soon = call_soon
        self.call_later = call_later
        self.now = now
        self.kept_bytes = 0
        self.max_kept_bytes = ALL_KEPT_BYTES
        self.watches = 0
        """Of clients."""
        self.events_coalesced = 0
        """Events that a client got without the member having sent them once more."""


class AskKind(Enum):
    """What a client waits for."""

    CREATE = auto()
    CANCEL = auto()
    REFUSE = auto()
    PROGRESS = auto()


class Ask:
    """A request of a client that waits for its turn."""

    __slots__ = ("given_up", "group", "id_field", "key_range", "kind", "reason", "size_bytes", "start", "stream")

    def __init__(self, kind: AskKind, stream: WatchStream, key_range: Range | None, size_bytes: int) -> None:
        self.kind = kind
        self.stream = stream
        self.key_range = key_range
        """Of what the caller may read, for creates and refusals; None: the header is all that matters."""
        self.size_bytes = size_bytes
        self.id_field = b""
        self.group: Group | None = None
        self.start = 0
        self.reason = ""
        self.given_up = False
        """A create that was canceled before it was answered."""


Checked = tuple[bytes, int] | Status
"""The header's field and its revision, or why the caller may not read."""


class Session:
    """The watches of callers with the same credentials."""

    def __init__(self, shared: Shared, metadata: Fields) -> None:
        self._shared = shared
        self.metadata = metadata
        self.streams: dict[WatchStream, None] = {}
        self.groups: dict[Spec, Group] = {}
        self.header = b""
        """Of the last check that was passed; empty: there is none yet."""
        self._asks: deque[Ask] = deque()
        self._batch: list[Ask] = []
        self._checked: dict[Range, Checked] = {}
        self._open_checks = 0
        self._armed = False
        self._closed = False
        self._timers: dict[str, Timer] = {}
        self._live = Line(self, self._open_stream)
        self._behind = Line(self, self._open_stream)
        self._pauses = {self._live: RETRY_FIRST_S, self._behind: RETRY_FIRST_S}
        self._check_pause_s = RETRY_FIRST_S
        self._waiting: dict[WatchStream, tuple[float, int]] = {}
        """Clients that want progress: until when, and how many requests the live line had sent before."""
        self._told = 0
        """The greatest revision of a progress reply."""
        self._progress_pause_s = PROGRESS_FIRST_S
        self._answers_progress: bool | None = None
        """Whether the member's answers to progress requests keep their promise; None: not known yet."""
        self._learning = False

    # the streams of clients

    def group(self, spec: Spec) -> Group:
        """The group of a spec, made when it is not there; the caller is one of its users."""
        group = self.groups.get(spec)
        if group is None:
            group = self.groups[spec] = Group(self, spec)
        group.users += 1
        group.hold()
        return group

    def ask(self, ask: Ask) -> None:
        """Answers a request in its turn."""
        self._asks.append(ask)
        if not self._armed and not self._batch:
            self._armed = True
            self._shared.call_soon(self._next_batch)

    def remove(self, stream: WatchStream) -> None:
        """A stream has ended."""
        self.streams.pop(stream, None)
        self._waiting.pop(stream, None)

    def close(self) -> None:
        """The last stream has ended."""
        self._closed = True
        self._live.dispose()
        self._behind.dispose()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for group in list(self.groups.values()):
            self.drop(group)
        self._asks.clear()
        self._batch.clear()

    @property
    def upstream_watches(self) -> int:
        """Watches at the member."""
        return len(self._live.watches) + len(self._behind.watches)

    # creates and cancels, in turns

    def _next_batch(self) -> None:
        self._armed = False
        if self._closed or self._batch or not self._asks:
            return
        asks, batch = self._asks, self._batch
        ranges: dict[Range, None] = {}
        spare: Range | None = None
        while asks and len(batch) < MOST_ASKS and len(ranges) < MOST_RANGES:
            ask = asks.popleft()
            batch.append(ask)
            if ask.kind is AskKind.CREATE:
                assert ask.key_range is not None
                ranges[ask.key_range] = None
            elif ask.key_range is not None:
                spare = ask.key_range
        if not ranges and spare is not None:
            ranges[spare] = None
        self._checked.clear()
        wanted = list(ranges)
        if not wanted:
            self._answer_batch()
        for at in range(0, len(wanted), RANGES_OF_TXN):
            self._check(wanted[at : at + RANGES_OF_TXN])

    def _check(self, ranges: list[Range]) -> None:
        """Asks for the revision, and whether the caller may read the ranges."""
        self._open_checks += 1
        self._send_check(ranges)

    def _send_check(self, ranges: list[Range]) -> None:
        done = read_as(TxnResponse, partial(self._on_checked, ranges))
        self._shared.upstream.call(TXN, check_message(ranges), done, self.metadata, CALL_TIMEOUT_S)

    def _on_checked(self, ranges: list[Range], code: int, text: str, reply: TxnResponse) -> None:
        if self._closed:
            return
        refused = is_refusal(code, text)
        if code and not refused:
            if text == errors.NO_LEADER.message:
                self._end_streams(code, text)
                return
            self._later(f"check {id(ranges)}", self._check_pause_s, lambda: self._send_check(ranges))
            self._check_pause_s = min(self._check_pause_s * 2, RETRY_MOST_S)
            return
        self._check_pause_s = RETRY_FIRST_S
        if code and len(ranges) > 1:
            for one in ranges:  # not all of them may be read, or they are too many at a time
                self._check([one])
        elif code:
            self._checked[ranges[0]] = Status(code, text)
        else:
            checked = (header_field(reply.header), reply.header.revision)
            self.header = checked[0]
            self._checked.update(dict.fromkeys(ranges, checked))
        self._open_checks -= 1
        if not self._open_checks:
            self._answer_batch()

    def _learn_header(self) -> None:
        """Nothing has been allowed yet, and refusals have a header, too: the Go client fails without one."""

        def done(_code: int, _text: str, status: StatusResponse) -> None:
            if not self._closed:
                self.header = header_field(status.header)
                self._answer_batch()

        self._shared.upstream.call(STATUS, b"", read_as(StatusResponse, done), self.metadata, CALL_TIMEOUT_S)

    def _answer_batch(self) -> None:
        if not self.header:
            self._learn_header()
            return
        for ask in self._batch:
            stream = ask.stream
            if ask.kind is AskKind.CREATE:
                self._answer_create(ask)
            elif not stream.ended:
                if ask.kind is AskKind.CANCEL:
                    stream.answer_cancel(self.header, ask.id_field)
                elif ask.kind is AskKind.REFUSE:
                    stream.answer_refused(self.header, ask.reason)
                else:
                    self._want_progress(stream)
            stream.settle(ask.size_bytes)
        self._batch.clear()
        if self._asks and not self._armed:
            self._armed = True
            self._shared.call_soon(self._next_batch)

    def _answer_create(self, ask: Ask) -> None:
        stream, group = ask.stream, ask.group
        assert group is not None and ask.key_range is not None
        checked = self._checked[ask.key_range]
        if stream.ended:
            group.release_users(1)
        elif isinstance(checked, Status):
            stream.answer_denied(ask, self.header, checked)
            group.release_users(1)
        else:
            header, revision = checked
            stream.answer_created(ask, header)
            if ask.given_up or stream.ended:
                group.release_users(1)
            else:
                if not group.position:
                    group.begin(revision)
                group.join(stream, ask.id_field, ask.start or revision + 1)
        group.release()

    # progress

    def _want_progress(self, stream: WatchStream) -> None:
        """A client asks up to where all its watches are complete."""
        if stream.watches:  # WP7
            self._waiting[stream] = (self._shared.now() + PROGRESS_PATIENCE_S, self._live.requests)
            if not self._live.is_asking or "progress" not in self._timers:
                self._ask_progress_soon()

    def _ask_progress_soon(self) -> None:
        self._progress_pause_s = PROGRESS_FIRST_S
        self._ask_progress()

    def _ask_progress(self) -> None:
        """Asks on the lines where the answer is waited for, and again until nobody waits."""
        self._drop_timer("progress")
        if self._waiting:
            now = self._shared.now()
            for stream in [one for one, (until, _) in self._waiting.items() if until < now]:
                del self._waiting[stream]
        behind = any(watch.created_after >= 0 for watch in self._behind.watches)
        if not self._waiting and not self._behind.watches:
            return
        if self._answers_progress is None:
            self._learn_version()
        elif self._answers_progress:
            if self._waiting:
                self._live.ask_progress()
            if behind:
                self._behind.ask_progress()
        self._later("progress", self._progress_pause_s, self._ask_progress)
        self._progress_pause_s = min(self._progress_pause_s * 2, PROGRESS_MOST_S)

    def _learn_version(self) -> None:
        if self._learning:
            return
        self._learning = True

        def done(code: int, _text: str, status: StatusResponse) -> None:
            self._learning = False
            if not self._closed and not code:
                self._answers_progress = keeps_progress_promise(version_of(status))
                self._ask_progress_soon()

        self._shared.upstream.call(STATUS, b"", read_as(StatusResponse, done), self.metadata, CALL_TIMEOUT_S)

    def _refresh(self) -> None:
        """Where the groups stand must not fall behind while there are no events."""
        if self._answers_progress:
            self._live.ask_progress()
        elif self._answers_progress is None:
            self._learn_version()
        self._later("refresh", REFRESH_S, self._refresh)

    def on_line_progress(self, line: Line, covered: int, revision: int, header: bytes) -> None:
        if line is not self._live:
            return
        if revision < self._told:
            return  # of a member that lags behind the one before; another answer will come
        self._told = revision
        asked_since = False
        for stream, (_, asked_after) in list(self._waiting.items()):
            if asked_after >= covered:
                asked_since = True
            elif stream.is_complete(revision):
                del self._waiting[stream]
                stream.answer_progress(header)
        if asked_since:
            self._ask_progress_soon()  # the others wait for the timer: they are behind

    # lines

    def _open_stream(self, line: Line) -> UpstreamStream:
        return self._shared.upstream.open(WATCH, line, self.metadata)

    def on_line_message(self, line: Line) -> None:
        self._pauses[line] = RETRY_FIRST_S

    def on_line_lost(self, line: Line, code: int, text: str) -> None:
        if self._closed:
            return
        if is_refusal(code, text) or text == errors.NO_LEADER.message:
            self._end_streams(code, text)
            return
        self._answers_progress = None
        if line is self._live:
            self._waiting = {stream: (until, 0) for stream, (until, _) in self._waiting.items()}
        self._later(f"line {id(line)}", self._pauses[line], lambda: self._reopen(line))
        self._pauses[line] = min(self._pauses[line] * 2, RETRY_MOST_S)

    def _reopen(self, line: Line) -> None:
        if line.watches and not line.is_open:
            line.open()
            if line is self._behind or self._waiting:
                self._ask_progress_soon()

    def move(self) -> None:
        """Another endpoint is in use: the streams go there too."""
        self._answers_progress = None
        for line in (self._live, self._behind):
            if line.is_open:
                line.close()
                self._reopen(line)

    def _end_streams(self, code: int, text: str) -> None:
        """The member refuses what callers with these credentials ask, or has no leader for those who want one."""
        for stream in list(self.streams):
            stream.end(code, text)

    def _later(self, name: str, delay_s: float, callback: Callable[[], None]) -> None:
        """A timer of that name; one that was set before is dropped."""
        self._drop_timer(name)

        def fire() -> None:
            self._timers.pop(name, None)
            callback()

        self._timers[name] = self._shared.call_later(delay_s, fire)

    def _drop_timer(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    # what groups ask

    def open_live(self, group: Group, *, exact: bool) -> UpstreamWatch:
        return self._open(self._live, UpstreamWatch(group, None, exact=exact))

    def open_behind(self, cohort: Cohort) -> UpstreamWatch:
        watch = self._open(self._behind, UpstreamWatch(cohort.group, cohort, exact=True))
        if "progress" not in self._timers or self._progress_pause_s > PROGRESS_FIRST_S:
            self._progress_pause_s = PROGRESS_FIRST_S
            self._later("progress", PROGRESS_FIRST_S, self._ask_progress)
        return watch

    def _open(self, line: Line, watch: UpstreamWatch) -> UpstreamWatch:
        line.create(watch)
        if not line.is_open and f"line {id(line)}" not in self._timers:
            line.open()
            if "refresh" not in self._timers:
                self._later("refresh", REFRESH_S, self._refresh)
        return watch

    def close_upstream(self, watch: UpstreamWatch) -> None:
        (self._live if watch.cohort is None else self._behind).cancel(watch)

    def drop(self, group: Group) -> None:
        if self.groups.get(group.spec) is not group:
            return
        del self.groups[group.spec]
        upstream, group.upstream = group.upstream, None
        if upstream is not None:
            self.close_upstream(upstream)
        group.dispose()

    def count_events(self, events: int, watches: int) -> None:
        if watches > 1:
            self._shared.events_coalesced += events * (watches - 1)

    def keep(self, size_bytes: int) -> bool:
        shared = self._shared
        if size_bytes > 0 and shared.kept_bytes + size_bytes > shared.max_kept_bytes:
            return False
        shared.kept_bytes += size_bytes
        return True


def is_refusal(code: int, text: str) -> bool:
    """Whether a call that failed so would fail again. What a learner does not serve, a voter will: endpoints change."""
    return code in REFUSALS and text != errors.NOT_SUPPORTED_FOR_LEARNER.message


def check_message(ranges: list[Range]) -> bytes:
    """A transaction that may be done only by who may read the ranges, and reads none of them: no key has a version
    below 0. It is answered by the member itself, since its ranges are serializable."""
    operations = [
        RequestOp(request_range=RangeRequest(key=key, range_end=range_end, limit=1, serializable=True))
        for key, range_end in ranges
    ]
    never: Any = Compare(result=Compare.LESS, target=Compare.VERSION, key=ranges[0][0], version=0)
    return TxnRequest(compare=[never], success=operations).SerializeToString()
