"""What the log needs of a disk, and no more: the real one is `disk.py`, a simulated one serves the tests.

Every method may raise OSError. Nothing written is on disk before the file's `sync`, no name before the directory's.
"""

from collections.abc import Sequence
from typing import Protocol


class File(Protocol):
    """One open file. Distinct calls may come from two threads at once."""

    def size(self) -> int:
        """The length in bytes."""

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`, fewer only at the file's end."""

    def write(self, offset: int, parts: Sequence[bytes]) -> None:
        """Write all the parts, one behind the other, from `offset` on."""

    def allocate(self, size: int) -> None:
        """Make the file at least `size` bytes long, its new part zero and its blocks reserved."""

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes, or lengthen it with zeros that reserve nothing."""

    def sync(self) -> None:
        """Return when the content and the length are on disk."""

    def close(self) -> None:
        """Let go of the file."""


class Directory(Protocol):
    """The directory that holds the log, locked for this process."""

    def names(self) -> list[str]:
        """The names of all files in it."""

    def create(self, name: str) -> File:
        """A new empty file, for its owner alone (0600); one of that name is replaced."""

    def open(self, name: str) -> File:
        """An existing file, for reading and writing."""

    def rename(self, old: str, new: str) -> None:
        """Give a file another name."""

    def remove(self, name: str) -> None:
        """Remove a file; open ones stay readable."""

    def sync(self) -> None:
        """Return when all names are on disk."""

    def close(self) -> None:
        """Let go of the directory and its lock."""
