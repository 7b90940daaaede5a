"""A child process's tie to the supervisor: it dies with it, tells it that it lives, and hears when to stop.

Over one SOCK_SEQPACKET socket, so a message is a packet: its first byte says what it is, the rest is text.
"""

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Final

TEXT_MAX_BYTES: Final = 4000
_PENDING_MAX: Final = 16

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15


class Word(IntEnum):
    """What a message says; `STOP` is the supervisor's, the others are a child's."""

    BEAT = ord(".")
    READY = ord("r")
    LONG_BEGIN = ord("b")
    LONG_END = ord("e")
    FAILED = ord("f")
    FINISHED = ord("x")
    RESTART = ord("n")
    STOP = ord("s")


def encode(word: Word, text: str = "") -> bytes:
    """A message's bytes; a long text is cut."""
    return bytes((word,)) + text.encode("utf-8", "backslashreplace")[:TEXT_MAX_BYTES]


def decode(packet: bytes) -> tuple[Word, str]:
    """The message of a packet that is not empty."""
    return Word(packet[0]), packet[1:].decode("utf-8", "replace")


class Lifeline:
    """A child's end. Its process's main loop calls `beat` each turn, so that a stuck process is a silent one.

    The file descriptor is readable when the supervisor says stop: watch it in the loop or the ZeroMQ poller, then
    ask `stop_requested`. No call blocks: when the supervisor does not read, beats are dropped (those it has not
    read say as much) and other messages wait for the next call, at most 16 of them.
    """

    def __init__(self, fd: int, beat_interval_s: float = 1.0) -> None:
        self._fd = fd
        self._beat_interval_s = beat_interval_s
        self._next_beat_s = 0.0
        self._pending: list[bytes] = []
        self._stop = False
        os.set_blocking(fd, False)

    def __reduce__(self) -> tuple[type["Lifeline"], tuple[int, float]]:
        return Lifeline, (inherit(self._fd), self._beat_interval_s)

    def fileno(self) -> int:
        return self._fd

    def beat(self, now_s: float) -> None:
        """Say that the loop turns; `now_s` is time.monotonic(). Cheap: sends once per interval."""
        if now_s >= self._next_beat_s:
            self._next_beat_s = now_s + self._beat_interval_s
            if not self._flush():
                return
            self._write(b".")

    def ready(self) -> None:
        """Say, once, that this process serves."""
        self._send(Word.READY)

    @contextmanager
    def long_operation(self, name: str) -> Iterator[None]:
        """Silence is allowed inside; `name` is for the log."""
        self._send(Word.LONG_BEGIN, name)
        try:
            yield
        finally:
            self._send(Word.LONG_END)

    def failed(self, text: str) -> None:
        """Say why this process is about to end itself: the member begins a new generation."""
        self._send(Word.FAILED, text)

    def finished(self, text: str) -> None:
        """Say that the member's work is over (it was removed from the cluster): all stop in order, exit code 0."""
        self._send(Word.FINISHED, text)

    def restart(self, text: str) -> None:
        """Ask for a new generation, which is no failure: a snapshot is to be installed. This one is ended soon after;
        until then this process must do nothing that its successor could not know of."""
        self._send(Word.RESTART, text)

    def stop_requested(self) -> bool:
        """Whether the supervisor has said stop, or is gone."""
        while not self._stop:
            try:
                packet = os.read(self._fd, 64)
            except BlockingIOError:
                return False
            except ConnectionError:
                packet = b""
            self._stop = not packet or packet[0] == Word.STOP
        return True

    def close(self) -> None:
        os.close(self._fd)

    def _send(self, word: Word, text: str = "") -> None:
        assert len(self._pending) < _PENDING_MAX, "the supervisor has not read for long, and this child says too much"
        self._pending.append(encode(word, text))
        self._flush()

    def _flush(self) -> bool:
        while self._pending:
            if not self._write(self._pending[0]):
                return False
            del self._pending[0]
        return True

    def _write(self, packet: bytes) -> bool:
        try:
            os.write(self._fd, packet)
        except BlockingIOError:
            return False
        except ConnectionError:
            return True  # the supervisor is gone, and so is this process in a moment
        return True


def inherit(fd: int) -> int:
    """While a child process is being spawned: let it have `fd`, under the same number."""
    from multiprocess.context import get_spawning_popen

    popen = get_spawning_popen()
    assert popen is not None, "file descriptors are passed on to a child being spawned, and nowhere else"
    number = popen.duplicate_for_child(fd)
    assert isinstance(number, int)
    return number


def tie_to_parent(parent_pid: int, title: str) -> None:
    """First thing in a child: die when the supervisor dies (prctl(2) PR_SET_PDEATHSIG), obey only its word.

    `title` is the process's name in the system's lists, of which 15 bytes are kept. SIGINT and SIGTERM, blocked while
    the child was spawned, are ignored from here on: a Ctrl-C reaches every process of the terminal.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl PR_SET_PDEATHSIG")
    if os.getppid() != parent_pid:  # it died before the line above
        os.kill(os.getpid(), signal.SIGKILL)
    libc.prctl(_PR_SET_NAME, ctypes.c_char_p(title.encode()[:15]), 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
