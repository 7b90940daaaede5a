"""Flags of click commands, read and refused as Go's pflag does."""

import click
import pytest

from kvorum.go_flags import INT, UINT, UINT32, Command, duration, number, run, string, strings, switch


@click.command(cls=Command)
@switch("--switch", "A switch.")
@string("--text", "none", "A text.")
@duration("--time", "1m0s", "A time.")
@number("--int", INT, 0, "A number.")
@number("--uint", UINT, 1, "A number.")
@number("--uint32", UINT32, 4294967295, "A number.")
@strings("--list", ("a", "b"), "A list.")
@click.argument("left", nargs=-1)
def command(
    switch: bool, text: str, time: int, int: int, uint: int, uint32: int, list: tuple[str, ...], left: tuple[str, ...]
) -> int:
    """Print the values."""
    print(switch, text, time, int, uint, uint32, ",".join(list), *left)
    return 7


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(command, arguments, "prog") == 7
    return capsys.readouterr().out.rstrip("\n")


def test_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys) == "False none 60000000000 0 1 4294967295 a,b"


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        (["--switch"], "True none"),
        (["--switch=false"], "False none"),
        (["--switch=T", "--text=x"], "True x"),
        (["--text", "x", "--switch"], "True x"),
        (["--time=1h0.5s"], "False none 3600500000000"),
        (["--int=-9223372036854775808"], "False none 60000000000 -9223372036854775808"),
        (["--int=0x10", "--uint=18446744073709551615"], "False none 60000000000 16 18446744073709551615"),
        (["--uint32=0"], "False none 60000000000 0 1 0"),
        (["--list=x", "--list=y,z"], "False none 60000000000 0 1 4294967295 x,y,z"),
        (["--list="], "False none 60000000000 0 1 4294967295 "),
    ],
)
def test_values(capsys: pytest.CaptureFixture[str], arguments: list[str], start: str) -> None:
    assert printed(capsys, *arguments).startswith(start)


def test_a_boolean_takes_no_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "--switch", "false").endswith("a,b false")


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        (
            "--switch=yes",
            'invalid argument "yes" for "--switch" flag: strconv.ParseBool: parsing "yes": invalid syntax',
        ),
        ("--time=5", 'invalid argument "5" for "--time" flag: time: invalid duration "5"'),
        ("--int=x", 'invalid argument "x" for "--int" flag: strconv.ParseInt: parsing "x": invalid syntax'),
        ("--int= 1", 'invalid argument " 1" for "--int" flag: strconv.ParseInt: parsing " 1": invalid syntax'),
        ("--int=١", 'invalid argument "١" for "--int" flag: strconv.ParseInt: parsing "١": invalid syntax'),
        ("--uint=-1", 'invalid argument "-1" for "--uint" flag: strconv.ParseUint: parsing "-1": invalid syntax'),
        (
            "--int=9223372036854775808",
            'invalid argument "9223372036854775808" for "--int" flag: '
            'strconv.ParseInt: parsing "9223372036854775808": value out of range',
        ),
        (
            "--uint32=4294967296",
            'invalid argument "4294967296" for "--uint32" flag: '
            'strconv.ParseUint: parsing "4294967296": value out of range',
        ),
        ("--nope", "unknown flag: --nope"),
        ("--text", "flag needs an argument: --text"),
    ],
)
def test_what_cannot_be_read(capsys: pytest.CaptureFixture[str], argument: str, reason: str) -> None:
    assert run(command, [argument], "prog") == 1
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith(f"Error: {reason}\nUsage: prog [OPTIONS]")


def test_help_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, ["--help"], "prog") == 0
    assert capsys.readouterr().out.startswith("Usage: prog [OPTIONS]")
