"""The command line of the gateway: what is refused, and how (behaviour GW5)."""

import socket
import subprocess
from collections.abc import Iterator

import pytest

from gateway import command
from loadtest.launcher import reference_tool

OWN = (
    "SRV or endpoint (127.0.0.1:23790->127.0.0.1:23790) should not resolve to the gateway listen addr (127.0.0.1:23790)"
)


@pytest.fixture
def busy() -> Iterator[str]:
    """An address that is in use."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


class Ran:
    """The exit code and what was written where, without lines of the log."""

    def __init__(self, capfd: pytest.CaptureFixture[str], *arguments: str) -> None:
        self.code = command.run(arguments, "kvorum gateway")
        self.out, error = capfd.readouterr()
        self.log = [line for line in error.splitlines() if line.startswith("{")]
        self.error = "".join(line + "\n" for line in error.splitlines() if not line.startswith("{"))


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--endpoints=127.0.0.1:23790"], OWN),
        (["--endpoints", "a:1,b"], 'error parsing endpoint "b"'),
        (["--endpoints="], "no endpoints found"),
        (["--listen-addr=x"], "failed to validate listen address: x"),
        (["--listen-addr=:23790"], "failed to resolve listen host: "),
        (["--listen-addr=127.0.0.1:70000"], "listen tcp: address 70000: invalid port"),
        (["--listen-addr=192.0.2.1:1"], "listen tcp 192.0.2.1:1: bind: cannot assign requested address"),
        (["--discovery-srv=x.invalid", "--trusted-ca-file=/none"], "open /none: no such file or directory"),
    ],
)
def test_what_keeps_it_from_starting_is_said_in_a_line(
    capfd: pytest.CaptureFixture[str], flags: list[str], text: str
) -> None:
    ran = Ran(capfd, "start", *flags)
    assert (ran.code, ran.out, ran.error) == (1, "", f"{text}\n")
    assert '"msg":"Running: "' in ran.log[0]


def test_a_port_that_is_in_use(capfd: pytest.CaptureFixture[str], busy: str) -> None:
    ran = Ran(capfd, "start", f"--listen-addr={busy}")
    assert (ran.code, ran.error) == (1, f"listen tcp {busy}: bind: address already in use\n")


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--foo"], "unknown flag: --foo"),
        (["-x"], "unknown shorthand flag: 'x' in -x"),
        (["--listen-addr"], "flag needs an argument: --listen-addr"),
        (["--retry-delay=x"], 'invalid argument "x" for "--retry-delay" flag: time: invalid duration "x"'),
        (["--retry-delay", "1"], 'invalid argument "1" for "--retry-delay" flag: time: invalid duration "1"'),
        (["--retry-delay=-1s"], 'invalid argument "-1s" for "--retry-delay" flag: it is negative'),
        (
            ["--insecure-discovery=maybe"],
            'invalid argument "maybe" for "--insecure-discovery" flag: '
            'strconv.ParseBool: parsing "maybe": invalid syntax',
        ),
    ],
)
def test_a_flag_that_cannot_be_read_ends_with_1_and_the_usage(
    capfd: pytest.CaptureFixture[str], flags: list[str], text: str
) -> None:
    ran = Ran(capfd, "start", *flags)
    assert (ran.code, ran.out, ran.log) == (1, "", [])
    assert ran.error.startswith(f"Error: {text}\nUsage: kvorum gateway start")


@pytest.mark.parametrize(
    "flags", [["--insecure-discovery"], ["--insecure-discovery=false"], ["--insecure-discovery", "x"]]
)
def test_a_boolean_takes_no_argument_and_others_are_left_over(
    capfd: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    ran = Ran(capfd, "start", *flags, "--listen-addr=x")
    assert ran.error == "failed to validate listen address: x\n"
    assert any('"arguments without a flag are ignored"' in line for line in ran.log) == (flags[-1] == "x")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_the_commands(capfd: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    ran = Ran(capfd, *arguments)
    assert (ran.code, ran.error) == (0, "")
    assert "  start  Start the gateway.\n" in ran.out


def test_help_of_start_names_every_flag(capfd: pytest.CaptureFixture[str]) -> None:
    ran = Ran(capfd, "start", "--help")
    assert (ran.code, ran.error) == (0, "")
    text = " ".join(ran.out.split())
    for flag, default in (
        ("listen-addr string", "127.0.0.1:23790"),
        ("endpoints strings", "127.0.0.1:2379"),
        ("discovery-srv string", ""),
        ("discovery-srv-name string", ""),
        ("insecure-discovery ", ""),
        ("trusted-ca-file string", ""),
        ("retry-delay duration", "1m0s"),
    ):
        assert f" --{flag}" in text
        assert f"[default: {default}]" in text or not default


def test_an_unknown_command_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    ran = Ran(capfd, "stop")
    assert ran.code == 1
    assert ran.error.startswith("Error: No such command 'stop'.\nUsage: kvorum gateway")


@pytest.mark.parametrize(
    "flags",
    [
        ["--endpoints=127.0.0.1:23790"],
        ["--endpoints=127.0.0.1:1,b"],
        ["--endpoints="],
        ["--listen-addr=x"],
        ["--listen-addr=:23790"],
        ["--endpoints=http://127.0.0.1:2379", "--listen-addr=localhost:2379"],
        ["--listen-addr=127.0.0.1:70000"],
        ["--listen-addr=192.0.2.1:1"],
        ["--nope"],
        ["--retry-delay=x"],
        ["--insecure-discovery=x", "--listen-addr=x"],
        ["--insecure-discovery", "x", "--listen-addr=x"],
    ],
)
def test_the_reference_says_the_same(capfd: pytest.CaptureFixture[str], flags: list[str]) -> None:
    """Its first line that is no line of the log, on either stream, and its exit code."""
    program = [str(reference_tool("etcd")), "gateway", "start", *flags]
    reference = subprocess.run(
        program,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
        check=False,
    )
    lines = [line for line in reference.stdout.splitlines() if not line.startswith("{")]
    ran = Ran(capfd, "start", *flags)
    assert (ran.code, ran.error.splitlines()[0]) == (reference.returncode, lines[0])
