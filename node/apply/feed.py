"""What apply tells watch: committed events, markers and slices of history, as a stream that never lies about its gaps.

Whatever lies between the stream's end and the store's revision when something is sent
(events withheld for want of credit, executed before anybody wanted them, or without the previous values that are now
wanted) is announced as a gap, and watch takes it from history. So a missing event is a matter of pace only.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from kvorum.errors import COMPACTED, ApiError
from node.apply.mvcc.history import KeyRanges
from node.apply.mvcc.keyspace import interval
from node.events import (
    HistoryAsk,
    MarkerAsk,
    RevisionChanges,
    decode_ask,
    encode_gap,
    encode_history,
    encode_marker,
    encode_revision,
)

MAX_ASKS: Final = 2
"""Watch has at most one marker and one slice of history under way."""


class ReadHistory(Protocol):
    """The store's `history`: whole revisions from `from_revision` on, and the revision they are complete to."""

    def __call__(
        self,
        from_revision: int,
        /,
        *,
        max_rows: int,
        max_bytes: int,
        ranges: KeyRanges | None,
        want_prev: bool,
    ) -> tuple[list[RevisionChanges], int]:
        """Raises ApiError(COMPACTED) when `from_revision` is below the compacted revision."""
        ...


class Feed:
    """The sending end of the EVENTS stream. `wants_events` and `wants_prev` say what the store should report."""

    def __init__(self, history: ReadHistory) -> None:
        self._history = history
        self.wants_events = False
        self.wants_prev = False
        self.revision = 0
        """Everything up to it was sent, or announced as a gap."""
        self._encoded = 0
        self.pending_bytes = 0
        """Encoded and not yet taken; take when this passes a mebibyte."""
        self.gaps = 0
        self._open = False
        self._items: list[bytes] = []
        self._asks: deque[MarkerAsk | HistoryAsk] = deque()

    def on_revisions(self, revisions: list[RevisionChanges], with_prev: bool) -> None:
        """What one atomic write has committed, in order; `with_prev` when previous values were looked up for all."""
        if not self.wants_events or not self._open or (self.wants_prev and not with_prev):
            return
        items = self._items
        wants_prev = self.wants_prev
        last = self._encoded
        size = 0
        for revision, changes in revisions:
            if revision != last + 1:
                items.append(encode_gap(last, revision - 1))
                self.gaps += 1
            item = encode_revision(revision, changes, wants_prev)
            size += len(item)
            items.append(item)
            last = revision
        self._encoded = last
        self.pending_bytes += size

    def on_ask(self, data: bytes, at: int) -> None:
        """A WATCH_ASK frame whose payload begins at offset `at` came; `take` answers it."""
        assert len(self._asks) < MAX_ASKS, "watch has too many asks under way"
        self._asks.append(decode_ask(data, at))

    @property
    def asked(self) -> bool:
        """Whether an ask waits that `take` would answer now, so that the next turn need not wait for anything."""
        return self._open and bool(self._asks)

    def take(self, is_open: bool, revision: int, compacted: int) -> bytes | None:
        """The payload of the next EVENTS frame, or None when there is nothing to send.

        `is_open` says whether the stream has credit, `revision` and `compacted` are the store's, all of whose committed
        events were given to `on_revisions`. At most one slice of history is read per call, so that apply can look
        after other work between two.
        """
        items = self._items
        self._open = is_open
        if not is_open:
            # what was encoded in the belief that there is credit becomes part of the gap
            self._encoded = self.revision
            self.pending_bytes = 0
            items.clear()
            return None
        if self.wants_events and self._encoded < revision:
            items.append(encode_gap(self._encoded, revision))
            self.gaps += 1
        self.revision = self._encoded = revision
        asks = self._asks
        while asks:
            ask = asks.popleft()
            if isinstance(ask, MarkerAsk):
                self.wants_events = ask.want_events
                self.wants_prev = ask.want_prev
                items.append(encode_marker(ask.ask, revision, compacted))
            else:
                items.append(self._slice(ask, compacted))
                break
        if not items:
            return None
        payload = b"".join(items)
        items.clear()
        self.pending_bytes = 0
        return payload

    def _slice(self, ask: HistoryAsk, compacted: int) -> bytes:
        ranges = None if ask.ranges is None else KeyRanges(interval(*one) for one in ask.ranges)
        try:
            revisions, to = self._history(
                ask.start, max_rows=ask.max_rows, max_bytes=ask.max_bytes, ranges=ranges, want_prev=ask.want_prev
            )
        except ApiError as error:
            if error.status is not COMPACTED:
                raise
            return encode_history(ask.ask, ask.start, 0, compacted, None, ask.want_prev)
        return encode_history(ask.ask, ask.start, to, compacted, revisions, ask.want_prev)
