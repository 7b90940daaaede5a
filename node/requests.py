"""Requests and replies as they travel inside a member, and as they lie in the log.

A front gathers the requests of one turn of its loop into a *batch*: a header that says whose requests these are, then
one record per request. Raft logs batches as they are and never looks inside; apply executes the records in order. A
request's id is (member, incarnation, sequence): the sequence of the first record stands in the batch's header, the
others follow on, so the id costs nothing per request.

A record has room for the name of the user who asked and for the revision of the auth store he was known at, so that
permissions can be checked where they must be, at apply, without changing the log's format.
"""

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple


class Op(IntEnum):
    """What a record asks for. Numbers below 64 lie in logs and must never change their meaning."""

    PUT = 1
    DELETE_RANGE = 2
    TXN = 3
    COMPACT = 4
    LEASE_GRANT = 5
    LEASE_REVOKE = 6
    ALARM = 7
    PUBLISH = 8  # a member's name and client URLs
    CLUSTER_VERSION = 9
    MEMBER_ADD = 10  # these four: in the context of a membership change, body: a MemberChange
    MEMBER_REMOVE = 11
    MEMBER_UPDATE = 12
    MEMBER_PROMOTE = 13
    # answered by apply, never logged
    RANGE = 64
    RANGE_STREAM = 65
    TXN_READ = 66
    LEASE_KEEP_ALIVE = 67
    LEASE_TIME_TO_LIVE = 68
    LEASE_LEASES = 69
    MEMBER_LIST = 70
    HASH = 72
    HASH_KV = 73
    DEFRAGMENT = 74
    AUTH_STATUS = 75
    MOVE_LEADER = 76  # executed by raft, body: a MoveLeaderRequest


FORMAT_VERSION: Final = 1

BATCH: Final = struct.Struct("<IBBHIQQQ")
"""Length of the whole batch, format version, origin process, reserved, count, member, incarnation, first sequence."""

RECORD: Final = struct.Struct("<IBBH")
"""Length of the body, op, flags, length of the user's name."""

READ: Final = struct.Struct("<IBBHQ")
"""As RECORD, with the request's own sequence."""

LINEARIZABLE: Final = 1
"""Flag of a READ: the answer must hold everything that was acknowledged anywhere before the request came."""

REPLY: Final = struct.Struct("<QIB")
"""Sequence, length of the body, gRPC code; the code has MORE added when this is not the last reply to the request."""

MORE: Final = 0x80

ELSEWHERE: Final = 0x7F
"""Code of a reply that no client sees: the leader's apply alone can answer this, and here it is not."""

AUTHENTICATED: Final = 1
"""Record flag: between record and body stand the auth revision (8 bytes) and the user's name."""

FIRST_CHANGE_SEQUENCE: Final = 1 << 61
FIRST_FORWARD_SEQUENCE: Final = 3 << 60
FIRST_READ_SEQUENCE: Final = 1 << 62
"""Changes of members, forwarded questions and reads are numbered apart from proposals, so that a batch of proposals is
always gapless."""


class Batch(NamedTuple):
    """One batch of a log entry: whose requests these are, and where its records lie in the entry's data."""

    origin: int
    size: int  # requests
    member: int
    incarnation: int
    first_sequence: int
    records_at: int
    end: int


def pack_batch(origin: int, member: int, incarnation: int, first_sequence: int, records: list[bytes]) -> bytes:
    """A batch of packed records (`pack_record`), ready to be logged."""
    body = b"".join(records)
    header = BATCH.pack(
        BATCH.size + len(body), FORMAT_VERSION, origin, 0, len(records), member, incarnation, first_sequence
    )
    return header + body


def pack_record(op: int, body: bytes) -> bytes:
    """One request of a batch; the body is the API's request message as it came."""
    return RECORD.pack(len(body), op, 0, 0) + body


def pack_read(op: int, sequence: int, body: bytes, flags: int = 0) -> bytes:
    """One request that is answered without the log."""
    return READ.pack(len(body), op, flags, 0, sequence) + body


def are_replies(data: bytes, at: int) -> bool:
    """Whether `data[at:]` is one packed reply after the other, as far as that shows."""
    while at + REPLY.size <= len(data):
        at += REPLY.size + REPLY.unpack_from(data, at)[1]
    return at == len(data)


def are_batches(data: bytes) -> bool:
    """Whether `data` is one batch after the other, as far as their headers show."""
    at = 0
    end = len(data)
    while at + BATCH.size <= end:
        length, version = BATCH.unpack_from(data, at)[:2]
        if version != FORMAT_VERSION or length < BATCH.size:
            return False
        at += length
    return at == end > 0


def batches(data: bytes, at: int = 0, end: int | None = None) -> Iterator[Batch]:
    """The batches of one log entry, in order: `data[at:end]`.

    An unknown format stops the member: it must not guess what was agreed.
    """
    if end is None:
        end = len(data)
    while at < end:
        length, version, origin, _, size, member, incarnation, first = BATCH.unpack_from(data, at)
        assert version == FORMAT_VERSION, f"a log entry has format {version}; this release reads {FORMAT_VERSION}"
        yield Batch(origin, size, member, incarnation, first, at + BATCH.size, at + length)
        at += length
