"""Reads that wait until a quorum has confirmed the leader (Raft thesis, section 6.4)."""

from dataclasses import dataclass, field

from node.raft.core.messages import Message


@dataclass(slots=True)
class PendingRead:
    """A read that came when the commit index was `index`, and who has confirmed the leader since."""

    request: Message
    index: int
    acks: dict[int, bool] = field(default_factory=dict)


class ReadOnlyQueue:
    """Pending reads by context, oldest first. A quorum for one is a quorum for all before it."""

    __slots__ = ("_reads",)

    def __init__(self) -> None:
        self._reads: dict[bytes, PendingRead] = {}

    def __len__(self) -> int:
        return len(self._reads)

    def add(self, index: int, request: Message) -> bytes:
        """A read comes in; returns its context. One that is here already stays as it is."""
        context = request.entries[0][3]
        if context not in self._reads:
            self._reads[context] = PendingRead(request, index)
        return context

    def acknowledge(self, member: int, context: bytes) -> dict[int, bool]:
        """`member` confirms the leader; returns who has, nobody when the read is no longer here."""
        read = self._reads.get(context)
        if read is None:
            return {}
        read.acks[member] = True
        return read.acks

    def advance(self, context: bytes) -> list[PendingRead]:
        """A quorum confirmed this read: it and all before it are done."""
        done: list[PendingRead] = []
        if context in self._reads:
            for first in list(self._reads):
                done.append(self._reads.pop(first))
                if first == context:
                    break
        return done

    def last_context(self) -> bytes:
        """The newest read's context; empty when none waits."""
        return next(reversed(self._reads), b"")
