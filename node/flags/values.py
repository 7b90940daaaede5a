"""The values that flags take, read as the Go flag package and the reference read them.

Each reader takes the text given and returns the value, or raises ValueError with the reason as users see it.
"""

import re
from collections.abc import Callable
from enum import Enum
from typing import Final

from node.flags.gates import parse_gates
from node.urls import parse_urls

PARSE_ERROR: Final = "parse error"
OUT_OF_RANGE: Final = "value out of range"

_TRUE: Final = frozenset(("1", "t", "T", "true", "TRUE", "True"))
_FALSE: Final = frozenset(("0", "f", "F", "false", "FALSE", "False"))

# Go's strconv with base 0: the prefix gives the base, and underscores may stand between digits only beside a prefix.
_INTEGER: Final = re.compile(
    r"([+-]?)(?:0[xX](_?[0-9a-fA-F]+(?:_[0-9a-fA-F]+)*)|0[bB](_?[01]+(?:_[01]+)*)"
    r"|0[oO]?(_?[0-7]+(?:_[0-7]+)*)|(0|[1-9][0-9]*(?:_[0-9]+)*))"
)
_BASES: Final = (16, 2, 8, 10)

_UNITS_NS: Final = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_DURATION: Final = re.compile(r"[+-]?(?:0|(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:ns|us|µs|μs|ms|s|m|h))+)")
_DURATION_PART: Final = re.compile(r"([0-9]*)(?:\.([0-9]*))?(ns|us|µs|μs|ms|s|m|h)")


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


def parse_duration_ns(text: str) -> int:
    """A duration such as `1h15m30.918s`, in nanoseconds. A bare number has no unit and is wrong, except 0."""
    if _DURATION.fullmatch(text) is None:
        raise ValueError(PARSE_ERROR)
    total_ns = 0
    for whole, fraction, unit in _DURATION_PART.findall(text):
        if len(whole) > 100:
            raise ValueError(PARSE_ERROR)
        unit_ns = _UNITS_NS[unit]
        total_ns += int(whole or "0") * unit_ns
        if fraction:
            kept = fraction[:30]
            total_ns += int(kept) * unit_ns // 10 ** len(kept)
    if total_ns > 2**63 - 1:
        raise ValueError(PARSE_ERROR)
    return -total_ns if text.startswith("-") else total_ns


def format_duration(duration_ns: int) -> str:
    """A duration as Go writes it: `1h0m0s`, `1.5s`, `100ms`, `0s`."""
    sign = "-" if duration_ns < 0 else ""
    left_ns = abs(duration_ns)
    if left_ns == 0:
        return "0s"
    for unit, unit_ns in (("ns", 1), ("µs", 1_000), ("ms", 1_000_000)):
        if left_ns < unit_ns * 1000:
            return f"{sign}{_decimal(left_ns, unit_ns)}{unit}"
    minutes, seconds_ns = divmod(left_ns, _UNITS_NS["m"])
    hours, minutes = divmod(minutes, 60)
    text = f"{_decimal(seconds_ns, _UNITS_NS['s'])}s"
    if hours:
        return f"{sign}{hours}h{minutes}m{text}"
    return f"{sign}{minutes}m{text}" if minutes else sign + text


def _decimal(value_ns: int, unit_ns: int) -> str:
    whole, rest = divmod(value_ns, unit_ns)
    if not rest:
        return str(whole)
    return f"{whole}.{str(rest).rjust(len(str(unit_ns)) - 1, '0').rstrip('0')}"


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
