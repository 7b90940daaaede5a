"""The trace files: a command with arguments, more lines of input, `----`, the output, an empty line.

Lines that begin with `#` between commands are comments. An output with empty lines stands between two `----` lines at
its begin and two at its end. A command goes on in the next line when its line ends in a backslash.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_ARGUMENT = re.compile(r"(?P<key>[^\s=()]+)(?P<value>=(?:\((?P<list>[^()]*)\)|(?P<single>(?!\()\S*)))?(?=\s|$)")


class BadTrace(Exception):
    """The file is not in the format."""


@dataclass(frozen=True, slots=True)
class Argument:
    """`key`, `key=value` or `key=(value,value)`."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a trace, the line where it stands, and what it must answer."""

    line: int
    name: str
    arguments: tuple[Argument, ...]
    input: str
    expected: str

    def positional(self) -> list[str]:
        """The arguments without a value."""
        return [argument.key for argument in self.arguments if not argument.values]


def parse_line(text: str) -> tuple[str, tuple[Argument, ...]]:
    """A command and its arguments. Raises BadTrace."""
    name, _, rest = text.strip().partition(" ")
    arguments: list[Argument] = []
    place = 0
    rest = rest.strip()
    while place < len(rest):
        match = _ARGUMENT.match(rest, place)
        if match is None:
            raise BadTrace(f"cannot parse the arguments: {rest[place:]}")
        values: tuple[str, ...] = ()
        if match["list"] is not None:
            values = tuple(value for value in re.split(r"[,\s]+", match["list"].strip()) if value)
        elif match["value"] is not None:
            values = (match["single"],)
        arguments.append(Argument(match["key"], values))
        place = match.end()
        while place < len(rest) and rest[place].isspace():
            place += 1
    return name, tuple(arguments)


def parse(text: str) -> Iterator[Command]:
    """The commands of a file, in order. Raises BadTrace."""
    lines = text.split("\n")
    place = 0
    while place < len(lines):
        begin = place
        line = lines[place].strip()
        place += 1
        if not line or line.startswith("#"):
            continue
        while line.endswith("\\"):
            line = line[:-1].rstrip() + " " + lines[place].strip()
            place += 1
        name, arguments = parse_line(line)
        if name == "subtest":
            continue
        given: list[str] = []
        while place < len(lines) and lines[place] != "----":
            given.append(lines[place])
            place += 1
        if place == len(lines):
            raise BadTrace(f"line {begin + 1}: no ---- follows")
        place += 1
        expected: list[str] = []
        if place < len(lines) and lines[place] == "----":
            place += 1
            while lines[place : place + 2] != ["----", "----"]:
                if place >= len(lines):
                    raise BadTrace(f"line {begin + 1}: the output does not end")
                expected.append(lines[place])
                place += 1
            place += 2
        else:
            while place < len(lines) and lines[place].strip():
                expected.append(lines[place])
                place += 1
        yield Command(begin + 1, name, arguments, "\n".join(given).strip(), "".join(f"{out}\n" for out in expected))
