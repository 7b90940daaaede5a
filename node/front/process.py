"""A front process of a member: it owns client connections, and turns calls into batches for raft, apply and watch."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import time
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any, Final

from kvorum import API_VERSION, errors, malloc
from kvorum.log import Logger
from kvorum.pb.internal_pb2 import MembershipState, Publish
from kvorum.wire.limits import ServerLimits
from kvorum.wire.server import Server
from kvorum.wire.tls import server_context
from node import event_loop
from node.child import ChildContext, Listener, Serves
from node.frames import HEADER_BYTES, LEADERSHIP, Frame, Kind, Process
from node.front import cluster, health, kv, lease, maintenance
from node.front.access import Access
from node.front.announcement import Announcement
from node.front.calls import Calls
from node.front.health_checks import HealthChecks
from node.front.http_pages import ClientHttp, MetricsHttp, Pages
from node.front.json_gateway import Gateway
from node.front.leaders import Leaders
from node.front.member import Limits, Member
from node.front.metrics import client_request_figures, grpc_figures, stream_failure_figures
from node.front.side_thread import SideThread
from node.front.state import StateAsks, States, answer
from node.front.view import MemberPages
from node.front.watch import WatchService
from node.front.watch_deliveries import Deliveries
from node.link_zmq import MOST_FRAMES, Links
from node.stats import Figures, add

GRPC_OVERHEAD_BYTES: Final = 512 * 1024
"""How much larger than a request a gRPC message may be before the wire itself refuses it (P4, G1)."""

BACKLOG: Final = 4096

DRAIN_S: Final = 5.0
"""How long running calls are awaited at a stop."""


class Front:
    """The shell around the services: sockets, links and time."""

    def __init__(
        self, child: ChildContext, links: Links, logger: Logger, fail: Callable[[BaseException], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        config = child.config
        self._child = child
        self.links = links
        self._logger = logger
        self._fail = fail
        self._loop = loop
        self._me = Process.FRONT + child.index
        self._random = random.Random()
        limits = Limits(
            max_request_bytes=config.max_request_bytes,
            max_txn_ops=config.max_txn_ops,
            min_lease_ttl_s=ceil(1.5 * config.election_timeout_s),
            request_timeout_s=5 + 2 * config.election_timeout_s,
        )
        self._leaders = Leaders(child.member_id, config.election_timeout_s)
        self.calls = Calls(
            origin=self._me,
            member=child.member_id,
            incarnation=child.incarnation,
            send=links.send,
            call_soon=loop.call_soon,
            now=time.monotonic,
            timeout_s=limits.request_timeout_s,
            late=self._leaders.why_late,
        )
        self.states = StateAsks(links.send_control, loop.call_later)
        self.member = Member(child.member_id, child.cluster_id, limits, self.calls)
        member = self.member
        unary = {
            **kv.unary(member),
            **lease.unary(member, lambda: self._random.getrandbits(63)),
            **cluster.unary(member, max_learners=config.max_learners, unix_s=time.time),
            **maintenance.unary(member, self.states),
            **health.unary(),
        }
        self.deliveries = Deliveries(
            self.member,
            send=links.send,
            call_soon=loop.call_soon,
            call_later=loop.call_later,
            now=loop.time,
            random=self._random.random,
            progress_interval_s=config.watch_progress_notify_interval_s,
        )
        self.watches = WatchService(self.deliveries)
        streams: dict[str, Callable[[Any, Any], Any]] = {
            "/etcdserverpb.Watch/Watch": self.watches.open,
            "/etcdserverpb.KV/RangeStream": kv.range_stream(member),
            "/etcdserverpb.Lease/LeaseKeepAlive": lease.keep_alive(member),
            health.WATCH: health.watch(member),
        }
        self._view = MemberPages(child, member, self.states)
        self._side_thread = SideThread(loop)
        checks = HealthChecks(self._view, loop.call_later, limits.request_timeout_s)
        self._pages = Pages(self._view, checks, self._side_thread.run)
        self._gateway = gateway = None
        if config.enable_grpc_gateway:
            self._gateway = gateway = Gateway(
                unary=unary,
                streams=streams,
                call_later=loop.call_later,
                run_aside=self._side_thread.run,
                message_bytes=config.max_request_bytes + GRPC_OVERHEAD_BYTES,
            )
        self._servers: dict[tuple[Serves, bool], Server] = {}
        for listener in child.listeners:
            serves = listener.serves
            http: MetricsHttp | ClientHttp | None = None
            if serves is Serves.METRICS:
                http = MetricsHttp(self._pages)
            elif serves is not Serves.GRPC:
                access = Access(cors=config.cors, hosts=config.host_whitelist, tls=listener.is_secure)
                http = ClientHttp(access, self._pages, gateway)
            has_grpc = serves in (Serves.ALL, Serves.GRPC)
            self._servers[serves, listener.is_secure] = Server(
                unary=unary if has_grpc else {},
                streams=streams if has_grpc else {},
                limits=server_limits(child),
                http1=http,
                http2=http if listener.is_secure else None,  # HT21
            )
        self._listeners: list[asyncio.Server] = []
        own = Publish(
            member_id=child.member_id,
            name=config.name,
            client_urls=[str(url) for url in config.advertise_client_urls],
            version=API_VERSION,
        )
        self._announcement = Announcement(
            member,
            self.calls,
            own if child.index == 0 else None,
            on_published=self._on_published,
            on_ready=self._listen,
        )
        loop.call_later(config.election_timeout_s, self._check_leader)

    # what arrives

    def on_control(self) -> bool:
        """Takes in what the other processes say apart from the streams."""
        for frame in self.links.receive_control():
            kind = frame.kind
            if kind == Kind.STATE:
                self.states.on_state(frame)
            elif kind == Kind.STATE_ASK:
                self.links.send_control(frame.sender, Kind.STATE, answer(frame, self._state()))
            elif kind == Kind.LEADERSHIP:
                self._on_leadership(frame)
            elif kind == Kind.MEMBERS:
                state = MembershipState.FromString(frame.data[HEADER_BYTES:])
                self._leaders.voters = [one.ID for one in state.members if not one.isLearner]
                self._announcement.on_members(state)
            else:
                assert kind == Kind.SERVING, f"a front got a control frame of kind {kind}"
                self._announcement.on_caught_up()
        self._flush()
        return False

    def on_data(self) -> bool:
        """Takes in replies and deliveries, then writes every connection that has output once."""
        links = self.links
        frames = links.receive()
        while frames:
            for frame in frames:
                self._on_frame(frame)
            self._flush()
            for frame in frames:
                links.consume(frame.sender, frame.kind, frame.end - frame.start)
            if len(frames) == MOST_FRAMES or not links.data_left:
                break
            frames = links.receive()
        return links.data_left

    def _on_frame(self, frame: Frame) -> None:
        if frame.kind == Kind.REPLIES:
            self.calls.on_replies(frame.data)
        else:
            assert frame.kind == Kind.DELIVERIES, f"a front got a frame of kind {frame.kind}"
            self.deliveries.on_deliveries(frame.data)

    def _flush(self) -> None:
        for server in self._servers.values():
            server.flush()

    def tick(self) -> None:
        """See Shell."""
        oldest_s = self.calls.oldest_proposal_s
        if oldest_s is not None and time.monotonic() - oldest_s > self.member.limits.request_timeout_s / 2:
            self.states.ask({Process.RAFT}, self._on_raft_state)
        self.calls.expire()
        self._announcement.go_on()
        self._flush()

    def _on_raft_state(self, states: States) -> None:
        """Why proposals take so long may lie in the connections between the members."""
        connected = states.get(Process.RAFT, {}).get("connected_since")
        self._leaders.connected_since = None if connected is None else dict(connected)

    def _on_leadership(self, frame: Frame) -> None:
        term, leader, _, _ = LEADERSHIP.unpack_from(frame.data, HEADER_BYTES)
        self.member.term = term
        self.member.leader = leader
        self._leaders.on_leadership(leader, time.monotonic())
        self.calls.leader_reads.on_leader(leader)
        self._announcement.go_on()

    def _check_leader(self) -> None:
        """WP11."""
        if self._leaders.check():
            self.watches.end_leaderless()
            for stream in list(self.member.leader_streams):
                stream.stop(errors.NO_LEADER)
            self._flush()
        self._loop.call_later(self._child.config.election_timeout_s, self._check_leader)

    # starting and stopping

    def _on_published(self) -> None:
        self._logger.info(
            "published local member to cluster through raft",
            local_member_id=f"{self._child.member_id:x}",
            cluster_id=f"{self._child.cluster_id:x}",
        )

    def _listen(self) -> None:
        task = self._loop.create_task(self._open_listeners())
        task.add_done_callback(self._on_listening)

    async def _open_listeners(self) -> None:
        for listener in self._child.listeners:
            self._listeners.append(await self._open(listener))

    async def _open(self, listener: Listener) -> asyncio.Server:
        sock = socket.socket(fileno=listener.fd)
        sock.setblocking(False)
        context = tls_context(self._child) if listener.is_secure else None
        factory = self._servers[listener.serves, listener.is_secure].protocol_factory
        if sock.family == socket.AF_UNIX:
            return await self._loop.create_unix_server(factory, sock=sock, ssl=context, backlog=BACKLOG)
        return await self._loop.create_server(factory, sock=sock, ssl=context, backlog=BACKLOG)

    def _on_listening(self, task: asyncio.Task[None]) -> None:
        error = task.exception()
        if error is not None:
            self._fail(error)
            return
        self._child.lifeline.ready()

    async def stop(self) -> None:
        """No new connections; streams, which have no end of their own, end at once; other calls are awaited, then cut.

        A client whose watch ends with Unavailable opens it again at another member, or here after the restart, and
        resumes; waiting for it to leave by itself would only make every stop slow.
        """
        for listener in self._listeners:
            listener.close()
        self.watches.end_all()
        for stream in list(self.member.streams):
            stream.stop(errors.STOPPED)
        self._flush()
        self._loop.call_later(DRAIN_S * 0.9, self._give_up)
        await asyncio.gather(*(server.shutdown(DRAIN_S) for server in self._servers.values()))
        self._side_thread.close()

    def _give_up(self) -> None:
        self.calls.fail_all()
        self._flush()

    def _state(self) -> dict[str, Any]:
        figures: Figures = {
            **self._pages.figures(),
            **client_request_figures(self.member.requests_by_version),
            **stream_failure_figures(self.member.stream_failures),
            "etcd_server_proposals_pending": self.calls.waiting_proposals,
            "etcd_server_proposals_failed_total": self.calls.failed,
            "etcd_debugging_mvcc_watch_stream_total": len(self.deliveries.streams),
            "etcd_debugging_mvcc_watcher_total": self.deliveries.watches,
            "etcd_debugging_mvcc_events_total": self.deliveries.events,
            "etcd_network_client_grpc_received_bytes_total": sum(s.bytes_received for s in self._servers.values()),
            "etcd_network_client_grpc_sent_bytes_total": sum(s.bytes_sent for s in self._servers.values()),
        }
        routes = [server.routes for server in self._servers.values()]
        if self._gateway is not None:
            figures["etcd_network_client_grpc_received_bytes_total"] += self._gateway.traffic.received_bytes
            figures["etcd_network_client_grpc_sent_bytes_total"] += self._gateway.traffic.sent_bytes
            routes.append(self._gateway.routes)
        for counts in routes:
            for name, figure in grpc_figures(counts).items():
                figures[name] = add(figures[name], figure) if name in figures else figure
        return {"metrics": figures}


def server_limits(child: ChildContext) -> ServerLimits:
    """The wire's limits as the flags set them."""
    config = child.config
    return ServerLimits(
        message_bytes=config.max_request_bytes + GRPC_OVERHEAD_BYTES,
        http1_body_bytes=config.max_request_bytes + GRPC_OVERHEAD_BYTES,
        max_concurrent_streams=config.max_concurrent_streams,
        keepalive_min_time_s=config.grpc_keepalive_min_time_s,
        keepalive_interval_s=config.grpc_keepalive_interval_s,
        keepalive_timeout_s=config.grpc_keepalive_timeout_s,
    )


