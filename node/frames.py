"""What travels between the processes of a member: one frame is one batch, and one ZeroMQ message.

A frame is a fixed header and a payload. `start` and `end` are the frame's place in its stream, counted in payload
bytes since the generation began, so that a receiver notices anything lost, repeated or out of order (`link.py`).
The payload's layout belongs to the kind; all numbers are little-endian.
"""

import struct
from enum import IntEnum
from typing import Final, NamedTuple


class Process(IntEnum):
    """Who sends or receives. Front number i is `FRONT + i`; at most 64 of them."""

    RAFT = 1
    APPLY = 2
    WATCH = 3
    FRONT = 16


MAX_FRONTS: Final = 64


class Kind(IntEnum):
    """What a frame carries. Data kinds flow in bulk; control kinds are few, small, and read first."""

    # data
    PROPOSALS = 1  # front, apply -> raft: batches of requests to log
    ENTRIES = 2  # raft -> apply: committed entries
    READS = 3  # front -> apply: requests that need no log
    REPLIES = 4  # apply -> front
    EVENTS = 5  # apply -> watch: events, markers and slices of history, in revision order
    WATCHES = 6  # front -> watch: creates, cancels and progress requests
    DELIVERIES = 7  # watch -> front: created, events, progress
    CHANGES = 8  # front -> raft: batches of one record each, a change of members or of the leader
    FORWARDS = 9  # front -> raft -> (the leader's raft) -> apply: reads that only the leader's apply can answer
    FORWARD_REPLIES = 10  # apply -> raft -> (the asking member's raft), which sends its front REPLIES
    # control
    CREDIT = 32  # receiver -> sender of a stream: (kind of the stream, bytes granted in total)
    APPLIED = 33  # apply -> raft: where the store stands at start
    LEADERSHIP = 34  # raft -> apply, front: term, leader, what may be answered
    FLUSHED = 35  # apply -> raft: the index up to which the store is on disk
    WATCH_ASK = 36  # watch -> apply: a marker or a slice of history
    STATE_ASK = 37  # front -> anyone: counters and state for Status and metrics
    STATE = 38  # anyone -> front
    SERVING = 39  # apply -> front: the store has caught up, reads may be answered
    PROGRESS = 40  # apply -> raft: the last entry executed
    READ_ASK = 41  # apply -> raft: at which index are reads linearizable that came before this?
    READ_INDEX = 42  # raft -> apply: the answer
    LEADING = 43  # raft -> apply: a quorum confirmed that this member leads
    MEMBERS = 44  # apply -> raft, front: MembershipState, after each change
    GRANT_RETURNED = 45  # apply -> raft: no read is answered any more on a grant that was taken back
    CHECKPOINT_ASK = 46  # raft -> apply: a follower needs a snapshot
    CHECKPOINT = 47  # apply -> raft: where it lies


HEADER: Final = struct.Struct("<BBHIQQ")  # sender, kind, reserved, reserved, start, end
HEADER_BYTES: Final = HEADER.size


class Frame(NamedTuple):
    """One received frame; the payload is `data[HEADER_BYTES:]`, left in place so that nothing is copied."""

    sender: int
    kind: int
    start: int
    end: int
    data: bytes


def pack(sender: int, kind: int, start: int, payload: bytes) -> bytes:
    """The bytes of a frame whose payload begins at position `start` of its stream."""
    return HEADER.pack(sender, kind, 0, 0, start, start + len(payload)) + payload


def unpack(data: bytes) -> Frame:
    """Reads a frame's header. The peers are processes of this member, so damage is a broken invariant."""
    sender, kind, _, _, start, end = HEADER.unpack_from(data)
    assert end - start == len(data) - HEADER_BYTES, "a frame between processes is not as long as it says"
    return Frame(sender, kind, start, end, data)


APPLIED: Final = struct.Struct("<QQ")  # raft index and term of the store's cursor; a MembershipState follows
LEADERSHIP: Final = struct.Struct("<QQQ?")  # term, leader's member id, last index to catch up with, solo reads granted
FLUSHED: Final = struct.Struct("<Q")  # raft index
SERVING: Final = struct.Struct("<Q")  # revision of the store
STATE_ASK: Final = struct.Struct("<Q")  # number of the ask; a STATE frame repeats it before its JSON
PROGRESS: Final = struct.Struct("<Q")  # raft index
READ_ASK: Final = struct.Struct("<Q")  # number of the ask, never used twice in a generation
READ_INDEX: Final = struct.Struct("<QQ")  # number of the ask, raft index
LEADING: Final = struct.Struct("<Qd")  # term, and until when (monotonic seconds) nobody else can lead
GRANT_RETURNED: Final = struct.Struct("<Q")  # term
CHECKPOINT_ASK: Final = struct.Struct("<Q")  # number of the ask, never used twice in a generation
CHECKPOINT: Final = struct.Struct("<QQQI")
"""Number of the ask; raft index and term of the checkpoint; length of what follows: the path, and behind it a
MembershipState. Index 0: none could be made, and what follows says why."""
FORWARD: Final = struct.Struct("<QQQ")  # of FORWARDS and FORWARD_REPLIES: member, incarnation and front that ask
ENTRY_HEADER: Final = struct.Struct("<QQBxxxI")  # of each entry in a frame of them: index, term, type, length of data
