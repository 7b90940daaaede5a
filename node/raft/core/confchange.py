"""From one configuration to the next: pure functions of (configuration, progress, change).

Raft paper, section 6: a change of more than one voter goes through a joint configuration, in which both the incoming
and the outgoing voters must agree; one voter more or less needs none (Raft thesis, section 4.1). A voter that becomes
a learner stays a voter until the joint configuration is left (`learners_next`).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from node.raft.core.change import ChangeType, ConfChange
from node.raft.core.messages import NOBODY, ConfState
from node.raft.core.progress import Progress

MakeProgress: TypeAlias = Callable[[bool], Progress]
"""The progress of a new member, given whether it is a learner."""

Single: TypeAlias = tuple[ChangeType, int]


class ChangeRefused(Exception):
    """The change does not fit the configuration."""


def _ids(members: Iterable[int]) -> str:
    return "(" + " ".join(str(member) for member in sorted(members)) + ")"


@dataclass(slots=True)
class Configuration:
    """Who is in the group. `outgoing` is empty unless the configuration is joint. Learners are never voters."""

    incoming: set[int] = field(default_factory=set)
    outgoing: set[int] = field(default_factory=set)
    learners: set[int] = field(default_factory=set)
    learners_next: set[int] = field(default_factory=set)
    auto_leave: bool = False

    @property
    def joint(self) -> bool:
        """Whether two majorities must agree."""
        return bool(self.outgoing)

    def copy(self) -> "Configuration":
        """The same, to be changed."""
        return Configuration(
            set(self.incoming), set(self.outgoing), set(self.learners), set(self.learners_next), self.auto_leave
        )

    def conf_state(self) -> ConfState:
        """As it is kept with a snapshot."""
        return ConfState(
            tuple(sorted(self.incoming)),
            tuple(sorted(self.outgoing)),
            tuple(sorted(self.learners)),
            tuple(sorted(self.learners_next)),
            self.auto_leave,
        )

    def __str__(self) -> str:
        text = "voters=" + _ids(self.incoming)
        if self.outgoing:
            text += "&&" + _ids(self.outgoing)
        if self.learners:
            text += " learners=" + _ids(self.learners)
        if self.learners_next:
            text += " learners_next=" + _ids(self.learners_next)
        if self.auto_leave:
            text += " autoleave"
        return text


@dataclass(slots=True)
class Membership:
    """A configuration and the progress of each of its members: exactly those, learners marked as such."""

    configuration: Configuration
    progress: dict[int, Progress]

    def copy(self) -> "Membership":
        """The same, to be changed."""
        return Membership(self.configuration.copy(), {member: pr.copy() for member, pr in self.progress.items()})

    def check(self) -> None:
        """Assert what holds for every configuration."""
        conf, progress = self.configuration, self.progress
        members = conf.incoming | conf.outgoing | conf.learners
        assert members == progress.keys(), f"progress of {sorted(progress)} for {conf}"
        assert not conf.learners & (conf.incoming | conf.outgoing), f"a learner votes: {conf}"
        assert conf.learners_next <= conf.outgoing, f"a learner to be that is not on its way out: {conf}"
        assert all(progress[member].is_learner for member in conf.learners)
        assert not any(progress[member].is_learner for member in conf.incoming | conf.learners_next)
        assert conf.outgoing or not (conf.learners_next or conf.auto_leave), f"not joint: {conf}"


def simple(membership: Membership, changes: Iterable[Single], make: MakeProgress) -> Membership:
    """The changes at once, without a joint configuration. Raises ChangeRefused, also if more than one voter changes."""
    if membership.configuration.joint:
        raise ChangeRefused("can't apply simple config change in joint config")
    after = membership.copy()
    _apply(after, changes, make)
    if len(membership.configuration.incoming ^ after.configuration.incoming) > 1:
        raise ChangeRefused("more than one voter changed without entering joint config")
    after.check()
    return after


def enter_joint(
    membership: Membership, changes: Iterable[Single], make: MakeProgress, *, auto_leave: bool
) -> Membership:
    """The changes as a joint configuration. Raises ChangeRefused."""
    if membership.configuration.joint:
        raise ChangeRefused("config is already joint")
    if not membership.configuration.incoming:
        raise ChangeRefused("can't make a zero-voter config joint")
    after = membership.copy()
    after.configuration.outgoing = set(after.configuration.incoming)
    _apply(after, changes, make)
    after.configuration.auto_leave = auto_leave
    after.check()
    return after


def leave_joint(membership: Membership) -> Membership:
    """Only the incoming voters remain, and the learners. Raises ChangeRefused when the configuration is not joint."""
    if not membership.configuration.joint:
        raise ChangeRefused("can't leave a non-joint config")
    after = membership.copy()
    conf, progress = after.configuration, after.progress
    for member in conf.learners_next:
        conf.learners.add(member)
        progress[member].is_learner = True
    conf.learners_next = set()
    for member in conf.outgoing:
        if member not in conf.incoming and member not in conf.learners:
            del progress[member]
    conf.outgoing = set()
    conf.auto_leave = False
    after.check()
    return after


def change(membership: Membership, conf_change: ConfChange, make: MakeProgress) -> Membership:
    """The configuration after a proposed change. Raises ChangeRefused; same arguments, same result on every member."""
    if conf_change.leaves_joint:
        return leave_joint(membership)
    if conf_change.enters_joint:
        return enter_joint(membership, conf_change.changes, make, auto_leave=conf_change.auto_leave)
    return simple(membership, conf_change.changes, make)


def restore(state: ConfState, make: MakeProgress) -> Membership:
    """The configuration that a snapshot names, built up from nothing by the changes that could have led to it."""
    membership = Membership(Configuration(), {})
    incoming: list[Single] = [(ChangeType.ADD_VOTER, member) for member in state.voters]
    incoming += [(ChangeType.ADD_LEARNER, member) for member in (*state.learners, *state.learners_next)]
    if not state.voters_outgoing:
        for single in incoming:
            membership = simple(membership, (single,), make)
    else:
        for member in state.voters_outgoing:
            membership = simple(membership, ((ChangeType.ADD_VOTER, member),), make)
        removals: list[Single] = [(ChangeType.REMOVE, member) for member in state.voters_outgoing]
        membership = enter_joint(membership, removals + incoming, make, auto_leave=state.auto_leave)
    assert membership.configuration.conf_state() == normal_form(state), f"{state} became {membership.configuration}"
    return membership


def normal_form(state: ConfState) -> ConfState:
    """The same configuration with its ids in order."""
    return ConfState(
        tuple(sorted(state.voters)),
        tuple(sorted(state.voters_outgoing)),
        tuple(sorted(state.learners)),
        tuple(sorted(state.learners_next)),
        state.auto_leave,
    )


def _apply(membership: Membership, changes: Iterable[Single], make: MakeProgress) -> None:
    conf, progress = membership.configuration, membership.progress
    for type_, member in changes:
        if member == NOBODY:
            continue  # so an application withdraws a change that is already in the log
        match type_:
            case ChangeType.ADD_VOTER:
                _add_voter(conf, progress, member, make)
            case ChangeType.ADD_LEARNER:
                _add_learner(conf, progress, member, make)
            case ChangeType.REMOVE:
                _remove(conf, progress, member)
            case ChangeType.UPDATE:
                pass
    if not conf.incoming:
        raise ChangeRefused("removed all voters")


def _add_voter(conf: Configuration, progress: dict[int, Progress], member: int, make: MakeProgress) -> None:
    known = progress.get(member)
    if known is None:
        progress[member] = make(False)
    else:
        known.is_learner = False
    conf.learners.discard(member)
    conf.learners_next.discard(member)
    conf.incoming.add(member)


def _add_learner(conf: Configuration, progress: dict[int, Progress], member: int, make: MakeProgress) -> None:
    known = progress.get(member)
    if known is None:
        progress[member] = make(True)
        conf.learners.add(member)
        return
    if known.is_learner:
        return
    _remove(conf, progress, member)
    progress[member] = known
    if member in conf.outgoing:
        conf.learners_next.add(member)
    else:
        known.is_learner = True
        conf.learners.add(member)


def _remove(conf: Configuration, progress: dict[int, Progress], member: int) -> None:
    if member not in progress:
        return
    conf.incoming.discard(member)
    conf.learners.discard(member)
    conf.learners_next.discard(member)
    if member not in conf.outgoing:
        del progress[member]
