"""What must hold of all replies and events under load, however the calls interleave.

Cores: they are told what was asked and what came, and return the faults they find. A scenario fails by any fault.
"""

from collections import deque
from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple, Protocol

from kvorum.pb.mvcc_pb2 import Event, KeyValue
from kvorum.pb.rpc_pb2 import WatchResponse


class FaultKind(Enum):
    """What is wrong; the value is how reports call it."""

    LOST = "an event was lost"
    DISORDERED = "an event came twice or out of order"
    STALE = "a reply was older than one given before"
    WRONG = "a reply was not what was asked for"
    FOREIGN = "a tenant saw what is not its own"
    HELD_TWICE = "two had one lock"
    OVERTAKEN = "a lock was not given in the order of waiting"
    ENDED = "a lease ended although it was kept alive"
    UNANSWERED = "a request was never answered"


class Fault(NamedTuple):
    """One fault; `detail` says where, for the log."""

    kind: FaultKind
    detail: str


class Expectation(Protocol):
    """Something that is still to come when the load stops."""

    @property
    def complete(self) -> bool:
        """Nothing is outstanding."""

    def finish(self) -> list[Fault]:
        """What has not come by now never does: the faults that follow."""


class AckedWrites:
    """The revisions of the acknowledged writes to a range, in the order in which the acknowledgements came."""

    __slots__ = ("greatest", "revisions")

    def __init__(self) -> None:
        self.revisions: list[int] = []
        self.greatest = 0

    def add(self, revision: int) -> None:
        self.revisions.append(revision)
        self.greatest = max(self.greatest, revision)


class _Known(NamedTuple):
    """What a watcher knows of a living key."""

    create_revision: int
    version: int
    mod_revision: int


class WatchCheck:
    """A watcher's replies, against the order of revisions, the history of each key, and the acknowledged writes.

    `revision`: the watcher starts at the next one. `living`: every key of its range at that revision. `acked`: the
    acknowledged writes of its range; the watcher must get each later one. The history of a key (its versions, the
    revision that created it and, where replies carry it, the previous value) also shows that events are missing of
    which nobody was told, such as the end of a lease. Fragments are not understood: a revision comes in one reply.
    """

    __slots__ = ("_acked", "_compared", "_due", "_living", "_seen", "_start", "name", "position")

    SETTLE_AT = 1000
    """Revisions that are kept before they are compared with the acknowledgements and forgotten."""

    def __init__(self, name: str, revision: int, living: Iterable[KeyValue], acked: AckedWrites) -> None:
        self.name = name
        self.position = revision
        """The revision up to which everything has come."""
        self._start = revision
        self._living = {kv.key: _Known(kv.create_revision, kv.version, kv.mod_revision) for kv in living}
        self._acked = acked
        self._compared = 0  # so many of the acknowledgements
        self._due: list[int] = []  # acknowledged, above the position
        self._seen: set[int] = set()  # not yet compared

    def take(self, reply: WatchResponse) -> list[Fault]:
        """The next reply for this watcher."""
        faults: list[Fault] = []
        floor = last = self.position
        for event in reply.events:
            revision = event.kv.mod_revision
            if revision <= floor or revision < last:
                faults.append(self._fault(FaultKind.DISORDERED, event, f"after revision {last}"))
            else:
                missing = self._follow(event)
                if missing:
                    faults.append(self._fault(FaultKind.LOST, event, missing))
                last = revision
            self._seen.add(revision)
        if not reply.events and not reply.created and not reply.canceled:  # progress
            last = max(last, reply.header.revision)
        self.position = last
        if len(self._seen) > self.SETTLE_AT:
            faults += self.settle()
        return faults

    def settle(self) -> list[Fault]:
        """Compares what came with what was acknowledged so far."""
        revisions = self._acked.revisions
        due = self._due + revisions[self._compared :]
        self._compared = len(revisions)
        self._due = []
        faults = []
        for revision in due:
            if revision in self._seen:
                self._seen.discard(revision)
            elif revision > self.position:
                self._due.append(revision)
            elif revision > self._start:
                faults.append(self._never_came(revision))
        return faults

    @property
    def complete(self) -> bool:
        return self._acked.greatest <= self.position

    def finish(self) -> list[Fault]:
        faults = self.settle()
        faults += [self._never_came(revision) for revision in self._due]
        self._due = []
        return faults

    def _follow(self, event: Event) -> str:
        """Takes the event into its key's history; what is missing before it, or nothing."""
        kv = event.kv
        if event.type == Event.DELETE:
            before = self._living.pop(kv.key, None)
            if before is None:
                return "it deletes a key that was not there"
        else:
            before = self._living.get(kv.key)
            self._living[kv.key] = _Known(kv.create_revision, kv.version, kv.mod_revision)
            if kv.version == 1:
                return "it creates a key that was there" if before is not None else ""
            if before is None:
                return f"version {kv.version} is the first to be seen"
            if (kv.create_revision, kv.version) != (before.create_revision, before.version + 1):
                return f"version {kv.version} comes after {before.version}"
        if event.HasField("prev_kv") and event.prev_kv.mod_revision != before.mod_revision:
            return f"it replaces revision {event.prev_kv.mod_revision}, {before.mod_revision} was the last to be seen"
        return ""

    def _fault(self, kind: FaultKind, event: Event, what: str) -> Fault:
        name = Event.EventType.Name(event.type)
        return Fault(kind, f"{self.name}: {name} of {event.kv.key!r} at revision {event.kv.mod_revision}: {what}")

    def _never_came(self, revision: int) -> Fault:
        return Fault(
            FaultKind.LOST, f"{self.name}: the write of revision {revision} never came, it is at {self.position}"
        )


