"""What the commands of an interaction trace write."""

from collections.abc import Iterator
from contextlib import contextmanager

from node.raft.core import LogLevel

LEVELS = ("DEBUG", "INFO", "WARN", "ERROR", "FATAL", "NONE")
QUIET = LEVELS.index("NONE")
"""Above every log level: not even the commands answer, unless they fail."""


class CommandFailed(Exception):
    """A command answers with an error: part of the output."""


class Output:
    """What a command writes, as loud as `level` allows."""

    def __init__(self) -> None:
        self.level = 0
        self._parts: list[str] = []

    def write(self, text: str) -> None:
        """What a command answers."""
        if self.level < QUIET:
            self._parts.append(text)

    def log(self, level: LogLevel, text: str) -> None:
        """What a member logs."""
        if self.level <= level:
            self._parts.append(f"{LEVELS[level]} {text}\n")

    def take(self) -> str:
        """All that was written since the last time."""
        text = "".join(self._parts)
        self._parts = []
        return text

    @contextmanager
    def indented(self) -> Iterator[None]:
        """What is written within stands two spaces to the right."""
        outer, self._parts = self._parts, []
        try:
            yield
        finally:
            lines = self.take().split("\n")
            if not lines[-1]:
                lines.pop()
            self._parts = outer + [f"  {line}\n" for line in lines]