def tls_context(child: ChildContext) -> ssl.SSLContext:
    """The TLS settings of client listeners, read from their files."""
    tls = child.config.client_tls
    assert tls is not None, "a secure listener without TLS settings"
    context = server_context(
        Path(tls.cert_file),
        Path(tls.key_file),
        client_ca=Path(tls.trusted_ca_file) if tls.trusted_ca_file else None,
        ciphers=":".join(tls.cipher_suites) or None,
    )
    versions = {"TLS1.2": ssl.TLSVersion.TLSv1_2, "TLS1.3": ssl.TLSVersion.TLSv1_3}
    context.minimum_version = versions[tls.min_version]
    if tls.max_version is not None:
        context.maximum_version = versions[tls.max_version]
    return context


def main(child: ChildContext) -> None:
    """Runs a front process until the supervisor says stop."""
    malloc.keep_large_buffers()
    logger = Logger.open(child.config.log)

    def build(fail: event_loop.Fail) -> Front:
        fronts = [Process.FRONT + i for i in range(child.config.front_workers)]  # itself too, for figures
        peers = [Process.RAFT, Process.APPLY, Process.WATCH, *fronts]
        links = Links(child.run_dir, Process.FRONT + child.index, peers)
        for sender, kind in (
            (Process.RAFT, Kind.REPLIES),
            (Process.APPLY, Kind.REPLIES),
            (Process.WATCH, Kind.DELIVERIES),
        ):
            links.open(sender, kind)
        return Front(child, links, logger, fail)

    event_loop.run(child, build)
