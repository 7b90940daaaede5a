"""The receiving side of snapshots: one at a time, from a stream into files, until the log decides what becomes of it.

Raft's loop reads the stream and checks it; one thread writes. Between them are at most `QUEUE_BYTES` and a chunk, and
what the stream's window lets come while nothing is read.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection
from enum import Enum
from typing import Final, NamedTuple, Protocol

from kvorum.errors import Code
from kvorum.log import Logger
from kvorum.wire.head import Head
from kvorum.wire.limits import KIB
from kvorum.wire.routes import CancelReason, StreamHandler, StreamOpen
from node.raft.core import Message
from node.raft.peers.identity import Identity, StreamRefused
from node.raft.snapshots import places
from node.raft.snapshots.counts import ReceivedCounts
from node.raft.snapshots.places import Files
from node.raft.snapshots.spool import Damaged, NoRoom, Spool
from node.raft.snapshots.transfer import (
    SNAPSHOT,
    Header,
    Malformed,
    Place,
    decode_chunk,
    decode_header,
    encode_place,
)
from node.stats import Figures

QUEUE_BYTES: Final = 1024 * KIB
"""Chunks that wait for the disk. At it: nothing is read from the stream until half of them are written."""

ABSENCE_S: Final = 60.0
"""For so long a sender may be gone, or silent, and then go on where it was. After it: what came is dropped."""

_NO_ROOM: Final = frozenset((errno.ENOSPC, errno.EDQUOT))


class Standing(NamedTuple):
    """Where this member is: its term, and up to which index it knows that entries are committed."""

    term: int
    commit: int


class Stream(Protocol):
    """The open call, as far as it is used: `kvorum.wire.server_calls.ServerStream`."""

    def send(self, message: bytes) -> None: ...

    def end(self, code: int = 0, text: str = "") -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Done(Protocol):
    """Told in the loop that work has ended, and with which error."""

    def __call__(self, error: BaseException | None) -> None: ...


RunAside = Callable[[Callable[[], None], Done], None]
"""Runs work in the one thread for it, in the order given, and then tells `done` in the loop."""


class State(Enum):
    """What becomes of the snapshot that is here."""

    ARRIVING = "chunks are awaited"
    CLOSING = "all of it has come, not all of it is on disk"
    WAITING = "it is whole, and the core has been told"
    DECIDED = "the log has its record: the next generation begins with it"


class _Reception:
    """The one snapshot that is here."""

    __slots__ = (
        "begun_at",
        "head",
        "header",
        "heard_at",
        "place",
        "queued_bytes",
        "ready",
        "sender",
        "spool",
        "state",
        "stream",
    )

    def __init__(self, sender: int, head: bytes, header: Header, spool: Spool, stream: _Stream, now: float) -> None:
        self.sender = sender
        self.head = head  # the bytes of the header: the same ones come again when a stream broke
        self.header = header
        self.spool = spool
        self.stream: _Stream | None = stream
        self.state = State.ARRIVING
        self.place = header.skip_empty(Place(0, 0))  # of the next chunk
        self.ready = False  # the directory is there
        self.queued_bytes = 0
        self.begun_at = now
        self.heard_at = now

    @property
    def index(self) -> int:
        assert self.header.message.snapshot is not None
        return self.header.message.snapshot.index


class Receiver:
    """Serves `/kvorum.Peer/Snapshot`. Everything but `run_aside`'s work happens in the loop."""

    def __init__(
        self,
        *,
        identity: Identity,
        snap_path: str,
        removed: Callable[[], Collection[int]],
        standing: Callable[[], Standing],
        on_received: Callable[[Message], None],
        run_aside: RunAside,
        now: Callable[[], float],
        logger: Logger,
        files: Files | None = None,
    ) -> None:
        """`removed`: ids that were members and are no more. `on_received` gets the SNAP message of a snapshot that is
        whole and on disk; `decide` or `refuse` must follow. `now` is monotonic seconds."""
        self._identity = identity
        self._snap_path = snap_path
        self._removed = removed
        self._standing = standing
        self._on_received = on_received
        self._run_aside = run_aside
        self._now = now
        self._logger = logger
        self._files = files if files is not None else Files()
        self._current: _Reception | None = None
        self._counts = ReceivedCounts(snap_path, self._files, logger)

    @property
    def routes(self) -> dict[str, StreamOpen]:
        """For the server of the peer listeners."""
        return {SNAPSHOT: self.open}

    def open(self, stream: Stream, head: Head) -> StreamHandler:
        """Another member has a snapshot for this one."""
        handler = _Stream(self, stream)
        try:
            handler.sender = self._identity.sender(head.metadata, self._removed())
        except StreamRefused as refused:
            self.refuse_stream(handler, refused)
        return handler

    def tick(self) -> None:
        """Called every second or so: gives up what nobody goes on with, and what the core would refuse."""
        current = self._current
        if current is None or current.state is not State.ARRIVING:
            return
        term, commit = self._standing()
        if current.index <= commit:
            self._fail(current, Code.OK, "it is not needed any more")
        elif current.header.message.term < term:
            self._fail(current, Code.FAILED_PRECONDITION, _stale(current.header.message.term, term))
        elif not current.queued_bytes and self._now() - current.heard_at > ABSENCE_S:
            self._fail(current, Code.DEADLINE_EXCEEDED, f"nothing came for {ABSENCE_S:g} s")

    def decide(self, index: int) -> None:
        """The record of the snapshot is synced in the log: the next generation will begin with it. Raises OSError.

        A rename and a sync, here and now: after it nothing is left to be done but to ask for that generation.
        """
        current = self._current
        assert current is not None and current.state is State.WAITING and current.index == index
        places.decide(self._snap_path, index, self._files)
        current.state = State.DECIDED
        self._counts.give_on()

    def refuse(self, index: int) -> None:
        """The core does not want the snapshot."""
        current = self._current
        assert current is not None and current.state is State.WAITING and current.index == index
        self._current = None
        self._logger.info("dropped a snapshot that is not needed any more", snapshot_index=index)
        self._run_aside(lambda: places.refuse(self._snap_path, index, self._files), self._removed_files)

    def figures(self) -> Figures:
        """What is published of received snapshots."""
        current = self._current
        arriving = current is not None and current.state in (State.ARRIVING, State.CLOSING)
        sender = f"{current.sender:x}" if current is not None and arriving else ""
        totals = self._counts.totals()
        return totals | {
            "etcd_network_snapshot_receive_inflights_total": [
                [labels, int(labels == [sender])] for labels, _ in totals["etcd_network_snapshot_receive_success"]
            ],
            "etcd_server_snapshot_apply_in_progress_total": int(current is not None and not arriving),
        }

    # for the streams

    def refuse_stream(self, stream: _Stream, refused: StreamRefused) -> None:
        """The stream is not taken."""
        self._logger.warn("refused a snapshot", remote_peer_id=f"{stream.sender:x}", error=refused.text)
        stream.end(refused.code, refused.text)

    def on_header(self, stream: _Stream, message: bytes) -> None:
        """What the stream brings: a new snapshot, or the rest of the one that is here."""
        header = self._check(stream.sender, message)
        if header is None:
            stream.end(Code.OK, "")
            return
        current = self._current
        if current is not None and current.head == message and current.sender == stream.sender:
            self._go_on(current, stream)
            return
        if current is not None:
            self._make_way(current, header)
        spool = Spool(self._snap_path, header, self._files, self._counts.fsync_s)
        reception = self._current = _Reception(stream.sender, message, header, spool, stream, self._now())
        stream.reception = reception
        self._counts.of(stream.sender)
        self._logger.info(
            "receiving a snapshot",
            snapshot_index=reception.index,
            remote_peer_id=f"{stream.sender:x}",
            size_bytes=header.size_bytes,
            files=len(header.files),
        )

        def begun(error: BaseException | None) -> None:
            if error is not None:
                self._fail_with(reception, error)
            elif reception is self._current:
                reception.ready = True
                self._welcome(reception)

        self._run_aside(spool.begin, begun)

    def on_chunk(self, stream: _Stream, message: bytes) -> None:
        """The next data."""
        current = stream.reception
        assert current is not None
        try:
            if not current.ready or current.state is not State.ARRIVING:
                raise Malformed("data where none was asked for")
            chunk = decode_chunk(message, current.place, current.header)
        except Malformed as error:
            self._fail(current, Code.INVALID_ARGUMENT, str(error))
            return
        if chunk is None:
            text = f"the data of file {current.place.file} from {current.place.offset} on is damaged"
            self._logger.warn("a part of a snapshot is damaged", error=text, remote_peer_id=f"{current.sender:x}")
            self._part(current, Code.DATA_LOSS, text)  # what came before is good
            return
        size = len(chunk.data)
        number, offset = chunk.place
        current.place = current.header.skip_empty(Place(number, offset + size))
        current.heard_at = self._now()
        current.queued_bytes += size
        if current.queued_bytes >= QUEUE_BYTES:
            stream.pause()

        def written(error: BaseException | None) -> None:
            current.queued_bytes -= size
            current.heard_at = self._now()
            if error is not None:
                self._fail_with(current, error)
            elif current.queued_bytes <= QUEUE_BYTES // 2 and current.stream is not None:
                current.stream.resume()

        self._run_aside(lambda: current.spool.write(chunk), written)
        if current.place == current.header.end:
            self._close(current)

    def on_half_close(self, stream: _Stream) -> None:
        """The sender has nothing more to say."""
        current = stream.reception
        if current is None:
            stream.end(Code.INVALID_ARGUMENT, "a snapshot without a header")
        elif current.state is State.ARRIVING:
            self._fail(current, Code.INVALID_ARGUMENT, "the snapshot ended before its end")

    def on_lost(self, stream: _Stream, reason: CancelReason) -> None:
        """The stream has broken; another may go on."""
        current = stream.reception
        if current is not None and current.stream is stream:
            current.stream = None
            current.heard_at = self._now()
            self._logger.warn(
                "the stream of a snapshot broke",
                snapshot_index=current.index,
                remote_peer_id=f"{current.sender:x}",
                error=reason.value,
            )

    # within

    def _check(self, sender: int, message: bytes) -> Header | None:
        """The header, if it is taken; None for a snapshot that is not needed. Raises StreamRefused."""
        try:
            header = decode_header(message)
        except Malformed as error:
            raise StreamRefused(Code.INVALID_ARGUMENT, str(error)) from None
        snap = header.message
        assert snap.snapshot is not None
        term, commit = self._standing()
        if (snap.sender, snap.to) != (sender, self._identity.member_id):
            text = f"a snapshot from {snap.sender:x} to {snap.to:x} in a stream from {sender:x}"
            raise StreamRefused(Code.INVALID_ARGUMENT, text)
        if snap.term < term:
            raise StreamRefused(Code.FAILED_PRECONDITION, _stale(snap.term, term))
        return None if snap.snapshot.index <= commit else header

    def _go_on(self, current: _Reception, stream: _Stream) -> None:
        if current.state in (State.WAITING, State.DECIDED):
            stream.end(Code.OK, "")
            return
        if current.stream is not None:
            self._part(current, Code.ABORTED, "another stream goes on with the snapshot")
        current.stream = stream
        current.heard_at = self._now()
        stream.reception = current
        if current.ready and current.state is State.ARRIVING:
            self._welcome(current)
        if current.queued_bytes >= QUEUE_BYTES:
            stream.pause()

    def _make_way(self, current: _Reception, header: Header) -> None:
        """For another snapshot. Raises StreamRefused when the one that is here is to stay."""
        snap = header.message
        assert snap.snapshot is not None
        newer = (snap.term, snap.snapshot.index) > (current.header.message.term, current.index)
        if current.state is not State.ARRIVING or not (newer or snap.sender == current.sender):
            raise StreamRefused(Code.RESOURCE_EXHAUSTED, f"the snapshot of entry {current.index} is being received")
        self._fail(current, Code.ABORTED, "another snapshot has come")

    def _welcome(self, current: _Reception) -> None:
        if current.place == current.header.end:  # of empty files only
            self._close(current)
        elif current.stream is not None:
            current.stream.send(encode_place(current.place))

    def _close(self, current: _Reception) -> None:
        """All data has come."""
        current.state = State.CLOSING

        def finished(error: BaseException | None) -> None:
            if error is not None:
                self._fail_with(current, error)
                return
            if current is not self._current:
                return  # its sender went on after the end; its files are about to be removed
            current.state = State.WAITING
            took_s = self._now() - current.begun_at
            self._counts.save_s.observe(took_s)
            counts = self._counts.of(current.sender)
            if counts is not None:
                counts.successes += 1
                counts.duration_s.observe(took_s)
            self._logger.info(
                "received a snapshot",
                snapshot_index=current.index,
                remote_peer_id=f"{current.sender:x}",
                size_bytes=current.header.size_bytes,
                took_s=round(took_s, 3),
            )
            self._part(current, Code.OK, "")
            self._on_received(current.header.message)

        self._run_aside(current.spool.finish, finished)

    def _fail_with(self, current: _Reception, error: BaseException) -> None:
        if isinstance(error, NoRoom) or (isinstance(error, OSError) and error.errno in _NO_ROOM):
            self._fail(current, Code.RESOURCE_EXHAUSTED, str(error))
        elif isinstance(error, Damaged):
            self._fail(current, Code.DATA_LOSS, str(error))
        elif isinstance(error, OSError):
            self._fail(current, Code.INTERNAL, str(error))
        else:
            raise error

    def _fail(self, current: _Reception, code: Code, text: str) -> None:
        """Give the snapshot up, with its files."""
        if current is not self._current:
            return
        self._current = None
        counts = self._counts.of(current.sender)
        if counts is not None:
            counts.failures += 1
        self._logger.warn(
            "gave up receiving a snapshot",
            snapshot_index=current.index,
            remote_peer_id=f"{current.sender:x}",
            error=text,
        )
        self._part(current, code, text)
        self._run_aside(current.spool.drop, self._removed_files)

    def _removed_files(self, error: BaseException | None) -> None:
        if isinstance(error, OSError):
            self._logger.warn("cannot remove a snapshot; the next start will", error=str(error))
        elif error is not None:
            raise error

    def _part(self, current: _Reception, code: Code, text: str) -> None:
        """End the stream, if there is one; the snapshot stays."""
        stream, current.stream = current.stream, None
        if stream is not None:
            stream.end(code, text)


def _stale(term: int, current: int) -> str:
    return f"the snapshot is of term {term}, here is term {current}"


class _Stream:
    """One call: the wire's handler."""

    __slots__ = ("_paused", "_receiver", "_stream", "reception", "sender")

    def __init__(self, receiver: Receiver, stream: Stream) -> None:
        self._receiver = receiver
        self._stream = stream
        self._paused = False
        self.sender = 0
        self.reception: _Reception | None = None

    def on_message(self, message: bytes) -> None:
        if self.reception is not None:
            self._receiver.on_chunk(self, message)
            return
        try:
            self._receiver.on_header(self, message)
        except StreamRefused as refused:
            self._receiver.refuse_stream(self, refused)

    def on_half_close(self) -> None:
        self._receiver.on_half_close(self)

    def on_cancel(self, reason: CancelReason) -> None:
        self._receiver.on_lost(self, reason)

    def on_writable(self) -> None:
        """Little is written, and nothing waits for it."""

    def send(self, message: bytes) -> None:
        self._stream.send(message)

    def end(self, code: int, text: str) -> None:
        self._stream.end(code, text)

    def pause(self) -> None:
        self._paused = True
        self._stream.pause_reading()

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self._stream.resume_reading()
