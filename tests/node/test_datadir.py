"""The data directory (behaviour SL10, SL11, SL13, SL14, Q9) and the run directory."""

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from kvorum.log import Level, LogFormat, Logger
from node import datadir
from node.datadir import DataDirError
from node.rundir import SOCKET_NAME_MAX_BYTES, make_run_dir, remove_run_dir


class Book:
    def __init__(self) -> None:
        self.lines: list[dict[str, object]] = []
        self.log = Logger((self._keep,), Level.INFO, LogFormat.JSON)

    def _keep(self, _level: Level, line: bytes) -> None:
        self.lines.append(orjson.loads(line))

    @property
    def messages(self) -> list[object]:
        return [line["msg"] for line in self.lines]


@pytest.fixture
def book() -> Book:
    return Book()


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory whose path is short, as sockets need."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_missing_directory_is_made_for_the_owner_alone(tmp_path: Path, book: Book) -> None:
    data_dir = tmp_path / "above" / "d"
    datadir.prepare(str(data_dir), "", book.log)
    for path in (data_dir, data_dir / "member", data_dir / "member" / "snap", data_dir / "member" / "wal"):
        assert mode(path) == 0o700
    assert list(data_dir.iterdir()) == [data_dir / "member"]
    assert book.lines == []


def test_the_log_may_lie_elsewhere(tmp_path: Path, book: Book) -> None:
    datadir.prepare(str(tmp_path / "d"), str(tmp_path / "w"), book.log)
    assert mode(tmp_path / "w") == 0o700
    assert not (tmp_path / "d" / "member" / "wal").exists()


def test_a_directory_open_to_others_is_warned_of(tmp_path: Path, book: Book) -> None:
    data_dir = tmp_path / "d"
    data_dir.mkdir()
    data_dir.chmod(0o755)
    datadir.prepare(str(data_dir), "", book.log)
    assert book.messages == ["check file permission"]
    assert book.lines[0]["mode"] == "0755"
    assert mode(data_dir) == 0o755


def test_a_foreign_file_is_warned_of(tmp_path: Path, book: Book) -> None:
    data_dir = tmp_path / "d"
    datadir.prepare(str(data_dir), "", book.log)
    (data_dir / "fixtures").mkdir()
    (data_dir / "notes.txt").touch()
    datadir.prepare(str(data_dir), "", book.log)
    assert [(line["msg"], line["filename"]) for line in book.lines] == [
        ("found invalid file under data directory", "notes.txt")
    ]


def test_a_directory_that_cannot_be_made(book: Book) -> None:
    with pytest.raises(DataDirError) as raised:
        datadir.prepare("/proc/none/d", "", book.log)
    assert str(raised.value) == "cannot access data directory: mkdir /proc/none: no such file or directory"


def test_a_directory_that_cannot_be_written_to(book: Book) -> None:
    with pytest.raises(DataDirError) as raised:
        datadir.prepare("/proc/self", "", book.log)
    text = str(raised.value)
    assert text.startswith("cannot access data directory: open /proc/self/.touch: ")


def test_a_file_in_its_place(tmp_path: Path, book: Book) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(DataDirError, match=r"^cannot access data directory: mkdir .*: not a directory$"):
        datadir.prepare(str(tmp_path / "f"), "", book.log)


def test_the_lock_is_held_until_its_last_copy_is_closed(tmp_path: Path, book: Book) -> None:
    datadir.prepare(str(tmp_path), "", book.log)
    first = datadir.lock(str(tmp_path))
    copy = os.dup(first)
    os.close(first)
    with pytest.raises(DataDirError, match="is in use by another process"):
        datadir.lock(str(tmp_path), patience_s=0.0)
    os.close(copy)
    again = datadir.lock(str(tmp_path), patience_s=0.0)
    os.close(again)


def test_a_run_directory_is_new_and_its_owners_alone(tmp_path: Path, base: Path, book: Book) -> None:
    data_dir = str(tmp_path / "d")
    datadir.prepare(data_dir, "", book.log)
    environ = {"XDG_RUNTIME_DIR": str(base), "TMPDIR": "/none"}
    first = make_run_dir(data_dir, environ)
    assert Path(first).parent == base
    assert mode(Path(first)) == 0o700
    assert (tmp_path / "d" / "member" / "run").readlink() == Path(first)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{first}/{'s' * SOCKET_NAME_MAX_BYTES}")
    remove_run_dir(data_dir, first)
    assert list(base.iterdir()) == []
    assert not (tmp_path / "d" / "member" / "run").is_symlink()


def test_what_a_killed_member_left_is_removed(tmp_path: Path, base: Path, book: Book) -> None:
    data_dir = str(tmp_path / "d")
    datadir.prepare(data_dir, "", book.log)
    environ = {"TMPDIR": str(base)}
    left = make_run_dir(data_dir, environ)
    (Path(left) / "socket").touch()
    new = make_run_dir(data_dir, environ)
    assert list(base.iterdir()) == [Path(new)]


def test_a_link_to_something_else_removes_nothing(tmp_path: Path, base: Path, book: Book) -> None:
    data_dir, other = str(tmp_path / "d"), tmp_path / "other"
    datadir.prepare(data_dir, "", book.log)
    other.mkdir()
    (tmp_path / "d" / "member" / "run").symlink_to(other)
    make_run_dir(data_dir, {"TMPDIR": str(base)})
    assert other.is_dir()


def test_too_long_a_path_for_sockets_is_refused(tmp_path: Path, book: Book) -> None:
    datadir.prepare(str(tmp_path / "d"), "", book.log)
    base = tmp_path / ("x" * 100)
    base.mkdir()
    with pytest.raises(OSError, match="set XDG_RUNTIME_DIR to a shorter directory"):
        make_run_dir(str(tmp_path / "d"), {"TMPDIR": str(base)})
    assert list(base.iterdir()) == []
