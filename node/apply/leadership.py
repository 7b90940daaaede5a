"""What apply may do in the name of leadership, from what raft says and how far the log is applied.

Three things hang on it: from when on clients are served, who keeps the time of leases, and whether linearizable reads
need raft's word (a sole voter grants them for good, and takes the grant back before anybody else can vote).
"""

from __future__ import annotations

from math import inf

from node.apply.lease import Lessor


class Leadership:
    """`term` and `leader` are what raft said last (0: no leader is known); `now` is always monotonic seconds."""

    def __init__(self, member_id: int, lessor: Lessor, election_timeout_s: float) -> None:
        self._member_id = member_id
        self._lessor = lessor
        self._election_timeout_s = election_timeout_s
        self.term = 0
        self.leader = 0
        self.leads = False
        """Raft said that this member leads."""
        self.is_primary = False
        """It has also applied an entry of its term, so the lessor keeps the time."""
        self.granted = False
        """Whatever this member has applied is all that was acknowledged anywhere."""
        self.serving = False
        self.settled = True
        """Nothing more changes as entries are applied, until raft says something else."""
        self._catch_up_to = 0
        self._solo = False
        self._valid_until = -inf

    def on_leadership(self, term: int, leader: int, catch_up_to: int, solo: bool, now: float) -> bool:
        """Raft says who leads. Returns whether it took its grant back, and waits to hear that nobody reads on it."""
        assert term >= self.term, "raft went back to an earlier term"
        returned = self._solo and not solo
        same_reign = term == self.term and leader == self.leader
        self.term = term
        self.leader = leader
        self.leads = leader == self._member_id
        self._catch_up_to = catch_up_to
        self._solo = solo
        self.granted = self.granted and solo
        self.settled = False
        if not same_reign:
            self._valid_until = -inf
            if self.is_primary:
                self.is_primary = False
                self._lessor.demote()
        if solo:
            self.on_confirmed(term, inf, now)
        elif returned and self.leads:
            # No other member can lead before it has waited for an election timeout, and none has a vote yet.
            self._valid_until = now + self._election_timeout_s
            if self.is_primary:
                self._lessor.limit_leadership(now, self._valid_until)
        return returned

    def on_confirmed(self, term: int, valid_until: float, now: float) -> None:
        """A quorum confirmed that this member leads, and nobody else can before `valid_until`."""
        if term != self.term or not self.leads:
            return
        self._valid_until = max(self._valid_until, valid_until)
        if self.is_primary:
            self._lessor.renew_leadership(now, valid_until)

    def on_applied(self, index: int, term: int, now: float) -> None:
        """The store has applied the entry `index`, of `term`. Call it while not `settled`."""
        if term < self.term or not term:
            return  # of the reign told last nothing is applied yet
        if self.leads and not self.is_primary:
            self.is_primary = True
            self._lessor.promote(now, self._election_timeout_s, max(self._valid_until, now))
        if index < self._catch_up_to:
            return
        self.granted = self._solo
        self.serving = True
        self.settled = True
