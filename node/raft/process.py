"""The raft process of a member: it owns the log, and decides what is committed.

For a sole voter a turn of the loop is: take what the fronts proposed, append it as few entries, write and fdatasync
inline, hand the entries to apply. What arrives during the fdatasync gathers in the inbox: that is the group commit.
"""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from kvorum import errors
from kvorum.errors import Status
from kvorum.pb.internal_pb2 import Founding
from kvorum.pb.rpc_pb2 import Member
from node import event_loop, stats
from node.child import ChildContext
from node.frames import APPLIED, ENTRY_HEADER, FLUSHED, HEADER_BYTES, LEADERSHIP, Frame, Kind, Process
from node.front.state import answer
from node.link_zmq import Links
from node.log import Logger
from node.raft.solo import SoleVoter
from node.raft.wal.disk import DiskDirectory
from node.raft.wal.errors import LogFull
from node.raft.wal.log import WriteAheadLog, holds_log
from node.raft.wal.record import Entry, HardState, Snapshot
from node.requests import REPLY, batches

SEND_BYTES: Final = 1 << 20
"""A frame of entries read back for apply (after a start, or when it had no credit) holds about this much."""

MAX_BACKLOG_BYTES: Final = 64 << 20
"""Committed entries that apply has no credit for; beyond it, what is proposed is refused. They wait in the log's files,
but their clients have long given up, and a member that comes back must work them all off."""

THREAD_SWITCH_S: Final = 0.0002
"""A helper thread that wants the interpreter gets it after this, not after 5 ms; and so does the loop."""

METADATA: Final = struct.Struct("<QQ")
"""Of the log: member id and cluster id."""


class LogMismatch(Exception):
    """The log and the store do not belong together; the member must not start."""


