"""The sending side to one other member: a connection that is always being made, and what it carries.

Four calls share the connection. MESSAGES has what is small and must not wait (heartbeats, votes, acknowledgements),
ENTRIES what is large and must stay in order (appends, forwarded proposals), FORWARD the opaque payloads; PROBE is a
unary call each second. The wire serves streams in turns, so a heartbeat waits for a few frames of the others, whatever
they have queued.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import struct
import time
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final, Protocol

from kvorum.errors import Code
from kvorum.log import Level
from kvorum.wire.calls import ClientStream
from kvorum.wire.client import Channel
from kvorum.wire.grpc import Metadata, pack_prefix
from kvorum.wire.limits import KIB, MIB
from node.raft.core import Message, MessageType
from node.raft.core.messages import payload_bytes
from node.raft.peers.channel import BULK_QUEUE_BYTES, MESSAGE_BYTES
from node.raft.peers.codec import encode
from node.raft.peers.identity import REMOVED, Identity
from node.stats import Histogram, histogram

MESSAGES: Final = "/kvorum.Peer/Messages"
ENTRIES: Final = "/kvorum.Peer/Entries"
FORWARD: Final = "/kvorum.Peer/Forward"
PROBE: Final = "/kvorum.Peer/Probe"

CLOCK: Final = struct.Struct("<Q")
"""The answer to a probe: Unix time in nanoseconds."""

BATCH_BYTES: Final = MIB
"""Messages with more entries than this in total leave as several batches, so that the first is read sooner."""

MESSAGES_QUEUE_BYTES: Final = 256 * KIB
"""Small messages that wait: two thousand heartbeats. At it: they are dropped."""

FORWARD_QUEUE_BYTES: Final = 4 * MIB
"""Forwarded payloads that wait; who sent them repeats them. At it: they are dropped."""

FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 1.0
"""After a failed attempt at every URL: doubled each time, with jitter of a fifth. The first attempt after a loss is
made at once; so is one when the other member opens a stream to us, for then it surely listens."""

STEADY_S: Final = 1.0
"""A connection that lasted less is one more failure."""

PROBE_TIMEOUT_S: Final = 3.0
"""No answer to a probe for so long: the connection is given up. TCP itself would try for a quarter of an hour, with
pauses that grow, and after a partition has healed the next attempt would be late."""

ATTEMPT_TIMEOUT_S: Final = 4.0
"""From the attempt to the other member's word that it takes our streams; more than `CONNECT_TIMEOUT_S`."""

_BULK_TYPES: Final = frozenset((MessageType.APP, MessageType.PROP))


class Surroundings(Protocol):
    """What a peer needs of the transport."""

    identity: Identity
    loop: asyncio.AbstractEventLoop

    def metadata(self, member: int) -> dict[str, str]:
        """What a stream of this member's to another says."""

    def dial(self, url: str) -> Channel:
        """A channel to a peer URL; raises ValueError, OSError and ssl.SSLError."""

    def leave(self, channel: Channel) -> None:
        """Close the channel, in its own time."""

    def unreachable(self, member: int) -> None:
        """Messages to the member were dropped or may be lost."""

    def told_removed(self, member: int) -> None:
        """The member says that this one is removed from the cluster."""

    def say(self, level: Level, member: int, text: str, **fields: object) -> None:
        """A line for the log, at most one in a while for each member and text …"""

    def changed(self, member: int) -> None:
        """… unless the member's connection has come or gone since."""


class PeerState(Enum):
    """Where the connection stands."""

    WAITING = "waits before the next attempt"
    CONNECTING = "attempts"
    CONNECTED = "takes messages"
    CLOSED = "closed"


class _Call:
    """One streaming call's end of a peer."""

    __slots__ = ("peer", "stream")

    def __init__(self, peer: Peer) -> None:
        self.peer: Peer | None = peer
        self.stream: ClientStream | None = None

    def on_message(self, message: bytes) -> None:
        """The other member takes the stream."""
        if self.peer is not None:
            self.peer.on_welcome(self, message)

    def on_end(self, code: int, text: str, trailers: Metadata) -> None:
        if self.peer is not None:
            self.peer.on_lost(code, text)

    def on_writable(self) -> None:
        """What could not be sent was dropped: nothing waits for this."""


