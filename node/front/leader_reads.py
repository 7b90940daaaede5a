"""Questions about leases: wherever they come in, the leader's apply process answers them, since it keeps the time.

A front whose member leads asks its own apply. Otherwise raft carries the question to the leader and the answer back; it
may lose either, so what is not answered is asked again, and at once when another member leads. Without a leader the
question waits for one. Asking twice does no harm: a renewal renews again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from kvorum import errors
from kvorum.errors import Status
from node.frames import Kind, Process
from node.requests import ELSEWHERE, FIRST_FORWARD_SEQUENCE, pack_read

if TYPE_CHECKING:
    from node.front.calls import Calls, Sink

MAX_ASKS: Final = 20_000
"""Questions under way; beyond it one is refused at once."""

NOBODY: Final = 0

REPEAT_S: Final = 1.0
"""A question that was forwarded is sent again after this."""


class _Ask:
    __slots__ = ("body", "flags", "op", "sent_at", "sent_to", "sink", "token", "until")

    def __init__(self, sink: Sink, token: int, op: int, body: bytes, flags: int, until: float) -> None:
        self.sink = sink
        self.token = token
        self.op = op
        self.body = body
        self.flags = flags
        self.until = until
        self.sent_to = NOBODY
        self.sent_at = 0.0


class LeaderReads:
    """The questions of a front, by number; a sink of `Calls` for their answers, with the number for a token.

    `header` is the front's own FORWARD header; `now` and `timeout_s` are the calls'.
    """

    def __init__(
        self,
        calls: Calls,
        *,
        member_id: int,
        header: bytes,
        send: Callable[[int, int, bytes], None],
        call_soon: Callable[[Callable[[], None]], object],
        now: Callable[[], float],
        timeout_s: float,
    ) -> None:
        self._calls = calls
        self._member_id = member_id
        self._header = header
        self._send = send
        self._call_soon = call_soon
        self._now = now
        self._timeout_s = timeout_s
        self._leader = 0
        self._asks: dict[int, _Ask] = {}  # the oldest first, and so by deadline
        self._next = 0
        self._records: list[bytes] = []

    def __len__(self) -> int:
        return len(self._asks)

    def ask(self, sink: Sink, token: int, op: int, body: bytes, flags: int = 0) -> None:
        """Asks the leader; the sink gets the answer.

        It fails with `no leader` or `request timed out` when none comes in time, as there was a leader or not (L12).
        """
        if len(self._asks) >= MAX_ASKS:
            sink.fail(token, *errors.REQUEST_TOO_MANY_REQUESTS)
            return
        number = self._next
        self._next += 1
        now = self._now()
        ask = self._asks[number] = _Ask(sink, token, op, body, flags, now + self._timeout_s)
        self._route(number, ask, now)

    def on_leader(self, leader: int) -> None:
        """Another member leads, or none is known to (0)."""
        self._leader = leader
        if leader:
            now = self._now()
            for number, ask in list(self._asks.items()):
                if ask.sent_to != leader:
                    self._route(number, ask, now)

    def expire(self) -> None:
        """Ends what waited too long, and asks again for what is overdue."""
        now = self._now()
        late: list[int] = []
        for number, ask in self._asks.items():
            if ask.until > now:
                break
            late.append(number)
        self._end(late, errors.TIMEOUT if self._leader else errors.NO_LEADER)
        if self._leader:
            for number, ask in list(self._asks.items()):
                # this member's own apply answers whatever it is asked
                if ask.sent_to == NOBODY or (ask.sent_to != self._member_id and now - ask.sent_at >= REPEAT_S):
                    self._route(number, ask, now)

    def end_all(self, status: Status) -> None:
        """Ends all questions."""
        self._end(list(self._asks), status)

    def reply(self, number: int, message: bytes) -> None:
        """The answer to a question."""
        ask = self._asks.pop(number, None)
        if ask is not None:
            self._calls.forget(FIRST_FORWARD_SEQUENCE + number)
            ask.sink.reply(ask.token, message)

    def fail(self, number: int, code: int, text: str) -> None:
        """A question failed, or was asked where it cannot be answered."""
        if code != ELSEWHERE:
            self._end([number], Status(code, text))
        elif number in self._asks:
            self._asks[number].sent_to = NOBODY  # until another leader is known, or the clock turns

    def _route(self, number: int, ask: _Ask, now: float) -> None:
        """Sends a question to the leader, if there is one."""
        ask.sent_to = self._leader
        if not self._leader:
            return
        if self._leader == self._member_id:
            self._calls.read(self, number, ask.op, ask.body, ask.flags)
            return
        ask.sent_at = now
        sequence = FIRST_FORWARD_SEQUENCE + number
        self._calls.expect(sequence, self, number)
        if not self._records:
            self._call_soon(self._flush)
        self._records.append(pack_read(ask.op, sequence, ask.body, ask.flags))

    def _flush(self) -> None:
        """Sends what this turn of the loop gathered."""
        records = self._records
        self._records = []
        self._send(Process.RAFT, Kind.FORWARDS, self._header + b"".join(records))

    def _end(self, numbers: list[int], status: Status) -> None:
        for number in numbers:
            ask = self._asks.pop(number, None)
            if ask is not None:
                self._calls.forget(FIRST_FORWARD_SEQUENCE + number)
                ask.sink.fail(ask.token, *status)
