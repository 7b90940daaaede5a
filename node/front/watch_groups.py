"""A front's registrations at the watch process, and the framing of events for those that are live.

Watches of one stream that want the same and stand at the same revision share one *registration*. So a thousand watches
on one prefix are one line in a table here and there, and pausing a slow stream costs by what it watches, not by how
many watches it has.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Any, Final

from kvorum.watch_replies import Reply
from kvorum.wire.routes import ReplyStream
from node.watches import FRAGMENT

Spec = tuple[bytes, bytes, int]
"""What a registration asks for: key, range_end, flags (`node.watches`)."""

NO_MARK: Final = -1


class State(Enum):
    """Where a registration stands, as far as this front was told."""

    ASKED = auto()
    """Its create is not answered yet."""
    BEHIND = auto()
    """It gets past events, or waits for a later revision."""
    LIVE = auto()
    """A member of a group."""
    PARKED = auto()
    """Not registered: its stream takes nothing now."""


class ClientWatch:
    """One watch as its client knows it. `registration` is None when it was ended by a compaction."""

    __slots__ = ("id_field", "mark", "registration", "start", "watch_id")

    def __init__(self, watch_id: int, id_field: bytes, start: int) -> None:
        self.watch_id = watch_id
        self.id_field = id_field
        self.start = start
        self.registration: Registration | None = None
        self.mark = 0
        """The last event at the last tick of the progress timer: unchanged means that none came since (WP3)."""


class Registration:
    """Watches of one stream that want the same from the same revision on.

    `next` is the first revision it may still have to be given, `last_event` that of the last reply it was given.
    """

    __slots__ = ("group", "handle", "last_event", "lines", "next", "owed", "spec", "state", "stream", "watches", "wire")

    def __init__(self, stream: Any, wire: ReplyStream, spec: Spec, next_revision: int) -> None:
        self.stream = stream
        self.wire = wire
        self.spec = spec
        self.next = next_revision
        self.state = State.ASKED
        self.handle = 0
        self.last_event = 0
        self.group: Group | None = None
        self.watches: dict[bytes, ClientWatch] = {}
        self.lines: list[list[bytes]] | None = None
        """The ids' fields by their length; None when they have to be sorted again."""
        self.owed: tuple[Reply, int] | None = None
        """A reply that was cut short, and the revision up to which it is complete."""

    def add(self, watch: ClientWatch) -> None:
        """Takes in a watch that stands at the same revision."""
        self.watches[watch.id_field] = watch
        self.lines = None
        watch.registration = self

    def discard(self, watch: ClientWatch) -> None:
        """A watch is canceled."""
        del self.watches[watch.id_field]
        self.lines = None
        watch.registration = None

    def absorb(self, other: Registration) -> None:
        """Takes over the watches of another, which stand at the same revision."""
        for watch in other.watches.values():
            # what came for a watch before it joined must not count as, or hide, what comes after
            watch.mark = self.last_event if watch.mark == other.last_event else NO_MARK
            watch.registration = self
        self.watches.update(other.watches)
        self.lines = None

    def give(self, reply: Reply, revision: int) -> Registration | None:
        """Sends a reply to every watch: now all up to `revision` is given.

        When the stream took it for some watches only, these come back as a registration of their own, parked, and the
        others stay, owed the reply. Else the result is None.
        """
        wire = self.wire
        lines = self.lines
        if lines is None:
            lines = self.lines = _sort(self.watches)
        left = len(self.watches)
        for number, line in enumerate(lines):
            at = 0
            for framed, count in reply.chunks(line):
                wire.send_framed(framed, count * reply.pieces)
                at += count
                left -= count
                if left and not wire.writable:
                    if not self.watches:
                        return None  # the stream has ended under the last write
                    return self._split(reply, revision, number, at)
        self.next = revision + 1
        self.last_event = revision
        return None

    def _split(self, reply: Reply, revision: int, number: int, at: int) -> Registration:
        """Takes out the watches of the lines before `number`, and those before `at` of that line."""
        lines = self.lines
        assert lines is not None
        given = Registration(self.stream, self.wire, self.spec, revision + 1)
        given.last_event = revision
        given.state = State.PARKED
        for id_fields in (*lines[:number], lines[number][:at]):
            for id_field in id_fields:
                watch = given.watches[id_field] = self.watches.pop(id_field)
                watch.registration = given
        self.lines = [line for line in (lines[number][at:], *lines[number + 1 :]) if line]
        if self.state is State.LIVE:
            self.next = max(self.next, revision)  # live, it lacks this revision alone
        self.owed = (reply, revision)
        return given


