"""Raft's transport over sockets: a connection to every other member, and a server for theirs.

transport = PeerTransport(identity=…, listeners=…, tls=…, members=…, cluster_version=…, logger=…)
await transport.start(handlers)      # inside the running loop
transport.set_members(urls, removed)
transport.send(messages)
await transport.close()
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Final, cast

from kvorum.log import Level, Logger
from kvorum.pb.rpc_pb2 import Member
from kvorum.wire.client import Channel
from kvorum.wire.routes import StreamOpen
from kvorum.wire.server import AcceptedProtocol, Server
from node.child import Listener
from node.config import PeerTls
from node.raft.core import Message
from node.raft.peers.channel import limit_unsent, peer_channel
from node.raft.peers.identity import URLS, Identity, urls_text
from node.raft.peers.incoming import PEER_SERVER_LIMITS, Incoming
from node.raft.peers.pages import PeerPages
from node.raft.peers.peer import Peer, PeerState
from node.raft.peers.tls import (
    Certificate,
    address_refusal,
    addresses_of,
    certificate_of,
    name_refusal,
    names_of,
    server_context,
)
from node.raft.transport import TransportHandlers
from node.stats import Figures

PROBE_INTERVAL_S: Final = 1.0

CLOCK_DRIFT_S: Final = 1.0
"""How far apart the clocks of two members may be before it is said: leases and certificates live by them."""

SAY_AGAIN_S: Final = 30.0
"""The same line about the same member is not written again so soon."""

SAID_MAX: Final = 1000

BACKLOG: Final = 1024

SendSnapshot = Callable[[Message, str], None]


class PeerTransport:
    """See `node.raft.transport.Transport`."""

    def __init__(
        self,
        *,
        identity: Identity,
        listeners: Sequence[Listener],
        tls: PeerTls | None,
        members: Callable[[], Sequence[Member]],
        cluster_version: Callable[[], str],
        logger: Logger,
        routes: Mapping[str, StreamOpen] | None = None,
        send_snapshot: SendSnapshot | None = None,
        figures: Sequence[Callable[[], Figures]] = (),
    ) -> None:
        """`listeners` are bound sockets, which are this object's from now on. `members` and `cluster_version` are for
        the pages of the peer port. `routes` are further streaming methods of the server, `send_snapshot` does what
        `Transport.send_snapshot` says, `figures` are published beside those of the connections. Without `tls` no URL
        of a member can be https or unixs."""
        self.identity = identity
        self.loop = asyncio.get_running_loop()
        self.removed: Collection[int] = frozenset()
        self._listeners = list(listeners)
        self._tls = tls
        self._logger = logger
        self._send_snapshot = send_snapshot
        self._further_figures = tuple(figures)
        self._peers: dict[int, Peer] = {}
        self._guests: set[int] = set()  # of these: not known as members (yet), but they have streams open here
        self._members = members
        self._incoming = Incoming(self)
        self._pages = PeerPages(identity.cluster_id, members, cluster_version)
        self._routes = dict(routes) if routes is not None else {}
        self._servers: list[tuple[asyncio.Server, Server]] = []
        self._handlers: TransportHandlers | None = None
        self._unreachable: dict[int, None] = {}
        self._aside: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._said: dict[tuple[int, str], float] = {}
        self._told_removed = False
        self._closed = False

    # life

    async def start(self, handlers: TransportHandlers) -> None:
        """Take connections, and make them. Raises OSError and ssl.SSLError for TLS files that cannot be used."""
        assert self._handlers is None
        self._handlers = handlers
        while self._listeners:
            listener = self._listeners.pop(0)
            await self._listen(listener)
            self._logger.info("serving peer traffic", address=str(listener.url))
        for peer in self._peers.values():
            peer.connect()
        self._timer = self.loop.call_later(PROBE_INTERVAL_S, self._probe)

    async def close(self) -> None:
        """End all connections: the other members learn of it at once."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for peer in self._peers.values():
            peer.close()
        for unopened in self._listeners:
            os.close(unopened.fd)
        for listener, _ in self._servers:
            listener.close()
        self._incoming.end_all()
        await asyncio.gather(*[server.shutdown(0.5) for _, server in self._servers])
        for listener, _ in self._servers:
            await listener.wait_closed()
        while self._aside:
            await asyncio.wait(self._aside)

    # Transport

    def set_members(self, urls: Mapping[int, Sequence[str]], removed: Collection[int]) -> None:
        """See Transport."""
        self.removed = frozenset(removed)
        assert self.identity.member_id not in urls, "a member is no peer of itself"
        self._guests -= urls.keys() | self.removed
        for member in [member for member in self._peers if member not in urls and member not in self._guests]:
            self._peers.pop(member).close()
        for member, member_urls in urls.items():
            peer_or_none = self._peers.get(member)
            if peer_or_none is None:
                peer = self._peers[member] = Peer(member, member_urls, self)
                if self._handlers is not None and not self._closed:
                    peer.connect()
            else:
                peer_or_none.set_urls(member_urls)
        self._incoming.expel(self.removed)

    def urls_of(self, member: int) -> Sequence[str]:
        """Where a member is reached; nowhere if it is none."""
        peer = self._peers.get(member)
        return peer.urls if peer is not None else ()

    def send(self, messages: Sequence[Message]) -> None:
        """See Transport."""
        peers = self._peers
        dirty: dict[int, list[Message]] = {}
        for message in messages:
            to = message.to
            batch = dirty.get(to)
            if batch is None:
                dirty[to] = [message]
            else:
                batch.append(message)
        for to, batch in dirty.items():
            peer = peers.get(to)
            if peer is None:
                self.unreachable(to)
            else:
                peer.send(batch)
                peer.flush()

    def forward(self, member: int, payload: bytes) -> None:
        """See Transport."""
        peer = self._peers.get(member)
        if peer is not None:
            peer.forward(payload)

    def send_snapshot(self, message: Message, path: str) -> None:
        """See Transport."""
        assert self._send_snapshot is not None
        self._send_snapshot(message, path)

    def connected_since(self, member: int) -> float | None:
        """See Transport."""
        peer = self._peers.get(member)
        return peer.connected_since if peer is not None else None

    def figures(self) -> Figures:
        """What is published of the connections between members."""
        me = f"{self.identity.member_id:x}"
        peers = [(f"{member:x}", peer) for member, peer in self._peers.items()]
        counts = [(f"{member:x}", counts) for member, counts in self._incoming.counts.items()]
        figures: Figures = {}
        for further in self._further_figures:
            figures |= further()
        return figures | {
            "etcd_network_known_peers": [[[me, name], 1] for name, _ in peers],
            "etcd_network_active_peers": [[[me, name], int(peer.state is PeerState.CONNECTED)] for name, peer in peers],
            "etcd_network_disconnected_peers_total": [[[me, name], peer.losses] for name, peer in peers],
            "etcd_network_peer_sent_bytes_total": [[[name], peer.sent_bytes] for name, peer in peers],
            "etcd_network_peer_sent_failures_total": [[[name], peer.failures] for name, peer in peers],
            "etcd_network_peer_received_bytes_total": [[[name], count.bytes] for name, count in counts],
            "etcd_network_peer_received_failures_total": [[[name], count.failures] for name, count in counts],
            "etcd_network_peer_round_trip_time_seconds": [
                [[name], peer.round_trips.snapshot()] for name, peer in peers
            ],
        }

    # for the peers

    def metadata(self, member: int) -> dict[str, str]:
        """See Surroundings."""
        identity = self.identity
        urls = [urls_text(one.peerURLs) for one in self._members() if one.ID == identity.member_id]
        return {**identity.metadata(member), **({URLS: urls[0]} if urls and urls[0] else {})}

    def dial(self, url: str) -> Channel:
        """See Surroundings."""
        return peer_channel(url, self._tls)

    def leave(self, channel: Channel) -> None:
        """See Surroundings."""
        self.aside(channel.close())

    def aside(self, work: Coroutine[None, None, None]) -> None:
        """Run beside everything else; `close` waits for it."""
        task = self.loop.create_task(work)
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)

    def unreachable(self, member: int) -> None:
        """See Surroundings."""
        if not self._unreachable:
            self.loop.call_soon(self._tell_unreachable)
        self._unreachable[member] = None

    def told_removed(self, member: int) -> None:
        """See Surroundings."""
        self._logger.warn("a member says that this one was removed from the cluster", remote_peer_id=f"{member:x}")
        if not self._told_removed and self._handlers is not None:
            self._told_removed = True
            self.loop.call_soon(self._handlers.on_removed)

    def say(self, level: Level, member: int, text: str, **fields: object) -> None:
        """See Surroundings; `member` 0: nobody in particular."""
        now = time.monotonic()
        key = (member, text)
        if now < self._said.get(key, now):
            return
        if len(self._said) >= SAID_MAX:
            self._said.clear()
        self._said[key] = now + SAY_AGAIN_S
        if member:
            fields = {"remote_peer_id": f"{member:x}", **fields}
        self._logger.log(level, text, **fields)

    def changed(self, member: int) -> None:
        """See Surroundings."""
        for key in [key for key in self._said if key[0] == member]:
            del self._said[key]

    # for the receiving side

    def knows(self, member: int) -> bool:
        """See Receivers."""
        return member in self._peers and member not in self._guests

    def on_stream(self, member: int) -> None:
        """See Receivers."""
        peer = self._peers.get(member)
        if peer is not None:
            peer.hint()

    def on_stranger(self, member: int, urls: tuple[str, ...]) -> None:
        """See Receivers."""
        peer = self._peers.get(member)
        if not urls or self._closed:
            return
        if peer is not None:
            peer.set_urls(urls)
            peer.hint()
        else:
            self._guests.add(member)
            peer = self._peers[member] = Peer(member, urls, self)
            peer.connect()

    def on_gone(self, member: int) -> None:
        """See Receivers."""
        if member in self._guests:
            self._guests.discard(member)
            self._peers.pop(member).close()

    def on_messages(self, sender: int, messages: list[Message]) -> None:
        """See Receivers."""
        if self._handlers is not None and not self._closed:
            self._handlers.on_messages(sender, messages)

    def on_forward(self, sender: int, payload: bytes) -> None:
        """See Receivers."""
        if self._handlers is not None and not self._closed:
            self._handlers.on_forward(sender, payload)

    # within

    def _tell_unreachable(self) -> None:
        members, self._unreachable = self._unreachable, {}
        if self._handlers is not None and not self._closed:
            for member in members:
                self._handlers.on_unreachable(member)

    async def _listen(self, listener: Listener) -> None:
        secure = listener.is_secure
        context = None
        if secure:
            assert self._tls is not None, "a secure listener without TLS settings"
            context = server_context(self._tls)
        server = Server(
            unary=self._incoming.unary,
            streams={**self._incoming.streams, **self._routes},
            limits=PEER_SERVER_LIMITS,
            http1=self._pages,
            http2=self._pages if secure else None,
        )
        sock = socket.socket(fileno=listener.fd)
        sock.setblocking(False)

        def accept() -> asyncio.Protocol:
            return PeerAccepted(server, self, self._tls if secure else None)

        if sock.family == socket.AF_UNIX:
            opened = await self.loop.create_unix_server(accept, sock=sock, ssl=context, backlog=BACKLOG)
        else:
            opened = await self.loop.create_server(accept, sock=sock, ssl=context, backlog=BACKLOG)
        self._servers.append((opened, server))

    def _probe(self) -> None:
        self._timer = self.loop.call_later(PROBE_INTERVAL_S, self._probe)
        for peer in self._peers.values():
            peer.probe(self._on_clock)

    def _on_clock(self, peer: Peer, ahead_s: float, round_trip_s: float) -> None:
        if abs(ahead_s) > CLOCK_DRIFT_S + round_trip_s:
            self.say(
                Level.WARN,
                peer.member,
                "the clocks of two members differ",
                clock_drift=f"{ahead_s:.3f}s",
                rtt=f"{round_trip_s:.6f}s",
            )


