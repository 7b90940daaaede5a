"""A disk in memory that forgets what was not synced, as power loss makes a real one do.

Every write changes the content that the program sees. `crash` decides sector by sector, and for the length and the
names too, whether the old or the new state survives; only a sync takes that freedom away.
"""

import errno
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

SECTOR_BYTES = 512


@dataclass
class _Inode:
    content: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    is_synced: bool = True
    syncs: int = 0
    last_sync: int = 0

    def end_sync(self, number: int, content: bytes) -> None:
        """The sync of that number, which began with that content, is done."""
        if number > self.last_sync:  # a sync that began later and is done already covers more
            self.last_sync = number
            self.synced = content
            self.is_synced = content == self.content

    def crashed(self, random_source: random.Random) -> "_Inode":
        if self.is_synced:
            return _Inode(bytearray(self.content), bytes(self.content))
        size = random_source.choice((len(self.content), max(len(self.synced), len(self.content))))
        new = self.content.ljust(size, b"\0")
        old = self.synced[:size].ljust(size, b"\0")
        odds = random_source.choice((0.1, 0.5, 0.9))
        for begin in range(0, size, SECTOR_BYTES):
            end = begin + SECTOR_BYTES
            if new[begin:end] != old[begin:end] and random_source.random() < odds:
                new[begin:end] = old[begin:end]
        return _Inode(new, bytes(new))


def _apply(names: dict[str, _Inode], old: str | None, new: str | None, inode: _Inode) -> None:
    if old is not None:
        names.pop(old, None)
    if new is not None:
        names[new] = inode


class SimulatedDisk:
    """The files of one directory; open it as often as the program restarts.

    `before` is called with the name of every operation before it runs and may raise OSError.
    """

    def __init__(self, free_bytes: int = 1 << 30) -> None:
        self.entries: dict[str, _Inode] = {}
        self.free_bytes = free_bytes
        self.open_files = 0
        self.before: Callable[[str, str], None] = lambda operation, name: None
        self.deferred: list[Callable[[], None]] | None = None
        """When set, a sync returns at once, and takes effect when what it leaves here is called."""
        self._synced_entries: dict[str, _Inode] = {}
        self._unsynced: list[tuple[str | None, str | None, _Inode]] = []

    def change(self, old: str | None, new: str | None, inode: _Inode) -> None:
        """A file loses its old name, or gets a new one, or both at once."""
        self._unsynced.append((old, new, inode))
        _apply(self.entries, old, new, inode)

    def synced(self) -> None:
        """The names are on disk."""
        self._synced_entries = dict(self.entries)
        self._unsynced.clear()

    def crash(self, random_source: random.Random) -> "SimulatedDisk":
        """What is left after power loss: of the changes since each one's last sync, any or none, in names and files."""
        names = dict(self._synced_entries)
        odds = random_source.choice((0.1, 0.5, 0.9))
        for old, new, inode in self._unsynced:
            if random_source.random() < odds:
                _apply(names, old, new, inode)
        after = SimulatedDisk(self.free_bytes)
        after.entries = {name: inode.crashed(random_source) for name, inode in names.items()}
        after.synced()
        return after

    def killed(self) -> "SimulatedDisk":
        """What is left after the process died alone: all it wrote, none of it safer than before."""
        after = SimulatedDisk(self.free_bytes)
        after.entries = dict(self.entries)
        after._synced_entries, after._unsynced = self._synced_entries, self._unsynced
        return after


class SimulatedFile:
    """A `files.File` of the simulated disk."""

    def __init__(self, disk: SimulatedDisk, inode: _Inode) -> None:
        self._disk, self._inode = disk, inode
        self._in_use = False
        disk.open_files += 1

    def _before(self, operation: str) -> None:
        names = [name for name, inode in self._disk.entries.items() if inode is self._inode]
        self._disk.before(operation, names[0] if names else "")

    def size(self) -> int:
        return len(self._inode.content)

    def read(self, offset: int, length: int) -> bytes:
        self._before("read")
        return bytes(self._inode.content[offset : offset + length])

    def write(self, offset: int, parts: Sequence[bytes]) -> None:
        data = b"".join(parts)
        content = self._inode.content
        try:
            self._before("write")
        except OSError:
            data = data[: len(data) // 2]  # a failed write leaves part of it
            content[offset : offset + len(data)] = data
            self._inode.is_synced = False
            raise
        assert offset + len(data) <= len(content), "the log writes only where room was made"
        content[offset : offset + len(data)] = data
        self._inode.is_synced = False

    def allocate(self, size: int) -> None:
        self._before("allocate")
        grow = size - self.size()
        if grow > 0:
            if grow > self._disk.free_bytes:
                raise OSError(errno.ENOSPC, "No space left on device")
            self._disk.free_bytes -= grow
            self._inode.content.extend(bytes(grow))
            self._inode.is_synced = False

    def truncate(self, size: int) -> None:
        self._before("truncate")
        content = self._inode.content
        del content[size:]
        content.extend(bytes(size - len(content)))
        self._inode.is_synced = False

    def sync(self) -> None:
        self._in_use = True
        self._inode.syncs += 1
        started = self._inode.syncs
        content = bytes(self._inode.content)  # what is written while the sync runs may be missed
        try:
            self._before("sync")
        finally:
            self._in_use = False
        if self._disk.deferred is None:
            self._inode.end_sync(started, content)
        else:
            self._disk.deferred.append(lambda: self._inode.end_sync(started, content))

    def close(self) -> None:
        assert not self._in_use, "closed while a sync runs"
        assert self._disk.open_files > 0
        self._disk.open_files -= 1


class SimulatedDirectory:
    """A `files.Directory` of the simulated disk."""

    def __init__(self, disk: SimulatedDisk) -> None:
        self._disk = disk

    def names(self) -> list[str]:
        return list(self._disk.entries)

    def create(self, name: str) -> SimulatedFile:
        self._disk.before("create", name)
        inode = _Inode()
        self._disk.change(None, name, inode)
        return SimulatedFile(self._disk, inode)

    def open(self, name: str) -> SimulatedFile:
        self._disk.before("open", name)
        return SimulatedFile(self._disk, self._disk.entries[name])

    def rename(self, old: str, new: str) -> None:
        self._disk.before("rename", old)
        self._disk.change(old, new, self._disk.entries[old])

    def remove(self, name: str) -> None:
        self._disk.before("remove", name)
        inode = self._disk.entries[name]
        self._disk.free_bytes += len(inode.content)
        self._disk.change(name, None, inode)

    def sync(self) -> None:
        self._disk.before("sync", ".")
        self._disk.synced()

    def close(self) -> None:
        pass
