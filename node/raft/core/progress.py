"""What the leader knows of one member's log, and how much it may send it now."""

from collections import deque
from enum import IntEnum

from node.raft.core.messages import NO_LIMIT


class ProgressState(IntEnum):
    """How the leader feeds a member."""

    PROBE = 0  # where the logs part is not known: one message, then wait for an answer or a heartbeat's
    REPLICATE = 1  # the logs match: send on without waiting, within the limits of what is in flight
    SNAPSHOT = 2  # the entries needed are compacted: a snapshot is under way, nothing else is sent


PROGRESS_NAMES = ("StateProbe", "StateReplicate", "StateSnapshot")


class Inflights:
    """The appends sent and not yet acknowledged: (last index, size) in order, limited in number and in bytes.

    The limit in bytes is passed by at most one message: there is room as long as it is not reached.
    """

    __slots__ = ("_messages", "bytes", "max_bytes", "max_messages")

    def __init__(self, max_messages: int, max_bytes: int = NO_LIMIT) -> None:
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.bytes = 0
        self._messages: deque[tuple[int, int]] = deque()

    def __len__(self) -> int:
        return len(self._messages)

    def full(self) -> bool:
        """Whether no further message may be sent."""
        return len(self._messages) >= self.max_messages or self.bytes >= self.max_bytes

    def add(self, index: int, size_bytes: int) -> None:
        """An append whose last entry is `index` was sent."""
        assert not self.full(), "an append was sent beyond the limit"
        self._messages.append((index, size_bytes))
        self.bytes += size_bytes

    def free_through(self, index: int) -> None:
        """Everything up to `index` was acknowledged."""
        messages = self._messages
        while messages and messages[0][0] <= index:
            self.bytes -= messages.popleft()[1]

    def clear(self) -> None:
        """Forget them all: the member is fed from elsewhere in the log."""
        self._messages.clear()
        self.bytes = 0


class Progress:
    """One member as the leader sees it.

    `match`: its log is known to equal the leader's up to here. `next`: the next entry to send; match < next always.
    `sent_commit`: the highest commit index it was told. `recent_active`: it was heard of since the last quorum check.
    `paused`: nothing is to be sent before an answer, to this message or to a heartbeat, comes in.
    """

    __slots__ = (
        "inflights",
        "is_learner",
        "match",
        "next",
        "paused",
        "pending_snapshot",
        "recent_active",
        "sent_commit",
        "state",
    )

    def __init__(self, match: int, next_: int, inflights: Inflights, *, is_learner: bool, recent_active: bool) -> None:
        self.match = match
        self.next = next_
        self.sent_commit = 0
        self.state = ProgressState.PROBE
        self.pending_snapshot = 0
        self.recent_active = recent_active
        self.paused = False
        self.inflights = inflights
        self.is_learner = is_learner

    def copy(self) -> "Progress":
        """The same, with the same window of what is in flight; for a configuration that may yet be refused."""
        copy = Progress(
            self.match, self.next, self.inflights, is_learner=self.is_learner, recent_active=self.recent_active
        )
        copy.sent_commit = self.sent_commit
        copy.state = self.state
        copy.pending_snapshot = self.pending_snapshot
        copy.paused = self.paused
        return copy

    def _enter(self, state: ProgressState) -> None:
        self.paused = False
        self.pending_snapshot = 0
        self.state = state
        self.inflights.clear()

    def become_probe(self) -> None:
        """Ask anew where the logs match; behind a snapshot that was sent, if one was."""
        snapshot = self.pending_snapshot if self.state is ProgressState.SNAPSHOT else 0
        self._enter(ProgressState.PROBE)
        self.next = max(self.match, snapshot) + 1
        self.sent_commit = min(self.sent_commit, self.next - 1)

    def become_replicate(self) -> None:
        """The logs match up to `match`: send everything behind it."""
        self._enter(ProgressState.REPLICATE)
        self.next = self.match + 1

    def become_snapshot(self, index: int) -> None:
        """A snapshot up to `index` is sent."""
        self._enter(ProgressState.SNAPSHOT)
        self.pending_snapshot = index
        self.next = index + 1
        self.sent_commit = index

    def sent_entries(self, count: int, size_bytes: int) -> None:
        """An append with so many entries from `next` on was sent."""
        if self.state is ProgressState.REPLICATE:
            inflights = self.inflights
            if count:
                self.next += count
                inflights.add(self.next - 1, size_bytes)
            self.paused = inflights.full()
        else:
            assert self.state is ProgressState.PROBE, "an append was sent beside a snapshot"
            if count:
                self.paused = True

    def can_bump_commit(self, commit: int) -> bool:
        """Whether telling `commit` can move the member's commit index: not when it knows of all it will have."""
        return self.sent_commit < commit and self.sent_commit < self.next - 1

    def maybe_update(self, index: int) -> bool:
        """The member holds the leader's log up to `index`; False when that is no news."""
        if index <= self.match:
            return False
        self.match = index
        if self.next <= index:
            self.next = index + 1
        self.paused = False
        return True

    def maybe_decrease(self, rejected: int, hint: int) -> bool:
        """An append behind `rejected` was refused, the logs may match at `hint`; False when the answer is stale."""
        if self.state is ProgressState.REPLICATE:
            if rejected <= self.match:
                return False
            self.next = self.match + 1
        else:
            if self.next - 1 != rejected:
                return False
            self.next = max(min(rejected, hint + 1), self.match + 1)
            self.paused = False
        self.sent_commit = min(self.sent_commit, self.next - 1)
        return True

    def is_paused(self) -> bool:
        """Whether nothing may be sent now."""
        return self.paused or self.state is ProgressState.SNAPSHOT

    def __str__(self) -> str:
        text = f"{PROGRESS_NAMES[self.state]} match={self.match} next={self.next}"
        if self.is_learner:
            text += " learner"
        if self.is_paused():
            text += " paused"
        if self.pending_snapshot:
            text += f" pendingSnap={self.pending_snapshot}"
        if not self.recent_active:
            text += " inactive"
        if len(self.inflights):
            text += f" inflight={len(self.inflights)}"
            if self.inflights.full():
                text += "[full]"
        return text
