"""A member's data directory: made, checked, locked.

member/wal   segments of the write-ahead log (or --wal-dir)
member/snap  snapshots
member/db    the database
member/lock  locked while any process of the member lives
member/identity  the ids of member and cluster, decided at the first start (`node.identity`)
member/run   link to the run directory
"""

import fcntl
import os
import stat
import time
from pathlib import Path
from typing import Final

from kvorum.log import Logger

DIRECTORY_MODE: Final = 0o700
FILE_MODE: Final = 0o600
LOCK_PATIENCE_S: Final = 2.0
"""A member killed a moment ago holds its lock until the kernel has ended its last process."""

_LOCK_RETRY_S: Final = 0.02
_OWN: Final = frozenset(("member", "fixtures"))


class DataDirError(Exception):
    """The data directory cannot be used; the text says why."""


def prepare(data_dir: str, wal_dir: str, log: Logger) -> None:
    """Make what is missing, check that it can be written to, and warn of what looks wrong (SL10, SL13, SL14).

    Raises DataDirError.
    """
    _touch_directory(data_dir, log)
    _warn_of_foreign_files(data_dir, log)
    for name in ("member", "member/snap"):
        _make_directory(Path(data_dir) / name)
    _touch_directory(wal_dir or f"{data_dir}/member/wal", log)


def lock(data_dir: str, patience_s: float = LOCK_PATIENCE_S) -> int:
    """Lock the directory; returns the file descriptor that holds the lock until its last copy is closed (flock(2)).

    Raises DataDirError if another member holds it, still after `patience_s`.
    """
    path = Path(data_dir) / "member" / "lock"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    except OSError as error:
        raise DataDirError(f"cannot access data directory: {failure('open', path, error)}") from None
    until_s = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < until_s:
                time.sleep(_LOCK_RETRY_S)
                continue
            os.close(fd)
            raise DataDirError(f"data directory {data_dir} is in use by another process ({path} is locked)") from None
        except OSError as error:
            os.close(fd)
            raise DataDirError(f"cannot lock data directory: {failure('flock', path, error)}") from None
        return fd


def holds_log(wal_path: str) -> bool:
    """Whether there is a segment of a log."""
    return any(path.suffix == ".wal" for path in _files(wal_path))


def holds_database(db_path: str) -> bool:
    """Whether there is a database, even an empty one."""
    return any(path.name == "CURRENT" for path in _files(db_path))


def _files(directory: str) -> list[Path]:
    try:
        return list(Path(directory).iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataDirError(f"cannot access data directory: {failure('open', Path(directory), error)}") from None


def _touch_directory(directory: str, log: Logger) -> None:
    path = Path(directory)
    if path.is_dir():
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode != DIRECTORY_MODE:
            expected, found = f"{DIRECTORY_MODE:04o}", f"{mode:04o}"
            log.warn("check file permission", path=directory, recommended_mode=expected, mode=found)
    else:
        _make_directory(path)
    touch = path / ".touch"
    try:
        touch.write_bytes(b"")
        touch.unlink()
    except OSError as error:
        raise DataDirError(f"cannot access data directory: {failure('open', touch, error)}") from None


def _make_directory(path: Path) -> None:
    """Make the directory and those above it that are missing."""
    missing = [parent for parent in (path, *path.parents) if not parent.exists()]
    for directory in reversed(missing):
        try:
            directory.mkdir(DIRECTORY_MODE)
        except FileExistsError:
            continue
        except OSError as error:
            raise DataDirError(f"cannot access data directory: {failure('mkdir', directory, error)}") from None
    if not path.is_dir():
        raise DataDirError(f"cannot access data directory: mkdir {path}: not a directory")


def _warn_of_foreign_files(data_dir: str, log: Logger) -> None:
    for path in sorted(Path(data_dir).iterdir()):
        if path.name not in _OWN:
            log.warn("found invalid file under data directory", filename=path.name, data_dir=data_dir)


def failure(call: str, path: Path, error: OSError) -> str:
    """What failed and why, as the other texts of this file say it."""
    return f"{call} {path}: {(error.strerror or str(error)).lower()}"
