"""A member's log at its start: opened or made, and held against what apply has.

A new group's log begins with its founding, the same entry for every founder, so that all of them agree on it without a
vote. A member that joins later begins with nothing and is sent everything.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

from node.child import ChildContext
from node.config import Config
from node.log import Logger
from node.raft.core.messages import EntryType, HardState
from node.raft.wal.disk import DiskDirectory
from node.raft.wal.log import WriteAheadLog, holds_log

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


def starting_state(log: WriteAheadLog, applied: int) -> HardState:
    """The hard state to begin with: what was applied is committed, though the log may not have kept that."""
    term, vote, commit = log.hard_state
    return HardState(term, vote, max(commit, applied, log.snapshot.index))
