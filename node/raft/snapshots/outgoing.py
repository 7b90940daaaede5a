"""Which checkpoint members that lag are sent: made when one is needed, shared, kept for a while, removed. Pure.

The core asks for a snapshot and takes no for an answer; so the first ask has apply make a checkpoint, and a later one
gets it. While a checkpoint is held the log must keep the entries behind it (`floor`), or whoever starts from it would
need the next one at once. Times are monotonic seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from kvorum.pb.internal_pb2 import MembershipState
from node.frames import CHECKPOINT
from node.membership import Membership
from node.raft.core import Snapshot

KEEP_S: Final = 30.0
"""A checkpoint that nobody is sent any more stays for so long: its receiver still has to install it and to ask for the
entries behind it, and others may need one too."""

RETRY_S: Final = 5.0
"""So long after a checkpoint the next is asked for, whether that one could not be made or was too old for a member."""


@dataclass(slots=True)
class _Held:
    snapshot: Snapshot
    path: str
    kept_until: float
    members: set[int] = field(default_factory=set)


class Outgoing:
    """The checkpoints of one generation."""

    def __init__(self) -> None:
        self._held: list[_Held] = []  # the last is the newest
        self._asked = 0  # number of the last ask
        self._is_asked = False
        self._wanted = False
        self._not_before = 0.0
        self.failure = ""
        """Why the last ask brought nothing; empty when it did."""

    def snapshot(self, now: float, least_index: int) -> Snapshot | None:
        """What `Storage.snapshot` gives: the newest, None while there is none.

        One older than `least_index` does not count: the greater of the index of the last change of members applied (a
        member refuses a snapshot whose configuration does not name it) and that of the entry before the log's first.
        """
        if self._held:
            newest = self._held[-1]
            if newest.snapshot.index >= least_index and (newest.members or now < newest.kept_until):
                newest.kept_until = now + KEEP_S
                return newest.snapshot
        if not self._is_asked and now >= self._not_before:
            self._wanted = True
        return None

    def ask(self) -> int | None:
        """The number of a CHECKPOINT_ASK that is to be sent to apply now, if one is."""
        if not self._wanted:
            return None
        self._wanted = False
        self._is_asked = True
        self._asked += 1
        return self._asked

    def on_checkpoint(self, payload: bytes, now: float) -> Snapshot | None:
        """Apply's answer, the payload of a CHECKPOINT frame. None: it could make none, see `failure`."""
        number, index, term, length = CHECKPOINT.unpack_from(payload)
        assert self._is_asked and number == self._asked, f"a checkpoint of number {number} was not asked for"
        self._is_asked = False
        end = CHECKPOINT.size + length
        text = payload[CHECKPOINT.size : end].decode()
        self._not_before = now + RETRY_S
        if not index:
            self.failure = text
            return None
        self.failure = ""
        membership = payload[end:]
        conf_state = Membership.restore(MembershipState.FromString(membership)).conf_state()
        snapshot = Snapshot(index, term, conf_state, membership)
        self._held.append(_Held(snapshot, text, now + KEEP_S))
        return snapshot

    def begin(self, snapshot: Snapshot, member: int) -> str:
        """The core sends this snapshot to a member: the path of its checkpoint, which stays until `end`."""
        held = next(held for held in self._held if held.snapshot is snapshot)
        for other in self._held:  # a member is sent one at a time
            other.members.discard(member)
        held.members.add(member)
        return held.path

    def end(self, member: int, now: float) -> None:
        """Nothing is sent to the member any more."""
        for held in self._held:
            if member in held.members:
                held.members.discard(member)
                held.kept_until = now + KEEP_S

    def expire(self, now: float) -> list[str]:
        """Called now and then: the paths of checkpoints that have served, to be removed."""
        gone = [held for held in self._held if not held.members and now >= held.kept_until]
        self._held = [held for held in self._held if held not in gone]
        return [held.path for held in gone]

    @property
    def floor(self) -> int | None:
        """The log must keep all entries behind this index; None: there is no checkpoint."""
        return min((held.snapshot.index for held in self._held), default=None)
