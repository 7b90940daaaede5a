"""Flags of click commands written and refused as those of the reference's subcommands are (Go's pflag).

`--name value` or `--name=value`; a boolean stands alone or takes `=true` or `=false`; a list is separated by commas,
and a list given again is added to. A command line that cannot be read ends with exit code 1.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

import click

from kvorum.durations import parse_duration_ns

EXIT_FAILED: Final = 1

_BOOLEANS: Final = {
    **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
    **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False),
}


class _Bool(click.ParamType[bool]):
    name = "bool"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> bool:
        if isinstance(value, bool):
            return value
        text = str(value)
        if text not in _BOOLEANS:
            reason = f'strconv.ParseBool: parsing "{text}": invalid syntax'
            raise click.BadParameter(_invalid(text, param, reason), ctx, param)
        return _BOOLEANS[text]


class _Duration(click.ParamType[int]):
    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value)
        try:
            return parse_duration_ns(text)
        except ValueError:
            raise click.BadParameter(_invalid(text, param, f'time: invalid duration "{text}"'), ctx, param) from None


class _Int(click.ParamType[int]):
    def __init__(self, name: str, least: int, most: int) -> None:
        self.name = name
        self._least, self._most = least, most

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value)
        parser = "ParseInt" if self._least < 0 else "ParseUint"
        plain = text.isascii() and text == text.strip() and (self._least < 0 or text[:1] not in ("+", "-"))
        try:
            number = int(text if plain else "", 0)
        except ValueError:
            number, reason = 0, "invalid syntax"
        else:
            reason = "" if self._least <= number <= self._most else "value out of range"
        if reason:
            reason = f'strconv.{parser}: parsing "{text}": {reason}'
            raise click.BadParameter(_invalid(text, param, reason), ctx, param)
        return number


BOOL: Final = _Bool()
DURATION: Final = _Duration()
"""Nanoseconds."""
INT: Final = _Int("int", -(2**63), 2**63 - 1)
UINT: Final = _Int("uint", 0, 2**64 - 1)
UINT32: Final = _Int("uint32", 0, 2**32 - 1)


def _invalid(text: str, param: click.Parameter | None, reason: str) -> str:
    name = param.opts[0] if param is not None else ""
    return f'invalid argument "{text}" for "{name}" flag: {reason}'


Option = Callable[[Any], Any]
"""What puts an option before a command's function."""


def string(name: str, default: str, help: str) -> Option:
    """An option with any text."""
    return click.option(name, default=default, show_default=bool(default), metavar="string", help=help)


def switch(name: str, help: str) -> Option:
    """A boolean, false unless it is given."""
    return click.option(name, type=BOOL, default=False, metavar="", help=help)


def number(name: str, kind: click.ParamType[int], default: int, help: str) -> Option:
    """A whole number: INT, UINT or UINT32."""
    return click.option(name, type=kind, default=default, show_default=True, metavar=kind.name, help=help)


def duration(name: str, default: str, help: str) -> Option:
    """A Go duration, as nanoseconds."""
    show = default != "0"
    return click.option(name, type=DURATION, default=default, show_default=show, metavar="duration", help=help)


def strings(name: str, default: Sequence[str], help: str) -> Option:
    """An option whose value is a tuple of texts, `default` as long as it is not given."""

    def split(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(part.strip() for text in given for part in text.split(",") if part.strip())

    return click.option(
        name, multiple=True, default=tuple(default), callback=split, metavar="strings", help=help, show_default=True
    )


HELP: Final[dict[str, Any]] = {"help_option_names": ["-h", "--help"], "max_content_width": 120}
"""The context settings of commands and groups."""


class Command(click.Command):
    """A command that knows a boolean flag from one with a value."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        alone = {name for param in self.params if param.type is BOOL for name in param.opts}
        try:
            return super().parse_args(ctx, [f"{arg}=true" if arg in alone else arg for arg in args])
        except click.UsageError as error:
            error.ctx = error.ctx or ctx  # a missing argument comes without, and its usage would not be shown
            raise


def run(command: click.Command, arguments: Sequence[str], program: str) -> int:
    """Run a command line and give its exit code: what the command returned, 0 after a page of help, 1 if it cannot be
    read; why goes to standard error with the usage."""
    try:
        code = command.main(list(arguments), prog_name=program, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        sys.stdout.write(error.format_message() + "\n")
        return 0
    except click.UsageError as error:
        usage = error.ctx.get_help() if error.ctx is not None else ""
        sys.stderr.write(f"Error: {_reason(error)}\n{usage}\n")
        return EXIT_FAILED
    assert isinstance(code, int)
    return code


def _reason(error: click.UsageError) -> str:
    if isinstance(error, click.NoSuchOption):
        name = error.option_name
        return f"unknown flag: {name}" if name.startswith("--") else f"unknown shorthand flag: '{name[1:]}' in {name}"
    if isinstance(error, click.BadOptionUsage):
        return f"flag needs an argument: {error.option_name}"
    return error.message
