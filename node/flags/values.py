"""The values that flags take, read as the Go flag package and the reference read them.

Each reader takes the text given and returns the value, or raises ValueError with the reason as users see it.
"""

import re
from collections.abc import Callable
from enum import Enum
from typing import Final

from kvorum.durations import PARSE_ERROR, parse_duration_ns
from kvorum.urls import parse_urls
from node.flags.gates import parse_gates

OUT_OF_RANGE: Final = "value out of range"

_TRUE: Final = frozenset(("1", "t", "T", "true", "TRUE", "True"))
_FALSE: Final = frozenset(("0", "f", "F", "false", "FALSE", "False"))

# Go's strconv with base 0: the prefix gives the base, and underscores may stand between digits only beside a prefix.
_INTEGER: Final = re.compile(
    r"([+-]?)(?:0[xX](_?[0-9a-fA-F]+(?:_[0-9a-fA-F]+)*)|0[bB](_?[01]+(?:_[01]+)*)"
    r"|0[oO]?(_?[0-7]+(?:_[0-7]+)*)|(0|[1-9][0-9]*(?:_[0-9]+)*))"
)
_BASES: Final = (16, 2, 8, 10)


class Kind(Enum):
    """The type of a flag's value."""

    STRING = "string"
    BOOL = "bool"
    INT = "int"
    UINT = "uint"
    UINT32 = "uint32"
    DURATION = "duration"
    URLS = "urls"
    STRINGS = "strings"
    GATES = "gates"
    IGNORED = "ignored"


def parse_bool(text: str) -> bool:
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError(PARSE_ERROR)


def _parse_integer(text: str, least: int, most: int) -> int:
    match = _INTEGER.fullmatch(text)
    if match is None or (least == 0 and match[1]):
        raise ValueError(PARSE_ERROR)
    digits, base = next((group, base) for group, base in zip(match.groups()[1:], _BASES, strict=True) if group)
    if len(digits) > 100:  # Python would refuse to read thousands of digits
        raise ValueError(OUT_OF_RANGE)
    value = int(digits.replace("_", ""), base)
    if match[1] == "-":
        value = -value
    if not least <= value <= most:
        raise ValueError(OUT_OF_RANGE)
    return value


def parse_int(text: str) -> int:
    """A signed integer of 64 bits."""
    return _parse_integer(text, -(2**63), 2**63 - 1)


def parse_uint(text: str) -> int:
    """An unsigned integer of 64 bits."""
    return _parse_integer(text, 0, 2**64 - 1)


def parse_uint32(text: str) -> int:
    """An unsigned integer of 32 bits, decimal; its errors are worded as the reference's own flag type does."""
    if re.fullmatch("[0-9]+", text) is None:
        raise ValueError(f'strconv.ParseUint: parsing "{text}": invalid syntax')
    if len(text) > 100 or int(text) > 2**32 - 1:
        raise ValueError(f'strconv.ParseUint: parsing "{text}": {OUT_OF_RANGE}')
    return int(text)


def parse_strings(text: str) -> tuple[str, ...]:
    """A comma-separated list: each string once, sorted."""
    return tuple(sorted(set(text.split(",")))) if text else ()


READERS: Final[dict[Kind, Callable[[str], object]]] = {
    Kind.STRING: str,
    Kind.BOOL: parse_bool,
    Kind.INT: parse_int,
    Kind.UINT: parse_uint,
    Kind.UINT32: parse_uint32,
    Kind.DURATION: parse_duration_ns,
    Kind.URLS: parse_urls,
    Kind.STRINGS: parse_strings,
    Kind.GATES: parse_gates,
    Kind.IGNORED: str,
}
"""How each kind is read; a duration's value is in nanoseconds."""
