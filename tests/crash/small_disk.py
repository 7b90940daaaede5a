"""A file system of a few mebibytes that a test can fill, in a mount namespace of its own."""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from loadtest.launcher import Kind, Server, wait_until

_HOLD = 'mount -t tmpfs -o "size=$1,mode=700" kvorum-test "$2" && echo mounted && exec cat'


class SmallDisk:
    """A tmpfs at `path`, seen only by processes started with `inside`; `outside` is the same directory for the test."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        path.mkdir()
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation=private", "sh", "-c", _HOLD, "sh", str(size_bytes), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"mounted\n":
            _, reason = self._holder.communicate()
            pytest.skip(f"a private mount is not permitted here: {reason.decode().strip()}")
        self.outside = Path(f"/proc/{self._holder.pid}/root{path}")

    def inside(self, *command: str) -> list[str]:
        """The command line that runs a command where the disk is mounted."""
        return ["nsenter", f"--target={self._holder.pid}", "--mount", *command]

    @property
    def free_bytes(self) -> int:
        disk = os.statvfs(self.outside)
        return disk.f_bavail * disk.f_frsize

    def fill(self, leave_bytes: int = 0) -> None:
        """Take all space but so much, in one file."""
        with (self.outside / "filler").open("ab") as filler:

            def is_full() -> bool:
                taken_bytes = self.free_bytes - leave_bytes
                if taken_bytes > 0:
                    with contextlib.suppress(OSError):  # the member took some at the same time
                        os.posix_fallocate(filler.fileno(), os.fstat(filler.fileno()).st_size, taken_bytes)
                return self.free_bytes <= leave_bytes

            wait_until(is_full, "the disk to be full")

    def settle(self, taken_bytes: int) -> None:
        """Wait until so much is taken: what the member prepares beside its work is there."""
        disk = os.statvfs(self.outside)
        limit = disk.f_blocks * disk.f_frsize - taken_bytes
        wait_until(lambda: self.free_bytes <= limit, f"{taken_bytes} bytes to be taken")

    def release(self) -> None:
        """Give back what `fill` took."""
        (self.outside / "filler").unlink()

    def resize(self, size_bytes: int) -> None:
        subprocess.run(self.inside("mount", "-o", f"remount,size={size_bytes}", str(self.path)), check=True)

    def close(self) -> None:
        self._holder.communicate()


class ServerOnDisk(Server):
    """A kvorum whose data directory lies on a small disk; its log does not."""

    def __init__(self, disk: SmallDisk, directory: Path, flags: Mapping[str, str]) -> None:
        super().__init__(Kind.KVORUM, directory, {"data-dir": str(disk.path / "data"), **flags})
        self._disk = disk

    def command(self) -> list[str]:
        return self._disk.inside(*super().command())

    def logged(self, text: str) -> int:
        """How many lines of the log have this text."""
        return self.log_path.read_text(errors="replace").count(text)


@contextlib.contextmanager
def on_small_disk(directory: Path, size_bytes: int, **flags: str) -> Iterator[tuple[SmallDisk, ServerOnDisk]]:
    """A member that serves, on a disk of that size. Flags have `_` for `-`."""
    with contextlib.ExitStack() as stack:
        disk = SmallDisk(directory / "disk", size_bytes)
        stack.callback(disk.close)
        server = ServerOnDisk(disk, directory, {name.replace("_", "-"): value for name, value in flags.items()})
        stack.callback(server.close)
        server.start()
        yield disk, server
