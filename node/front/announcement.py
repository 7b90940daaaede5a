"""What the first front of a member has logged at every start: who the member is.

Until that is in the log, the store has caught up and the cluster has a version, the member takes no clients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from kvorum.pb.internal_pb2 import MembershipState, Publish
from node.front.calls import Sink
from node.front.member import Member
from node.requests import Op


class Proposes(Protocol):
    """Where proposals go (`Calls`)."""

    def propose(self, sink: Sink, token: int, op: int, body: bytes) -> None:
        """Logs and executes a request; the sink gets its answer."""


class Announcement:
    """Proposes until it is done. `own` is None in the other fronts, which only wait for what the log says.

    `calls` takes the proposals; `on_published` is called once, `on_ready` once when clients may come.
    """

    def __init__(
        self,
        member: Member,
        calls: Proposes,
        own: Publish | None,
        *,
        on_published: Callable[[], None],
        on_ready: Callable[[], None],
    ) -> None:
        self._member = member
        self._calls = calls
        self._own = own
        self._on_published = on_published
        self._on_ready = on_ready
        self._caught_up = False
        self._published = False
        self._ready = False
        self._publishing = False

    def on_caught_up(self) -> None:
        """The store holds what the log held at the start."""
        self._caught_up = True
        self.go_on()

    def on_members(self, state: MembershipState) -> None:
        """The log says so of the members."""
        member = self._member
        member.cluster_version = state.cluster_version
        for one in state.members:
            if one.ID == member.member_id:
                member.is_learner = one.isLearner
                if self._own is None:
                    self._published = bool(one.name)
        self.go_on()

    def go_on(self) -> None:
        """Does what there is to do; called when anything has changed, and once in a while, since proposals get lost."""
        if self._ready or not self._caught_up:
            return
        if self._own is not None and not self._published and not self._publishing:
            self._publishing = True
            self._calls.propose(Answered(self._on_publish), 0, Op.PUBLISH, self._own.SerializeToString())
        member = self._member
        if self._published and member.cluster_version and member.leader:
            self._ready = True
            self._on_ready()

    def _on_publish(self, succeeded: bool) -> None:
        self._publishing = False
        if succeeded and not self._published:
            self._published = True
            self._on_published()
            self.go_on()


class Answered:
    """A sink that says whether the request was executed."""

    def __init__(self, done: Callable[[bool], None]) -> None:
        self._done = done

    def reply(self, _token: int, _message: bytes) -> None:
        self._done(True)

    def fail(self, _token: int, _code: int, _text: str) -> None:
        self._done(False)
