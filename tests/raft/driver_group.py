"""Members' raft drivers in one process: simulated disks, links in the test's hands, and a network that loses nothing
unless it is told to."""

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import cast

from kvorum.pb.internal_pb2 import Founding, MemberChange, MembershipState
from kvorum.pb.rpc_pb2 import Member, MoveLeaderRequest, PutRequest
from node.child import ChildContext, Role
from node.config import Config
from node.frames import APPLIED, ENTRY_HEADER, HEADER_BYTES, LEADERSHIP, PROGRESS, Frame, Kind, Process, pack, unpack
from node.link_zmq import Links
from node.membership import Membership
from node.raft.core import EntryType, Message
from node.raft.driver import Driver
from node.raft.start import METADATA, found
from node.raft.wal.errors import LogFull
from node.raft.wal.log import WriteAheadLog, holds_log
from node.requests import Op, pack_batch, pack_record
from node.stats import Figures
from tests.apply.entries import INCARNATION, MEMBER, batch
from tests.apply.shell import FRONT, Clock, FakeLinks, Lines, answers, child_context
from tests.raft.simulated_disk import SimulatedDirectory, SimulatedDisk

KIB = 1 << 10
SEGMENT_BYTES = 64 * KIB
CACHE_BYTES = 8 * KIB

CLUSTER = 7

A, B, C, D = 0xA, 0xB, 0xC, 0xD
MEMBERS = (A, B, C)


class HeldDisk:
    """`Disk` whose syncs end when the test says so; housekeeping is done at once."""

    def __init__(self, log: WriteAheadLog) -> None:
        self._log = log
        self.waiting: deque[Callable[[BaseException | None], None]] = deque()

    def sync(self, done: Callable[[BaseException | None], None]) -> None:
        self.waiting.append(done)

    def run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (OSError, LogFull):
            return  # as the real one, which logs it

    def finish(self) -> bool:
        """Ends the sync under way, if any."""
        if not self.waiting:
            return False
        self._log.sync()
        self.waiting.popleft()(None)
        return True


