"""The tie between a child and its supervisor."""

import socket
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from kvorum.lifeline import TEXT_MAX_BYTES, Lifeline, Word, decode, encode


class Pair(NamedTuple):
    child: Lifeline
    supervisor: socket.socket

    def heard(self) -> list[tuple[Word, str]]:
        """All messages that have come."""
        messages: list[tuple[Word, str]] = []
        while True:
            try:
                packet = self.supervisor.recv(TEXT_MAX_BYTES + 1)
            except BlockingIOError:
                return messages
            if not packet:
                return messages
            messages.append(decode(packet))


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with ours, theirs:
        yield Pair(Lifeline(theirs.fileno(), 1.0), ours)


def test_beats_go_out_once_per_interval(pair: Pair) -> None:
    for tenth in range(25):
        pair.child.beat(100 + tenth / 10)
    assert pair.heard() == [(Word.BEAT, "")] * 3


def test_every_word_arrives_with_its_text(pair: Pair) -> None:
    pair.child.ready()
    with pair.child.long_operation("flush"):
        pair.child.failed("é")
    pair.child.finished("removed")
    pair.child.restart("snapshot")
    assert pair.heard() == [
        (Word.READY, ""),
        (Word.LONG_BEGIN, "flush"),
        (Word.FAILED, "é"),
        (Word.LONG_END, ""),
        (Word.FINISHED, "removed"),
        (Word.RESTART, "snapshot"),
    ]


def test_a_long_operation_ends_when_it_fails(pair: Pair) -> None:
    with pytest.raises(ZeroDivisionError), pair.child.long_operation("flush"):
        raise ZeroDivisionError
    assert pair.heard()[-1] == (Word.LONG_END, "")


def test_a_long_text_is_cut() -> None:
    assert len(encode(Word.FAILED, "é" * TEXT_MAX_BYTES)) == TEXT_MAX_BYTES + 1
    assert decode(encode(Word.FAILED, "\udcff"))[1] == "\\udcff"


def test_stop_is_heard_once_and_for_all(pair: Pair) -> None:
    assert not pair.child.stop_requested()
    pair.supervisor.send(encode(Word.STOP))
    assert pair.child.stop_requested()
    assert pair.child.stop_requested()


def test_a_supervisor_that_is_gone_means_stop(pair: Pair) -> None:
    pair.supervisor.close()
    pair.child.beat(1.0)
    pair.child.failed("x")
    assert pair.child.stop_requested()


def test_a_supervisor_that_does_not_read_blocks_nobody(pair: Pair) -> None:
    """Beats are dropped; other words wait, and go out before the next beat once there is room."""
    for second in range(10_000):
        pair.child.beat(second)
    pair.child.ready()
    pair.child.failed("late")
    assert all(word is Word.BEAT for word, _ in pair.heard())
    pair.child.beat(20_000)
    assert pair.heard() == [(Word.READY, ""), (Word.FAILED, "late"), (Word.BEAT, "")]


def test_words_that_wait_are_bounded(pair: Pair) -> None:
    for second in range(10_000):
        pair.child.beat(second)
    with pytest.raises(AssertionError):
        for _ in range(100):
            pair.child.failed("again")
