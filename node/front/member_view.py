"""What the HTTP pages see of the member."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

States = Mapping[int, Mapping[str, Any]]
"""By process: what it said of itself. A process that did not answer in time is missing."""


class MemberView(Protocol):
    """The member, its processes and their states."""

    member_id: int

    def cluster_version(self) -> str | None:
        """MAJOR.MINOR.PATCH, or None while it is not decided."""

    def gather(self, done: Callable[[States], None]) -> None:
        """Asks every process for its state, this one too; `done` gets what came in time, by process."""

    def processes(self) -> Sequence[int]:
        """The processes that are asked."""

    def pids(self) -> Sequence[int]:
        """Their process ids, with the supervisor's; may be called from any thread."""

    def command_line(self) -> Sequence[str]:
        """The command that started the member; may be called from any thread."""
