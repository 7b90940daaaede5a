"""The shell of apply, with a real store on a real disk, and turns that a test makes."""

from collections.abc import Callable
from pathlib import Path

from node.apply.host import ProcessHost
from node.apply.process import Apply
from node.child import Role
from node.frames import HEADER_BYTES, LEADERSHIP, Frame, Kind, Process, pack, unpack
from node.link_zmq import Arrivals
from node.requests import RECORD, batches
from tests.apply.entries import MEMBER, Entry, founding, frame, normal
from tests.apply.shell import FRONT, FakeLinks, Lines, answers, child_context


class ApplyUnderTest:
    """An apply process whose turns the test makes."""

    def __init__(self, directory: Path, *flags: str, now: Callable[[], float] | None = None) -> None:
        self.links = FakeLinks(Process.APPLY)
        self.log = Lines()
        self.child = child_context(directory, Role.APPLY, *flags)
        config = self.child.config
        host = ProcessHost(config.db_path, config.snap_path, self.child.lifeline, self.log.logger)
        if now is not None:
            host.now = now
        self.apply = Apply(self.child, self.links, self.log.logger, host)
        self.sent_entries = 0

    def turn(self, *data: Frame, control: tuple[Frame, ...] = ()) -> None:
        self.apply.turn(Arrivals(list(control), list(data)))

    def tell(self, kind: int, payload: bytes, *data: Frame) -> None:
        """Raft says something apart from the streams, and a turn takes it in."""
        self.turn(*data, control=(unpack(pack(Process.RAFT, kind, 0, payload)),))

    def lead(self, term: int = 2) -> None:
        leadership = LEADERSHIP.pack(term, MEMBER, 0, True)
        self.tell(Kind.LEADERSHIP, leadership, self.entries(founding(), normal(term=term)))
        assert self.links.take(FRONT, Kind.SERVING)

    def entries(self, *entries: Entry) -> Frame:
        first = self.sent_entries + 1
        self.sent_entries += len(entries)
        return unpack(frame(first, *entries))

    def proposals(self) -> list[tuple[int, bytes]]:
        """(op, body) of what it has proposed since the last call."""
        found = []
        for data in self.links.take(Process.RAFT, Kind.PROPOSALS):
            for proposed in batches(data, HEADER_BYTES):
                length, op, _, _ = RECORD.unpack_from(data, proposed.records_at)
                at = proposed.records_at + RECORD.size
                found.append((op, data[at : at + length]))
        return found

    def answered(self) -> list[tuple[int, int, bytes]]:
        return answers(self.links.take(FRONT, Kind.REPLIES))

    def close(self) -> None:
        self.apply.close()
        self.child.lifeline.close()
