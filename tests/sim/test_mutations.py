"""The simulator finds faults: each of these is planted into the product, and some seed of a few shows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from node.apply import flusher, read_index, reads
from node.apply.feed import Feed
from node.apply.lease import Lessor
from node.apply.mvcc.database import Database, Position
from node.apply.mvcc.store import Store
from node.raft.core import follower
from node.raft.core.log import RaftLog
from node.raft.wal.log import WriteAheadLog
from node.raft.wal.record import HardState
from node.raft.writer import LogWriter
from tests.sim.run import run
from tests.sim.trouble import Theme

Patch = pytest.MonkeyPatch
SEEDS = {Theme.ANYTHING: 60, Theme.ELECTIONS: 250, Theme.MEMBERS: 60}
"""How many are tried; few of each theme are needed for most faults, which is what makes 200 seeds of `make test` worth
something."""


def acknowledges_before_the_sync(patch: Patch) -> None:
    """The log is synced some time later."""
    begin = LogWriter._begin_sync

    def eager(self: LogWriter) -> None:
        waiting = self._take()
        begin(self)
        self._finish(waiting)

    patch.setattr(LogWriter, "_begin_sync", eager)


def reads_without_a_read_index(patch: Patch) -> None:
    def split(data: bytes, at: int) -> tuple[bytes | None, bytes | None]:
        return None, data

    patch.setattr(read_index, "split", split)
    patch.setattr(reads, "split", split)


def forgets_its_vote(patch: Patch) -> None:
    append = WriteAheadLog.append

    def forgetful(self: WriteAheadLog, entries: Any, hard_state: HardState | None = None) -> int:
        return append(self, entries, hard_state and HardState(hard_state.term, 0, hard_state.commit))

    patch.setattr(WriteAheadLog, "append", forgetful)


def votes_for_a_shorter_log(patch: Patch) -> None:
    patch.setattr(RaftLog, "is_up_to_date", lambda self, term, index: True)


def applies_what_is_not_committed(patch: Patch) -> None:
    """A follower takes whatever its leader sends for committed."""
    append = follower._append

    def hasty(raft: Any, message: Any) -> None:
        message.commit = message.index + len(message.entries)
        append(raft, message)

    patch.setattr(follower, "_append", hasty)


def writes_the_cursor_late(patch: Patch) -> None:
    """The cursor that goes with a write is that of the write before."""
    commit = Database.commit

    def late(self: Database, position: Position) -> None:
        behind = position._replace(cursor=self.position.cursor)
        commit(self, behind)
        self.position = position

    patch.setattr(Database, "commit", late)


def lets_leases_end_early_after_an_election(patch: Patch) -> None:
    """A new leader takes the leases' time for all but over."""
    restart = Lessor._restart

    def short(self: Lessor, kept: float) -> None:
        restart(self, kept)
        for lease in self._leases.values():
            self._schedule(lease, kept + 0.1)

    patch.setattr(Lessor, "_restart", short)


def begins_watches_one_late(patch: Patch) -> None:
    slice_ = Feed._slice

    def late(self: Feed, ask: Any, compacted: int) -> bytes:
        return slice_(self, ask._replace(start=ask.start + 1), compacted)

    patch.setattr(Feed, "_slice", late)


def deletes_keys_of_a_lease_in_an_order_of_its_own(patch: Patch) -> None:
    delete = Store.delete_keys

    def own(self: Store, keys: Any) -> bool:
        return delete(self, sorted(keys, reverse=self._headers.identity.member_id % 2 == 1))

    patch.setattr(Store, "delete_keys", own)


def says_flushed_before_it_is(patch: Patch) -> None:
    def lie(self: flusher.Flusher) -> None:
        self._flushed = self._database.position.cursor  # type: ignore[attr-defined]  # it is a Database

    patch.setattr(flusher.Flusher, "_flush", lie)


def sends_members_away_before_that_is_on_disk(patch: Patch) -> None:
    patch.setattr(LogWriter, "keep_commit", lambda self, index: True)


@pytest.mark.parametrize(
    ("plant", "theme"),
    [
        (acknowledges_before_the_sync, Theme.ANYTHING),
        (reads_without_a_read_index, Theme.ANYTHING),
        (forgets_its_vote, Theme.ELECTIONS),
        (votes_for_a_shorter_log, Theme.ANYTHING),
        (applies_what_is_not_committed, Theme.ANYTHING),
        (writes_the_cursor_late, Theme.ANYTHING),
        (lets_leases_end_early_after_an_election, Theme.ANYTHING),
        (begins_watches_one_late, Theme.ANYTHING),
        (deletes_keys_of_a_lease_in_an_order_of_its_own, Theme.ANYTHING),
        (says_flushed_before_it_is, Theme.ANYTHING),
        (sends_members_away_before_that_is_on_disk, Theme.MEMBERS),
    ],
)
def test_a_planted_fault_is_found(plant: Callable[[Patch], None], theme: Theme, monkeypatch: Patch) -> None:
    plant(monkeypatch)
    for seed in range(1, 1 + SEEDS[theme]):
        outcome = run(seed, theme=theme)
        if outcome.problems:
            print(f"{plant.__name__}: seed {seed}: {outcome.problems[0][-300:]}")
            return
    pytest.fail(f"{SEEDS[theme]} seeds did not show it")
