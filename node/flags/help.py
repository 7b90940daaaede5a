"""The texts of `--help`, of a usage error, and of `--version` (behaviour S10, S13, S14)."""

import os
import sys
import textwrap
from typing import Final

from kvorum import API_VERSION, __version__
from node.flags.table import GROUPS, Flag, Standing
from node.flags.values import Kind

USAGE: Final = """\
Usage:

  kvorum [flags]
    Start a member.

  kvorum --version
    Show the versions.

  kvorum -h | --help
    Show every flag.

  kvorum gateway
    Pass TCP connections on to the members of a cluster; kvorum gateway start --help shows its flags.

  kvorum grpc-proxy
    Serve many clients over few connections to a cluster; kvorum grpc-proxy start --help shows its flags.

  kvorum --config-file FILE
    Start a member with the settings of a YAML file; other flags and variables are then ignored.
"""

_RULES: Final = """\
Every flag may be written with one or two hyphens; its value follows "=" or is the next argument. A boolean stands alone
or takes "=true" or "=false". Every flag --some-name can also be set by the variable ETCD_SOME_NAME, but not by both.
"""

_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


def help_text() -> str:
    """Usage, rules and all flags by groups."""
    parts = [USAGE, _RULES]
    for group, flags in GROUPS.items():
        parts.append(f"{group}:\n" + "".join(_flag_text(flag) for flag in flags))
    return "\n".join(parts)


def _flag_text(flag: Flag) -> str:
    default = flag.default if flag.kind is not Kind.BOOL or flag.default == "true" else "false"
    about = flag.help
    if flag.standing is Standing.NOT_YET:
        about += " Not supported yet: another value than the default is refused."
    elif flag.standing is Standing.NO_MEANING:
        about += " Accepted without effect."
    lines = textwrap.wrap(about, 112, initial_indent="    ", subsequent_indent="    ")
    return f"  --{flag.name} '{default}'\n" + "\n".join(lines) + "\n"


def version_text() -> str:
    """Four lines that tools read, in the reference's form, and kvorum's own version."""
    machine = os.uname().machine
    python = ".".join(map(str, sys.version_info[:3]))
    return (
        f"etcd Version: {API_VERSION}\n"
        "Git SHA: none\n"
        f"Go Version: none (Python {python})\n"
        f"Go OS/Arch: {sys.platform}/{_ARCHITECTURES.get(machine, machine)}\n"
        f"kvorum Version: {__version__}\n"
    )
