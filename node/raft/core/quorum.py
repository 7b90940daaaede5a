"""What a majority of voters has: which index it holds, how it voted. Joint: both majorities must agree.

Raft paper, section 6 (joint consensus). An empty set of voters agrees with everything, which makes a plain majority
the joint one with nothing.
"""

from collections.abc import Collection, Mapping
from enum import IntEnum

from node.raft.core.messages import NO_LIMIT


class VoteResult(IntEnum):
    """How an election stands."""

    PENDING = 1
    LOST = 2
    WON = 3


def majority_committed(voters: Collection[int], acked: Mapping[int, int]) -> int:
    """The greatest index that a majority of `voters` acknowledged; who is not in `acked` has nothing.

    `NO_LIMIT` without voters.
    """
    if not voters:
        return NO_LIMIT
    indexes = sorted([acked.get(voter, 0) for voter in voters])
    return indexes[(len(indexes) - 1) // 2]


def joint_committed(incoming: Collection[int], outgoing: Collection[int], acked: Mapping[int, int]) -> int:
    """The greatest index that both majorities acknowledged."""
    return min(majority_committed(incoming, acked), majority_committed(outgoing, acked))


def majority_vote(voters: Collection[int], votes: Mapping[int, bool]) -> VoteResult:
    """How `voters` voted; who is not in `votes` may still do it either way."""
    if not voters:
        return VoteResult.WON
    granted = missing = 0
    for voter in voters:
        vote = votes.get(voter)
        if vote is None:
            missing += 1
        elif vote:
            granted += 1
    needed = len(voters) // 2 + 1
    if granted >= needed:
        return VoteResult.WON
    return VoteResult.PENDING if granted + missing >= needed else VoteResult.LOST


def joint_vote(incoming: Collection[int], outgoing: Collection[int], votes: Mapping[int, bool]) -> VoteResult:
    """How both majorities voted: one that lost decides, both must win."""
    first, second = majority_vote(incoming, votes), majority_vote(outgoing, votes)
    if first == second:
        return first
    return VoteResult.LOST if VoteResult.LOST in (first, second) else VoteResult.PENDING