class Wire:
    """`Transport` of one member: messages go to the network's queue."""

    def __init__(self, network: "Network", member: int) -> None:
        self._network = network
        self._member = member
        self.members: dict[int, tuple[str, ...]] = {}
        self.removed: set[int] = set()
        self.snapshots: list[tuple[Message, str]] = []

    def set_members(self, urls: Mapping[int, Sequence[str]], removed: Collection[int]) -> None:
        self.members = {member: tuple(given) for member, given in urls.items()}
        self.removed = set(removed)

    def send(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self._network.post(self._member, message.to, message)

    def forward(self, member: int, payload: bytes) -> None:
        self._network.post(self._member, member, payload)

    def send_snapshot(self, message: Message, path: str) -> None:
        self.snapshots.append((message, path))

    def connected_since(self, member: int) -> float | None:
        cut = self._network.cut
        return 0.0 if member in self.members and not {self._member, member} & cut else None

    def figures(self) -> Figures:
        return {}


class Received:
    """`ReceivedSnapshots`: what was said of them."""

    def __init__(self) -> None:
        self.decided: list[int] = []
        self.refused: list[int] = []
        self.removed: list[str] = []

    def decide(self, index: int) -> None:
        self.decided.append(index)

    def refuse(self, index: int) -> None:
        self.refused.append(index)

    def is_decided(self) -> bool:
        return bool(self.decided)

    def remove(self, path: str) -> None:
        self.removed.append(path)


class Network:
    """What is on its way; `cut` members hear and say nothing."""

    def __init__(self) -> None:
        self.cut: set[int] = set()
        self.drivers: dict[int, Driver] = {}
        self._queue: deque[tuple[int, int, Message | bytes]] = deque()

    def post(self, sender: int, to: int, what: Message | bytes) -> None:
        self._queue.append((sender, to, what))

    def deliver(self) -> bool:
        """Everything that is on its way now arrives. Returns whether there was anything."""
        queue, self._queue = self._queue, deque()
        for sender, to, what in queue:
            driver = self.drivers.get(to)
            if driver is None or {sender, to} & self.cut:
                continue
            if isinstance(what, bytes):
                driver.on_forward(sender, what)
            else:
                driver.on_messages(sender, [what])
        return bool(queue)


class RaftUnderTest:
    """One member's driver, whose turns the test makes; its log's segments and cache are small."""

    def __init__(
        self,
        child: ChildContext,
        disk: SimulatedDisk,
        credit_bytes: int = 1 << 30,
        *,
        member: int = MEMBER,
        members: Sequence[int] = (MEMBER,),
        network: Network | None = None,
        config: Config | None = None,
        clock: Clock | None = None,
        remotes: Mapping[int, Sequence[str]] | None = None,
    ) -> None:
        self.disk = disk
        self.member = member
        self.log = Lines()
        self.links = FakeLinks(Process.RAFT, credit_bytes)
        self.clock = clock or Clock()
        self.ended: list[str] = []
        directory = SimulatedDirectory(disk)
        if holds_log(directory):
            self.wal = WriteAheadLog.open(directory, segment_bytes=SEGMENT_BYTES, cache_bytes=CACHE_BYTES)
        else:
            metadata = METADATA.pack(member, CLUSTER)
            self.wal = WriteAheadLog.create(directory, metadata, segment_bytes=SEGMENT_BYTES, cache_bytes=CACHE_BYTES)
        if members:
            found(self.wal, founding(members))
        network = network or Network()
        self.disk_thread = HeldDisk(self.wal)
        self.wire = Wire(network, member)
        self.received = Received()
        self.driver = Driver(
            member_id=member,
            incarnation=INCARNATION,
            config=config or child.config,
            remotes=remotes or {},
            links=cast(Links, self.links),
            log=self.wal,
            received=self.received,
            disk=self.disk_thread,
            transport=self.wire,
            now=self.clock,
            random=Random(member),
            logger=self.log.logger,
            finish=self.ended.append,
            restart=self.ended.append,
        )
        network.drivers[member] = self.driver

    def tell(self, kind: int, payload: bytes) -> None:
        """Apply says something apart from the streams."""
        self.driver.on_control([unpack(pack(Process.APPLY, kind, 0, payload))])

    def start(self, index: int = 0, term: int = 0, membership: Membership | None = None) -> "RaftUnderTest":
        state = membership.state() if membership is not None else MembershipState()
        self.tell(Kind.APPLIED, APPLIED.pack(index, term) + state.SerializeToString())
        return self

    def propose(self, *frames: Frame) -> None:
        self.driver.on_data(frames)

    def entries(self) -> list[tuple[int, int, int, bytes]]:
        """(index, term, type, data) of what apply was sent since the last call."""
        found = []
        for data in self.links.take(Process.APPLY, Kind.ENTRIES):
            at = HEADER_BYTES
            while at < len(data):
                index, term, type_, length = ENTRY_HEADER.unpack_from(data, at)
                at += ENTRY_HEADER.size
                found.append((index, term, type_, data[at : at + length]))
                at += length
        return found

    def leadership(self) -> list[tuple[int, int, int, bool]]:
        """What apply was told of it since the last call."""
        return [LEADERSHIP.unpack_from(data, HEADER_BYTES) for data in self.links.take(Process.APPLY, Kind.LEADERSHIP)]

    def grant(self, size_bytes: int) -> None:
        """Apply has room again."""
        self.links.grant(Process.APPLY, Kind.ENTRIES, size_bytes)
        self.driver.on_control([])

    def refusals(self, to: int = FRONT) -> list[tuple[int, int, bytes]]:
        return answers(self.links.take(to, Kind.REPLIES))

    def stop(self) -> None:
        self.wal.close()


class Group:
    """Founders (and whoever joins), one clock, one network."""

    def __init__(self, directory: Path, *flags: str, founders: tuple[int, ...] = MEMBERS) -> None:
        self.child: ChildContext = child_context(directory, Role.RAFT, "--initial-election-tick-advance=false", *flags)
        self.network = Network()
        self.clock = Clock()
        self.members: dict[int, RaftUnderTest] = {}
        for member in founders:
            self.add(member, founders).start()

    def add(self, member: int, founders: tuple[int, ...], disk: SimulatedDisk | None = None) -> RaftUnderTest:
        made = RaftUnderTest(
            self.child,
            disk or SimulatedDisk(),
            member=member,
            members=founders,
            network=self.network,
            clock=self.clock,
        )
        self.members[member] = made
        return made

    def __getitem__(self, member: int) -> RaftUnderTest:
        return self.members[member]

    def settle(self) -> None:
        """Until nothing is on its way and every disk is done."""
        for _ in range(1000):
            moved = self.network.deliver()
            for member in self.members.values():
                moved = member.disk_thread.finish() or moved
            if not moved:
                return
        raise AssertionError("the members never come to rest")

    def tick(self, times: int = 1, *, stalled: int = 0) -> None:
        """Heartbeat intervals pass; each apply, but that of `stalled`, executes what it gets."""
        for _ in range(times):
            self.clock.now_s += 0.1
            for name, member in self.members.items():
                if name != stalled:
                    member.tell(Kind.PROGRESS, PROGRESS.pack(member.wal.last_index))
                member.driver.tick()
            self.settle()

    def elect(self, member: int) -> RaftUnderTest:
        """Makes `member` the leader."""
        for _ in range(100):
            if self.leader() != 0:
                break
            self.tick()
        if self.leader() != member:
            self.ask(self.leader(), Op.MOVE_LEADER, MoveLeaderRequest(targetID=member))
            self.settle()
        assert self.leader() == member
        self.tick()
        for each in self.members.values():
            each.links.sent.clear()
        return self.members[member]

    def leader(self) -> int:
        """Whom all that can be heard follow; 0."""
        leaders = {each.driver.state()["leader"] for name, each in self.members.items() if name not in self.network.cut}
        return leaders.pop() if len(leaders) == 1 else 0

    def ask(self, member: int, op: Op, body: MemberChange | MoveLeaderRequest, sequence: int = 77) -> None:
        record = pack_record(op, body.SerializeToString())
        change = pack_batch(FRONT, member, INCARNATION, sequence, [record])
        self[member].propose(unpack(pack(FRONT, Kind.CHANGES, 0, change)))

    def close(self) -> None:
        for member in self.members.values():
            member.stop()
        self.child.lifeline.close()


def founding(members: Sequence[int]) -> bytes:
    """The first entry of a group of these members."""
    return Founding(
        members=[Member(ID=member, name=f"m{member}", peerURLs=[url(member)]) for member in sorted(members)]
    ).SerializeToString(deterministic=True)


def founded(*members: int) -> Membership:
    """The membership of a group right after its founding."""
    membership = Membership()
    membership.found(founding(members or (MEMBER,)))
    return membership


def url(member: int) -> str:
    return f"http://127.0.0.1:{20000 + member % 10000}"


def proposal(size_bytes: int = 1, first: int = 1, sender: int = FRONT, count: int = 1) -> Frame:
    requests = [PutRequest(key=b"k", value=bytes(size_bytes)) for _ in range(count)]
    return unpack(pack(sender, Kind.PROPOSALS, 0, batch(*requests, origin=sender, first=first)))


def data(entries: list[tuple[int, int, int, bytes]]) -> list[bytes]:
    """What entries of proposals hold."""
    return [data for _, _, type_, data in entries if data and type_ == EntryType.NORMAL]
