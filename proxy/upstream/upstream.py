"""Calls to the members of the cluster, through the endpoint in use; the one way out of a worker.

A call that surely never left is sent again wherever the proxy moves to, and so is a read, which may be answered twice;
what else was under way when an endpoint was lost ends with UNAVAILABLE, since only its caller knows whether it may be
done twice (PX28).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from kvorum.errors import Code
from kvorum.log import Logger
from kvorum.wire import grpc
from kvorum.wire.calls import CallHandler, ClientStream, Fields, UnaryClientCall, UnaryDone
from kvorum.wire.client import Channel, ConnectionCheck, GivenMetadata
from kvorum.wire.limits import ClientLimits
from proxy import paths
from proxy.upstream.endpoints import Endpoint, Endpoints, Health
from proxy.upstream.replies import unreadable

REPEATABLE: Final = frozenset(
    {
        *(paths.RANGE, paths.TIME_TO_LIVE, paths.LEASE_LEASES, paths.MEMBER_LIST),
        *(paths.STATUS, paths.HASH, paths.HASH_KV),
        *(paths.AUTH_STATUS, paths.AUTHENTICATE, paths.USER_GET, paths.USER_LIST, paths.ROLE_GET, paths.ROLE_LIST),
        *(paths.LEADER, paths.HEALTH_CHECK),
    }
)
"""Calls that change nothing."""

PATIENCE_S: Final = 7.0
"""How long a call without an answer is tried again: as long as a member waits for its cluster (P12)."""

SAY_AGAIN_S: Final = 10.0
"""Between two lines that say of one endpoint, with the same reason, that it cannot be reached."""

RETIRE_S: Final = 5.0
"""How long calls may go on at an endpoint that has left the cluster."""


@dataclass(frozen=True, slots=True)
class Dialing:
    """How connections to members are made."""

    limits: ClientLimits
    tls: ssl.SSLContext | None = None
    """For endpoints whose URL does not say http."""
    tls_by_scheme: ssl.SSLContext | None = None
    """For https endpoints, where `tls` is None."""
    server_name: str | None = None
    check: ConnectionCheck | None = None


class Ticket(UnaryClientCall):
    """A unary call under way."""

    __slots__ = ("answers", "channel", "give_up_at", "upstream")

    channel: Channel
    upstream: Upstream
    give_up_at: float
    answers: int

    def finish(self, code: int, text: str, trailers: grpc.Metadata) -> None:
        if code != Code.UNAVAILABLE or self.done is None or not self.upstream.try_again(self):
            super().finish(code, text, trailers)


class UpstreamStream(ClientStream):
    """A stream to a member. A message that its handler cannot read ends it: what follows could not be trusted."""

    __slots__ = ()

    def on_message(self, message: bytes) -> None:
        handler = self.handler
        if handler is not None:
            try:
                handler.on_message(message)
            except DecodeError as error:
                if self.connection is not None:
                    self.connection.abandon(self, *unreadable(error))


class Upstream:
    """Calls to the cluster. Metadata is given as `encode` makes it."""

    def __init__(
        self,
        endpoints: Endpoints,
        dialing: Dialing,
        logger: Logger,
    ) -> None:
        self.endpoints = endpoints
        self._dialing = dialing
        self._logger = logger
        self._loop = asyncio.get_running_loop()
        self._channels: dict[Endpoint, Channel] = {}
        self._endpoint_of: dict[Channel, Endpoint] = {}
        self._listeners: list[Callable[[], None]] = []
        self._retiring: dict[Channel, asyncio.TimerHandle] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._said: dict[Endpoint, tuple[str, float]] = {}
        """Why endpoints could not be reached, and when that was logged."""
        self._closed = False
        self.changes = 0
        """How often another endpoint has come into use."""
        self._channel = self.channel(endpoints.current)

    @property
    def connected(self) -> bool:
        """Whether calls can leave at once."""
        return self._channel.connected

    @property
    def serving(self) -> bool:
        """Whether nothing speaks against the endpoint in use. One that was lost and is connected again is as good as
        new: where there is no other, it is not probed."""
        return self.endpoints.serving or (
            self.connected and self.endpoints.health(self.endpoints.current) is Health.DOWN
        )

    def call(
        self,
        path: str,
        message: bytes,
        done: UnaryDone,
        metadata: Fields | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """A unary call; `done` gets (code, text, message), never within this call."""
        channel = self._channel
        ticket = Ticket(
            path,
            metadata or (),
            None if timeout_s is None else self._loop.time() + timeout_s,
            message,
            _unsettled,
            done,
        )
        ticket.upstream = self
        ticket.channel = channel
        ticket.give_up_at = 0.0
        ticket.answers = 0
        channel.launch(ticket)

    def open(
        self,
        path: str,
        handler: CallHandler,
        metadata: Fields | None = None,
        timeout_s: float | None = None,
    ) -> ClientStream:
        """A stream to the endpoint in use. When that is lost the handler gets UNAVAILABLE, and opens it again."""
        deadline_at = None if timeout_s is None else self._loop.time() + timeout_s
        stream = UpstreamStream(path, metadata or (), deadline_at, _unsettled, handler)
        self._channel.launch(stream)
        return stream

    def flush(self) -> None:
        """Write what calls have produced. Optional: it happens in the next turn of the loop anyway."""
        self._channel.flush()

    def on_change(self, listener: Callable[[], None]) -> None:
        """`listener` is called whenever another endpoint has come into use."""
        self._listeners.append(listener)

    async def close(self) -> None:
        """End all calls with CANCELLED, and all connections."""
        self._closed = True
        for timer in self._retiring.values():
            timer.cancel()
        for channel in [*self._channels.values(), *self._retiring]:
            self._close_channel(channel)
        self._retiring.clear()
        self._channels.clear()
        if self._closing:
            await asyncio.wait(self._closing)

    # For those who know more of the endpoints.

    def channel(self, endpoint: Endpoint) -> Channel:
        """The channel to an endpoint; made when first asked for."""
        channel = self._channels.get(endpoint)
        if channel is None:
            dialing = self._dialing
            tls = dialing.tls
            if endpoint.secure is False:
                tls = None
            elif endpoint.secure and tls is None:
                tls = dialing.tls_by_scheme
            channel = Channel(
                endpoint.address,
                tls=tls,
                server_name=dialing.server_name,
                limits=dialing.limits,
                check=dialing.check,
                on_lost=self._on_lost,
            )
            self._channels[endpoint] = channel
            self._endpoint_of[channel] = endpoint
        return channel

    def on_probe(self, endpoint: Endpoint, ok: bool) -> None:
        """A probe of an endpoint has ended."""
        if self._closed:
            return
        before = self.endpoints.current
        if self.endpoints.on_up(endpoint) if ok else self.endpoints.on_sick(endpoint):
            self._moved()
            # What is under way there would wait for long, and its streams would stand still: all begin again here.
            self.channel(before).drop()

    def replace(self, endpoints: Sequence[Endpoint]) -> None:
        """The cluster has these endpoints now. Calls under way at others may end there for a while; then they, and the
        streams, end with UNAVAILABLE, and begin again elsewhere."""
        if self._closed:
            return
        if self.endpoints.replace(endpoints):
            self._moved()
        known = set(self.endpoints.all)
        for endpoint in [one for one in self._channels if one not in known]:
            channel = self._channels.pop(endpoint)
            self._said.pop(endpoint, None)
            self._retiring[channel] = self._loop.call_later(RETIRE_S, self._retired, channel)

    # Within.

    def try_again(self, ticket: Ticket) -> bool:
        """A call ended with UNAVAILABLE: whether it has been sent again."""
        if self._closed:
            return False
        if ticket.head is not None:
            # The member itself said so: another may know better, and each is asked once.
            ticket.answers += 1
            if ticket.path not in REPEATABLE or ticket.answers >= len(self.endpoints.all):
                return False
            endpoint = self._endpoint_of.get(ticket.channel)
            others = [one for one in self.endpoints.all if one != endpoint]
            channel = self.channel(others[(ticket.answers - 1) % len(others)])
        elif ticket.connection is not None and ticket.path not in REPEATABLE:
            return False  # it may have been acted on
        else:
            channel = self._channel
        now = self._loop.time()
        if not ticket.give_up_at:
            ticket.give_up_at = now + PATIENCE_S
        if now >= ticket.give_up_at:
            return False  # a call whose own deadline has passed goes on, and ends by that at once
        if ticket.slot:
            ticket.settled(ticket)
        ticket.restart()
        ticket.channel = channel
        channel.launch(ticket)
        return True

    def _on_lost(self, channel: Channel, reason: str) -> None:
        endpoint = self._endpoint_of.get(channel)
        if endpoint is None or self._closed:
            return
        if endpoint in self._channels:
            self._say(endpoint, reason)
        if self.endpoints.on_down(endpoint):
            self._moved()

    def _say(self, endpoint: Endpoint, reason: str) -> None:
        now = self._loop.time()
        said = self._said.get(endpoint)
        if said is None or said[0] != reason or now >= said[1] + SAY_AGAIN_S:
            self._said[endpoint] = (reason, now)
            self._logger.warn("an endpoint cannot be reached", endpoint=endpoint.address, error=reason)

    def _moved(self) -> None:
        endpoint = self.endpoints.current
        self._channel = self.channel(endpoint)
        self.changes += 1
        self._logger.info("endpoint in use changed", endpoint=endpoint.address)
        for listener in self._listeners:
            self._loop.call_soon(listener)

    def _retired(self, channel: Channel) -> None:
        del self._retiring[channel]
        channel.drop()
        self._close_channel(channel)

    def _close_channel(self, channel: Channel) -> None:
        del self._endpoint_of[channel]
        task = self._loop.create_task(channel.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def encode(metadata: GivenMetadata | None) -> Fields:
    """Metadata as it travels: encode it once for many calls. Raises ValueError for what HTTP/2 cannot carry."""
    return tuple(grpc.encode_metadata(metadata)) if metadata else ()


def _unsettled(call: object) -> None:
    """In the place of what a channel sets when it takes a call."""
