"""What lies in a member's `snap` directory, and how a received snapshot moves through it.

| name | what it is | made by | removed by |
|---|---|---|---|
| `outgoing-<number>` | a checkpoint for followers | apply | raft, when it has served; apply, at its start |
| `<index>.receiving` | worth nothing: not yet whole, or refused | raft | raft, at its start at the latest |
| `<index>.received` | whole and on disk, but the log may know nothing of it | raft | raft: see `settle` |
| `<index>.db` | the log begins behind `<index>`: the member's database from now on | raft | apply moves it to `db` |
| `replaced` | the database it took the place of | apply | apply |
| `figures` | what raft has counted of snapshots, for the generation that one begins | raft | raft, at its start |

Raft renames `.received` to `.db` only when the snapshot's record in its log is on disk: that record decides. Apply
looks at `.db` alone. So both may start at the same time, and no order of their steps, and no end in between, installs
a snapshot that was not decided, or loses one that was (docs/decisions/0008-installing-a-snapshot.md).
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Final

RECEIVING: Final = ".receiving"
RECEIVED: Final = ".received"
DECIDED: Final = ".db"
REPLACED: Final = "replaced"
OUTGOING: Final = "outgoing-"
FIGURES: Final = "figures"

_INDEXED: Final = re.compile(r"([0-9a-f]{16})(\.[a-z]+)")


class Files:
    """The file system, as far as snapshots are moved in it. Every method may raise OSError."""

    def names(self, directory: str) -> list[str]:
        """What lies in a directory; nothing in one that does not exist."""
        try:
            return [path.name for path in Path(directory).iterdir()]
        except FileNotFoundError:
            return []

    def rename(self, old: str, new: str) -> None:
        """Gives a directory another name, in one step."""
        Path(old).rename(new)

    def sync(self, directory: str) -> None:
        """Returns when all names in the directory are on disk."""
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def write(self, path: str, data: bytes) -> None:
        """Writes a file that nobody will miss if it is lost."""
        Path(path).write_bytes(data)

    def take(self, path: str) -> bytes | None:
        """What is in a file, which is then removed; None if there is none."""
        try:
            data = Path(path).read_bytes()
            Path(path).unlink()
        except FileNotFoundError:
            return None
        return data

    def remove(self, path: str) -> None:
        """Removes a directory and what is in it, file by file, if it exists."""
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            return


def place(snap_path: str, index: int, suffix: str) -> str:
    """Where the snapshot of an index lies."""
    return f"{snap_path}/{index:016x}{suffix}"


def indexes(names: list[str], suffix: str) -> list[int]:
    """The indexes of the snapshots whose names end so, ascending."""
    matches = [_INDEXED.fullmatch(name) for name in names]
    return sorted(int(match[1], 16) for match in matches if match is not None and match[2] == suffix)


def settle(snap_path: str, recorded_index: int, files: Files) -> None:
    """At raft's start: ends what the last generation began. `recorded_index`: of the log's newest snapshot record.

    A whole snapshot whose record was written is decided; any other is refused.
    """
    names = files.names(snap_path)
    for index in indexes(names, RECEIVED):
        if index == recorded_index and index not in indexes(names, DECIDED):
            decide(snap_path, index, files)
        else:
            refuse(snap_path, index, files)
    for index in indexes(names, RECEIVING):
        files.remove(place(snap_path, index, RECEIVING))


def accept(snap_path: str, index: int, files: Files) -> None:
    """All files are whole and on disk: so is, on return, the snapshot."""
    directory = place(snap_path, index, RECEIVING)
    files.sync(directory)
    files.rename(directory, place(snap_path, index, RECEIVED))
    files.sync(snap_path)


def decide(snap_path: str, index: int, files: Files) -> None:
    """The log's record of the snapshot is on disk: the next generation begins with it."""
    files.rename(place(snap_path, index, RECEIVED), place(snap_path, index, DECIDED))
    files.sync(snap_path)


def refuse(snap_path: str, index: int, files: Files) -> None:
    """The log will have no record of the snapshot."""
    # Half removed it must not look like a whole one to `settle`.
    files.rename(place(snap_path, index, RECEIVED), place(snap_path, index, RECEIVING))
    files.sync(snap_path)
    files.remove(place(snap_path, index, RECEIVING))


def decided(snap_path: str, files: Files) -> int | None:
    """The index of the newest snapshot that apply has not installed yet."""
    return max(indexes(files.names(snap_path), DECIDED), default=None)
