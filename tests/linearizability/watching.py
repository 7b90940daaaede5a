"""Whether a watcher was sent every event it is owed: in order, whole revisions, once (DESIGN's invariant 6)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kvorum.pb.mvcc_pb2 import Event
from tests.linearizability.history import Watch, one_line
from tests.linearizability.replay import Replay, contains


def check_watch(watch: Watch, replay: Replay) -> Iterator[str]:
    """What is wrong with what it received."""
    revision = watch.start_revision - 1  # all up to here was received
    for received in watch.received:
        to = received.events[-1].kv.mod_revision if received.events else received.revision
        if to > replay.last:
            yield f"it saw revision {to}, which was lost"
            return
        if received.events and to > received.revision:
            yield f"an answer of revision {received.revision} has an event of {to}"
        expected = _owed(watch, replay, revision + 1, to)
        if not _same(watch, list(received.events), expected, replay):
            yield f"after revision {revision} it received {_lines(received.events)} instead of {_lines(expected)}"
            return
        revision = max(revision, to)
    missing = _owed(watch, replay, revision + 1, min(watch.seen_to, replay.last))
    if missing:
        yield f"after revision {revision} it never received {_lines(missing)}"


def _lines(events: Iterable[Event]) -> str:
    return " ".join(one_line(event) for event in events) or "nothing"


def _owed(watch: Watch, replay: Replay, start: int, end: int) -> list[Event]:
    return [
        event
        for revision in range(start, end + 1)
        for event in replay.events(revision)
        if contains(watch.key, watch.range_end, event.kv.key)
        and not (watch.no_puts if event.type == Event.PUT else watch.no_deletes)
    ]


def _same(watch: Watch, received: list[Event], expected: list[Event], replay: Replay) -> bool:
    if len(received) != len(expected):
        return False
    for one, other in zip(received, expected, strict=True):
        if one.type != other.type or one.kv != other.kv:
            return False
        if one.HasField("prev_kv"):
            before = replay.at(one.kv.key, one.kv.mod_revision - 1)
            if not watch.prev_kv or before is None or one.prev_kv != before:
                return False
    return True
