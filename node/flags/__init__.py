"""How a member's settings come about: command line, environment, configuration file; their checks.

`parse` is pure: it is given the arguments, the environment and a way to read files, and says what is to be done.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from kvorum.log import Level, LogSettings
from kvorum.urls import quote
from node.config import Config
from node.flags.build import Values, build_config, build_log_settings
from node.flags.checks import CheckFailed, StartFailed
from node.flags.command_line import HelpAsked, UsageError, read_command_line
from node.flags.config_file import read_config_file
from node.flags.environment import Shadowed, read_environment
from node.flags.help import USAGE, help_text, version_text
from node.flags.notes import Note


class Start(NamedTuple):
    """A member is to be started: with `config`, after `notes` are logged."""

    config: Config
    notes: tuple[Note, ...]


class Exit(NamedTuple):
    """The process ends: texts for its outputs, `notes` logged as `log` says, then the exit code."""

    code: int
    stdout: str = ""
    stderr: str = ""
    notes: tuple[Note, ...] = ()
    log: LogSettings = LogSettings()


def parse(argv: Sequence[str], environ: Mapping[str, str], read_file: Callable[[str], bytes]) -> Start | Exit:
    """Read a member's settings. `argv` begins with the program's name; `read_file` raises OSError.

    Nothing is raised: everything that can be wrong with the input becomes an Exit (behaviour S1-S36).
    """
    try:
        line = read_command_line(argv[1:])
    except HelpAsked:
        return Exit(0, stdout=help_text())
    except UsageError as error:
        return Exit(2, stderr=f"{error}\n{USAGE}")
    notes: list[Note] = []
    log = LogSettings()
    try:
        if line.rest:
            raise CheckFailed(f"{quote(line.rest[0])} is not a valid flag")
        if line.given.get("version"):
            return Exit(0, stdout=version_text())
        notes += [Note(Level.WARN, "flag of old is ignored", {"flag": "--" + name}) for name in line.ignored]
        path = line.given.get("config-file", environ.get("ETCD_CONFIG_FILE", ""))
        if path:
            notes.append(Note(Level.INFO, "loading server configuration from file", {"path": path}))
            given, more = read_config_file(str(path), read_file)
        else:
            from_environment, more = read_environment(environ, line.given)
            given = from_environment | line.given
        notes += more
        values = Values(given)
        log = build_log_settings(values)
        config, more = build_config(values, log)
        notes += more
    except Shadowed as error:
        return Exit(1, notes=(*notes, error.note), log=log)
    except CheckFailed as error:
        notes.append(Note(Level.WARN, "failed to verify flags", {"error": str(error)}))
        return Exit(1, notes=tuple(notes), log=log)
    except StartFailed as error:
        if error.bare:
            return Exit(1, stderr=f"{error}\n", notes=tuple(notes), log=log)
        notes.append(Note(Level.FATAL, "discovery failed", {"error": str(error)}))
        return Exit(1, notes=tuple(notes), log=log)
    return Start(config, tuple(notes))
