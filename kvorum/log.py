"""The log: JSON or tab-separated lines that tools read (behaviour SL1-SL5), written by every process of a member.

A line is one os.write, so lines of several processes never mix. Fields come after the fixed keys, in order.
"""

import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from types import FrameType
from typing import Final

import orjson


class Level(IntEnum):
    """Levels by weight."""

    DEBUG = 0
    INFO = 1
    WARN = 2
    ERROR = 3
    DPANIC = 4
    PANIC = 5
    FATAL = 6


class LogFormat(StrEnum):
    """How a line is written."""

    JSON = "json"
    CONSOLE = "console"


LEVELS: Final = {level.name.lower(): level for level in Level}

DEFAULT, STDERR, STDOUT, JOURNAL = "default", "stderr", "stdout", "systemd/journal"
"""Names of outputs that are not files; `default` is standard error."""


@dataclass(frozen=True, slots=True)
class LogSettings:
    """Level (least that is written), format, and outputs: the names above or paths of files."""

    level: Level = Level.INFO
    format: LogFormat = LogFormat.JSON
    outputs: tuple[str, ...] = (DEFAULT,)


_JOURNAL_SOCKET: Final = "/run/systemd/journal/socket"
_JOURNAL_PRIORITY: Final = {
    Level.DEBUG: 7,
    Level.INFO: 6,
    Level.WARN: 4,
    Level.ERROR: 3,
    Level.DPANIC: 2,
    Level.PANIC: 2,
    Level.FATAL: 2,
}

_SAMPLE_FIRST: Final = 100
_SAMPLE_EVERY: Final = 100
_SAMPLE_MESSAGES_MAX: Final = 4096

Sink = Callable[[Level, bytes], None]


class Logger:
    """Writes lines at or above its level.

    `clock` gives nanoseconds since the epoch. After 100 lines of one level and message within a second only every
    100th is written; a fatal one always is. A write that fails (full disk, closed pipe) loses the line and nothing
    else: a member must not end because nobody reads its log.
    """

    def __init__(
        self, sinks: tuple[Sink, ...], level: Level, form: LogFormat, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self.level = level
        self._sinks = sinks
        self._encode = _json_line if form is LogFormat.JSON else _console_line
        self._clock = clock
        self._second = -1
        self._second_text = ""
        self._zone_text = ""
        self._counts: dict[tuple[Level, str], int] = {}

    @classmethod
    def open(cls, settings: LogSettings) -> "Logger":
        """Open the outputs. Raises OSError if a file or the journal cannot be opened."""
        sinks = tuple(_open_sink(output) for output in settings.outputs)
        return cls(sinks, settings.level, settings.format)

    def debug(self, msg: str, **fields: object) -> None:
        if self.level <= Level.DEBUG:
            self._write(Level.DEBUG, msg, fields, sys._getframe(1))

    def info(self, msg: str, **fields: object) -> None:
        if self.level <= Level.INFO:
            self._write(Level.INFO, msg, fields, sys._getframe(1))

    def warn(self, msg: str, **fields: object) -> None:
        if self.level <= Level.WARN:
            self._write(Level.WARN, msg, fields, sys._getframe(1))

    def error(self, msg: str, **fields: object) -> None:
        if self.level <= Level.ERROR:
            self._write(Level.ERROR, msg, fields, sys._getframe(1))

    def fatal(self, msg: str, **fields: object) -> None:
        """Write the member's last word; the caller ends the process."""
        self._write(Level.FATAL, msg, fields, sys._getframe(1))

    def log(self, level: Level, msg: str, **fields: object) -> None:
        """Write at a level that is known only when the member runs."""
        if self.level <= level:
            self._write(level, msg, fields, sys._getframe(1))

    def _write(self, level: Level, msg: str, fields: dict[str, object], frame: FrameType) -> None:
        now_ns = self._clock()
        second = now_ns // 1_000_000_000
        if second != self._second:
            self._second = second
            self._second_text, self._zone_text = _second_texts(second)
            self._counts.clear()
        if level is not Level.FATAL and not self._sampled(level, msg):
            return
        ts = f"{self._second_text}.{now_ns // 1000 % 1_000_000:06d}{self._zone_text}"
        code = frame.f_code.co_filename
        cut = code.rfind("/", 0, max(code.rfind("/"), 0))
        line = self._encode(level, ts, f"{code[cut + 1 :]}:{frame.f_lineno}", msg, fields)
        for sink in self._sinks:
            sink(level, line)

    def _sampled(self, level: Level, msg: str) -> bool:
        counts = self._counts
        if len(counts) >= _SAMPLE_MESSAGES_MAX:
            counts.clear()
        count = counts[level, msg] = counts.get((level, msg), 0) + 1
        return count <= _SAMPLE_FIRST or (count - _SAMPLE_FIRST) % _SAMPLE_EVERY == 0


def _second_texts(second: int) -> tuple[str, str]:
    local = time.localtime(second)
    zone = "Z" if local.tm_gmtoff == 0 else time.strftime("%z", local)
    return time.strftime("%Y-%m-%dT%H:%M:%S", local), zone


def _field(value: object) -> object:
    """What orjson does not know becomes its text: an exception, a URL, an int beyond 64 bits."""
    return str(value)


def _fields_json(value: dict[str, object]) -> bytes:
    try:
        return orjson.dumps(value, default=_field, option=orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError:  # a string that is not UTF-8, or too large an int, somewhere inside
        texts = {key: repr(item).encode("utf-8", "backslashreplace").decode() for key, item in value.items()}
        return orjson.dumps(texts)


def _json_line(level: Level, ts: str, caller: str, msg: str, fields: dict[str, object]) -> bytes:
    line = {"level": level.name.lower(), "ts": ts, "caller": caller, "msg": msg}
    return _fields_json({**line, **{_free_key(key): value for key, value in fields.items()}}) + b"\n"


def _free_key(key: str) -> str:
    """Fields are given as Python names; keys of the log have hyphens."""
    return key.replace("_", "-")


def _console_line(level: Level, ts: str, caller: str, msg: str, fields: dict[str, object]) -> bytes:
    line = "\t".join((ts, level.name.lower(), caller, msg)).encode("utf-8", "backslashreplace")
    if fields:
        line += b"\t" + _fields_json({_free_key(key): value for key, value in fields.items()})
    return line + b"\n"


def _open_sink(output: str) -> Sink:
    if output in (DEFAULT, STDERR):
        return _file_sink(2)
    if output == STDOUT:
        return _file_sink(1)
    if output == JOURNAL:
        return _journal_sink(_JOURNAL_SOCKET)
    return _file_sink(os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644))


def _file_sink(fd: int) -> Sink:
    def write(_level: Level, line: bytes) -> None:
        try:
            while line:
                line = line[os.write(fd, line) :]
        except OSError:
            return  # nowhere is left to say it

    return write


def _journal_sink(path: str) -> Sink:
    """The journal's native protocol: one datagram per line; a value with its length may hold any byte."""
    journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        journal.connect(path)
    except OSError:
        journal.close()
        raise
    fd = journal.detach()

    def write(level: Level, line: bytes) -> None:
        text = line[:-1]
        head = b"PRIORITY=%d\nSYSLOG_IDENTIFIER=kvorum\nMESSAGE\n" % _JOURNAL_PRIORITY[level]
        try:
            os.write(fd, head + len(text).to_bytes(8, "little") + text + b"\n")
        except OSError:
            return

    return write
