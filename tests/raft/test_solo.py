"""What a sole voter decides: its election, how it packs proposals into entries, when they are committed."""

import pytest

from node.raft.core.messages import EntryType
from node.raft.solo import ENTRY_BYTES, SoleVoter
from node.raft.wal.record import HardState

MEMBER = 5


def test_a_new_cluster_begins_with_its_membership_and_an_empty_entry_of_the_next_term() -> None:
    voter = SoleVoter(MEMBER, term=0, last_index=0, commit=0)
    hard_state, entries = voter.campaign(b"members")
    assert hard_state == HardState(2, MEMBER, 0)
    assert entries == [(1, 1, EntryType.FOUNDING, b"members"), (2, 2, EntryType.NORMAL, b"")]
    assert voter.commit == 0, "not before they are on disk"
    assert voter.synced() == 2


def test_a_later_start_leads_the_next_term_and_commits_what_the_log_holds() -> None:
    voter = SoleVoter(MEMBER, term=4, last_index=9, commit=7)
    hard_state, entries = voter.campaign(None)
    assert hard_state == HardState(5, MEMBER, 7)
    assert entries == [(5, 10, EntryType.NORMAL, b"")]
    assert voter.synced() == 10


def test_a_log_that_holds_entries_is_not_founded_again() -> None:
    with pytest.raises(AssertionError, match="cannot be bootstrapped"):
        SoleVoter(MEMBER, term=1, last_index=1, commit=0).campaign(b"members")


def packed(*sizes: int) -> list[int]:
    """The sizes of the entries that batches of these sizes make."""
    voter = SoleVoter(MEMBER, term=2, last_index=3, commit=3)
    batches = [bytes((number,)) * size for number, size in enumerate(sizes)]
    entries = voter.propose(batches)
    assert b"".join(data for _, _, _, data in entries) == b"".join(batches), "in order"
    assert [(term, index, type_) for term, index, type_, _ in entries] == [
        (2, 4 + number, EntryType.NORMAL) for number in range(len(entries))
    ]
    assert voter.commit == 3
    return [len(data) for _, _, _, data in entries]


def test_the_batches_of_a_turn_share_entries_up_to_a_mebibyte() -> None:
    assert packed() == []
    assert packed(10, 20, 30) == [60]
    assert packed(ENTRY_BYTES - 1, 1) == [ENTRY_BYTES]
    assert packed(ENTRY_BYTES - 1, 2, 3) == [ENTRY_BYTES - 1, 5]
    assert packed(3, 2 * ENTRY_BYTES, 4) == [3, 2 * ENTRY_BYTES, 4]
