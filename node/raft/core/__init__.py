"""The consensus core: a deterministic state machine of one raft member, without I/O, clock or randomness of its own."""

from node.raft.core.change import (
    ChangeType,
    ConfChange,
    Transition,
    decode_change,
    decode_conf_state,
    encode_change,
    encode_conf_state,
)
from node.raft.core.confchange import ChangeRefused, Configuration
from node.raft.core.config import Config, ReadOnly
from node.raft.core.errors import NotFromStorage, PeerNotFound, ProposalDropped
from node.raft.core.messages import (
    APPEND_THREAD,
    APPLY_THREAD,
    NO_LIMIT,
    NOBODY,
    ConfState,
    Entry,
    EntryType,
    HardState,
    LogLevel,
    Message,
    MessageType,
    ReadState,
    Role,
    Snapshot,
    SoftState,
)
from node.raft.core.node import RawNode, Ready, Status
from node.raft.core.storage import MemoryStorage, Storage

__all__ = [
    "APPEND_THREAD",
    "APPLY_THREAD",
    "NOBODY",
    "NO_LIMIT",
    "ChangeRefused",
    "ChangeType",
    "ConfChange",
    "ConfState",
    "Config",
    "Configuration",
    "Entry",
    "EntryType",
    "HardState",
    "LogLevel",
    "MemoryStorage",
    "Message",
    "MessageType",
    "NotFromStorage",
    "PeerNotFound",
    "ProposalDropped",
    "RawNode",
    "ReadOnly",
    "ReadState",
    "Ready",
    "Role",
    "Snapshot",
    "SoftState",
    "Status",
    "Storage",
    "Transition",
    "decode_change",
    "decode_conf_state",
    "encode_change",
    "encode_conf_state",
]
