"""What a checkpoint holds: the raft index and term of its cursor, and the members as of there.

Opening a database takes up to 50 ms, and holds Python's lock all the while: a process of its own does it.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Final

from kvorum.lifeline import tie_to_parent
from kvorum.pb.internal_pb2 import MembershipState
from kvorum.spawn import ChildProcess
from node.apply.mvcc.database import Database
from node.child import HeldFile
from node.membership import TABLE, Membership

NICENESS: Final = 10

_POSITION: Final = struct.Struct("<QQ")  # raft index and term; a MembershipState follows
_TEXT_MAX_BYTES: Final = 2000


class CheckpointError(Exception):
    """The checkpoint cannot be made or read."""


@dataclass(frozen=True, slots=True)
class Contents:
    """Raft index and term of the last whole entry, and the members as of there: MembershipState bytes."""

    index: int
    term: int
    membership: bytes


def read_apart(path: str) -> Contents:
    """Reads in a process of its own, and waits for it: for a thread. Raises CheckpointError."""
    read_fd, write_fd = os.pipe()
    with os.fdopen(read_fd, "rb") as answer:
        try:
            child = ChildProcess(_report, (os.getpid(), path, HeldFile(write_fd)), "kvorum-checkpoint")
            child.start()
        finally:
            os.close(write_fd)
        text = answer.read()
        child.join()
        status = child.exitcode
        child.close()
    if status != 0 or len(text) < _POSITION.size:
        reason = text.decode("utf-8", "replace") or f"the process that read it ended with {status}"
        raise CheckpointError(f"{path}: {reason}")
    index, term = _POSITION.unpack_from(text)
    return Contents(index, term, text[_POSITION.size :])


def _report(parent_pid: int, path: str, answer: HeldFile) -> None:
    """The process that reads: its answer, or why there is none, goes into a pipe."""
    tie_to_parent(parent_pid, "kvorum-checkpoint")
    os.nice(NICENESS)
    with os.fdopen(answer.fd, "wb") as pipe:
        try:
            contents = read_contents(path)
        except Exception as error:
            pipe.write(str(error).encode("utf-8", "backslashreplace")[:_TEXT_MAX_BYTES])
            pipe.flush()
            os._exit(1)
        pipe.write(_POSITION.pack(contents.index, contents.term) + contents.membership)


def read_contents(path: str) -> Contents:
    """Reads here. Raises what the database raises."""
    database = Database(path, read_only=True)
    cursor = database.position.cursor
    state: MembershipState = Membership(database.scan(TABLE, bytes((TABLE[0] + 1,)))).state()
    database.close()
    return Contents(cursor.index, cursor.term, state.SerializeToString(deterministic=True))
