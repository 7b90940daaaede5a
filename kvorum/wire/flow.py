"""The sending half of an HTTP/2 connection: windows, queues and the order of output (RFC 9113, section 5.2).

Output is a list of pieces which the shell joins and writes once per turn of the loop. What a window, the turn's share
or a socket that takes nothing holds back waits in its stream's own queue, so a slow stream never stops its
connection's others; streams that only wait for the connection are served in turns.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from kvorum.wire import frames
from kvorum.wire.limits import ConnectionLimits

_ROUND_FRAMES = 4  # frames of one stream before the next one's turn


class Stream:
    """What both roles keep of an open stream."""

    __slots__ = (
        "id",
        "local_closed",
        "queue",
        "queue_offset",
        "queued_bytes",
        "reading",
        "recv_window",
        "remote_closed",
        "send_window",
        "tail",
        "throttled",
    )

    def __init__(self, stream_id: int, send_window: int, recv_window: int) -> None:
        self.id = stream_id
        self.send_window = send_window
        self.recv_window = recv_window
        self.remote_closed = False
        self.local_closed = False
        self.reading = True
        self.throttled = False
        """Whether the sender was told to stop and is owed a call when it may go on."""
        self.queue: deque[bytes] | None = None
        self.queue_offset = 0
        self.queued_bytes = 0
        self.tail: bytes | None = None
        """The frame that ends our side; it follows the queue."""


class Sender:
    """Output of one connection. Subclasses say what happens when a stream's side has ended or may be written again."""

    __slots__ = (
        "_credit_given",
        "_send_granted",
        "_send_window",
        "_throttled",
        "congested",
        "credit",
        "dirty",
        "limits",
        "out",
        "peer_initial_window",
        "peer_max_frame",
        "queued_bytes",
        "rounds",
        "sent_writes",
        "streams",
        "wake",
    )

    def __init__(self, limits: ConnectionLimits, wake: Callable[[Any], None]) -> None:
        self.limits = limits
        self.streams: dict[int, Any] = {}
        """Open streams: values are the subclass's own kind of Stream."""
        self.out: list[bytes | memoryview] = []
        self.dirty = False
        """Whether the shell knows that there is output; while it is inside `receive` it does."""
        self.wake = wake
        self.peer_initial_window = frames.DEFAULT_WINDOW
        self.peer_max_frame = frames.DEFAULT_FRAME_SIZE
        self.congested = False
        """Whether the socket takes no more: DATA then waits here, where it is bounded and can be dropped."""
        self.queued_bytes = 0
        self.sent_writes = 0
        """Writes to streams: each is a message, or many joined."""
        self._send_window = frames.DEFAULT_WINDOW
        self._send_granted = frames.DEFAULT_WINDOW
        # `credit` is what DATA may be sent now: window, turn and socket in one number, so that a reply tests one.
        self.credit = self._credit_given = min(frames.DEFAULT_WINDOW, limits.turn_bytes)
        self.rounds: dict[int, Any] = {}
        """Streams that have something to send and a window, and wait for credit."""
        self._throttled: dict[int, Any] = {}

    # What the subclass does.

    def _local_end(self, stream: Any) -> None:
        """Our side of the stream has ended, all of it is in the output."""
        raise NotImplementedError

    def _on_writable(self, stream: Any) -> None:
        """The stream may be written again after `throttled` was set."""
        raise NotImplementedError

    # For the shell.

    def take(self) -> bytes:
        """All output so far; starts a new turn. When `unfinished` is true afterwards, call it again next turn."""
        out = self.out
        data = b"".join(out)
        out.clear()
        self.dirty = False
        if self.credit != self._credit_given:
            self._renew_credit()
        return data

    @property
    def unfinished(self) -> bool:
        """Whether there is more to send than the last turn's share."""
        return (self.credit > 0 and bool(self.rounds)) or bool(self.out)

    def next_turn(self) -> None:
        """Fill the output with what the last turn left."""
        self.dirty = True
        self._serve_rounds()
        self._call_writable()

    def set_congested(self, congested: bool) -> None:
        """The socket takes nothing more (transport's `pause_writing`), or does again (`resume_writing`)."""
        self.congested = congested
        self._renew_credit()
        if not congested:
            self.next_turn()

    @property
    def sent_data_bytes(self) -> int:
        """DATA sent in the life of the connection."""
        return self._send_granted - self._send_window + self._credit_given - self.credit

    # For the subclass.

    def _touch(self) -> None:
        if not self.dirty:
            self.dirty = True
            self.wake(self)

    def _renew_credit(self) -> None:
        window = self._send_window = self._send_window - self._credit_given + self.credit
        credit = self.limits.turn_bytes
        if window < credit:
            credit = window if window > 0 else 0
        self.credit = self._credit_given = 0 if self.congested else credit

    def _grant_connection(self, increment: int) -> bool:
        """A WINDOW_UPDATE of the connection; False when the window overflows."""
        spent = self._credit_given - self.credit
        if self._send_window - spent + increment > frames.MAX_WINDOW:
            return False
        self._send_window += increment
        self._send_granted += increment
        if not self.congested:
            self.credit = max(0, min(self._send_window, self.limits.turn_bytes) - spent)
            self._credit_given = self.credit + spent
        self._serve_rounds()
        self._call_writable()
        return True

    def _grant_stream(self, stream: Any, increment: int) -> bool:
        """A WINDOW_UPDATE of a stream, or a change of INITIAL_WINDOW_SIZE; False when the window overflows."""
        stream.send_window += increment
        if stream.send_window > frames.MAX_WINDOW:
            return False
        if stream.queue is not None and stream.send_window > 0:
            self.rounds[stream.id] = stream
            self._serve_rounds()
            self._call_writable()
        return True

    def _send(self, stream: Any, data: bytes) -> None:
        """Octets of DATA: into the output as far as possible, the rest into the stream's queue."""
        self.sent_writes += 1
        size = len(data)
        if stream.queue is None and size <= self.credit and size <= stream.send_window:
            self.credit -= size
            stream.send_window -= size
            max_frame = self.peer_max_frame
            if size <= max_frame:
                self.out.append(frames.head(frames.DATA, 0, stream.id, size))
                self.out.append(data)
            else:
                append = self.out.append
                view = memoryview(data)
                full = frames.head(frames.DATA, 0, stream.id, max_frame)
                whole = size - size % max_frame
                for start in range(0, whole, max_frame):
                    append(full)
                    append(view[start : start + max_frame])
                if whole < size:
                    append(frames.head(frames.DATA, 0, stream.id, size - whole))
                    append(view[whole:])
        elif size:
            if stream.queue is None:
                stream.queue = deque()
            stream.queue.append(data)
            stream.queued_bytes += size
            self.queued_bytes += size
            self._send_round(stream)
            if stream.queued_bytes > self.limits.high_water_bytes:
                self._throttle(stream)
        self._touch()

    def _send_tail(self, stream: Any, tail: bytes) -> None:
        """End our side with this frame, after what is queued."""
        if stream.queue is None:
            self.out.append(tail)
            stream.local_closed = True
            self._local_end(stream)
        else:
            stream.tail = tail
        self._touch()

    def _throttle(self, stream: Any) -> None:
        stream.throttled = True
        self._throttled[stream.id] = stream

    def _forget(self, stream: Any) -> None:
        """Drop a stream and what it has queued."""
        stream_id = stream.id
        self.streams.pop(stream_id, None)
        if stream.queue is not None:
            self.queued_bytes -= stream.queued_bytes
            stream.queue = None
            stream.queued_bytes = 0
            self.rounds.pop(stream_id, None)
        if stream.throttled:
            self._throttled.pop(stream_id, None)
        stream.remote_closed = stream.local_closed = True

    def _send_round(self, stream: Any) -> None:
        """One round of a stream's queue: at most four frames of DATA, each as full as possible."""
        append = self.out.append
        queue = stream.queue
        offset = stream.queue_offset
        for _ in range(_ROUND_FRAMES):
            size = min(stream.queued_bytes, self.credit, stream.send_window, self.peer_max_frame)
            if size <= 0:
                break
            append(frames.head(frames.DATA, 0, stream.id, size))
            self.credit -= size
            stream.send_window -= size
            stream.queued_bytes -= size
            self.queued_bytes -= size
            while size:
                piece = queue[0]
                left = len(piece) - offset
                if left > size:
                    append(memoryview(piece)[offset : offset + size])
                    offset += size
                    break
                append(memoryview(piece)[offset:] if offset else piece)
                queue.popleft()
                offset = 0
                size -= left
        stream.queue_offset = offset
        if not stream.queued_bytes:
            stream.queue = None
            self.rounds.pop(stream.id, None)
            if stream.tail is not None:
                append(stream.tail)
                stream.local_closed = True
                self._local_end(stream)
        elif stream.send_window > 0:
            self.rounds[stream.id] = stream
        else:
            self.rounds.pop(stream.id, None)

    def _serve_rounds(self) -> None:
        rounds = self.rounds
        while rounds and self.credit > 0:
            self._send_round(rounds.pop(next(iter(rounds))))

    def _call_writable(self) -> None:
        if not self._throttled or self.congested:
            return
        low = self.limits.low_water_bytes
        ready = [stream for stream in self._throttled.values() if stream.queued_bytes <= low]
        for stream in ready:
            # A call may end other streams, or throttle this one again.
            if stream.throttled and self._throttled.pop(stream.id, None) is not None:
                stream.throttled = False
                self._on_writable(stream)
