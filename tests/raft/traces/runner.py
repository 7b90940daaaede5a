"""Runs trace files; the folder that a file lies in says what kind it is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.raft.traces import quorum
from tests.raft.traces.confchange import ConfChangeTrace
from tests.raft.traces.format import BadTrace, Command, parse
from tests.raft.traces.interaction import InteractionTrace

KINDS: dict[str, Callable[[], Callable[[Command], str]]] = {
    "confchange": lambda: ConfChangeTrace().run,
    "interaction": lambda: InteractionTrace().run,
    "quorum": lambda: quorum.run,
}


@dataclass(frozen=True, slots=True)
class Difference:
    """The first command of a file whose output is not the expected one."""

    line: int
    command: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.command}\n--- expected\n{self.expected}--- got\n{self.got}"


def trace_files(folder: Path) -> Iterator[Path]:
    """All trace files below a folder, in order; the folder may itself be that of one kind."""
    for path in sorted(folder.rglob("*.txt")):
        if kind_of(path) is not None:
            yield path


def kind_of(path: Path) -> str | None:
    """The kind of a trace: the nearest folder with such a name."""
    return next((part for part in reversed(path.resolve().parent.parts) if part in KINDS), None)


def outputs(path: Path) -> Iterator[tuple[Command, str]]:
    """Each command of a file with the output that it has."""
    kind = kind_of(path)
    if kind is None:
        raise BadTrace(f"{path} lies in none of the folders {', '.join(KINDS)}")
    run = KINDS[kind]()
    for command in parse(path.read_text(encoding="utf-8")):
        try:
            got = run(command)
        except (AssertionError, LookupError, ValueError, BadTrace) as error:
            got = f"{type(error).__name__}: {error}"
        yield command, got if got.endswith("\n") else f"{got}\n"


def first_difference(path: Path) -> Difference | None:
    """None when the file passes."""
    for command, got in outputs(path):
        if got != command.expected:
            arguments = "".join(
                f" {argument.key}" + (f"=({','.join(argument.values)})" if argument.values else "")
                for argument in command.arguments
            )
            return Difference(command.line, command.name + arguments, command.expected, got)
    return None
