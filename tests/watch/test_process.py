"""The watch process over real sockets: an event goes from apply to a front, and the supervisor's stop is obeyed."""

import gc
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest

from kvorum.lifeline import Lifeline, Word, encode
from node.child import ChildContext
from node.events import MarkerAsk, decode_ask, encode_marker, encode_revision
from node.frames import HEADER_BYTES, STATE_ASK, Frame, Kind, Process
from node.link_zmq import Links
from node.watch import process
from node.watches import Create, Delivery, encode_create

DEADLINE_S = 10.0


class Member:
    """The test's ends: apply, one front and the supervisor."""

    def __init__(self, run_dir: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.supervisor = ours
        self.lifeline = Lifeline(theirs.detach())
        self.apply = Links(run_dir, Process.APPLY, [Process.WATCH])
        self.front = Links(run_dir, Process.FRONT, [Process.WATCH])
        self.errors: list[BaseException] = []
        child = SimpleNamespace(run_dir=run_dir, config=SimpleNamespace(front_workers=1), lifeline=self.lifeline)
        self.thread = threading.Thread(target=self._run, args=(cast(ChildContext, child),))
        self.thread.start()
        self.front.open(Process.WATCH, Kind.DELIVERIES)

    def _run(self, child: ChildContext) -> None:
        try:
            process.main(child)
        except BaseException as error:
            self.errors.append(error)

    def close(self) -> None:
        if self.thread.is_alive():
            self.supervisor.send(encode(Word.STOP))
            self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive()
        self.apply.close()
        self.front.close()
        self.supervisor.close()
        self.lifeline.close()


def wait(poll: Callable[[], list[Frame]]) -> list[Frame]:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        frames = poll()
        if frames:
            return frames
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.001)


@pytest.fixture
def member() -> Iterator[Member]:
    with tempfile.TemporaryDirectory(prefix="kv") as run_dir:
        started = Member(run_dir)
        try:
            yield started
        finally:
            started.close()
            gc.unfreeze()
            gc.enable()


def items(frames: list[Frame]) -> list[int]:
    return [frame.data[HEADER_BYTES] for frame in frames]


def test_an_event_passes_through(member: Member) -> None:
    supervisor: Any = member.supervisor
    assert supervisor.recv(64)[:1] in (b"r", b".")
    member.front.send(Process.WATCH, Kind.WATCHES, encode_create(Create(1, b"k", b"", 0, 0)))
    (frame,) = wait(member.apply.receive_control)
    assert frame.kind == Kind.WATCH_ASK
    ask = decode_ask(frame.data, HEADER_BYTES)
    assert isinstance(ask, MarkerAsk)
    assert member.apply.outlet(Process.WATCH, Kind.EVENTS).open(), "watch gives credit before it asks"
    member.apply.send(Process.WATCH, Kind.EVENTS, encode_marker(ask.ask, 5, -1))
    assert items(wait(member.front.receive)) == [Delivery.ANSWERED]
    change = (False, b"k", b"\x0a\x01k", None)
    member.apply.send(Process.WATCH, Kind.EVENTS, encode_revision(6, [change], False))
    frames = wait(member.front.receive)
    assert items(frames) == [Delivery.EVENTS]
    assert b"\x5a\x05\x12\x03\x0a\x01k" in frames[0].data

    member.front.send_control(Process.WATCH, Kind.STATE_ASK, STATE_ASK.pack(77))
    (state,) = wait(member.front.receive_control)
    assert state.kind == Kind.STATE
    assert STATE_ASK.unpack_from(state.data, HEADER_BYTES) == (77,)
    figures = orjson.loads(state.data[HEADER_BYTES + STATE_ASK.size :])
    assert (figures["revision"], figures["registrations"], figures["pending_bytes"]) == (6, 1, 0)
    assert figures["metrics"] == {"etcd_debugging_mvcc_slow_watcher_total": 0}


def test_it_stops_when_told(member: Member) -> None:
    member.supervisor.send(encode(Word.STOP))
    member.thread.join(DEADLINE_S)
    assert not member.thread.is_alive() and not member.errors


def test_what_must_not_be_ends_the_process(member: Member) -> None:
    wait_open = time.monotonic() + DEADLINE_S
    while not member.apply.outlet(Process.WATCH, Kind.EVENTS).open():
        member.apply.receive_control()
        assert time.monotonic() < wait_open
    member.apply.send(Process.WATCH, Kind.EVENTS, encode_revision(9, [(False, b"k", b"", None)], False))
    member.thread.join(DEADLINE_S)
    assert [str(error) for error in member.errors] == ["the events of revision 1 did not come"]
