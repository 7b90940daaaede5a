"""Settings from a YAML file (behaviour S8, S9): keys are flag names; TLS has two sections of its own.

Durations are whole numbers of nanoseconds, or texts as on the command line. Lists may be YAML lists.
"""

from collections.abc import Callable, Iterator
from typing import Final

from kvorum.log import Level
from kvorum.urls import quote
from node.flags.checks import CheckFailed, StartFailed
from node.flags.notes import Note
from node.flags.table import FLAGS
from node.flags.values import READERS, Kind

_SECTION_KEYS: Final = {
    "client-transport-security": {
        key: key
        for key in (
            "cert-file",
            "key-file",
            "client-cert-file",
            "client-key-file",
            "client-cert-auth",
            "client-crl-file",
            "client-cert-allowed-hostname",
            "trusted-ca-file",
            "auto-tls",
        )
    },
    "peer-transport-security": {
        key: "peer-" + key
        for key in (
            "cert-file",
            "key-file",
            "client-cert-file",
            "client-key-file",
            "client-cert-auth",
            "trusted-ca-file",
            "auto-tls",
            "crl-file",
            "cert-allowed-cn",
            "cert-allowed-hostname",
            "skip-client-san-verification",
        )
    },
}
_IN_SECTIONS: Final = frozenset(flag for keys in _SECTION_KEYS.values() for flag in keys.values())
_START: Final = frozenset(("config-file", "version"))


def read_config_file(path: str, read_file: Callable[[str], bytes]) -> tuple[dict[str, object], list[Note]]:
    """Values by flag name, and what to log: keys that no flag has are ignored with a warning.

    Raises CheckFailed for a file that cannot be read or a value of the wrong type, StartFailed for a URL.
    """
    from yaml import YAMLError, safe_load  # 18 ms and 2 MiB, only for those who have a file

    try:
        document = safe_load(read_file(path))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CheckFailed(f"open {path}: {reason}") from None
    except (YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise CheckFailed(f"error converting YAML to JSON: yaml: {reason}") from None
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise CheckFailed(f"error unmarshaling JSON: {path} holds no map of settings")
    given: dict[str, object] = {}
    notes: list[Note] = []
    for key, name, value in _settings(document):
        if name is None:
            fields = {"path": path, "key": key}
            notes.append(Note(Level.WARN, "unknown key in the configuration file is ignored", fields))
        elif value is not None:
            given[name] = _read(key, name, value)
    return given, notes


def _settings(document: dict[object, object]) -> Iterator[tuple[str, str | None, object]]:
    """Each setting as (key as written, flag name or None, value)."""
    for raw, value in document.items():
        key = str(raw)
        keys = _SECTION_KEYS.get(key)
        if keys is None:
            known = key in FLAGS and key not in _IN_SECTIONS and key not in _START
            yield key, key if known else None, value
        elif isinstance(value, dict):
            for inner, inner_value in value.items():
                yield f"{key}.{inner}", keys.get(str(inner)), inner_value
        elif value is not None:
            raise CheckFailed(f"error unmarshaling JSON: {key} must be a map")


def _read(key: str, name: str, value: object) -> object:
    flag = FLAGS[name]
    if flag.kind is Kind.DURATION and isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        return READERS[flag.kind](_text(flag.kind, value))
    except ValueError as error:
        if flag.kind is Kind.URLS:
            raise StartFailed(f"unexpected error setting up {name}: {error}", bare=True) from None
        shown = quote(value) if isinstance(value, str) else repr(value)
        wanted = flag.kind.value
        raise CheckFailed(f"error unmarshaling JSON: {shown} for {key} is not a value of type {wanted}") from None


def _text(kind: Kind, value: object) -> str:
    """A YAML value as it would stand on the command line. Raises ValueError if its type does not fit the flag's."""
    if isinstance(value, bool):
        if kind is not Kind.BOOL:
            raise ValueError("a boolean")
        return str(value).lower()
    if isinstance(value, str):
        if kind is Kind.BOOL:
            raise ValueError("a string")
        return value
    if isinstance(value, int) and kind is not Kind.BOOL:
        return str(value)
    if isinstance(value, list) and kind in (Kind.STRINGS, Kind.URLS) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    if isinstance(value, dict) and kind is Kind.GATES:
        return ",".join(f"{name}={_text(Kind.BOOL, state)}" for name, state in value.items())
    raise ValueError("another type")
