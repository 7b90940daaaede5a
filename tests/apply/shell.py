"""The shells of apply and raft with their real cores and disk, but links that a test holds in its hands."""

import socket
from collections import deque
from pathlib import Path
from typing import Any, NoReturn

from kvorum.lifeline import Lifeline
from kvorum.log import Level, LogFormat, Logger
from kvorum.pb.rpc_pb2 import RangeRequest
from node.child import ChildContext, HeldFile, Role
from node.flags import Start, parse
from node.frames import HEADER_BYTES, Frame, Kind, Process, pack, unpack
from node.link import UNBOUNDED, Outlet
from node.link_zmq import CREDITED
from node.requests import FIRST_READ_SEQUENCE, REPLY, Op, pack_read
from tests.apply.entries import INCARNATION, MEMBER

FRONT = Process.FRONT
WINDOW_BYTES = 32 << 20


class Clock:
    """Monotonic seconds that stand still until told otherwise."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.step_s = 0.0
        """How far each look at it moves it."""

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


class FakeLinks:
    """What `Links` does, into lists: `sent` by (process, kind). Credited streams have `credit_bytes` until granted."""

    def __init__(self, process: int, credit_bytes: int = WINDOW_BYTES) -> None:
        self.process = process
        self.credit_bytes = credit_bytes
        self.data_left = False
        self.sent: dict[tuple[int, int], list[bytes]] = {}
        self.data: deque[Frame] = deque()
        self.control: deque[Frame] = deque()
        self.consumed: dict[tuple[int, int], int] = {}
        self.opened: set[tuple[int, int]] = set()
        self._outlets: dict[tuple[int, int], Outlet] = {}

    def outlet(self, to: int, kind: int) -> Outlet:
        outlet = self._outlets.get((to, kind))
        if outlet is None:
            outlet = self._outlets[to, kind] = Outlet(self.credit_bytes if kind in CREDITED else UNBOUNDED)
        return outlet

    def grant(self, to: int, kind: int, size_bytes: int) -> None:
        outlet = self.outlet(to, kind)
        outlet.grant(outlet.granted + size_bytes)

    def send(self, to: int, kind: int, payload: bytes) -> None:
        start = self.outlet(to, kind).advance(len(payload))
        self.sent.setdefault((to, kind), []).append(pack(self.process, kind, start, payload))

    def send_control(self, to: int, kind: int, payload: bytes) -> None:
        self.sent.setdefault((to, kind), []).append(pack(self.process, kind, 0, payload))

    def open(self, sender: int, kind: int) -> None:
        self.opened.add((sender, kind))

    def consume(self, sender: int, kind: int, size_bytes: int) -> None:
        self.consumed[sender, kind] = self.consumed.get((sender, kind), 0) + size_bytes

    def receive(self) -> list[Frame]:
        frames = list(self.data)
        self.data.clear()
        return frames

    def receive_control(self) -> list[Frame]:
        frames = list(self.control)
        self.control.clear()
        return frames

    def take(self, to: int, kind: int) -> list[bytes]:
        """The frames sent since the last call."""
        return self.sent.pop((to, kind), [])

    def close(self) -> None:
        pass


def child_context(directory: Path, role: Role, *flags: str) -> ChildContext:
    """A child of a member whose data lies in `directory`."""
    arguments = ["kvorum", "--name=m1", f"--data-dir={directory}", "--front-workers=1", *flags]
    parsed = parse(arguments, {}, _no_file)
    assert isinstance(parsed, Start), parsed
    (directory / "member").mkdir(parents=True, exist_ok=True)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.detach()  # nobody listens, and what is said fits into the socket
    lifeline = Lifeline(theirs.detach(), 1000.0)
    return ChildContext(role, 0, parsed.config, "", INCARNATION, 0, MEMBER, 7, (), lifeline, HeldFile(-1))


def _no_file(path: str) -> NoReturn:
    raise FileNotFoundError(path)


class Lines:
    """What was logged."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.logger = Logger((self._write,), Level.DEBUG, LogFormat.JSON)

    def _write(self, _level: Level, line: bytes) -> None:
        self.lines.append(line.decode())

    def has(self, text: str) -> bool:
        return any(text in line for line in self.lines)


def reads(*requests: tuple[int, bytes], first: int = 0, front: int = FRONT) -> Frame:
    """A READS frame of (op, body)."""
    parts = [pack_read(op, FIRST_READ_SEQUENCE + first + i, body) for i, (op, body) in enumerate(requests)]
    return unpack(pack(front, Kind.READS, 0, b"".join(parts)))


def get(key: bytes, range_end: bytes = b"", **options: Any) -> tuple[int, bytes]:
    return Op.RANGE, RangeRequest(key=key, range_end=range_end, **options).SerializeToString()


def answers(frames: list[bytes]) -> list[tuple[int, int, bytes]]:
    """(read number or proposal sequence, code, body) of every reply, in order; parts have MORE in their code."""
    found = []
    for data in frames:
        at = HEADER_BYTES
        while at < len(data):
            sequence, length, code = REPLY.unpack_from(data, at)
            at += REPLY.size
            number = sequence - FIRST_READ_SEQUENCE if sequence >= FIRST_READ_SEQUENCE else sequence
            found.append((number, code, data[at : at + length]))
            at += length
    return found
