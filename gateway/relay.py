"""Bytes from one socket to another and back, moved within the kernel: splice(2) through pipes.

Each direction of a connection belongs to the side it reads from. Bytes wait in a pipe only while the other side takes
none; then nothing more is read, so that the sender feels it. All directions that are not stuck share one pipe, and an
idle connection costs no more than its two sockets. At most `pipes_max` directions keep pipes of their own; what a
further one could not send is held in memory, 64 KiB at most.

An end of a direction is passed on by itself (half-close), a reset as a reset.
"""

import fcntl
import os
import select
import socket
import struct
from typing import Final, NamedTuple

IN: Final = select.EPOLLIN
OUT: Final = select.EPOLLOUT

PIPE_BYTES: Final = 1 << 20
"""What a pipe is asked to hold: with 1 MiB a GB costs 0.21 s of CPU, with the kernel's 64 KiB 0.31 to 0.50 s. It is
also the most that an unprivileged process may ask for."""

SMALL_READ_BYTES: Final = 1 << 16
"""Read at once while no further pipe can be had; what cannot be sent of it is held in memory."""

FREE_PIPES_MAX: Final = 16
"""Kept for the next direction that is stuck; further ones are closed."""

_FLAGS: Final = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE
_RESET: Final = struct.pack("ii", 1, 0)

_splice = os.splice


class Pipe(NamedTuple):
    """Both ends; neither blocks."""

    read_fd: int
    write_fd: int


class Side:
    """One socket of a connection, and the direction that is read from it.

    `peer` is the other side; it is gone once the connection is closed. `pipe` and `pipe_bytes`, or `held`: bytes read
    from here that the peer did not take yet. `ended`: no more will come from here. `shut`: no more will go to here.
    """

    __slots__ = ("ended", "fd", "held", "mask", "peer", "pipe", "pipe_bytes", "registered", "shut", "sock")

    peer: "Side"

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.mask = 0
        self.registered = False
        self.pipe: Pipe | None = None
        self.pipe_bytes = 0
        self.held = b""
        self.ended = False
        self.shut = False


