"""Settings from `ETCD_…` variables (behaviour S1-S7)."""

from collections.abc import Container, Mapping
from typing import Final

from kvorum.log import Level
from kvorum.urls import quote
from node.flags.checks import CheckFailed
from node.flags.notes import Note
from node.flags.table import FLAGS
from node.flags.values import READERS

_PREFIX: Final = "ETCD_"
_KNOWN: Final = frozenset(("ETCD_VERSION", "ETCD_UNSUPPORTED_ARCH", "ETCD_CONFIG_FILE"))
_SHADOWED: Final = (
    "conflicting environment variable is shadowed by corresponding command-line flag "
    "(either unset environment variable or disable flag))"
)


class Shadowed(Exception):
    """A variable is set beside its flag: the log's line, of level fatal, is in `note`, and the process exits with 1."""

    def __init__(self, variable: str) -> None:
        super().__init__(_SHADOWED)
        self.note = Note(Level.FATAL, _SHADOWED, {"environment_variable": variable})


def read_environment(environ: Mapping[str, str], flagged: Container[str]) -> tuple[dict[str, object], list[Note]]:
    """Values by flag name, and what to log.

    `flagged` has the names of the flags on the command line. An empty variable counts as not set, except that beside
    its flag it is an error too. Raises Shadowed, and CheckFailed for a value that cannot be read.
    """
    given: dict[str, object] = {}
    notes: list[Note] = []
    if "ETCD_VERSION" in environ:
        notes.append(
            Note(
                Level.WARN,
                "cannot set special environment variable",
                {"key": "ETCD_VERSION", "value": environ["ETCD_VERSION"]},
            )
        )
    known = set(_KNOWN)
    for flag in FLAGS.values():
        variable = flag.variable
        known.add(variable)
        if variable not in environ or variable in _KNOWN:
            continue
        if flag.name in flagged:
            raise Shadowed(variable)
        text = environ[variable]
        if not text:
            continue
        try:
            given[flag.name] = READERS[flag.kind](text)
            if flag.choices and text not in flag.choices:
                raise ValueError("invalid value")
        except ValueError as error:
            raise CheckFailed(f"invalid value {quote(text)} for {variable}: {error}") from None
        used = {"variable_name": variable, "variable_value": text}
        notes.append(Note(Level.INFO, "recognized and used environment variable", used))
    for variable in sorted(environ):
        if variable.startswith(_PREFIX) and variable not in known:
            pair = f"{variable}={environ[variable]}"
            notes.append(Note(Level.WARN, "unrecognized environment variable", {"environment_variable": pair}))
    return given, notes
