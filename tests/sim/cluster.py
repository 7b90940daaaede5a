"""A cluster of simulated members: what is true of all of them together, and what may happen to them."""

from __future__ import annotations

import traceback
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import count

from kvorum.log import Level
from kvorum.pb.internal_pb2 import Founding
from kvorum.pb.mvcc_pb2 import Event, KeyValue
from kvorum.pb.rpc_pb2 import HashKVResponse, Member
from node.apply.lease import LEASE_TABLE
from node.apply.mvcc.keyspace import Event as StoreEvent
from node.apply.mvcc.rows import HISTORY, META, VERSIONS
from node.apply.mvcc.store import Store
from node.config import Config
from node.frames import ENTRY_HEADER, HEADER_BYTES
from node.raft.wal.errors import LogFailed, LogFull
from tests.linearizability.history import History, Operation, Revision
from tests.sim.clock import Scheduler
from tests.sim.member import Settings, SimulatedMember, member_config
from tests.sim.network import Network

TRACE_LINES = 4000
FIRST_MEMBER = 0xA1


class Broken(Exception):
    """The run has shown a fault."""


class Cluster:
    """All members, what they have agreed on so far, and the clients' history."""

    def __init__(self, seed: int, settings: Settings, base: Config, size: int, *, traced: bool) -> None:
        self.scheduler = Scheduler(seed)
        self.network = Network(self.scheduler)
        self.settings = settings
        self.cluster_id = 7
        self.history = History()
        self.pending: dict[int, Operation] = {}
        """Operations under way, by the identity of their call."""
        self.busy = False
        """Whether clients ask for anything new."""
        self.troubled = False
        """Whether members that die may stay dead for a while."""
        self.trace: deque[str] = deque(maxlen=TRACE_LINES)
        self.members: dict[int, SimulatedMember] = {}
        self.crashes = 0
        self.probes = 0
        self.most_entries = 0
        """The last entry that any apply was given."""
        self._traced = traced
        self._base = base
        self._names = count(1)
        self._entries: dict[int, tuple[int, int]] = {}  # index -> term, checksum: what every apply must be given
        self._leaders: dict[int, int] = {}  # term -> who leads in it
        founders = [
            Member(ID=FIRST_MEMBER + number, name=f"m{number + 1}", peerURLs=[f"http://m{number + 1}:2380"])
            for number in range(size)
        ]
        founding = Founding(members=founders).SerializeToString(deterministic=True)
        for founder in founders:
            remotes = {other.ID: other.peerURLs for other in founders if other.ID != founder.ID}
            self.add(founder.ID, founding, remotes, founder.peerURLs)

    def add(
        self, member_id: int, founding: bytes, remotes: Mapping[int, Sequence[str]], peer_urls: Sequence[str]
    ) -> SimulatedMember:
        """A member with empty disks, that is yet to be started."""
        config = member_config(self._base, self.settings, f"m{next(self._names)}")
        member = self.members[member_id] = SimulatedMember(self, config, member_id, founding, remotes, peer_urls)
        return member

    def meet(self, known: Member) -> None:
        """The list of members has this one: its machine is set up if it is new, and begins some time later."""
        if known.ID in self.members:
            return
        remotes = {one.id: one.peer_urls for one in self.members.values() if one.finished is None}
        member = self.add(known.ID, b"", remotes, list(known.peerURLs))
        self.note(known.ID, "joins")
        self.scheduler.after(self.scheduler.random.uniform(0.0, 2.0), lambda: self._restart(member))

    def meet_all(self) -> None:
        """Sets up also those whose addition nobody heard the answer to."""
        for member in self.membership().values():
            self.meet(member)

    # what the members tell

    def note(self, member: int, text: str) -> None:
        """See World."""
        self.trace.append(f"{self.scheduler.now_s:11.6f} {member:x} {text}")

    def log_sink(self, member: int) -> Callable[[Level, bytes], None]:
        """See World."""
        if not self._traced:
            return lambda level, line: None
        return lambda level, line: self.note(member, line.decode().split("\t", 1)[1].rstrip())

    def on_revisions(self, member: int, revisions: list[StoreEvent]) -> None:
        """See World. The first store that shows a revision decides what it is; all others must show the same."""
        known = self.history.revisions
        for number, changes in revisions:
            if number - 2 < len(known):
                events = known[number - 2].events
                if len(events) != len(changes) or any(
                    (event.type == Event.DELETE, event.kv.key) != (is_delete, key)
                    or event.kv != _key_value(is_delete, key, kv, number)
                    for event, (is_delete, key, kv, _) in zip(events, changes, strict=True)
                ):
                    raise Broken(f"member {member:x} has at revision {number} {changes}, others have {events}")
                continue
            if number != len(known) + 2:
                raise Broken(f"member {member:x} committed revision {number}, but nobody {len(known) + 2}")
            made = tuple(
                Event(type=Event.DELETE if is_delete else Event.PUT, kv=_key_value(is_delete, key, kv, number))
                for is_delete, key, kv, _ in changes
            )
            known.append(Revision(number, made, self.scheduler.now_s))

    def on_entries(self, member: int, frame: bytes) -> None:
        """See World. State machine safety: at one index all members apply the same entry (Raft paper, figure 3)."""
        at = HEADER_BYTES
        while at < len(frame):
            index, term, type_, length = ENTRY_HEADER.unpack_from(frame, at)
            at += ENTRY_HEADER.size
            found = (term, zlib.crc32(frame[at : at + length], type_))
            at += length
            if self._entries.setdefault(index, found) != found:
                raise Broken(f"member {member:x} applies at index {index} another entry than others: {found}")
            self.most_entries = max(self.most_entries, index)

    def on_leader(self, term: int, leader: int) -> None:
        """See World. Election safety: one per term (Raft paper, figure 3)."""
        if leader and self._leaders.setdefault(term, leader) != leader:
            raise Broken(f"term {term} has two leaders, {leader:x} and {self._leaders[term]:x}")

    @property
    def terms(self) -> dict[int, int]:
        """Who led in each term that somebody heard of."""
        return self._leaders

    def on_ended(self, member: SimulatedMember, why: str) -> None:
        """See World."""
        if member.generation is None:
            return
        self.crash(member, why)

    def on_failure(self, member: int, process: str, error: BaseException) -> None:
        """See World."""
        if isinstance(error, Broken):
            raise error
        if isinstance(error, LogFailed) or (process == "start" and isinstance(error, OSError | LogFull)):
            # After a sync that failed nothing that was not safe before is to be relied upon.
            self.crash(self.members[member], f"{process}: {error}", power_lost=True)
            return
        text = "".join(traceback.format_exception(error))
        raise Broken(f"member {member:x}: {process} failed: {text}") from error

    # what happens to members

    def servers(self) -> list[SimulatedMember]:
        """See Servers."""
        return [member for member in self.members.values() if member.alive]

    def start_all(self) -> None:
        """Whoever is down starts."""
        for member in self.members.values():
            if not member.alive and member.finished is None:
                member.start()

    def crash(
        self, member: SimulatedMember, why: str, *, power_lost: bool | None = None, away_s: float | None = None
    ) -> None:
        """It dies, and comes back after a while."""
        random = self.scheduler.random
        self.crashes += 1
        member.stop(why, power_lost=random.random() < 0.6 if power_lost is None else power_lost)
        if member.finished is None:
            most_s = random.choice((0.5, 3.0, 10.0)) if self.troubled else 0.5
            away_s = random.uniform(0.05, most_s) if away_s is None else away_s
            self.scheduler.after(away_s, lambda: self._restart(member))

    def _restart(self, member: SimulatedMember) -> None:
        if not member.alive and member.finished is None:
            member.start()

    # what must be true when nothing happens

    def leader(self) -> SimulatedMember | None:
        """Who leads in the newest term, as far as somebody alive knows."""
        terms = [term for term, leader in self._leaders.items() if leader in self.members]
        if not terms:
            return None
        member = self.members[self._leaders[max(terms)]]
        return member if member.alive else None

    def membership(self) -> dict[int, Member]:
        """As the store shows it that has applied most."""
        running = [member.generation for member in self.members.values() if member.generation is not None]
        if not running:
            return {}
        newest = max(running, key=lambda generation: generation.store.cursor.index)
        return {member.ID: member for member in newest.members()}

    def settled(self) -> bool:
        """Whether all members that should run do, serve, and have applied all; and no others think that they belong."""
        members = self.membership()
        if not members:
            return False
        for member_id, member in self.members.items():
            generation = member.generation
            if member_id not in members:
                if generation is not None and generation.has_leader:
                    return False
                continue
            if generation is None or not generation.serving:
                return False
            if generation.store.cursor.index != self.most_entries:
                return False
        return members.keys() <= self.members.keys()

    def leases(self) -> int:
        """How many leases there are in the store that has applied most."""
        running = [member.generation for member in self.members.values() if member.generation is not None]
        newest = max(running, key=lambda generation: generation.store.cursor.index)
        return sum(1 for _ in newest.store.database.keys(LEASE_TABLE, bytes((LEASE_TABLE[0] + 1,))))

    def compare(self) -> None:
        """All stores at the same entry hold the same: HashKV, and every row of the tables that it does not cover."""
        belong = self.membership()
        digests = {
            member.id: _digest(member.generation.store)
            for member in self.members.values()
            if member.generation is not None and member.id in belong
        }
        first = next(iter(digests))
        for member_id, found in digests.items():
            for name, value in found.items():
                if value != digests[first][name]:
                    raise Broken(
                        f"members {first:x} and {member_id:x} differ in {name}: {digests[first][name]} and {value}"
                    )


def _key_value(is_delete: bool, key: bytes, kv: bytes, revision: int) -> KeyValue:
    return KeyValue(key=key, mod_revision=revision) if is_delete else KeyValue.FromString(kv)


def _digest(store: Store) -> dict[str, object]:
    """What must be equal on all members at one entry, whatever compaction has come to."""
    reading = store.begin_hash_kv(b"")
    while (body := reading.step(1000)) is None:
        pass
    answer = HashKVResponse.FromString(body)
    tables: dict[str, object] = {
        "HashKV": (answer.hash, answer.compact_revision, answer.hash_revision),
        "revision": store.revision,
    }
    for row in store.database.scan(b"", b"\xff"):
        if not row[0].startswith((META, HISTORY, VERSIONS)):
            table = tables.setdefault(f"table {row[0][:1]!r}", [])
            assert isinstance(table, list)
            table.append(row)
    return tables
