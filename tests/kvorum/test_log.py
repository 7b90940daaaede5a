"""Lines of the log (behaviour SL1-SL5)."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from kvorum import log as log_module
from kvorum.log import JOURNAL, Level, LogFormat, Logger, LogSettings

NOW_NS = 1_700_000_000_123_456_789


class Book:
    """A logger whose lines are kept, at a time that the test sets."""

    def __init__(self, level: Level = Level.DEBUG, form: LogFormat = LogFormat.JSON) -> None:
        self.now_ns = NOW_NS
        self.lines: list[tuple[Level, bytes]] = []
        self.log = Logger((lambda level, line: self.lines.append((level, line)),), level, form, lambda: self.now_ns)

    @property
    def last(self) -> dict[str, object]:
        read = orjson.loads(self.lines[-1][1])
        assert isinstance(read, dict)
        return read


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    yield monkeypatch
    monkeypatch.undo()
    time.tzset()


def test_a_line_is_one_json_object_with_the_fixed_keys_first(zone: pytest.MonkeyPatch) -> None:
    zone.setenv("TZ", "UTC")
    time.tzset()
    book = Book()
    book.log.info("hello", member_id="8e9e05c52164694d", count=3, names=["a"])
    line = book.lines[0][1]
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    assert list(book.last) == ["level", "ts", "caller", "msg", "member-id", "count", "names"]
    assert (book.last["level"], book.last["msg"]) == ("info", "hello")
    assert book.last["ts"] == "2023-11-14T22:13:20.123456Z"
    assert re.fullmatch(r"kvorum/test_log\.py:\d+", str(book.last["caller"]))


def test_a_zone_that_is_not_utc_is_written_as_its_offset(zone: pytest.MonkeyPatch) -> None:
    zone.setenv("TZ", "XXX-02:30")
    time.tzset()
    book = Book()
    book.log.info("x")
    assert book.last["ts"] == "2023-11-15T00:43:20.123456+0230"


def test_levels_below_the_set_one_are_not_written() -> None:
    book = Book(Level.ERROR)
    book.log.debug("a")
    book.log.info("b")
    book.log.warn("c")
    book.log.log(Level.WARN, "d")
    book.log.error("e")
    book.log.log(Level.PANIC, "f")
    book.log.fatal("g")
    levels = [orjson.loads(line)["level"] for _, line in book.lines]
    assert levels == ["error", "panic", "fatal"]


def test_the_console_form_is_tab_separated(zone: pytest.MonkeyPatch) -> None:
    zone.setenv("TZ", "UTC")
    time.tzset()
    book = Book(form=LogFormat.CONSOLE)
    book.log.warn("hello", path="/a")
    book.log.warn("bare")
    first, second = (line.decode().split("\t") for _, line in book.lines)
    assert first[:2] == ["2023-11-14T22:13:20.123456Z", "warn"]
    assert first[3:] == ["hello", '{"path":"/a"}\n']
    assert second[3:] == ["bare\n"]


def test_what_json_cannot_say_becomes_text() -> None:
    book = Book()
    book.log.info("x", error=ValueError("bad"), path=Path("/a"), level_of=Level.WARN)
    assert (book.last["error"], book.last["path"]) == ("bad", "/a")
    book.log.info("x", large=2**64, bad_text="\udcff", nested={"k": 2**70})
    assert str(2**64) in str(book.last["large"])
    assert book.last["msg"]


def test_after_100_equal_lines_in_a_second_every_100th_is_written() -> None:
    """SL5."""
    book = Book()
    for _ in range(350):
        book.log.info("same")
    book.log.info("other")
    book.log.warn("same")
    assert len(book.lines) == 100 + 2 + 2
    book.now_ns += 1_000_000_000
    book.log.info("same")
    assert len(book.lines) == 105


def test_fatal_lines_are_never_left_out() -> None:
    book = Book()
    for _ in range(150):
        book.log.fatal("same")
    assert len(book.lines) == 150


def test_sampling_remembers_a_bounded_number_of_messages() -> None:
    book = Book()
    for number in range(10_000):
        book.log.info(f"message {number}")
    assert len(book.lines) == 10_000
    assert len(book.log._counts) <= 4096


def test_files_are_appended_to_and_shared_by_processes(tmp_path: Path) -> None:
    path = tmp_path / "k.log"
    path.write_text("before\n")
    settings = LogSettings(outputs=(str(path),))
    Logger.open(settings).info("first")
    script = f"from kvorum.log import Logger, LogSettings; Logger.open(LogSettings(outputs=({str(path)!r},))).info('x')"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=20)
    Logger.open(settings).info("third")
    lines = path.read_text().splitlines()
    assert lines[0] == "before"
    assert [orjson.loads(line)["msg"] for line in lines[1:]] == ["first", "x", "third"]


@pytest.mark.parametrize(("output", "stream"), [("default", 2), ("stderr", 2), ("stdout", 1)])
def test_standard_outputs(output: str, stream: int) -> None:
    script = f"from kvorum.log import Logger, LogSettings; Logger.open(LogSettings(outputs=({output!r},))).info('x')"
    done = subprocess.run([sys.executable, "-c", script], check=True, timeout=20, capture_output=True)
    assert orjson.loads((done.stdout, done.stderr)[stream - 1])["msg"] == "x"
    assert (done.stdout, done.stderr)[2 - stream] == b""


def test_an_output_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Logger.open(LogSettings(outputs=(str(tmp_path / "none" / "k.log"),)))


def test_a_reader_that_is_gone_costs_the_line_and_no_more() -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    try:
        log = Logger((log_module._file_sink(write_fd),), Level.INFO, LogFormat.JSON)
        log.info("nobody reads this")
    finally:
        os.close(write_fd)


def test_the_journal_gets_a_datagram_per_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SL4: the journal's native protocol."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(log_module, "_JOURNAL_SOCKET", "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        with pytest.raises(FileNotFoundError):
            Logger.open(LogSettings(outputs=(JOURNAL,)))
        journal.bind("journal")
        sink = log_module._journal_sink("journal")
        log = Logger((sink,), Level.INFO, LogFormat.JSON)
        log.error("two\nlines")
        datagram = journal.recv(65536)
    head, _, tail = datagram.partition(b"MESSAGE\n")
    assert head == b"PRIORITY=3\nSYSLOG_IDENTIFIER=kvorum\n"
    size = int.from_bytes(tail[:8], "little")
    assert orjson.loads(tail[8 : 8 + size])["msg"] == "two\nlines"
    assert tail[8 + size :] == b"\n"
