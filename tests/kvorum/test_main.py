"""The command `kvorum`: its first argument chooses what runs."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from kvorum import __main__ as command
from node.flags.help import USAGE

ROOT = Path(__file__).parents[2]


def kvorum(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kvorum", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("name", sorted(command.COMMANDS))
def test_a_command_has_a_page_of_help(name: str) -> None:
    done = kvorum(name, "start", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: kvorum {name} start")
    assert "--listen-addr" in done.stdout


def test_without_a_command_it_is_a_member() -> None:
    done = kvorum("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("etcd Version: ")


def test_a_command_is_only_the_first_argument() -> None:
    done = kvorum("--name", "gateway", "--nope")
    assert done.returncode == 2
    assert done.stderr.startswith("flag provided but not defined: -nope\n")


@pytest.mark.parametrize("name", sorted(command.COMMANDS))
def test_the_members_help_names_every_command(name: str) -> None:
    assert f"  kvorum {name}\n" in USAGE


def test_the_installed_script_is_this_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"kvorum": f"{command.__name__}:{command.main.__name__}"}
