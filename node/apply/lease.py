"""Leases: which exist, which keys belong to each, and on the leader how long each has left.

Two halves with one rule between them. What the log decides (grant, revoke, attach, detach) is the same on every member
and is kept in rows; no clock touches it. The time left is the leader's own, is never stored, and decides only which
revokes the leader proposes. So whatever happens to clocks, members cannot part; and every doubt about the time is
settled in the lease's favour: it may live too long, never too short.
"""

from collections import deque
from collections.abc import Collection, Iterable
from heapq import heapify, heappop, heappush
from math import ceil, inf
from struct import Struct
from typing import Final, NamedTuple

from kvorum import errors
from kvorum.errors import ApiError, Code, Status

LEASE_TABLE: Final = b"l"
"""Rows: LEASE_TABLE + 8 bytes of id (big-endian, two's complement) -> granted TTL in seconds (8 bytes, big-endian)."""
ATTACHED_TABLE: Final = b"a"
"""Rows: ATTACHED_TABLE + 8 bytes of id + key -> empty. With them a start need not read any value."""

MAX_TTL_S: Final = 9_000_000_000
IN_FLIGHT: Final = 16
PASS_S: Final = 0.5
PASS_REVOKES: Final = 500
RETRY_S: Final = 3.0
GAP_S: Final = 1.0
TOGETHER: Final = 1000
"""L22, L24, L31: revokes proposed and not applied; per pass; and how many may fall due within one second."""

WAIT: Final = -1
"""The lease's revoke is under way: answer the keep-alive when it is decided."""
NOT_PRIMARY: Final = Status(Code.UNKNOWN, "not a primary lessor")
"""L33: this member does not lead, or cannot confirm that it does."""

Change = tuple[bytes, bytes | None]
"""A row and its value, or None where it goes."""

_ROW: Final = Struct(">cq")
_TTL: Final = Struct(">q")
_SLOTS_PER_S: Final = 4  # leases fall due in slots of 250 ms: half of what the reference takes between two looks


class TimeToLive(NamedTuple):
    """LeaseTimeToLiveResponse: whole seconds left (-1: no such lease), seconds granted, the keys if asked for."""

    ttl_s: int
    granted_ttl_s: int
    keys: Collection[bytes]


class _Lease:
    __slots__ = ("due_s", "id", "keys", "slot", "ttl_s")

    def __init__(self, lease_id: int, ttl_s: int) -> None:
        self.id = lease_id
        self.ttl_s = ttl_s
        self.keys: set[bytes] | None = None  # made by the first key: an empty set has 216 bytes
        self.due_s = inf  # in kept time, on the leader; inf before any was told, -inf once revoked
        self.slot = -1  # where `_slots` holds it; -1 for nowhere


