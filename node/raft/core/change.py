"""A membership change: what is proposed, and the bytes in which it lies in an entry and a configuration in a snapshot.

The bytes, little-endian. Change: version (1), transition (1), number of changes (2), then type (1) and id (8) of each,
then the context. Configuration: version (1), auto-leave (1), four counts (2 each), then the ids (8 each) in the order
of `ConfState`. A change that only leaves the joint configuration has no bytes at all, so no limit can refuse it.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from node.raft.core.messages import ConfState

FORMAT_VERSION: Final = 1

_CHANGE_HEAD: Final = struct.Struct("<BBH")
_SINGLE: Final = struct.Struct("<BQ")
_STATE_HEAD: Final = struct.Struct("<BBHHHH")


class ChangeType(IntEnum):
    """What happens to one member."""

    ADD_VOTER = 0
    REMOVE = 1
    UPDATE = 2  # nothing changes here; the context tells the application
    ADD_LEARNER = 3


class Transition(IntEnum):
    """How a change takes effect: at once where that is safe, else through a joint configuration."""

    AUTO = 0  # joint only if more than one change; left as soon as possible
    JOINT_IMPLICIT = 1  # joint; left as soon as possible
    JOINT_EXPLICIT = 2  # joint; left when somebody proposes it


_CHANGE_NAMES: Final = ("ConfChangeAddNode", "ConfChangeRemoveNode", "ConfChangeUpdateNode", "ConfChangeAddLearnerNode")
_TRANSITION_NAMES: Final = (
    "ConfChangeTransitionAuto",
    "ConfChangeTransitionJointImplicit",
    "ConfChangeTransitionJointExplicit",
)


@dataclass(frozen=True, slots=True)
class ConfChange:
    """`changes`: (type, member id), done as one; none of them: leave the joint configuration.

    `context` is the application's.
    """

    changes: tuple[tuple[ChangeType, int], ...] = ()
    transition: Transition = Transition.AUTO
    context: bytes = b""

    @property
    def leaves_joint(self) -> bool:
        """Whether this ends a joint configuration instead of starting one."""
        return self.transition is Transition.AUTO and not self.changes

    @property
    def enters_joint(self) -> bool:
        """Whether this needs a joint configuration."""
        return self.transition is not Transition.AUTO or len(self.changes) > 1

    @property
    def auto_leave(self) -> bool:
        """Whether the joint configuration is left without being asked to."""
        return self.transition is not Transition.JOINT_EXPLICIT

    def describe(self, *, single: bool) -> str:
        """The text in log lines; `single`: of an entry that can hold only one change."""
        texts = [f"type:{_CHANGE_NAMES[type_]} node_id:{member}" for type_, member in self.changes]
        if not single:
            texts = [f"transition:{_TRANSITION_NAMES[self.transition]}"] + [f"changes:{{{text}}}" for text in texts]
        return " ".join(texts)


def encode_change(change: ConfChange) -> bytes:
    """The data of an entry that holds the change."""
    if change == ConfChange():
        return b""
    parts = [_CHANGE_HEAD.pack(FORMAT_VERSION, change.transition, len(change.changes))]
    parts += [_SINGLE.pack(type_, member) for type_, member in change.changes]
    parts.append(change.context)
    return b"".join(parts)


def decode_change(data: bytes) -> ConfChange:
    """The reverse of `encode_change`; ValueError when the data is not a change."""
    if not data:
        return ConfChange()
    if len(data) < _CHANGE_HEAD.size:
        raise ValueError(f"a membership change of {len(data)} bytes")
    version, transition, count = _CHANGE_HEAD.unpack_from(data)
    if version != FORMAT_VERSION:
        raise ValueError(f"a membership change in format {version}, this program reads {FORMAT_VERSION}")
    end = _CHANGE_HEAD.size + count * _SINGLE.size
    if len(data) < end:
        raise ValueError(f"{count} membership changes in {len(data)} bytes")
    singles = _SINGLE.iter_unpack(data[_CHANGE_HEAD.size : end])
    changes = tuple((ChangeType(type_), member) for type_, member in singles)
    return ConfChange(changes, Transition(transition), data[end:])


def encode_conf_state(state: ConfState) -> bytes:
    """The bytes for a snapshot's record."""
    sets = (state.voters, state.voters_outgoing, state.learners, state.learners_next)
    ids = [member for members in sets for member in members]
    head = _STATE_HEAD.pack(FORMAT_VERSION, state.auto_leave, *map(len, sets))
    return head + struct.pack(f"<{len(ids)}Q", *ids)


def decode_conf_state(data: bytes) -> ConfState:
    """The reverse of `encode_conf_state`; ValueError when the data is not a configuration."""
    if len(data) < _STATE_HEAD.size:
        raise ValueError(f"a configuration of {len(data)} bytes")
    version, auto_leave, *counts = _STATE_HEAD.unpack_from(data)
    if version != FORMAT_VERSION:
        raise ValueError(f"a configuration in format {version}, this program reads {FORMAT_VERSION}")
    if len(data) != _STATE_HEAD.size + 8 * sum(counts):
        raise ValueError(f"a configuration of {sum(counts)} members in {len(data)} bytes")
    ids = struct.unpack_from(f"<{sum(counts)}Q", data, _STATE_HEAD.size)
    sets: list[tuple[int, ...]] = []
    begin = 0
    for count in counts:
        sets.append(ids[begin : begin + count])
        begin += count
    return ConfState(sets[0], sets[1], sets[2], sets[3], bool(auto_leave))
