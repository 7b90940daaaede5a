"""The real disk under the log."""

import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from node.raft.wal.errors import LogLocked

_MAX_PARTS: Final = 1024  # IOV_MAX of Linux


class DiskFile:
    """A `files.File` on a file descriptor."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._fd, length, offset)
        if len(data) == length or not data:
            return data
        chunks = [data]  # the kernel may return less than asked (2 GiB at most) without the file being at its end
        got = len(data)
        while got < length and (data := os.pread(self._fd, length - got, offset + got)):
            chunks.append(data)
            got += len(data)
        return b"".join(chunks)

    def write(self, offset: int, parts: Sequence[bytes]) -> None:
        if len(parts) > _MAX_PARTS:
            parts = [b"".join(parts)]
        written = os.pwritev(self._fd, parts, offset)
        if written != sum(map(len, parts)):
            rest = memoryview(b"".join(parts))[written:]
            offset += written
            while rest:
                written = os.pwrite(self._fd, rest, offset)
                rest = rest[written:]
                offset += written

    def allocate(self, size: int) -> None:
        needed = size - self.size()
        if needed > 0:
            # A file system takes what it has before it says that this is not enough: for that moment everyone else on
            # the disk would find it full, and this member raise its alarm.
            disk = os.fstatvfs(self._fd)
            if disk.f_blocks and disk.f_bavail * disk.f_frsize < needed:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.posix_fallocate(self._fd, 0, size)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._fd, size)

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


class DiskDirectory:
    """A `files.Directory`, made (0700) when absent and locked as long as it is open.

    Raises LogLocked when another open directory holds the lock, also one of this process; OSError otherwise.
    """

    __slots__ = ("_fd", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise LogLocked(f"{path} is locked by another process") from None
        except OSError:
            os.close(self._fd)
            raise

    def names(self) -> list[str]:
        return [entry.name for entry in self.path.iterdir()]

    def create(self, name: str) -> DiskFile:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        return DiskFile(os.open(name, flags, 0o600, dir_fd=self._fd))

    def open(self, name: str) -> DiskFile:
        return DiskFile(os.open(name, os.O_RDWR | os.O_CLOEXEC, dir_fd=self._fd))

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def remove(self, name: str) -> None:
        os.unlink(name, dir_fd=self._fd)

    def sync(self) -> None:
        os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)
