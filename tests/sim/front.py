"""A front without its wire: the real services, calls and watch streams, with clients where the connections would be."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable
from math import ceil
from random import Random
from typing import Any, NamedTuple, Protocol

from kvorum import API_VERSION, errors
from kvorum.pb.internal_pb2 import MembershipState, Publish
from node.config import Config
from node.frames import HEADER_BYTES, LEADERSHIP, Kind, Process
from node.front import cluster, kv, lease, maintenance
from node.front.announcement import Announcement
from node.front.calls import Calls
from node.front.leaders import Leaders
from node.front.member import Limits, Member
from node.front.state import StateAsks, States, answer
from node.front.watch import WatchService
from node.front.watch_deliveries import Deliveries
from tests.sim.clock import Scheduler
from tests.sim.links import SimulatedLinks
from tests.sim.worker import Worker

TICK_S = 0.5
FRAMED = struct.Struct(">BI")


class Head(NamedTuple):
    """A call's headers: none."""

    metadata: dict[str, tuple[str | bytes, ...]]


NO_HEAD = Head({})


MARK_BYTES = 4096
"""A stream takes no more while so much lies unread on the way to its client."""


class StreamEnd(Protocol):
    """The client's end of a stream."""

    def on_answer(self, message: bytes) -> None:
        """A message of the server."""

    def on_end(self, code: int, text: str) -> None:
        """The server has ended the stream."""

    def delay_s(self) -> float:
        """How long it takes to read what has come."""


class Stream:
    """The wire of one stream, server's side: what is sent lies there until the client has read it."""

    def __init__(self, end: StreamEnd, scheduler: Scheduler, worker: Worker) -> None:
        self.handler: Any = None
        self._end = end
        self._scheduler = scheduler
        self._worker = worker
        self._buffer: deque[bytes] = deque()
        self._buffered_bytes = 0
        self._told = True
        self._under_way = False
        self._status: tuple[int, str] | None = None
        self._cancelled = False
        self._reading = True
        self._unread: deque[bytes] = deque()

    # what the service sees

    @property
    def writable(self) -> bool:
        if self._buffered_bytes >= MARK_BYTES:
            self._told = False
            return False
        return True

    def send(self, message: bytes) -> None:
        self.send_framed(FRAMED.pack(0, len(message)) + message, 1)

    def send_framed(self, framed: bytes, _messages: int) -> None:
        at = 0
        while at < len(framed):
            _, size = FRAMED.unpack_from(framed, at)
            at += FRAMED.size
            self._buffer.append(framed[at : at + size])
            at += size
        self._buffered_bytes += len(framed)
        self._carry()

    def end(self, code: int, text: str) -> None:
        self._status = (code, text)
        self._carry()

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._worker.post(self._read)

    # what the client does

    def arrive(self, message: bytes) -> None:
        """A message of the client is here."""
        self._unread.append(message)
        self._read()

    def cancel(self) -> None:
        """The client is gone."""
        if not self._cancelled and self._status is None:
            self._cancelled = True
            self.handler.on_cancel(None)

    # on the way

    def _read(self) -> None:
        while self._reading and self._unread and self._status is None and not self._cancelled:
            self.handler.on_message(self._unread.popleft())

    def _carry(self) -> None:
        if not self._under_way:
            self._under_way = True
            self._scheduler.after(self._end.delay_s(), self._deliver)

    def _deliver(self) -> None:
        if not self._worker.alive or self._cancelled:
            return
        self._under_way = False
        while self._buffer:
            self._end.on_answer(self._buffer.popleft())
        self._buffered_bytes = 0
        if self._status is not None:
            self._end.on_end(*self._status)
        elif not self._told:
            self._told = True
            self._worker.post(self._on_writable)

    def _on_writable(self) -> None:
        if self._status is None and not self._cancelled:
            self.handler.on_writable()