class Raft:
    """The shell around `SoleVoter`: log, links and time."""

    def __init__(self, child: ChildContext, links: Links, log: WriteAheadLog, logger: Logger) -> None:
        config = self._config = child.config
        self.links = links
        self._log = log
        self._logger = logger
        self._fronts = [Process.FRONT + i for i in range(config.front_workers)]
        hard_state = log.hard_state
        self._voter = SoleVoter(child.member_id, hard_state.term, log.last_index, hard_state.commit)
        peer_urls = sorted(str(url) for url in config.initial_advertise_peer_urls)
        self._founding = Founding(
            members=[Member(ID=child.member_id, name=config.name, peerURLs=peer_urls)]
        ).SerializeToString(deterministic=True)
        self._catch_up_to = log.last_index
        self._leads = False
        self._sent = -1  # the last index that apply was sent; -1 until it said where it stands
        self._backlog_bytes = 0  # of entries appended since then and not sent
        self._fsync_s = stats.histogram("etcd_disk_wal_fsync_duration_seconds")
        self._write_s = stats.histogram("etcd_disk_wal_write_duration_seconds")
        self._written_bytes = 0
        self._thread = ThreadPoolExecutor(1, "wal")
        self._segments = 0

    # what arrives

    def on_control(self) -> bool:
        """Takes in what apply and the fronts say apart from the streams."""
        for frame in self.links.receive_control():
            if frame.kind == Kind.APPLIED:
                self._start(*APPLIED.unpack_from(frame.data, HEADER_BYTES))
            elif frame.kind == Kind.FLUSHED:
                self._release(*FLUSHED.unpack_from(frame.data, HEADER_BYTES))
            else:
                assert frame.kind == Kind.STATE_ASK, f"raft got a control frame of kind {frame.kind}"
                self.links.send_control(frame.sender, Kind.STATE, answer(frame, self._state()))
        self._send_entries(None)  # there may be credit again
        return False

    def on_data(self) -> bool:
        """Logs and commits what was proposed in this turn."""
        links = self.links
        frames = links.receive()
        if not frames:
            return links.data_left
        assert self._leads, "a proposal came before apply could know that it serves"
        if self._backlog_bytes > MAX_BACKLOG_BYTES:
            self._refuse(frames, errors.REQUEST_TOO_MANY_REQUESTS)
            return links.data_left
        entries = self._voter.propose([frame.data[HEADER_BYTES:] for frame in frames])
        try:
            self._persist(entries, None)
        except LogFull as error:
            self._voter.last_index = self._log.last_index
            self._logger.error("refused proposals: there is no room for the log", error=str(error))
            self._refuse(frames, errors.NO_SPACE)
        return links.data_left

    # what follows from it

    def _start(self, index: int, term: int) -> None:
        """Apply stands at `index`: the log must know that entry and all after it."""
        log = self._log
        store, path = self._config.db_path, self._config.wal_path
        if index > log.last_index:
            fault = f"ends at entry {log.last_index}"
        elif index < log.first_index - 1:
            fault = f"begins with entry {log.first_index}"
        elif index and log.term_of(index) != term:
            fault = f"has that entry with term {log.term_of(index)}"
        else:
            self._sent = index
            self._backlog_bytes = 0
            self._campaign()
            return
        raise LogMismatch(
            f"the store {store} stands at entry {index} of term {term}, but the log {path} {fault}: "
            "they do not belong together, one of them was replaced or is missing"
        )

    def _campaign(self) -> None:
        """A sole voter elects itself; without room for that in the log it tries again at every tick."""
        voter = self._voter
        before = voter.term
        hard_state, entries = voter.campaign(None if self._log.last_index else self._founding)
        try:
            self._persist(entries, hard_state)
        except LogFull as error:
            voter.term = before
            voter.last_index = self._log.last_index
            self._logger.error("cannot lead yet: there is no room for the log", error=str(error))
            return
        self._leads = True
        leadership = LEADERSHIP.pack(voter.term, voter.member, self._catch_up_to, True)
        for process in (Process.APPLY, *self._fronts):
            self.links.send_control(process, Kind.LEADERSHIP, leadership)
        self._logger.info(
            f"{voter.member:x} became leader at term {voter.term}", commit=voter.commit, last_index=voter.last_index
        )

    def _persist(self, entries: list[Entry], hard_state: HardState | None) -> None:
        started = time.perf_counter()
        written = self._log.append(entries, hard_state)
        appended = time.perf_counter()
        self._log.sync()
        self._fsync_s.observe(time.perf_counter() - appended)
        self._write_s.observe(appended - started)
        self._written_bytes += written
        self._backlog_bytes += written
        self._voter.synced()
        if self._log.segment_count != self._segments:
            self._segments = self._log.segment_count
            self._in_thread(self._log.prepare_segment)
        self._send_entries(entries)

    def _send_entries(self, fresh: list[Entry] | None) -> None:
        """Sends apply what is committed, as far as it has credit; the rest stays in the log until it has."""
        links = self.links
        outlet = links.outlet(Process.APPLY, Kind.ENTRIES)
        while 0 <= self._sent < self._voter.commit and outlet.open():
            if fresh and fresh[0][1] == self._sent + 1:
                entries, fresh = fresh, None
            else:
                entries = self._log.read(self._sent + 1, self._voter.commit + 1, SEND_BYTES)
            parts: list[bytes] = []
            for term, index, type_, data in entries:
                parts.append(ENTRY_HEADER.pack(index, term, type_, len(data)))
                parts.append(data)
            self._sent = entries[-1][1]
            payload = b"".join(parts)
            self._backlog_bytes -= len(payload)
            links.send(Process.APPLY, Kind.ENTRIES, payload)
        if self._sent == self._voter.commit:
            self._backlog_bytes = 0  # records in the log are a little longer than in a frame

    def _refuse(self, frames: list[Frame], status: Status) -> None:
        """Answers proposals that were not logged. Every sender bounds what it proposes, so its credit suffices."""
        code, text = status
        body = text.encode()
        for frame in frames:
            replies = [
                REPLY.pack(batch.first_sequence + i, len(body), code) + body
                for batch in batches(frame.data[HEADER_BYTES:])
                for i in range(batch.size)
            ]
            self.links.send(frame.sender, Kind.REPLIES, b"".join(replies))

    def _release(self, flushed: int) -> None:
        """The store is on disk up to `flushed`: what the log needs no more may go."""
        log = self._log
        if flushed - log.snapshot.index < self._config.snapshot_count:
            return
        term = log.term_of(flushed)
        assert term is not None, "the store flushed an index that the log does not know"
        try:
            log.append_snapshot(Snapshot(flushed, term, self._founding))
        except LogFull as error:
            self._logger.warn("cannot compact Raft logs: there is no room for the log", error=str(error))
            return
        log.sync()
        self._logger.info("saved snapshot to disk", snapshot_index=flushed)
        compact = flushed - self._config.snapshot_catchup_entries
        if compact > 0 and (released := log.release(compact, self._config.max_wals)):
            self._logger.info("compacted Raft logs", compact_index=compact, files=released)
            self._in_thread(log.remove_released)

    def _in_thread(self, work: Callable[[], None]) -> None:
        """Slow work on files that the log does not wait for. A full disk is met again, and answered, by `append`."""

        def done(future: Future[None]) -> None:
            error = future.exception()
            if error is not None:
                self._logger.warn("housekeeping of the log failed", error=str(error))

        self._thread.submit(work).add_done_callback(done)

    def tick(self) -> None:
        """See Shell."""
        if self._sent >= 0 and not self._leads:
            self._campaign()

    async def stop(self) -> None:
        """Everything appended is on disk already; lets go of the files."""
        self._thread.shutdown()
        self._log.close()

    def _state(self) -> dict[str, Any]:
        voter = self._voter
        return {
            "term": voter.term,
            "leader": voter.member,
            "committed": voter.commit,
            "metrics": {
                "etcd_disk_wal_fsync_duration_seconds": self._fsync_s.snapshot(),
                "etcd_disk_wal_write_duration_seconds": self._write_s.snapshot(),
                "etcd_disk_wal_write_bytes_total": self._written_bytes,
                "etcd_server_proposals_committed_total": voter.commit,
                "etcd_server_has_leader": 1,
                "etcd_server_is_leader": 1,
                "etcd_server_is_learner": 0,
                "etcd_server_leader_changes_seen_total": 1,
                "etcd_server_heartbeat_send_failures_total": 0,
            },
        }


