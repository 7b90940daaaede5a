"""What the HTTP pages see of the member: its processes' states, and probes that go the way of a client's read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from kvorum.pb.rpc_pb2 import RangeRequest
from node.child import ChildContext
from node.frames import Process
from node.front.health_checks import Done
from node.front.member import Member
from node.front.state import StateAsks, States
from node.requests import Op

PROBE: Final = RangeRequest(key=b"health").SerializeToString()
SERIALIZABLE_PROBE: Final = RangeRequest(key=b"health", serializable=True).SerializeToString()


class ProbeSink:
    """Where the answer to a probe goes."""

    def __init__(self, done: Done) -> None:
        self._done = done

    def reply(self, _token: int, _message: bytes) -> None:
        self._done(None)

    def fail(self, _token: int, _code: int, text: str) -> None:
        self._done(text)


class MemberPages:
    """`MemberView` and `Probes` of the pages, over this front's calls and asks."""

    def __init__(self, child: ChildContext, member: Member, states: StateAsks) -> None:
        self.member_id = child.member_id
        self._child = child
        self._member = member
        self._states = states
        self._processes = (
            Process.RAFT,
            Process.APPLY,
            Process.WATCH,
            *(Process.FRONT + i for i in range(child.config.front_workers)),
        )

    def cluster_version(self) -> str | None:
        """See MemberView. A member serves only once the cluster's version is agreed."""
        return self._member.cluster_version or None

    def gather(self, done: Callable[[Mapping[int, Mapping[str, Any]]], None]) -> None:
        """See MemberView."""
        self._states.ask(set(self._processes), done)

    def processes(self) -> Sequence[int]:
        """See MemberView."""
        return self._processes

    def pids(self) -> Sequence[int]:
        """See MemberView."""
        supervisor = self._child.parent_pid
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text()
        return (supervisor, *map(int, children.split()))

    def command_line(self) -> Sequence[str]:
        """See MemberView."""
        arguments = Path(f"/proc/{self._child.parent_pid}/cmdline").read_bytes().split(b"\0")[:-1]
        return [argument.decode(errors="replace") for argument in arguments]

    def range(self, serializable: bool, done: Done) -> None:
        """See Probes."""
        self._member.calls.read(ProbeSink(done), 0, Op.RANGE, SERIALIZABLE_PROBE if serializable else PROBE)

    def alarms(self, done: Callable[[Sequence[int] | None], None]) -> None:
        """See Probes."""

        def on_states(states: States) -> None:
            apply = states.get(Process.APPLY)
            done(None if apply is None else apply["alarm_types"])

        self._states.ask({Process.APPLY}, on_states)

    def has_leader(self) -> bool:
        """See Probes."""
        return self._member.leader != 0

    def is_learner(self) -> bool:
        """See Probes."""
        return self._member.is_learner