def _sort(watches: dict[bytes, ClientWatch]) -> list[list[bytes]]:
    by_length: dict[int, list[bytes]] = {}
    for id_field in watches:
        by_length.setdefault(len(id_field), []).append(id_field)
    return [by_length[length] for length in sorted(by_length)]


class Group:
    """Live registrations that get the same events: at most one per stream, since more are merged."""

    __slots__ = ("is_fragmented", "lone", "many", "number", "of_stream", "watches")

    def __init__(self, number: int, spec: Spec) -> None:
        self.number = number
        self.is_fragmented = spec[2] & FRAGMENT != 0
        self.watches = 0
        self.of_stream: dict[Any, Registration] = {}
        self.lone: dict[bytes, dict[Registration, None]] = {}
        """Registrations of a single watch, by its id field."""
        self.many: dict[Registration, None] = {}

    def add(self, registration: Registration) -> None:
        """A registration has become live, the first of its stream in this group."""
        registration.group = self
        registration.state = State.LIVE
        self.of_stream[registration.stream] = registration
        self._file(registration)

    def remove(self, registration: Registration) -> None:
        """A registration is no longer live."""
        self._unfile(registration)
        del self.of_stream[registration.stream]
        registration.group = None

    def merge(self, registration: Registration, other: Registration) -> None:
        """Another registration of the stream has become live: its watches go to the first."""
        self._unfile(registration)
        registration.absorb(other)
        self._file(registration)

    def discard(self, registration: Registration, watch: ClientWatch) -> None:
        """One of several watches is canceled."""
        self._unfile(registration)
        registration.discard(watch)
        self._file(registration)

    def _file(self, registration: Registration) -> None:
        self.watches += len(registration.watches)
        if len(registration.watches) == 1:
            (id_field,) = registration.watches
            same = self.lone.get(id_field)
            if same is None:
                self.lone[id_field] = {registration: None}
            else:
                same[registration] = None
        else:
            self.many[registration] = None

    def _unfile(self, registration: Registration) -> None:
        self.watches -= len(registration.watches)
        if len(registration.watches) == 1:
            (id_field,) = registration.watches
            same = self.lone[id_field]
            del same[registration]
            if not same:
                del self.lone[id_field]
        else:
            del self.many[registration]

    def deliver(self, reply: Reply, revision: int) -> list[tuple[Any, Registration | None]]:
        """Gives a revision's reply to all.

        Returns the streams that take no more, each with the part of its registration that was served, if some was not.
        """
        full: list[tuple[Any, Registration | None]] = []
        after = revision + 1
        pieces = reply.pieces
        for id_field, same in tuple(self.lone.items()):
            framed = reply.framed(id_field)
            # A thousand connections with a watch each pass here for every event: 0.3 us each beside the wire's share.
            # The copy lets a stream end, and leave, while it is being written to.
            for registration in tuple(same):
                registration.next = after
                registration.last_event = revision
                wire = registration.wire
                wire.send_framed(framed, pieces)
                if not wire.writable:
                    full.append((registration.stream, None))
        for registration in tuple(self.many):
            before = len(registration.watches)
            given = registration.give(reply, revision)
            if given is not None and registration in self.many:
                del self.many[registration]
                self.watches -= before
                self._file(registration)
            if given is not None or not registration.wire.writable:
                full.append((registration.stream, given))
        return full
