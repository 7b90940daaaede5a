"""Durations as users write them and as Go writes them: `1h15m30.918s`."""

import re
from typing import Final

PARSE_ERROR: Final = "parse error"

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
