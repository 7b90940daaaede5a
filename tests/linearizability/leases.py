"""Leases as clients may see them end: by a revoke, or when the whole TTL is over, counted from the last renewal.

A revision that nobody asked for may be the end of a lease; then it deletes all keys that hung on it, in sorted order.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from kvorum import errors
from kvorum.errors import Status
from kvorum.pb.mvcc_pb2 import Event
from kvorum.pb.rpc_pb2 import (
    LeaseGrantResponse,
    LeaseKeepAliveRequest,
    LeaseKeepAliveResponse,
    LeaseRevokeRequest,
    PutRequest,
)
from tests.linearizability.history import History, Operation
from tests.linearizability.replay import Replay


class _Renewal(NamedTuple):
    """Given between these two times; the lease lives for `ttl_s` from then on."""

    began_s: float
    ended_s: float
    ttl_s: int


class Leases:
    """What the clients know of each lease. `problems` says which were gone too early."""

    def __init__(self, history: History, replay: Replay, first_seen: dict[int, float], clock_error: float) -> None:
        self.problems: list[str] = []
        self._replay = replay
        self._first_seen = first_seen
        self._rate = 1 - clock_error
        self._renewals: dict[int, list[_Renewal]] = {}
        self._revoke_asked_s: dict[int, float] = {}
        for operation in history.operations:
            self._note(operation)
        for operation in history.operations:
            self._check_absence(operation)

    def ended_by(self, revision: int) -> int | None:
        """The lease whose end the revision can be; None if it is no such end, or would be too early for it."""
        events = self._replay.events(revision)
        before = self._replay.at(events[0].kv.key, revision - 1) if events else None
        if before is None or not before.lease or any(event.type != Event.DELETE for event in events):
            return None
        if [event.kv.key for event in events] != self._replay.attached(before.lease, revision - 1):
            return None
        seen_s = self._first_seen.get(revision, math.inf)
        return before.lease if self._may_be_gone(before.lease, seen_s, math.inf) else None

    def _note(self, operation: Operation) -> None:
        request, outcome = operation.request, operation.outcome
        if isinstance(request, LeaseRevokeRequest) and not isinstance(outcome, Status):
            asked = self._revoke_asked_s.get(request.ID, math.inf)
            self._revoke_asked_s[request.ID] = min(asked, operation.began_s)
        elif isinstance(outcome, LeaseGrantResponse | LeaseKeepAliveResponse) and outcome.TTL > 0:
            renewal = _Renewal(operation.began_s, operation.ended_s, outcome.TTL)
            self._renewals.setdefault(outcome.ID, []).append(renewal)

    def _may_be_gone(self, lease_id: int, at_s: float, began_s: float) -> bool:
        """Whether a lease may be gone at a time, as far as renewals say that were answered before `began_s`."""
        if self._revoke_asked_s.get(lease_id, math.inf) <= at_s:
            return True
        renewals = self._renewals.get(lease_id, ())
        return all(one.began_s + one.ttl_s * self._rate <= at_s for one in renewals if one.ended_s < began_s)

    def _check_absence(self, operation: Operation) -> None:
        request, outcome = operation.request, operation.outcome
        if isinstance(request, LeaseKeepAliveRequest):
            gone = isinstance(outcome, LeaseKeepAliveResponse) and outcome.TTL <= 0
            lease_id = request.ID
        elif isinstance(request, PutRequest):
            gone = outcome == errors.LEASE_NOT_FOUND
            lease_id = request.lease
        else:
            return
        if gone and not self._may_be_gone(lease_id, operation.ended_s, operation.began_s):
            self.problems.append(f"the lease was gone before its time: {operation}")
