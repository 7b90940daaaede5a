"""Every limit of the wire, with its default and the reason for it.

A limit names what a hostile or broken peer could otherwise make large. What happens at one stands beside it.
"""

from dataclasses import dataclass

from kvorum.wire.frames import UNLIMITED_STREAMS

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What one HTTP/2 connection may cost, in either role."""

    header_list_bytes: int = 64 * KIB
    """Fields of one header block, 32 octets of overhead each. Not advertised: the reference says 16 MiB, which a peer
    would make us decode while all others wait, and clients do not ask. grpc-go's default is
    16 MiB, nginx takes 32 KiB, C-core 16 KiB; a token is the largest value a client of this API sends, some KiB.
    At it: the call fails with RESOURCE_EXHAUSTED. The compressed block has the same bound, and there
    ENHANCE_YOUR_CALM ends the connection, since the rest cannot be decoded."""

    continuation_frames: int = 32
    """CONTINUATION frames of one block (CVE-2024-27316 and its kin). 64 KiB in full frames take 4.
    At it: ENHANCE_YOUR_CALM."""

    stream_window_bytes: int = 256 * KIB
    """INITIAL_WINDOW_SIZE we advertise. The reference has 65,535 and grows it by a bandwidth estimate; with 256 KiB
    nearly every request arrives whole, without a WINDOW_UPDATE and the round trip it costs. It is also the most that
    is held for a stream whose handler has stopped reading. At it: FLOW_CONTROL_ERROR for the stream."""

    connection_window_bytes: int = 16 * MIB
    """Window of the connection: large, so that streams never wait for one another; the memory is bounded by
    `unfinished_bytes`. At it: FLOW_CONTROL_ERROR."""

    unfinished_bytes: int = 64 * MIB
    """Inbound bytes a connection may have us hold: messages not yet complete, and streams not being read.
    At it: the stream that brings more fails with RESOURCE_EXHAUSTED."""

    message_bytes: int = 2 * MIB
    """One received message, also after decompression. At it: RESOURCE_EXHAUSTED with grpc-go's text."""

    queued_bytes: int = 64 * MIB
    """Outbound bytes that wait for a connection's windows or its socket. At it: new streams are refused
    (REFUSED_STREAM, which clients repeat), and while the socket is the obstacle nothing more is read."""

    stream_queue_bytes: int = 32 * MIB
    """Outbound bytes of one stream whose sender does not heed `writable`; a single message may be larger.
    At it: the stream fails with RESOURCE_EXHAUSTED."""

    high_water_bytes: int = 256 * KIB
    """A stream with more waiting is not writable …"""

    low_water_bytes: int = 64 * KIB
    """… until it has less than this."""

    turn_bytes: int = 1 * MIB
    """DATA given to the transport in one turn of the loop, so that a reply of a gigabyte is not copied at once and
    other connections get their turn."""

    control_backlog_bytes: int = 64 * KIB
    """Control frames (acknowledgements, resets) written to a socket that takes nothing (CVE-2019-9512, -9515).
    At it: the connection is aborted; a GOAWAY would not arrive either."""

    control_frames_burst: int = 10_000
    """Frames that do no work: SETTINGS, PING, PRIORITY, WINDOW_UPDATE, empty DATA, RST_STREAM of a finished stream,
    unknown types (CVE-2019-9511 to -9518). One costs about a microsecond. The budget is refilled by work (8 for a
    new stream and for a message sent, 1 per 512 bytes of DATA sent) and time. At it: ENHANCE_YOUR_CALM."""

    control_frames_per_s: int = 1_000

    resets_burst: int = 2_000
    """Streams that end before their time, by the client's RST_STREAM (CVE-2023-44487) or by ours for a fault of the
    client's (CVE-2025-8671). nghttp2 allows 1,000 and 33 per second; clients of this API cancel watches in
    thousands. At it: ENHANCE_YOUR_CALM."""

    resets_per_s: int = 200

    head_cache_entries: int = 256
    """Decoded header blocks kept per connection; only those of at most `head_cache_item_bytes`.
    At it: the cache starts anew."""

    head_cache_item_bytes: int = 4 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits(ConnectionLimits):
    """The limits of a server."""

    stream_window_bytes: int = 65_535
    """The default of HTTP/2, which the reference has too (G14). Larger messages take a WINDOW_UPDATE each 32 KiB."""

    max_concurrent_streams: int = UNLIMITED_STREAMS
    """--max-concurrent-streams. Advertised unless it is 2^32 - 1, as the reference does. At it: REFUSED_STREAM."""

    streams_hard_limit: int = 100_000
    """Streams of one connection, whatever is advertised: one takes about 1 KiB. At it: REFUSED_STREAM."""

    preface_timeout_s: float = 10.0
    """From accept (and the TLS handshake) to the whole client preface, or the first HTTP/1.1 request line and
    headers. At it: closed."""

    first_request_timeout_s: float = 120.0
    """From accept to the first request of an HTTP/2 connection. Clients of this API connect ahead of their first
    call, and a balancer holds spare connections. At it: GOAWAY and close."""

    idle_timeout_s: float | None = None
    """Without streams for this long: graceful GOAWAY. Off, as in grpc-go."""

    keepalive_min_time_s: float = 5.0
    """--grpc-keepalive-min-time: pings of a client with streams may be this far apart; without streams 2 hours.
    The third that comes sooner: GOAWAY ENHANCE_YOUR_CALM `too_many_pings`."""

    keepalive_interval_s: float = 7200.0
    """--grpc-keepalive-interval: silence after which the server pings."""

    keepalive_timeout_s: float = 20.0
    """--grpc-keepalive-timeout: silence after that ping. At it: closed."""

    connections: int | None = None
    """Open connections of the server. At it: a new one is closed at once."""

    http1_header_bytes: int = 64 * KIB
    """Request line and headers. At it: 431."""

    http1_body_bytes: int = 2 * MIB
    """A body that is read whole, as a gRPC message has. At it: 413."""

    http1_idle_timeout_s: float = 120.0
    """Between two requests of a kept-alive connection, and between two reads of a body. At it: closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLimits(ConnectionLimits):
    """The limits of a client."""

    message_bytes: int = 2**31 - 1
    """The reference's client receives replies of any size the server may send."""

    unfinished_bytes: int = 2**32
    """A client has chosen its server, and asked for what it gets."""

    keepalive_interval_s: float | None = None
    """Ping after this much silence, while streams are open; None: never."""

    keepalive_without_streams: bool = False
    """Ping also while none are open."""

    keepalive_timeout_s: float = 20.0
    """Silence after that ping. At it: the connection is lost."""

    connect_timeout_s: float = 20.0
    """One attempt to connect, with the TLS handshake and the server's SETTINGS."""

    backoff_first_s: float = 0.1
    backoff_max_s: float = 3.0
    """Wait after a failed attempt: doubled each time, with jitter of a fifth."""

    waiting_calls: int = 10_000
    """Calls that wait for a connection or for MAX_CONCURRENT_STREAMS. At it: RESOURCE_EXHAUSTED."""
