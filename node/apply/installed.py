"""Which database the apply process opens: its own, or a snapshot that raft has decided on in its place."""

from __future__ import annotations

from pathlib import Path

from node.raft.snapshots.places import DECIDED, OUTGOING, REPLACED, Files, indexes, place


def install(db_path: str, snap_path: str, files: Files) -> int | None:
    """Moves the newest decided snapshot to where the database is; its index, None when there is none.

    It takes no file of the old database away before the new one is in place, and may be called again after it ended
    anywhere. Raises OSError.
    """
    directory, name = str(Path(db_path).parent), Path(db_path).name
    replaced = f"{snap_path}/{REPLACED}"
    found = indexes(files.names(snap_path), DECIDED)
    if found:
        for older in found[:-1]:  # first, since one half removed must never be the newest
            files.remove(place(snap_path, older, DECIDED))
        if name in files.names(directory):
            files.remove(replaced)
            files.rename(db_path, replaced)
            files.sync(snap_path)
            files.sync(directory)
        files.rename(place(snap_path, found[-1], DECIDED), db_path)
        files.sync(directory)
        files.sync(snap_path)
    if name in files.names(directory):
        files.remove(replaced)
    return found[-1] if found else None


def remove_outgoing(snap_path: str, files: Files) -> None:
    """Removes the checkpoints that the last generation made for followers. Raises OSError."""
    for name in files.names(snap_path):
        if name.startswith(OUTGOING):
            files.remove(f"{snap_path}/{name}")
