"""The command line by the rules of the Go flag package (behaviour S10-S15).

`-x` and `--x` are the same; the value follows `=` or is the next argument; a boolean takes a value only after `=`; the
first argument that is not a flag, and `--`, end the flags.
"""

from collections.abc import Sequence
from typing import NamedTuple

from kvorum.urls import quote
from node.flags.table import FLAGS, IGNORED
from node.flags.values import READERS, Kind


class UsageError(Exception):
    """A flag cannot be read: the text goes to standard error with the usage, and the process exits with 2."""


class HelpAsked(Exception):
    """`-h` or `--help` was met."""


class CommandLine(NamedTuple):
    """`given`: values by flag name; `ignored`: names of ignored flags that were met; `rest`: what is not a flag."""

    given: dict[str, object]
    ignored: tuple[str, ...]
    rest: tuple[str, ...]


def read_command_line(arguments: Sequence[str]) -> CommandLine:
    """Read the arguments after the program's name. Raises UsageError and HelpAsked."""
    given: dict[str, object] = {}
    ignored: list[str] = []
    place = 0
    while place < len(arguments):
        argument = arguments[place]
        if len(argument) < 2 or argument[0] != "-":
            break
        place += 1
        if argument == "--":
            break
        body = argument[2:] if argument[1] == "-" else argument[1:]
        if not body or body[0] in "-=":
            raise UsageError(f"bad flag syntax: {argument}")
        name, equals, text = body.partition("=")
        flag = FLAGS.get(name) or IGNORED.get(name)
        if flag is None:
            if name in ("help", "h"):
                raise HelpAsked
            raise UsageError(f"flag provided but not defined: -{name}")
        if flag.kind is Kind.IGNORED:
            ignored.append(name)
            continue
        if flag.kind is Kind.BOOL:
            try:
                given[name] = READERS[Kind.BOOL](text if equals else "true")
            except ValueError as error:
                raise UsageError(f"invalid boolean value {quote(text)} for -{name}: {error}") from None
            continue
        if not equals:
            if place == len(arguments):
                raise UsageError(f"flag needs an argument: -{name}")
            text = arguments[place]
            place += 1
        try:
            given[name] = READERS[flag.kind](text)
            if flag.choices and text not in flag.choices:
                raise ValueError("invalid value")
        except ValueError as error:
            raise UsageError(f"invalid value {quote(text)} for flag -{name}: {error}") from None
    return CommandLine(given, tuple(ignored), tuple(arguments[place:]))
