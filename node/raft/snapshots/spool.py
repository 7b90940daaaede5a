"""The files of a snapshot as they arrive: written, checked and synced. Everything here blocks: it is for a thread."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Final

from node.raft.snapshots.places import RECEIVED, RECEIVING, Files, accept, indexes, place, refuse
from node.raft.snapshots.transfer import Chunk, Header, checksum
from node.stats import Histogram

RESERVE_BYTES: Final = 128 << 20
"""What must be left on the disk beside the snapshot: for the log, which cannot wait."""


class NoRoom(Exception):
    """The disk has no room for the snapshot."""


class Damaged(Exception):
    """A file is not what the sender had."""


class Spool:
    """One snapshot in `<index>.receiving`."""

    def __init__(self, snap_path: str, header: Header, files: Files, fsync_s: Histogram) -> None:
        assert header.message.snapshot is not None
        self._header = header
        self._snap_path = snap_path
        self._index = header.message.snapshot.index
        self._files = files
        self._fsync_s = fsync_s
        self._fd = -1
        self._number = -1  # of the file that is open
        self._crc = 0
        self._completed = 0  # files
        self._failed = False
        self.directory = place(snap_path, self._index, RECEIVING)

    def begin(self) -> None:
        """Makes the directory. Raises NoRoom, with nothing done; OSError."""
        size_bytes = self._header.size_bytes
        free_bytes = shutil.disk_usage(self._snap_path).free
        if free_bytes < size_bytes + RESERVE_BYTES:
            raise NoRoom(f"the snapshot has {size_bytes} bytes, and the disk {free_bytes} bytes left")
        self._clear()
        Path(self.directory).mkdir(0o700)

    def write(self, chunk: Chunk) -> None:
        """The next chunk. Raises Damaged when it completes a file that is not what it should be; OSError.

        After an error nothing is written any more: chunks that were on their way raise Damaged.
        """
        if self._failed:
            raise Damaged("an earlier part could not be written")
        self._failed = True  # until it is written
        number, offset = chunk.place
        self._open(number)
        view = memoryview(chunk.data)
        while view:
            written = os.pwrite(self._fd, view, offset)
            view = view[written:]
            offset += written
        self._crc = checksum(chunk.data, self._crc)
        if offset == self._header.files[number].size_bytes:
            self._complete()
        self._failed = False

    def finish(self) -> None:
        """All chunks are written: the snapshot is whole, on disk, and called so. Raises Damaged and OSError."""
        if not self._failed:
            self._open(len(self._header.files))
        if self._completed != len(self._header.files):
            raise Damaged("not all parts could be written")
        accept(self._snap_path, self._index, self._files)

    def drop(self) -> None:
        """The snapshot is given up. Raises OSError."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._clear()

    def _clear(self) -> None:
        """Removes what is left of this snapshot, or of another one of its index."""
        if self._index in indexes(self._files.names(self._snap_path), RECEIVED):
            refuse(self._snap_path, self._index, self._files)
        self._files.remove(self.directory)

    def _open(self, number: int) -> None:
        """Goes on to this file; the empty ones before it are made on the way."""
        while self._number < number:
            self._number += 1
            self._crc = 0
            if self._number < len(self._header.files):
                path = f"{self.directory}/{self._header.files[self._number].name}"
                self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                if not self._header.files[self._number].size_bytes:
                    self._complete()

    def _complete(self) -> None:
        file = self._header.files[self._number]
        if self._crc != file.checksum:
            raise Damaged(f"{file.name} has the checksum {self._crc:08x}, and not {file.checksum:08x}")
        began = time.monotonic()
        os.fsync(self._fd)
        self._fsync_s.observe(time.monotonic() - began)
        self._completed += 1
        os.close(self._fd)
        self._fd = -1
