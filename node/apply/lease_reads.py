"""Questions about leases that only the leader's apply can answer, since it keeps the time: keep-alive, time to live.

A question that comes to another member is answered with ELSEWHERE: the front that asked finds the leader. At the
leader a question may have to wait: until its term's first entry is applied, until a quorum confirms that it still
leads, until a revoke under way is decided, or, for a lease not known here, for what was granted at other members.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from kvorum import errors
from kvorum.errors import ApiError
from kvorum.pb.rpc_pb2 import (
    LeaseKeepAliveRequest,
    LeaseKeepAliveResponse,
    LeaseLeasesResponse,
    LeaseStatus,
    LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
)
from node.apply.figures import ApplyFigures
from node.apply.leadership import Leadership
from node.apply.lease import NOT_PRIMARY, WAIT
from node.apply.machine import Machine
from node.apply.outbox import Outbox, Reader
from node.apply.read_index import ReadIndex
from node.requests import ELSEWHERE, Op, pack_read

MAX_WAITING: Final = 100_000
"""Questions that wait here; what comes beyond is refused."""


class _Waiting(NamedTuple):
    reader: Reader
    sequence: int
    op: int
    body: bytes
    until: float


class LeaseReads:
    """Answers into the outbox. `now` is a monotonic clock; what waits longer than `timeout_s` is given up."""

    def __init__(
        self,
        machine: Machine,
        outbox: Outbox,
        figures: ApplyFigures,
        now: Callable[[], float],
        leadership: Leadership,
        read_index: ReadIndex,
        timeout_s: float,
    ) -> None:
        self._machine = machine
        self._outbox = outbox
        self._figures = figures
        self._now = now
        self._leadership = leadership
        self._read_index = read_index
        self._timeout_s = timeout_s
        self._waiting: list[_Waiting] = []

    def keep_alive(self, reader: Reader, sequence: int, body: bytes, *, is_current: bool) -> None:
        """Renews a lease. `is_current`: what was granted anywhere before the question came is applied here.

        One whose revoke is under way is answered when that is decided (L9). Raises DecodeError.
        """
        self._keep_alive(reader, sequence, body, self._now() + self._timeout_s, is_current)

    def time_to_live(self, reader: Reader, sequence: int, body: bytes) -> None:
        """What is left of a lease. Raises DecodeError."""
        self._time_to_live(reader, sequence, body, self._now() + self._timeout_s)

    def leases(self) -> bytes:
        """The ids of all leases, as this member has them (L18)."""
        leases = [LeaseStatus(ID=lease_id) for lease_id in self._machine.lessor.leases()]
        return self._machine.store.header() + LeaseLeasesResponse(leases=leases).SerializeToString()

    def retry(self) -> None:
        """What was waited for may have happened, or have taken too long: asks again for all that wait."""
        waiting = self._waiting
        if not waiting:
            return
        self._waiting = []
        for reader, sequence, op, body, until in waiting:
            if op == Op.LEASE_KEEP_ALIVE:
                self._keep_alive(reader, sequence, body, until, False)
            else:
                self._time_to_live(reader, sequence, body, until)

    def _keep_alive(self, reader: Reader, sequence: int, body: bytes, until: float, is_current: bool) -> None:
        lease_id = LeaseKeepAliveRequest.FromString(body).ID
        header = self._machine.store.header()  # before the renewal (L11)
        now = self._now()
        try:
            ttl_s = self._machine.lessor.keep_alive(lease_id, now)
        except ApiError:
            self._wait_to_lead(_Waiting(reader, sequence, Op.LEASE_KEEP_ALIVE, body, until), now)
            return
        if ttl_s == WAIT:
            waiting = _Waiting(reader, sequence, Op.LEASE_KEEP_ALIVE, body, until)
            if now < until:
                self._wait(waiting)
            else:  # its front has given up; whoever keeps asking must not pile up here
                self._outbox.fail(reader, sequence, *errors.TIMEOUT)
        elif ttl_s or is_current or self._leadership.granted:
            self._figures.renewed_leases += ttl_s > 0
            reply = header + LeaseKeepAliveResponse(ID=lease_id, TTL=ttl_s).SerializeToString()
            self._outbox.reply(reader, sequence, reply)
        elif not self._read_index.add(reader, pack_read(Op.LEASE_KEEP_ALIVE, sequence, body), 0, now):  # L13, L32
            self._outbox.fail(reader, sequence, *errors.REQUEST_TOO_MANY_REQUESTS)

    def _time_to_live(self, reader: Reader, sequence: int, body: bytes, until: float) -> None:
        request = LeaseTimeToLiveRequest.FromString(body)
        now = self._now()
        try:
            found = self._machine.lessor.time_to_live(request.ID, now, keys=request.keys)
        except ApiError:
            self._wait_to_lead(_Waiting(reader, sequence, Op.LEASE_TIME_TO_LIVE, body, until), now)
            return
        response = LeaseTimeToLiveResponse(
            ID=request.ID, TTL=found.ttl_s, grantedTTL=found.granted_ttl_s, keys=found.keys
        )
        self._outbox.reply(reader, sequence, self._machine.store.header() + response.SerializeToString())

    def _wait_to_lead(self, waiting: _Waiting, now: float) -> None:
        """The lessor keeps no time here now: is that for a moment, or for another member?"""
        if not self._leadership.leads:
            self._outbox.fail(waiting.reader, waiting.sequence, ELSEWHERE, "")
        elif now < waiting.until:
            self._wait(waiting)
        elif isinstance(waiting.reader, bytes):  # another member's front goes on asking whoever leads
            self._outbox.fail(waiting.reader, waiting.sequence, ELSEWHERE, "")
        else:
            self._outbox.fail(waiting.reader, waiting.sequence, *NOT_PRIMARY)  # L33

    def _wait(self, waiting: _Waiting) -> None:
        if len(self._waiting) < MAX_WAITING:
            self._waiting.append(waiting)
        else:
            self._outbox.fail(waiting.reader, waiting.sequence, *errors.REQUEST_TOO_MANY_REQUESTS)
