"""How much of the log is kept, and what a member that needs more than that is sent: a checkpoint of the store."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from kvorum.log import Logger
from node.config import Config
from node.frames import CHECKPOINT_ASK, Kind, Process
from node.link import Streams
from node.raft.core import Message, Snapshot
from node.raft.reconfiguration import Reconfiguration
from node.raft.snapshots.outgoing import Outgoing
from node.raft.storage import LogStorage
from node.raft.transport import Transport
from node.raft.wal.errors import LogFull
from node.raft.wal.log import WriteAheadLog
from node.raft.writer import Disk, LogWriter


class Retention:
    """The log's snapshots and compaction, and the checkpoints for others. `remove` deletes one that has served."""

    def __init__(
        self,
        *,
        config: Config,
        links: Streams,
        log: WriteAheadLog,
        writer: LogWriter,
        disk: Disk,
        transport: Transport,
        members: Reconfiguration,
        now: Callable[[], float],
        logger: Logger,
        remove: Callable[[str], None],
    ) -> None:
        self._config = config
        self._links = links
        self._log = log
        self._writer = writer
        self._disk = disk
        self._transport = transport
        self._members = members
        self._now = now
        self._logger = logger
        self._remove = remove
        self._outgoing = Outgoing()
        self.storage = LogStorage(log, self._offer)
        """The log as the core reads it."""

    def on_flushed(self, flushed: int) -> None:
        """The store is on disk up to `flushed`: what the log needs no more may go."""
        log = self._log
        state = self._members.state_at(flushed)
        if flushed - log.snapshot.index < self._config.snapshot_count:
            return
        term = log.term_of(flushed)
        assert term is not None, "the store flushed an index that the log does not know"
        self._logger.info("triggering snapshot", local_member_snapshot_index=log.snapshot.index, applied_index=flushed)
        try:
            self._writer.write_snapshot(flushed, term, state)
        except LogFull as error:
            self._logger.warn("cannot compact Raft logs: there is no room for the log", error=str(error))
            return
        self._logger.info("saved snapshot to disk", snapshot_index=flushed)
        compact = flushed - self._config.snapshot_catchup_entries
        if (floor := self._outgoing.floor) is not None:
            compact = min(compact, floor)  # whoever starts from that checkpoint goes on with the log
        if compact > 0:
            self.storage.compact(compact)
            released = log.release(compact, self._config.max_wals)
            self._logger.info("compacted Raft logs", compact_index=compact, files=released)
            if released:
                self._disk.run(log.remove_released)

    def _offer(self, least_index: int) -> Snapshot | None:
        """For a member that lags behind the log. It refuses one whose configuration does not name it."""
        return self._outgoing.snapshot(self._now(), max(least_index, self._members.last_change))

    def ask_apply(self) -> None:
        """Has apply make a checkpoint, if the core wanted one that is not there."""
        number = self._outgoing.ask()
        if number is not None:
            self._links.send_control(Process.APPLY, Kind.CHECKPOINT_ASK, CHECKPOINT_ASK.pack(number))

    def on_checkpoint(self, payload: bytes) -> None:
        """Apply made one, or could not."""
        snapshot = self._outgoing.on_checkpoint(payload, self._now())
        if snapshot is None:
            self._logger.warn("failed to make a snapshot for a member that lags behind", error=self._outgoing.failure)

    def send(self, message: Message) -> None:
        """The core's SNAP leaves, and the checkpoint with it."""
        assert message.snapshot is not None
        path = self._outgoing.begin(message.snapshot, message.to)
        index = message.snapshot.index
        self._logger.info("sending a snapshot", remote_peer_id=f"{message.to:x}", snapshot_index=index, path=path)
        self._transport.send_snapshot(message, path)

    def on_sent(self, member: int) -> None:
        """It has arrived, or failed."""
        self._outgoing.end(member, self._now())

    def tick(self) -> None:
        """Lets go of checkpoints that nobody needs any more."""
        for path in self._outgoing.expire(self._now()):
            self._disk.run(partial(self._remove, path))