class Relay:
    """All connections that are established on both sides. Sockets are non-blocking and belong to it once they joined.

    Whoever polls calls `on_event` for each file descriptor in `sides`, and `close_dead` after each batch of events: a
    descriptor must not be used again while events of its last owner may still be in the batch.
    """

    def __init__(self, epoll: select.epoll, pipes_max: int) -> None:
        """Raises OSError if not even one pipe can be made."""
        self.sides: dict[int, Side] = {}
        self._epoll = epoll
        self._dead: list[socket.socket] = []
        self._pipes_max = pipes_max
        self._kept = 0
        self._free: list[Pipe] = []
        self._shared = _make_pipe()
        self._read_bytes = PIPE_BYTES if pipes_max else SMALL_READ_BYTES

    @property
    def connections(self) -> int:
        """Connections not yet closed; each has two sockets."""
        return (len(self.sides) + len(self._dead)) // 2

    def join(self, client: socket.socket, backend: socket.socket) -> None:
        """Pass bytes between two connected sockets from now on, until both ends are done.

        Raises OSError if epoll has no place for them; they are closed then.
        """
        one, other = Side(client), Side(backend)
        one.peer, other.peer = other, one
        for side in (one, other):
            self.sides[side.fd] = side
        try:
            for side in (one, other):
                self._watch(side, IN)
        except OSError:
            self._close(one)
            raise

    def on_event(self, side: Side, events: int) -> None:
        """What epoll says of a side: it has bytes, it takes bytes again, or it is broken."""
        if events & OUT:
            self._move(side.peer)
        if events & ~OUT and self.sides.get(side.fd) is side:
            if side.mask & IN:
                self._move(side)
            else:  # nothing is read here now, so only an error can be meant
                self._abort(side)

    def close_dead(self) -> None:
        """Close the sockets of connections that ended."""
        for sock in self._dead:
            sock.close()
        self._dead.clear()

    def end_all(self) -> None:
        """End all connections as if both sides had said that they are done; what was read before is still sent."""
        for side in list(self.sides.values()):
            if self.sides.get(side.fd) is side and not side.ended:
                self._end(side)

    def close(self) -> None:
        """Close everything now."""
        for side in list(self.sides.values()):
            if self.sides.get(side.fd) is side:
                self._close(side)
        self.close_dead()
        for pipe in (self._shared, *self._free):
            _close_pipe(pipe)
        self._free.clear()

    def _move(self, source: Side) -> None:
        """Move what source has to its peer, as far as that takes it.

        One read, so that the others have their turn: with 4 MiB a turn eight full streams were a fifth slower. After a
        short read there is likely no more anyway, and a call that finds nothing costs 3 us.
        """
        sink = source.peer
        pipe = source.pipe or self._shared
        left = source.pipe_bytes
        has_read = False
        try:
            if source.held and not self._send_held(source, sink):
                return
            while True:
                if left:
                    try:
                        sent = _splice(pipe.read_fd, sink.fd, left, flags=_FLAGS)
                    except BlockingIOError:
                        sent = 0
                    left -= sent
                    if left:
                        self._wait(source, sink, pipe, left)
                        return
                if has_read or source.ended:
                    break
                has_read = True
                try:
                    left = _splice(source.fd, pipe.write_fd, self._read_bytes, flags=_FLAGS)
                except BlockingIOError:
                    break
                if not left:
                    source.ended = True
        except OSError:
            source.pipe_bytes = left
            self._abort(source)
            return
        if source.pipe is not None:
            source.pipe_bytes = 0
            self._give_back(source)
        if source.ended:
            self._end(source)
        elif not source.mask & IN:
            self._watch(source, source.mask | IN)
            self._watch(sink, sink.mask & ~OUT)

    def _send_held(self, source: Side, sink: Side) -> bool:
        """True once nothing is held any more."""
        try:
            source.held = source.held[sink.sock.send(source.held) :]
        except BlockingIOError:
            return False
        return not source.held

    def _wait(self, source: Side, sink: Side, pipe: Pipe, left: int) -> None:
        """The sink takes no more: keep the `left` bytes in the pipe until it does, and read nothing meanwhile."""
        if source.pipe is None:
            other = self._take_pipe()
            if other is None:
                source.held = _drain(pipe, left)
                left = 0
            else:
                source.pipe = pipe
                self._shared = other
        source.pipe_bytes = left
        self._watch(source, source.mask & ~IN)
        self._watch(sink, sink.mask | OUT)

    def _end(self, source: Side) -> None:
        """Nothing more comes from the source. Once all of it is sent, say so to the sink."""
        source.ended = True
        sink = source.peer
        if source.pipe_bytes or source.held or sink.shut:
            return
        try:
            sink.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._abort(source)
            return
        sink.shut = True
        if source.shut:
            self._close(source)
            return
        self._watch(source, source.mask & ~IN)
        self._watch(sink, sink.mask & ~OUT)

    def _abort(self, side: Side) -> None:
        """One side is broken: the other one is told by a reset."""
        for each in (side, side.peer):
            each.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._close(side)

    def _close(self, side: Side) -> None:
        peer = side.peer
        del side.peer, peer.peer  # they would keep each other
        for each in (side, peer):
            if each.pipe is not None:
                self._give_back(each)
            elif each.pipe_bytes:
                _drain(self._shared, each.pipe_bytes)
            del self.sides[each.fd]
            if each.registered:
                self._epoll.unregister(each.fd)
            self._dead.append(each.sock)

    def _watch(self, side: Side, mask: int) -> None:
        """Be told of these events.

        Epoll tells of errors also when nothing is asked for, which is wanted; but it would tell for ever that a side
        is closed both ways while what came from there waits for the other side.
        """
        if mask or not side.shut:
            if not side.registered:
                self._epoll.register(side.fd, mask)
                side.registered = True
            elif mask != side.mask:
                self._epoll.modify(side.fd, mask)
        elif side.registered:
            self._epoll.unregister(side.fd)
            side.registered = False
        side.mask = mask

    def _take_pipe(self) -> Pipe | None:
        if self._free:
            pipe = self._free.pop()
        elif self._kept >= self._pipes_max:
            return None
        else:
            try:
                pipe = _make_pipe()
            except OSError:
                self._read_bytes = SMALL_READ_BYTES
                return None
        self._kept += 1
        if self._kept >= self._pipes_max:
            self._read_bytes = SMALL_READ_BYTES
        return pipe

    def _give_back(self, source: Side) -> None:
        assert source.pipe is not None
        if not source.pipe_bytes and len(self._free) < FREE_PIPES_MAX:
            self._free.append(source.pipe)
        else:
            _close_pipe(source.pipe)
        source.pipe = None
        self._kept -= 1
        self._read_bytes = PIPE_BYTES


def _make_pipe() -> Pipe:
    pipe = Pipe(*os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
    try:
        fcntl.fcntl(pipe.write_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except PermissionError:
        return pipe  # this user's pipes have all the memory they may have: a smaller one does
    return pipe


def _close_pipe(pipe: Pipe) -> None:
    os.close(pipe.read_fd)
    os.close(pipe.write_fd)


def _drain(pipe: Pipe, size_bytes: int) -> bytes:
    """Take out what the pipe holds."""
    chunks: list[bytes] = []
    while size_bytes:
        chunks.append(os.read(pipe.read_fd, size_bytes))
        size_bytes -= len(chunks[-1])
    return b"".join(chunks)
