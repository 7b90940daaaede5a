"""Who leads, as raft tells the member's other processes; and how far anybody may rely on it.

Two questions are put to a quorum, both as a read index of raft's own: up to where must this member catch up before it
answers anything (once), and does this member, which leads, still lead (at every tick: `LEADING`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from kvorum.log import Logger
from node.config import Config
from node.frames import LEADERSHIP, LEADING, READ_INDEX, Kind, Process
from node.link import Streams
from node.raft.core import NOBODY, RawNode
from node.raft.read_context import OWN, ReadContext

NEVER: Final = (1 << 64) - 1
"""As an index: none is high enough."""

MAX_OWN_READS: Final = 64
"""Questions under way; without a quorum the oldest is forgotten."""


class Leadership:
    """What apply and the fronts were told last, and the grant of solo reads.

    While this member is the only voter apply answers linearizable reads itself, on a grant. Before anybody else can
    vote the grant is taken back, and apply has said so.
    """

    def __init__(
        self,
        context: ReadContext,
        config: Config,
        links: Streams,
        fronts: Sequence[int],
        now: Callable[[], float],
        logger: Logger,
    ) -> None:
        self._context = context
        self._links = links
        self._receivers = (Process.APPLY, *fronts)
        self._now = now
        self._logger = logger
        # The others' lease begins when they hear of the leader; their clocks count whole ticks, and may be fast.
        self._lease_s = config.election_timeout_s - 2 * config.heartbeat_interval_s
        self._told: tuple[int, int, int, bool] | None = None  # term, leader, catch_up_to, solo
        self._catch_up_to: int | None = None
        self._asked: dict[int, tuple[float, int]] = {}  # number -> when, and the term led then
        self._number = 0
        self._grant_from = 0  # no grant before this entry was given out
        self.granted = False
        """Apply may answer reads on a grant."""
        self.leaders_seen = 0

    def must_ask(self, node: RawNode) -> bool:
        """Whether it is not known yet how far this member must catch up, though there is a leader to ask."""
        return self._catch_up_to is None and node.lead != NOBODY and not self._asked

    def tick(self, node: RawNode) -> None:
        """Asks again: what was asked before may be lost."""
        if node.lead != NOBODY and (self._catch_up_to is None or (node.leads and not node.is_alone())):
            self.ask(node)

    def ask(self, node: RawNode) -> None:
        """Puts both questions."""
        self._number += 1
        if len(self._asked) >= MAX_OWN_READS:
            del self._asked[next(iter(self._asked))]
        self._asked[self._number] = (self._now(), node.term if node.leads else 0)
        node.read_index(self._context.pack(self._number | OWN))

    def on_read_index(self, node: RawNode, index: int, context: bytes) -> None:
        """A quorum confirmed that every entry committed when this was asked has an index up to `index`."""
        number = self._context.number(context)
        if number is None:
            return  # asked before this generation
        if not number & OWN:
            self._links.send_control(Process.APPLY, Kind.READ_INDEX, READ_INDEX.pack(number, index))
            return
        asked = self._asked.pop(number & ~OWN, None)
        if asked is None:
            return
        asked_at, term = asked
        if self._catch_up_to is None:
            self._catch_up_to = index
        if node.leads and term == node.term and node.lead_transferee == NOBODY and not node.is_alone():
            until = asked_at + self._lease_s
            self._links.send_control(Process.APPLY, Kind.LEADING, LEADING.pack(term, until))

    def announce(self, node: RawNode, handed: int) -> bool:
        """Tells who leads, if that is news; `handed` is the last entry given out. Returns whether it is another."""
        lead = node.lead
        before = self._told
        if before is None and lead == NOBODY:
            return False
        solo = node.leads and handed >= self._grant_from and node.is_alone() and node.committed_in_term
        if solo and not self.granted and self._catch_up_to is not None:
            # another voter, gone now, may have answered for entries that apply was given and has not executed
            self._catch_up_to = max(self._catch_up_to, handed)
        catch_up_to = NEVER if self._catch_up_to is None else self._catch_up_to
        now = (node.term if lead != NOBODY else 0, lead, catch_up_to, solo)
        if now == before:
            return False
        self._told = now
        payload = LEADERSHIP.pack(node.term, lead, catch_up_to, solo)
        for process in self._receivers:
            self._links.send_control(process, Kind.LEADERSHIP, payload)
        if solo and not self.granted:
            self.granted = True
            self._links.send_control(Process.APPLY, Kind.LEADING, LEADING.pack(node.term, float("inf")))
        if before is not None and before[:2] == now[:2]:
            return False
        if lead == NOBODY:
            assert before is not None
            self._logger.info(f"raft.node: {node.id:x} lost leader {before[1]:x} at term {node.term}")
        else:
            self.leaders_seen += 1
            self._logger.info(f"raft.node: {node.id:x} elected leader {lead:x} at term {node.term}")
        return True

    def take_grant_back(self) -> None:
        """From the next `announce` on; what must not happen before apply knows waits for `grant_returned`."""
        self._grant_from = NEVER

    def grant_returned(self) -> None:
        """Apply answers no more reads on the grant that was taken back last."""
        if self._told is not None and not self._told[3]:  # else it was given another one meanwhile
            self.granted = False

    def allow_grant(self, last_index: int) -> None:
        """No change waits any more: there may be a new grant when `last_index` is given out."""
        if self._grant_from == NEVER and not self.granted:
            self._grant_from = last_index
