"""Traces of the quorum: `committed` and `vote`."""

from collections.abc import Mapping

from node.raft.core.messages import NO_LIMIT
from node.raft.core.quorum import VoteResult, joint_committed, joint_vote, majority_committed, majority_vote
from tests.raft.traces.format import BadTrace, Command

_VOTES = {"y": 2, "n": 1, "_": 0}
_RESULTS = {VoteResult.PENDING: "VotePending", VoteResult.LOST: "VoteLost", VoteResult.WON: "VoteWon"}


def _index(index: int) -> str:
    return "∞" if index == NO_LIMIT else str(index)


def _bars(voters: set[int], acked: Mapping[int, int]) -> str:
    """Each voter with a bar as long as the number of voters strictly behind it."""
    if not voters:
        return "<empty majority quorum>"
    width = len(voters)
    lines = [" " * width + "    idx"]
    for voter in sorted(voters):
        index = acked.get(voter)
        if index is None:
            bar = "?" + " " * width
        else:
            length = sum(acked.get(other, 0) < index for other in voters)
            bar = "x" * length + ">" + " " * (width - length)
        lines.append(f"{bar} {index or 0:5d}    (id={voter})")
    return "\n".join(lines) + "\n"


def run(command: Command) -> str:
    """Execute a command; returns its output."""
    first: list[int] = []
    second: list[int] = []
    given: list[int] = []
    joint = False
    for argument in command.arguments:
        match argument.key:
            case "cfg":
                first += map(int, argument.values)
            case "cfgj":
                joint = True
                if argument.values != ("zero",):
                    second += map(int, argument.values)
            case "idx":
                given += [0 if value == "_" else int(value) for value in argument.values]
            case "votes":
                given += [_VOTES[value] for value in argument.values]
            case _:
                raise BadTrace(f"unknown argument {argument.key}")
    incoming, outgoing = set(first), set(second)
    if len(incoming | outgoing) != len(given):
        return f"error: mismatched input (explicit or _) for voters {sorted(incoming | outgoing)}: {given}"
    known = {id_: value for id_, value in zip(dict.fromkeys(first + second), given, strict=True) if value}
    match command.name:
        case "committed":
            return _committed(incoming, outgoing, known, joint=joint)
        case "vote":
            return _vote(incoming, outgoing, {id_: value == 2 for id_, value in known.items()}, joint=joint)
        case _:
            raise BadTrace(f"unknown command {command.name}")


def _committed(incoming: set[int], outgoing: set[int], acked: dict[int, int], *, joint: bool) -> str:
    text = _bars(incoming | outgoing, acked)
    if joint:
        index = joint_committed(incoming, outgoing, acked)
        others = {"symmetry": joint_committed(outgoing, incoming, acked)}
    else:
        index = majority_committed(incoming, acked)
        others = {
            "zero-joint quorum": joint_committed(incoming, set(), acked),
            "self-joint quorum": joint_committed(incoming, incoming, acked),
        }
        for voter, own in acked.items():
            if own < index:  # what lies below the result does not matter to it
                others[f"less at {voter}"] = majority_committed(incoming, acked | {voter: own - 1})
                others[f"nothing at {voter}"] = majority_committed(incoming, acked | {voter: 0})
    for name, other in others.items():
        if other != index:
            text += f"{_index(other)} <-- via {name}\n"
    return text + f"{_index(index)}\n"


def _vote(incoming: set[int], outgoing: set[int], votes: dict[int, bool], *, joint: bool) -> str:
    if not joint:
        return f"{_RESULTS[majority_vote(incoming, votes)]}\n"
    text = ""
    result = joint_vote(incoming, outgoing, votes)
    swapped = joint_vote(outgoing, incoming, votes)
    if swapped != result:
        text = f"{_RESULTS[swapped]} <-- via symmetry\n"
    return text + f"{_RESULTS[result]}\n"
