"""The way to another member's peer URL: a channel of the wire, TLS included. For any process of this member."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from kvorum.urls import parse_url
from kvorum.wire.client import Channel
from kvorum.wire.limits import MIB, ClientLimits
from node.config import PeerTls
from node.raft.peers.tls import certificate_of, client_context, name_refusal

CONNECT_TIMEOUT_S: Final = 3.0
"""One attempt: three round trips with TLS, for members on two continents."""

UNSENT_BYTES: Final = 128 * 1024
"""What the kernel takes of a connection beyond what is under way. It would take up to 4 MiB, which at 10 Mbit/s is more
than three seconds in which no heartbeat passes; what it does not take waits in streams that are served in turns."""

MESSAGE_BYTES: Final = 128 * MIB
"""The largest message between members. A batch holds about 1 MiB unless it is one request, which may be as large as the
largest --max-request-bytes of any member."""

BULK_QUEUE_BYTES: Final = 32 * MIB
"""Batches of entries that wait for a connection that is too slow for them. 32 MiB are a quarter of a second of a
gigabit network; a member that is further behind is better fed from the log. More than the core has in flight to a
member (max_inflight_bytes), so that in order it is never reached. At it: batches are dropped."""

PEER_CLIENT_LIMITS: Final = ClientLimits(
    message_bytes=64 * 1024,  # the other member only answers
    unfinished_bytes=MIB,
    stream_queue_bytes=BULK_QUEUE_BYTES + MESSAGE_BYTES,
    connect_timeout_s=CONNECT_TIMEOUT_S,
    backoff_first_s=0.0,  # when to try again is the owner's decision
    backoff_max_s=0.0,
    waiting_calls=64,
)


def peer_channel(url: str, tls: PeerTls | None, limits: ClientLimits = PEER_CLIENT_LIMITS) -> Channel:
    """A channel to a peer URL (http, https, unix, unixs); it connects with its first call.

    Raises ValueError for a URL that is none, or that needs `tls`; OSError and ssl.SSLError for TLS files that cannot
    be used. A certificate that is not let in fails the calls with UNAVAILABLE, as a listener that is not there does.
    """
    parsed = parse_url(url)
    address = f"unix:{parsed.socket_path}" if parsed.is_unix else parsed.host
    context = None
    if parsed.is_secure:
        if tls is None:
            raise ValueError(f"{url} needs certificates (--peer-cert-file, --peer-key-file)")
        context = client_context(tls)

    def check(transport: asyncio.BaseTransport) -> str | None:
        limit_unsent(transport)
        return name_refusal(tls, certificate_of(transport)) if context is not None and tls is not None else None

    return Channel(address, tls=context, limits=limits, check=check)


def limit_unsent(transport: asyncio.BaseTransport) -> None:
    """Have the kernel take only `UNSENT_BYTES` ahead."""
    sock: socket.socket | None = transport.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
