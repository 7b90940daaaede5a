"""The directories in which databases lie: `db`, and the snapshots that come and go beside it.

A name that was changed is safe when its directory was synced. Until then a crash of the machine may keep the change or
undo it, and a removal that was not finished may leave half a database.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

from node.raft.snapshots.places import Files
from tests.sim.database import DatabaseFiles


class _Change(NamedTuple):
    old: str | None
    new: str | None
    files: DatabaseFiles


class Directories(Files):
    """By path. `before` is called before each change, and may raise."""

    def __init__(self, before: Callable[[], None]) -> None:
        self._entries: dict[str, DatabaseFiles] = {}
        self._synced: dict[str, DatabaseFiles] = {}
        self._unsynced: list[_Change] = []
        self._before = before

    # Files

    def names(self, directory: str) -> list[str]:
        return [Path(path).name for path in self._entries if str(Path(path).parent) == directory]

    def rename(self, old: str, new: str) -> None:
        self._before()
        assert new not in self._entries, f"{new} exists already"
        self._do(_Change(old, new, self._entries[old]))

    def sync(self, directory: str) -> None:
        self._before()
        left: list[_Change] = []
        for change in self._unsynced:
            if directory in (_parent(change.old), _parent(change.new)):
                _apply(self._synced, change)
            else:
                left.append(change)
        self._unsynced = left

    def remove(self, path: str) -> None:
        if path in self._entries:
            self._before()
            self._do(_Change(path, None, self._entries[path]))

    # databases

    def put(self, path: str, files: DatabaseFiles) -> None:
        """A database is made there, whole and on disk; its name is not safe yet."""
        self._before()
        assert path not in self._entries, f"{path} exists already"
        self._do(_Change(None, path, files))

    def open(self, path: str) -> DatabaseFiles:
        """That of a path, made if there is none."""
        if path not in self._entries:
            self.put(path, DatabaseFiles())
            _apply(self._synced, self._unsynced.pop())  # RocksDB syncs what it makes
        files = self._entries[path]
        assert not files.is_half, f"{path} is half removed"
        return files

    def crash(self, random: Random, *, power_lost: bool) -> None:
        """What is left of it."""
        if power_lost:
            names = dict(self._synced)
            odds = random.choice((0.1, 0.5, 0.9))
            for change in self._unsynced:
                if random.random() < odds:
                    _apply(names, change)
                elif change.new is None and change.old in names and random.random() < 0.5:
                    names[change.old] = DatabaseFiles(is_half=True)
            self._entries = names
            self._synced = dict(names)
            self._unsynced = []
        for path, files in self._entries.items():
            after = files.crash(random)
            self._entries[path] = after
            self._synced = {name: after if one is files else one for name, one in self._synced.items()}
            self._unsynced = [
                change._replace(files=after) if change.files is files else change for change in self._unsynced
            ]

    def _do(self, change: _Change) -> None:
        _apply(self._entries, change)
        self._unsynced.append(change)


def _apply(names: dict[str, DatabaseFiles], change: _Change) -> None:
    if change.old is not None:
        names.pop(change.old, None)
    if change.new is not None:
        names[change.new] = change.files


def _parent(path: str | None) -> str | None:
    return None if path is None else str(Path(path).parent)