class RevisionFloor:
    """Linearizable calls: none may answer with an older revision than one that was answered before it began."""

    __slots__ = ("_greatest",)

    def __init__(self) -> None:
        self._greatest = 0

    def begin(self) -> int:
        """To be given to `end` of the same call."""
        return self._greatest

    def end(self, name: str, floor: int, revision: int, *, wrote: bool) -> list[Fault]:
        """A reply with that revision in its header; one that `wrote` made it."""
        self._greatest = max(self._greatest, revision)
        if revision < floor or (wrote and revision == floor):
            return [Fault(FaultKind.STALE, f"{name}: revision {revision}, begun after {floor} was answered")]
        return []


class LockCheck:
    """Locks that are held by one at a time, and given in the order in which the waiting keys were created."""

    __slots__ = ("_holders", "_last")

    def __init__(self) -> None:
        self._holders: dict[bytes, bytes] = {}
        self._last: dict[bytes, int] = {}

    def acquired(self, lock: bytes, key: bytes, create_revision: int) -> list[Fault]:
        """The one whose key was created at that revision has found that it holds the lock."""
        faults = []
        holder = self._holders.get(lock)
        if holder is not None:
            faults.append(Fault(FaultKind.HELD_TWICE, f"{lock!r}: {key!r} has it while {holder!r} does"))
        if create_revision <= self._last.get(lock, 0):
            detail = f"{lock!r}: {key!r} of revision {create_revision} comes after {self._last[lock]}"
            faults.append(Fault(FaultKind.OVERTAKEN, detail))
        self._holders[lock] = key
        self._last[lock] = max(create_revision, self._last.get(lock, 0))
        return faults

    def released(self, lock: bytes, key: bytes) -> None:
        """Its holder is about to delete its key."""
        if self._holders.get(lock) == key:
            del self._holders[lock]


class LeaseCheck:
    """Leases that are kept alive: every ask is answered with a living lease, and no key of theirs goes by itself."""

    __slots__ = ("_asks", "_keys", "_revoked", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._asks: dict[int, deque[float]] = {}
        self._keys: dict[bytes, int] = {}
        self._revoked: set[int] = set()

    def granted(self, lease_id: int, key: bytes | None = None) -> None:
        """A lease, and a key that hangs on it and is watched."""
        self._asks[lease_id] = deque()
        if key is not None:
            self._keys[key] = lease_id

    def asked(self, lease_id: int, now: float) -> None:
        """A keep-alive is sent."""
        self._asks[lease_id].append(now)

    def answered(self, lease_id: int, ttl_s: int, granted_ttl_s: int) -> tuple[float | None, list[Fault]]:
        """A keep-alive's reply: when that was asked, or None when nobody has; one lease's replies keep their order."""
        asks = self._asks.get(lease_id)
        if not asks:
            return None, [Fault(FaultKind.WRONG, f"{self.name}: a reply for {lease_id:x}, which was not asked for")]
        faults = []
        if not 0 < ttl_s <= granted_ttl_s and lease_id not in self._revoked:
            faults.append(Fault(FaultKind.ENDED, f"{self.name}: lease {lease_id:x} has TTL {ttl_s}"))
        asked = asks.popleft()
        if not asks and lease_id in self._revoked:
            del self._asks[lease_id]
            self._revoked.discard(lease_id)
        return asked, faults

    def broken(self) -> None:
        """The stream has ended, as was reported: what was asked on it is not answered any more."""
        for asks in self._asks.values():
            asks.clear()

    def revoking(self, lease_id: int, key: bytes) -> None:
        """It is about to be revoked: its key goes, and asks that are on their way may find it gone."""
        del self._keys[key]
        if self._asks[lease_id]:
            self._revoked.add(lease_id)
        else:
            del self._asks[lease_id]

    def deleted(self, key: bytes) -> list[Fault]:
        """A key was deleted."""
        lease_id = self._keys.pop(key, None)
        if lease_id is None:
            return []
        return [Fault(FaultKind.ENDED, f"{self.name}: {key!r} of lease {lease_id:x} is gone")]

    @property
    def complete(self) -> bool:
        return not any(self._asks.values())

    def finish(self) -> list[Fault]:
        faults = [
            Fault(FaultKind.UNANSWERED, f"{self.name}: a keep-alive of lease {lease_id:x}")
            for lease_id, asks in self._asks.items()
            for _ in asks
        ]
        self.broken()
        return faults
