"""Who led, as far as a front was told: why a request was not answered in time, and how long nobody led."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import inf
from typing import Final

from kvorum import errors
from kvorum.errors import Code, Status

NEVER_PROPOSED: Final = Status(Code.DEADLINE_EXCEEDED, "context deadline exceeded")
"""P11: there was no leader all the time."""

LEADERLESS_CHECKS: Final = 3
"""WP11: so many looks in a row that find no leader end the streams that want one."""


class Leaders:
    """`now` and all moments are monotonic seconds. `leader` is 0 while none is known.

    `voters` are the cluster's voting members. `connected_since` says since when this member is connected with others,
    by id, as raft knew it lately; None while raft was not asked.
    """

    def __init__(self, member_id: int, election_timeout_s: float) -> None:
        self._member_id = member_id
        self._election_timeout_s = election_timeout_s
        self.leader = 0
        self.voters: Collection[int] = ()
        self.connected_since: Mapping[int, float] | None = None
        self._elected_at = -inf
        self._lost_at = -inf
        self._leaderless_checks = 0

    def on_leadership(self, leader: int, now: float) -> None:
        """Raft says who leads now."""
        if leader and leader != self.leader:
            self._elected_at = now
        elif not leader and self.leader:
            self._lost_at = now
        self.leader = leader

    def check(self) -> bool:
        """Called once in an election timeout: whether streams that want a leader end now (WP11)."""
        self._leaderless_checks = 0 if self.leader else self._leaderless_checks + 1
        return self._leaderless_checks == LEADERLESS_CHECKS

    def why_late(self, sent_at: float) -> Status:
        """What a proposal ends with that was sent then and is not answered within the request timeout (P11, P12)."""
        if not self.leader and self._lost_at <= sent_at:
            return NEVER_PROPOSED
        if self._elected_at - 2 * self._election_timeout_s < sent_at < self._elected_at:
            return errors.TIMEOUT_DUE_TO_LEADER_FAIL
        if self.leader and self.connected_since is not None and not self._is_connected(sent_at):
            return errors.TIMEOUT_DUE_TO_CONNECTION_LOST
        return errors.TIMEOUT

    def _is_connected(self, since: float) -> bool:
        """Whether the leader, or where this member leads a quorum, was connected with this member all the time."""
        connected_since = self.connected_since or {}
        if self.leader != self._member_id:
            return connected_since.get(self.leader, inf) <= since
        connected = sum(voter == self._member_id or connected_since.get(voter, inf) <= since for voter in self.voters)
        return connected >= len(self.voters) // 2 + 1