class PeerAccepted(AcceptedProtocol):
    """A connection of another member's, or of anyone, whose certificate is looked at first."""

    def __init__(self, server: Server, peers: PeerTransport, tls: PeerTls | None) -> None:
        super().__init__(server)
        self._peers = peers
        self._tls = tls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        limit_unsent(transport)
        super().connection_made(transport)
        tls = self._tls
        if tls is None or not self._added:
            return
        certificate = certificate_of(transport)
        peer = transport.get_extra_info("peername")
        refusal = name_refusal(tls, certificate)
        if refusal is not None:
            self._refuse(peer, refusal)
        elif certificate and not tls.skip_client_san_verification and isinstance(peer, tuple):
            # DNS may be asked, in a thread; nothing is read meanwhile, and the server's preface timeout counts.
            cast(asyncio.Transport, transport).pause_reading()
            self._peers.aside(self._check_address(certificate, peer))

    async def _check_address(self, certificate: Certificate, peer: tuple[str, int]) -> None:
        refusal = await address_refusal(certificate, peer[0], addresses_of, names_of)
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if refusal is not None:
            self._refuse(peer, refusal)
        else:
            transport.resume_reading()

    def _refuse(self, peer: object, refusal: str) -> None:
        self._peers.say(Level.WARN, 0, "rejected connection on peer endpoint", remote_addr=str(peer), error=refusal)
        self.abort()