class SimulatedFront:
    """What `node.front.process.Front` does between its links and its services."""

    def __init__(
        self,
        *,
        number: int,
        config: Config,
        member_id: int,
        cluster_id: int,
        incarnation: int,
        links: SimulatedLinks,
        worker: Worker,
        scheduler: Scheduler,
        random: Random,
        senders: Iterable[tuple[int, int]],
        on_leader: Callable[[int, int], None],
    ) -> None:
        self._links = links
        self.worker = worker
        self._scheduler = scheduler
        self._config = config
        self._on_leader = on_leader
        self._soon: deque[Callable[[], None]] = deque()
        limits = Limits(
            max_request_bytes=config.max_request_bytes,
            max_txn_ops=config.max_txn_ops,
            min_lease_ttl_s=ceil(1.5 * config.election_timeout_s),
            request_timeout_s=5 + 2 * config.election_timeout_s,
        )
        self._leaders = Leaders(member_id, config.election_timeout_s)
        self.calls = Calls(
            origin=Process.FRONT + number,
            member=member_id,
            incarnation=incarnation,
            send=links.send,
            call_soon=self._soon.append,
            now=worker.now,
            timeout_s=limits.request_timeout_s,
            late=self._leaders.why_late,
        )
        states = self._states = StateAsks(links.send_control, worker.later)
        self.member = Member(member_id, cluster_id, limits, self.calls)
        self.unary = {
            **kv.unary(self.member),
            **lease.unary(self.member, lambda: random.getrandbits(63)),
            **maintenance.unary(self.member, states),
            **cluster.unary(self.member, max_learners=config.max_learners, unix_s=lambda: 1.7e9 + scheduler.now_s),
        }
        self.deliveries = Deliveries(
            self.member,
            send=links.send,
            call_soon=self._soon.append,
            call_later=worker.later,
            now=worker.now,
            random=random.random,
            progress_interval_s=config.watch_progress_notify_interval_s,
        )
        self.watches = WatchService(self.deliveries)
        self._openers: dict[str, Callable[[Any, Any], Any]] = {
            "Watch": self.watches.open,
            "LeaseKeepAlive": lease.keep_alive(self.member),
            "RangeStream": kv.range_stream(self.member),
        }
        self.serving = False
        publish = Publish(
            member_id=member_id,
            name=config.name,
            client_urls=[str(url) for url in config.advertise_client_urls],
            version=API_VERSION,
        )
        self._announcement = Announcement(
            self.member, self.calls, publish if number == 0 else None, on_published=lambda: None, on_ready=self._serve
        )
        for sender, kind in senders:
            links.open(sender, kind)
        worker.turn = self._turn
        self._tick()
        worker.later(config.election_timeout_s, self._check_leader)

    def _serve(self) -> None:
        self.serving = True

    # clients

    @property
    def has_leader(self) -> bool:
        """Whether the member knows one."""
        return self.member.leader != 0

    def call(self, path: str, message: bytes, sink: Any) -> None:
        """A unary call."""
        self.unary[path](sink, 0, NO_HEAD, message)

    def open_stream(self, name: str, end: StreamEnd) -> Stream:
        """A streaming call."""
        stream = Stream(end, self._scheduler, self.worker)
        stream.handler = self._openers[name](stream, NO_HEAD)
        return stream

    # what arrives

    def _turn(self) -> float:
        links = self._links
        for frame in links.receive_control():
            kind = frame.kind
            if kind == Kind.STATE:
                self._states.on_state(frame)
            elif kind == Kind.STATE_ASK:
                links.send_control(frame.sender, Kind.STATE, answer(frame, {}))
            elif kind == Kind.LEADERSHIP:
                self._on_leadership(*LEADERSHIP.unpack_from(frame.data, HEADER_BYTES)[:2])
            elif kind == Kind.MEMBERS:
                state = MembershipState.FromString(frame.data[HEADER_BYTES:])
                self._leaders.voters = [one.ID for one in state.members if not one.isLearner]
                self._announcement.on_members(state)
            else:
                assert kind == Kind.SERVING, f"a front got a control frame of kind {kind}"
                self._announcement.on_caught_up()
        for frame in links.receive():
            if frame.kind == Kind.REPLIES:
                self.calls.on_replies(frame.data)
            else:
                assert frame.kind == Kind.DELIVERIES, f"a front got a frame of kind {frame.kind}"
                self.deliveries.on_deliveries(frame.data)
            links.consume(frame.sender, frame.kind, frame.end - frame.start)
        while self._soon:
            self._soon.popleft()()
        return 0.0 if links.data_left or links.waiting else float("inf")

    def _on_leadership(self, term: int, leader: int) -> None:
        self._on_leader(term, leader)
        self.member.term = term
        self.member.leader = leader
        self._leaders.on_leadership(leader, self.worker.now())
        self.calls.leader_reads.on_leader(leader)
        self._announcement.go_on()

    def _tick(self) -> None:
        self.worker.later(TICK_S, self._tick)
        oldest_s = self.calls.oldest_proposal_s
        if oldest_s is not None and self.worker.now() - oldest_s > self.member.limits.request_timeout_s / 2:
            self._states.ask({Process.RAFT}, self._on_raft_state)
        self.calls.expire()
        self._announcement.go_on()

    def _on_raft_state(self, states: States) -> None:
        connected = states.get(Process.RAFT, {}).get("connected_since")
        self._leaders.connected_since = None if connected is None else dict(connected)

    def _check_leader(self) -> None:
        if self._leaders.check():
            self.watches.end_leaderless()
            for stream in list(self.member.leader_streams):
                stream.stop(errors.NO_LEADER)
        self.worker.later(self._config.election_timeout_s, self._check_leader)