class Lessor:
    """All leases of a member. `now` is always monotonic seconds, read after the entries of the turn were executed (a
    grant counts from the first `now` told after it); any method may be the one that brings a new one.

    Kept time: seconds of a clock that stands still while leadership is not confirmed. Every due time is in it.
    """

    def __init__(self) -> None:
        self._leases: dict[int, _Lease] = {}
        self._rows: dict[bytes, bytes | None] = {}
        self._revoked: tuple[int, set[bytes]] = (0, set())
        # Below: the leader's.
        self._primary = False
        self._valid_until = -inf
        self._extend_s = 0.0
        self._now = -inf
        self._lapsed_s = 0.0
        self._fresh: list[_Lease] = []  # granted since `now` was last told
        # Slot n holds, in order, the leases due within [n, n + 1) / _SLOTS_PER_S. Renewing moves a lease at once (0.5
        # us): a heap with late renewals would have all those granted together to put back together, 1 us each.
        self._slots: dict[int, dict[_Lease, None]] = {}
        self._slot_heap: list[int] = []  # the slots in use, and some that were
        self._due: deque[_Lease] = deque()  # their slot is past; some were renewed or revoked since
        self._in_flight: dict[int, float] = {}  # lease id -> when its revoke was proposed last
        self._pass_began = -inf
        self._pass_left = 0

    def __len__(self) -> int:
        return len(self._leases)

    # What the log decides.

    def grant(self, lease_id: int, ttl_s: int) -> None:
        """A new lease; the front chose its id and raised its TTL to the least one allowed (L1, L3).

        Raises LEASE_TTL_TOO_LARGE, then LEASE_EXIST (L2, L4).
        """
        if ttl_s > MAX_TTL_S:
            raise ApiError(errors.LEASE_TTL_TOO_LARGE)
        if lease_id in self._leases:
            raise ApiError(errors.LEASE_EXIST)
        assert lease_id and ttl_s > 0, "the front chooses the id and raises the TTL"
        lease = self._leases[lease_id] = _Lease(lease_id, ttl_s)
        self._rows[_ROW.pack(LEASE_TABLE, lease_id)] = _TTL.pack(ttl_s)
        if self._primary:
            self._fresh.append(lease)

    def revoke(self, lease_id: int) -> list[bytes]:
        """End a lease; returns its keys in order (L20). The caller deletes them next: the store then detaches each.

        Raises LEASE_NOT_FOUND.
        """
        lease = self._leases.pop(lease_id, None)
        if lease is None:
            raise ApiError(errors.LEASE_NOT_FOUND)
        assert not self._revoked[1], "the keys of the lease revoked before were not all deleted"
        keys = lease.keys or set()
        self._revoked = (lease_id, keys)
        self._rows[_ROW.pack(LEASE_TABLE, lease_id)] = None
        self._in_flight.pop(lease_id, None)
        lease.due_s = -inf
        self._unslot(lease)
        return sorted(keys)

    def exists(self, lease_id: int) -> bool:
        """Whether a put may name the lease."""
        return lease_id in self._leases

    def attach(self, key: bytes, lease_id: int) -> None:
        """The key belongs to the lease, which exists, from now on."""
        lease = self._leases[lease_id]
        if lease.keys is None:
            lease.keys = {key}
        else:
            lease.keys.add(key)
        self._rows[_ROW.pack(ATTACHED_TABLE, lease_id) + key] = b""

    def detach(self, key: bytes, lease_id: int) -> None:
        """The key, attached to the lease until now, has left it."""
        lease = self._leases.get(lease_id)
        if lease is not None:
            assert lease.keys is not None
            lease.keys.remove(key)
        else:
            revoked_id, keys = self._revoked
            assert lease_id == revoked_id
            keys.remove(key)
        self._rows[_ROW.pack(ATTACHED_TABLE, lease_id) + key] = None

    def drain_rows(self) -> list[Change]:
        """The rows changed since the last call, for the atomic write that holds the data they belong to.

        From here on the caller keeps them: when its write fails it writes the same again, with whatever came since.
        """
        rows = list(self._rows.items())
        self._rows.clear()
        return rows

    def restore(self, leases: Iterable[tuple[bytes, bytes]], attached: Iterable[tuple[bytes, bytes]]) -> None:
        """Take in the rows of both tables, at the start; no time is kept before `promote` (L26)."""
        assert not self._leases
        for row, value in leases:
            _, lease_id = _ROW.unpack(row)
            self._leases[lease_id] = _Lease(lease_id, *_TTL.unpack(value))
        for row, _ in attached:
            _, lease_id = _ROW.unpack_from(row)
            assert lease_id in self._leases, f"a key is attached to lease {lease_id:x}, which is not there"
            lease = self._leases[lease_id]
            if lease.keys is None:
                lease.keys = set()
            lease.keys.add(row[_ROW.size :])

    def keys_of(self, lease_id: int) -> Collection[bytes]:
        """The keys attached to a lease, in no order; none when there is no such lease."""
        lease = self._leases.get(lease_id)
        return lease.keys or () if lease else ()

    # What the leader decides.

    def promote(self, now: float, extend_s: float, valid_until: float = inf) -> None:
        """This member leads and has applied the first entry of its term: begin to keep time, until `valid_until`.

        Every lease gets its full TTL and `extend_s`, the election timeout, on top (L23), and more where too many would
        fall due together (L24).
        """
        self.demote()
        self._primary = True
        self._valid_until = valid_until
        self._extend_s = extend_s
        self._now = now
        self._lapsed_s = 0.0
        self._restart(self._kept())

    def renew_leadership(self, now: float, valid_until: float) -> None:
        """A quorum confirmed, in the term of the promotion, that this member leads until `valid_until`.

        The time between the last confirmation's end and now does not count.
        """
        assert self._primary
        self.turn(now)
        if self._now > self._valid_until:
            self._lapsed_s += self._now - self._valid_until
            self._valid_until = self._now
        self._valid_until = max(self._valid_until, valid_until)

    def limit_leadership(self, now: float, valid_until: float) -> None:
        """What was confirmed before is certain until `valid_until` only: from now on others have a vote."""
        assert self._primary
        self.turn(now)
        self._valid_until = min(self._valid_until, valid_until)

    def demote(self) -> None:
        """This member leads no longer: it keeps no time (L25). Keep-alives that wait are the caller's to fail."""
        self._primary = False
        self._valid_until = -inf
        self._fresh.clear()
        self._slots.clear()
        self._slot_heap.clear()
        self._due.clear()
        self._in_flight.clear()
        for lease in self._leases.values():
            lease.slot = -1

    def turn(self, now: float) -> None:
        """Tell the time; at least twice a second, else every lease is extended as by a promotion.

        After a longer gap this process, or the whole machine, was stopped, and keep-alives may still be on their way.
        """
        gap = now - self._now
        if gap <= 0:
            return
        self._now = now
        if gap > GAP_S and self._primary:
            self._restart(self._kept())
        elif self._fresh:
            self._begin_fresh()

    def keep_alive(self, lease_id: int, now: float) -> int:
        """Renew a lease: its TTL in seconds (L7), 0 when it does not exist (L8), or WAIT while a revoke is under way.

        Once proposed, a revoke cannot be taken back, so the lease is not renewed: the answer is 0 once it is applied
        (L9). Raises NOT_PRIMARY when leadership is not confirmed (L33).
        """
        self.turn(now)
        if self._now >= self._valid_until:
            raise ApiError(NOT_PRIMARY)
        lease = self._leases.get(lease_id)
        if lease is None:
            return 0
        if lease_id in self._in_flight:
            return WAIT
        self._schedule(lease, self._now - self._lapsed_s + lease.ttl_s)
        return lease.ttl_s

    def time_to_live(self, lease_id: int, now: float, *, keys: bool = False) -> TimeToLive:
        """What is left of a lease (L14, L15, L16). Raises NOT_PRIMARY when this member does not lead."""
        self.turn(now)
        if not self._primary:
            raise ApiError(NOT_PRIMARY)
        lease = self._leases.get(lease_id)
        if lease is None:
            return TimeToLive(-1, 0, ())
        left_s = self._left_s(lease)
        # Some time has always passed since a grant or a renewal, though it may be too short to see.
        whole_s = ceil(left_s) - 1 if left_s > 0 else int(left_s)
        return TimeToLive(whole_s, lease.ttl_s, list(lease.keys or ()) if keys else ())

    def leases(self) -> list[int]:
        """All ids: on the leader by the time left, the least first; elsewhere in no order (L18)."""
        if not self._primary:
            return list(self._leases)
        return [lease.id for lease in sorted(self._leases.values(), key=self._left_s)]

    def expired(self, now: float, limit: int = PASS_REVOKES) -> list[int]:
        """Leases whose time is over: propose a revoke of each. Call it every turn, after the turn's keep-alives.

        At most IN_FLIGHT of them are under way at any time, and `limit` are returned in half a second (L22). One that
        has not been applied after RETRY_S is returned again (L31). None unless leadership is confirmed (L23).
        """
        self.turn(now)
        now = self._now
        if now >= self._valid_until:
            return []
        if now - self._pass_began >= PASS_S:
            self._pass_began = now
            self._pass_left = limit
        in_flight = self._in_flight
        result = [lease_id for lease_id, asked_at in in_flight.items() if now - asked_at >= RETRY_S]
        kept = self._kept()
        self._collect(kept)
        due = self._due
        while due and len(in_flight) < IN_FLIGHT and len(result) < self._pass_left:
            lease = due.popleft()
            # -inf: revoked since; later than now: renewed since; in flight: it was in line twice.
            if -inf < lease.due_s <= kept and lease.id not in in_flight:
                in_flight[lease.id] = now
                result.append(lease.id)
        del result[self._pass_left :]
        for lease_id in result:
            in_flight[lease_id] = now
        self._pass_left -= len(result)
        return result

    # The order in which leases fall due.

    def _kept(self) -> float:
        return min(self._now, self._valid_until) - self._lapsed_s

    def _left_s(self, lease: _Lease) -> float:
        return lease.due_s - self._kept() if lease.due_s != inf else lease.ttl_s

    def _begin_fresh(self) -> None:
        """Count down what was granted before now, and after the time told before: the log brings no time with it."""
        kept = self._kept()
        for lease in self._fresh:
            if lease.due_s == inf:  # neither revoked nor renewed since
                self._schedule(lease, kept + lease.ttl_s)
        self._fresh.clear()

    def _schedule(self, lease: _Lease, due_s: float) -> None:
        lease.due_s = due_s
        slot = int(due_s * _SLOTS_PER_S)
        if slot == lease.slot:
            return
        if lease.slot >= 0:
            self._unslot(lease)
        lease.slot = slot
        leases = self._slots.get(slot)
        if leases is None:
            self._slots[slot] = {lease: None}
            heap = self._slot_heap
            heappush(heap, slot)
            if len(heap) > 2 * len(self._slots) + 64:  # most are of slots long empty: leases are renewed before
                heap[:] = self._slots
                heapify(heap)
        else:
            leases[lease] = None

    def _unslot(self, lease: _Lease) -> None:
        if lease.slot >= 0:
            leases = self._slots[lease.slot]
            del leases[lease]
            if not leases:
                del self._slots[lease.slot]
            lease.slot = -1

    def _collect(self, kept: float) -> None:
        """Put the leases of past slots in line, those due first in front."""
        heap = self._slot_heap
        while heap and heap[0] + 1 <= kept * _SLOTS_PER_S:
            for lease in self._slots.pop(heappop(heap), ()):
                lease.slot = -1
                self._due.append(lease)

    def _restart(self, kept: float) -> None:
        """Give every lease its full TTL and the extension, TOGETHER of them in any one second at most."""
        self._fresh.clear()
        self._slots.clear()
        self._slot_heap.clear()
        self._due.clear()
        last: deque[float] = deque(maxlen=TOGETHER)
        for lease in sorted(self._leases.values(), key=lambda lease: lease.ttl_s):
            due_s = kept + lease.ttl_s + self._extend_s
            if len(last) == TOGETHER:
                due_s = max(due_s, last[0] + 1.0)
            last.append(due_s)
            lease.slot = -1
            self._schedule(lease, due_s)