def open_log(child: ChildContext, logger: Logger) -> WriteAheadLog:
    """The member's log; a new one when there is none. Raises LogDamaged, LogLocked and OSError."""
    config = child.config
    directory = DiskDirectory(Path(config.wal_path))
    fsync = not config.unsafe_no_fsync
    if not holds_log(directory):
        return WriteAheadLog.create(directory, METADATA.pack(child.member_id, child.cluster_id), fsync=fsync)
    log = WriteAheadLog.open(directory, fsync=fsync)
    if log.torn is not None:
        logger.warn("cut a torn write from the log's end", file=log.torn.file, offset=log.torn.offset)
    if log.metadata != METADATA.pack(child.member_id, child.cluster_id):
        owner = "{:x} of cluster {:x}".format(*METADATA.unpack(log.metadata))
        log.close()
        raise LogMismatch(
            f"the log {config.wal_path} is that of member {owner}, but the data directory {config.data_dir} "
            f"is that of member {child.member_id:x} of cluster {child.cluster_id:x}"
        )
    return log


def main(child: ChildContext) -> None:
    """Runs the raft process until the supervisor says stop."""
    if len(Founding.FromString(child.founding).members) != 1:
        raise RuntimeError("a cluster of several members is not served yet")
    sys.setswitchinterval(THREAD_SWITCH_S)
    logger = Logger.open(child.config.log)
    log = open_log(child, logger)

    def build(_fail: event_loop.Fail) -> Raft:
        fronts = [Process.FRONT + i for i in range(child.config.front_workers)]
        raft = Raft(child, Links(child.run_dir, Process.RAFT, [Process.APPLY, *fronts]), log, logger)
        child.lifeline.ready()
        return raft

    event_loop.run(child, build)
