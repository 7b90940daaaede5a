"""The values that the consensus core takes in and hands out. Entries are the tuples of the write-ahead log."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from node.raft.wal.record import Entry, HardState

__all__ = [
    "APPEND_THREAD",
    "APPLY_THREAD",
    "MESSAGE_NAMES",
    "NOBODY",
    "NO_LIMIT",
    "ROLE_NAMES",
    "ConfState",
    "Entry",
    "EntryType",
    "HardState",
    "LogLevel",
    "Message",
    "MessageType",
    "ReadState",
    "Role",
    "Snapshot",
    "SoftState",
    "encoded_size",
    "payload_bytes",
]

NOBODY: Final = 0
"""The id that no member has: no leader, no vote."""

APPEND_THREAD: Final = (1 << 64) - 1
"""Where the storage writes go when they are asynchronous: what appends to the log and keeps the hard state."""

APPLY_THREAD: Final = (1 << 64) - 2
"""Where committed entries go when storage writes are asynchronous."""

NO_LIMIT: Final = (1 << 64) - 1


class LogLevel(IntEnum):
    """How loud a line is that the core gives to its `log` callback."""

    DEBUG = 0
    INFO = 1
    WARN = 2
    ERROR = 3
    FATAL = 4


class EntryType(IntEnum):
    """What an entry's data is."""

    NORMAL = 0
    CONF_CHANGE = 1  # exactly one change
    CONF_CHANGE_V2 = 2  # any number of changes; without data it leaves the joint configuration
    FOUNDING = 3  # the shell's: a new group's first entry names its members; the core never makes one


class Role(IntEnum):
    """What a member is in its term (Raft paper, figure 4; pre-candidate: Raft thesis, section 9.6)."""

    FOLLOWER = 0
    CANDIDATE = 1
    LEADER = 2
    PRE_CANDIDATE = 3


ROLE_NAMES: Final = ("StateFollower", "StateCandidate", "StateLeader", "StatePreCandidate")
"""By role: the name in log lines."""


class MessageType(IntEnum):
    """What a message asks or answers."""

    PROP = 0
    APP = 1
    APP_RESP = 2
    VOTE = 3
    VOTE_RESP = 4
    SNAP = 5
    HEARTBEAT = 6
    HEARTBEAT_RESP = 7
    TRANSFER_LEADER = 8
    TIMEOUT_NOW = 9
    READ_INDEX = 10
    READ_INDEX_RESP = 11
    PRE_VOTE = 12
    PRE_VOTE_RESP = 13
    # Between the core and the storage of its own member; they never travel.
    STORAGE_APPEND = 14
    STORAGE_APPEND_RESP = 15
    STORAGE_APPLY = 16
    STORAGE_APPLY_RESP = 17


MESSAGE_NAMES: Final = tuple("Msg" + type_.name.title().replace("_", "") for type_ in MessageType)
"""By message type: the name in log lines."""


class SoftState(NamedTuple):
    """What a member may forget: who leads, and what it is itself."""

    lead: int
    role: Role


@dataclass(frozen=True, slots=True)
class ReadState:
    """The answer to `read_index`: a read asked under `context` is linearizable once `index` is applied."""

    index: int
    context: bytes


@dataclass(frozen=True, slots=True)
class ConfState:
    """A configuration as snapshots carry it; ids in ascending order. Joint while `voters_outgoing` is not empty."""

    voters: tuple[int, ...] = ()
    voters_outgoing: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()
    learners_next: tuple[int, ...] = ()  # voters on their way out that become learners
    auto_leave: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state up to `index` exists outside the log; `data` is the application's, opaque here."""

    index: int
    term: int
    conf_state: ConfState
    data: bytes = b""


@dataclass(slots=True)
class Message:
    """Any message; a field that a type does not use keeps its default. Who receives one must not change it.

    | type | fields beside to, sender, term |
    |---|---|
    | PROP | entries (term and index still 0); no term |
    | APP | log_term, index: the entry before `entries`; entries; commit |
    | APP_RESP | index: matched up to here; or reject, index: of the refused APP, reject_hint and log_term: try here |
    | VOTE, PRE_VOTE | log_term, index: the candidate's last entry; context `TRANSFER`: by the leader's own wish |
    | VOTE_RESP, PRE_VOTE_RESP | reject |
    | SNAP | snapshot |
    | HEARTBEAT, HEARTBEAT_RESP | commit; context: of the last read that waits for a quorum |
    | TRANSFER_LEADER | sender: who shall lead |
    | READ_INDEX | entries: one whose data is the context; no term |
    | READ_INDEX_RESP | index, entries: as in the request |
    | STORAGE_APPEND | entries, snapshot; term, vote, commit: the hard state, all 0 for none; responses |
    | STORAGE_APPEND_RESP | log_term, index: stable up to here; snapshot: installed |
    | STORAGE_APPLY, STORAGE_APPLY_RESP | entries; responses |
    """

    type: MessageType
    to: int = NOBODY
    sender: int = NOBODY
    term: int = 0
    log_term: int = 0
    index: int = 0
    commit: int = 0
    vote: int = NOBODY
    entries: Sequence[Entry] = ()
    reject: bool = False
    reject_hint: int = 0
    context: bytes = b""
    snapshot: Snapshot | None = None
    responses: "Sequence[Message]" = ()


def payload_bytes(entries: Sequence[Entry]) -> int:
    """The size of the entries' data: empty entries weigh nothing."""
    if len(entries) == 1:
        return len(entries[0][3])
    return sum([len(entry[3]) for entry in entries])


def encoded_size(entry: Entry) -> int:
    """The size of an entry on the wire, as the protocol buffer (type, term, index, data) that etcd peers exchange."""
    term, index, _, data = entry
    size = 4 + max(1, (term.bit_length() + 6) // 7) + max(1, (index.bit_length() + 6) // 7)
    length = len(data)
    if length:
        size += 1 + (length.bit_length() + 6) // 7 + length
    return size