class Peer:
    """The sending side to one other member."""

    def __init__(self, member: int, urls: Sequence[str], around: Surroundings) -> None:
        self.member = member
        self.urls = tuple(urls)
        self.state = PeerState.WAITING
        self.connected_since: float | None = None
        self.sent_bytes = 0
        self.failures = 0
        """Messages dropped."""
        self.losses = 0
        """Connections lost."""
        self.round_trips: Histogram = histogram("etcd_network_peer_round_trip_time_seconds")
        self._around = around
        self._position = 0
        self._tried = 0
        """Attempts that failed since the last connection that lasted."""
        self._timer: asyncio.TimerHandle | None = None
        self._channel: Channel | None = None
        self._calls: list[_Call] = []
        self._messages: ClientStream | None = None
        self._entries: ClientStream | None = None
        self._forwards: ClientStream | None = None
        self._unwelcome = 0
        """Calls that the other member has not taken yet."""
        self._attempted_at = 0.0
        self._probed_at: float | None = None

    # the connection

    def connect(self) -> None:
        """Attempt the next URL."""
        assert self._channel is None
        self._timer = None
        if not self.urls:
            return
        around = self._around
        url = self.urls[self._position % len(self.urls)]
        try:
            channel = self._channel = around.dial(url)
        except (ValueError, OSError, ssl.SSLError) as error:
            self.on_lost(Code.UNAVAILABLE, str(error))
            return
        self.state = PeerState.CONNECTING
        self._attempted_at = time.monotonic()
        metadata = around.metadata(self.member)
        for path in (MESSAGES, ENTRIES, FORWARD):
            call = _Call(self)
            call.stream = channel.open(path, call, metadata)
            self._calls.append(call)
        self._unwelcome = len(self._calls)

    def hint(self) -> None:
        """The other member has just reached us: it is there."""
        if self.state is PeerState.WAITING and self._timer is not None:
            self._timer.cancel()
            self.connect()

    def set_urls(self, urls: Sequence[str]) -> None:
        """Where the member listens; a connection to a URL that it has no more is left."""
        urls = tuple(urls)
        if urls == self.urls:
            return
        current = self.urls[self._position % len(self.urls)] if self.urls else None
        self.urls = urls
        self._position = urls.index(current) if current in urls else 0
        if current not in urls and self.state is not PeerState.CLOSED:
            self._part()
            self.state = PeerState.WAITING
            if self._timer is not None:
                self._timer.cancel()
            self.connect()

    def close(self) -> None:
        """No more messages, no more attempts."""
        self._part()
        self.state = PeerState.CLOSED
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def on_welcome(self, call: _Call, message: bytes) -> None:
        """The other member takes one of the calls; it says nothing else."""
        self._unwelcome -= 1
        if message or self._unwelcome < 0:
            self.on_lost(Code.INTERNAL, "the other member answers where nothing was asked")
        elif not self._unwelcome:
            self._messages, self._entries, self._forwards = (call.stream for call in self._calls)
            self.state = PeerState.CONNECTED
            self.connected_since = time.monotonic()
            url = self.urls[self._position % len(self.urls)]
            self._around.changed(self.member)
            self._around.say(Level.INFO, self.member, "connected to a member", url=url)

    def on_lost(self, code: int, text: str) -> None:
        """A call ended, so all is over: try again, elsewhere if it was no good here."""
        around = self._around
        url = self.urls[self._position % len(self.urls)]
        since = self.connected_since
        steady = since is not None and time.monotonic() - since >= STEADY_S
        self._part()
        if since is not None:
            around.changed(self.member)
        refused = code in (Code.FAILED_PRECONDITION, Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED)
        if refused:
            around.say(Level.WARN, self.member, "a member refuses this one", url=url, error=text)
        elif since is not None:
            around.say(Level.WARN, self.member, "lost the connection to a member", url=url, error=text)
        else:
            around.say(Level.WARN, self.member, "cannot connect to a member", url=url, error=text)
        self.state = PeerState.WAITING
        if steady:
            self._tried = 0
            pause_s = 0.0
        else:
            self._tried += 1
            self._position = (self._position + 1) % len(self.urls)
            rounds, within = divmod(self._tried, len(self.urls))
            if within:
                pause_s = 0.0
            elif refused:
                pause_s = LONGEST_PAUSE_S
            else:
                pause_s = min(FIRST_PAUSE_S * 2 ** min(rounds - 1, 10), LONGEST_PAUSE_S)
        # Never from within a callback of the channel that was lost, also when there is no pause.
        self._timer = around.loop.call_later(pause_s * random.uniform(0.8, 1.2), self.connect)
        if code == Code.FAILED_PRECONDITION and text == REMOVED:
            around.told_removed(self.member)

    def _part(self) -> None:
        """Leave the connection, whatever its state."""
        for call in self._calls:
            call.peer = None
        self._calls = []
        self._messages = self._entries = self._forwards = None
        self._probed_at = None
        channel, self._channel = self._channel, None
        if channel is not None:
            self._around.leave(channel)
        if self.connected_since is not None:
            self.connected_since = None
            self.losses += 1
            self._around.unreachable(self.member)

    # what is sent

    def send(self, messages: Sequence[Message]) -> None:
        """Messages, all to this member."""
        if self._messages is None:
            self._drop(len(messages), None)
            return
        if len(messages) == 1:
            if messages[0].type in _BULK_TYPES:
                self._send_entries(messages)
            else:
                self._send_batch(self._messages, messages, MESSAGES_QUEUE_BYTES)
            return
        small: list[Message] = []
        bulk: list[Message] = []
        bulk_bytes = 0
        for message in messages:
            if message.type not in _BULK_TYPES:
                small.append(message)
                continue
            size = payload_bytes(message.entries)
            if bulk and bulk_bytes + size > BATCH_BYTES:
                self._send_entries(bulk)
                bulk = []
                bulk_bytes = 0
            bulk.append(message)
            bulk_bytes += size
        # The small ones first: they are to wait for nothing.
        if small:
            self._send_batch(self._messages, small, MESSAGES_QUEUE_BYTES)
        if bulk:
            self._send_entries(bulk)

    def forward(self, payload: bytes) -> None:
        """An opaque payload. One that is dropped says nothing of the messages: it is not reported."""
        stream = self._forwards
        if stream is None:
            self.failures += 1
        elif stream.queued_bytes > FORWARD_QUEUE_BYTES:
            self.failures += 1
            self._say_slow(stream)
        else:
            stream.send(payload)
            self.sent_bytes += len(payload)

    def flush(self) -> None:
        """Write what was sent in this turn."""
        if self._channel is not None:
            self._channel.flush()

    def _send_entries(self, messages: Sequence[Message]) -> None:
        if self._entries is not None:
            self._send_batch(self._entries, messages, BULK_QUEUE_BYTES)

    def _send_batch(self, stream: ClientStream, messages: Sequence[Message], queue_bytes: int) -> None:
        if stream.queued_bytes > queue_bytes:
            self._drop(len(messages), stream)
            return
        parts = encode(messages)
        size = sum([len(part) for part in parts])
        if size > MESSAGE_BYTES:
            self._around.say(Level.ERROR, self.member, "a message is too large to be sent", size_bytes=size)
            self._drop(len(messages), None)
            return
        stream.send_framed(b"".join([pack_prefix(0, size), *parts]))
        self.sent_bytes += size

    def _drop(self, count: int, stream: ClientStream | None) -> None:
        self.failures += count
        if stream is not None:
            self._say_slow(stream)
        self._around.unreachable(self.member)

    def _say_slow(self, stream: ClientStream) -> None:
        queued = stream.queued_bytes
        self._around.say(Level.WARN, self.member, "a member does not take what it is sent", queued_bytes=queued)

    # what is measured

    def probe(self, on_clock: Callable[[Peer, float, float], None]) -> None:
        """Called each second: measure the round trip; `on_clock` gets (this peer, how far the other member's clock is
        ahead in seconds, round trip in seconds)."""
        channel = self._channel
        if channel is None:
            return
        now = time.monotonic()
        if self.state is PeerState.CONNECTING:
            if now - self._attempted_at >= ATTEMPT_TIMEOUT_S:
                self.on_lost(Code.UNAVAILABLE, "no answer from whoever listens there")
            return
        if self._probed_at is not None:
            if now - self._probed_at >= PROBE_TIMEOUT_S:
                self.on_lost(Code.UNAVAILABLE, f"no answer for {now - self._probed_at:.1f} s")
            return
        self._probed_at = now

        def done(code: int, text: str, reply: bytes) -> None:
            if self._channel is not channel or self._probed_at is None:
                return
            round_trip_s = time.monotonic() - self._probed_at
            self._probed_at = None
            if code or len(reply) != CLOCK.size:
                return  # the streams of this connection will tell, if it is lost
            self.round_trips.observe(round_trip_s)
            (theirs_ns,) = CLOCK.unpack(reply)
            on_clock(self, theirs_ns / 1e9 - time.time() + round_trip_s / 2, round_trip_s)

        channel.call(PROBE, b"", done)
