"""A member's log at its start: opened or made, and held against what apply has.

A new group's log begins with its founding, the same entry for every founder, so that all of them agree on it without a
vote. A member that joins later begins with nothing and is sent everything.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kvorum.log import Logger
from kvorum.pb.internal_pb2 import MemberChange, MembershipState
from node.child import ChildContext
from node.config import Config
from node.frames import Process
from node.membership import Membership
from node.raft import changes
from node.raft.core.change import decode_change, encode_change
from node.raft.core.messages import EntryType, HardState
from node.raft.wal.disk import DiskDirectory
from node.raft.wal.log import WriteAheadLog, holds_log
from node.raft.wal.record import Entry
from node.requests import Op, pack_batch, pack_record

READ_BYTES: Final = 1 << 20

NO_INCARNATION: Final = 0
"""Nobody waits for the answers to what the start itself writes."""

METADATA: Final = struct.Struct("<QQ")
"""Of the log: member id and cluster id."""


class LogMismatch(Exception):
    """The log and the store do not belong together; the member must not start."""


def open_log(child: ChildContext, logger: Logger) -> WriteAheadLog:
    """The member's log; a new one when there is none. Raises LogDamaged, LogLocked, LogFull and OSError."""
    config = child.config
    directory = DiskDirectory(Path(config.wal_path))
    fsync = not config.unsafe_no_fsync
    metadata = METADATA.pack(child.member_id, child.cluster_id)
    if holds_log(directory):
        log = WriteAheadLog.open(directory, fsync=fsync)
    else:
        log = WriteAheadLog.create(directory, metadata, fsync=fsync)
    if log.torn is not None:
        logger.warn("cut a torn write from the log's end", file=log.torn.file, offset=log.torn.offset)
    if log.metadata != metadata:
        owner = "{:x} of cluster {:x}".format(*METADATA.unpack(log.metadata))
        log.close()
        raise LogMismatch(
            f"the log {config.wal_path} is that of member {owner}, but the data directory {config.data_dir} "
            f"is that of member {child.member_id:x} of cluster {child.cluster_id:x}"
        )
    found(log, child.founding)
    return log


def found(log: WriteAheadLog, founding: bytes) -> None:
    """Writes the first entry of a new group, unless the log has it, or the member joins a group that exists."""
    if founding and log.last_index == 0 and log.hard_state.term == 0:
        log.append([(1, 1, EntryType.FOUNDING, founding)], HardState(1, 0, 1))
        log.sync()


def check_applied(log: WriteAheadLog, config: Config, index: int, term: int) -> None:
    """Apply stands at this entry: the log must know it, and all after it. Raises LogMismatch."""
    if index > log.last_index:
        fault = f"ends at entry {log.last_index}"
    elif index < log.first_index - 1:
        fault = f"begins with entry {log.first_index}"
    elif index and log.term_of(index) != term:
        fault = f"has that entry with term {log.term_of(index)}"
    else:
        return
    raise LogMismatch(
        f"the store {config.db_path} stands at entry {index} of term {term}, but the log {config.wal_path} {fault}: "
        "they do not belong together, one of them was replaced or is missing"
    )


def force_new_cluster(log: WriteAheadLog, member_id: int, state: MembershipState, applied: int) -> list[int]:
    """Makes this member the only one (--force-new-cluster), by changes at the log's end that count as committed.

    `state` is as of entry `applied`. Everything in the log is kept, also what may never have been committed: better a
    write too many, of which nobody knew the outcome, than one too few. Returns the members dropped; a second time there
    are none, and nothing is written.
    """
    membership = Membership.restore(state)
    for _, _, type_, data in _entries_from(log, applied + 1):
        if type_ == EntryType.FOUNDING:
            membership.found(data)
        elif type_ == EntryType.CONF_CHANGE:
            for ask in changes.asked(decode_change(data).context):
                change = MemberChange.FromString(ask.body)
                if membership.check(ask.op, change) is None:
                    membership.execute(ask.op, change)
    own = membership.get(member_id)
    if own is None:
        raise LogMismatch(
            f"member {member_id:x} was removed from its cluster: it cannot begin a new one with this data"
        )
    wanted = [(Op.MEMBER_PROMOTE, member_id)] if own.isLearner else []
    others = [member.ID for member in membership.members() if member.ID != member_id]
    wanted += [(Op.MEMBER_REMOVE, other) for other in others]
    term = max(log.hard_state.term, log.last_term)
    entries: list[Entry] = []
    for op, target in wanted:
        change = MemberChange(ID=target)
        record = pack_record(op, change.SerializeToString())
        batch = pack_batch(Process.RAFT, member_id, NO_INCARNATION, 1 + len(entries), [record])
        data = encode_change(changes.conf_change(op, change, batch))
        entries.append((term, log.last_index + 1 + len(entries), EntryType.CONF_CHANGE, data))
    last = log.last_index + len(entries)
    log.append(entries, HardState(term, log.hard_state.vote, last))
    log.sync()
    return others


def starting_state(log: WriteAheadLog, applied: int) -> HardState:
    """The hard state to begin with: what was applied is committed, though the log may not have kept that.

    So is every change of members that another one follows, for a leader proposes a change only when it has applied the
    one before (Raft thesis, section 4.1). A member that began two changes behind its log could be elected by a
    majority of the members of long ago, which need not meet the majority of today.
    """
    term, vote, commit = log.hard_state
    commit = max(commit, applied, log.snapshot.index)
    changes_behind = [entry[1] for entry in _entries_from(log, commit + 1) if entry[2] != EntryType.NORMAL]
    return HardState(term, vote, changes_behind[-2] if len(changes_behind) > 1 else commit)


def _entries_from(log: WriteAheadLog, index: int) -> Iterator[Entry]:
    while index <= log.last_index:
        entries = log.read(index, log.last_index + 1, READ_BYTES)
        yield from entries
        index += len(entries)
