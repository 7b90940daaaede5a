"""What depends on the version of the member."""

from __future__ import annotations

import re
from typing import Final

from kvorum.pb.rpc_pb2 import StatusResponse

ORDERED_PROGRESS: Final = (3, 5, 8)
"""Older members answer a progress request before events up to its revision have been sent (WP8, X14)."""

_NUMBERS: Final = re.compile(r"(\d+)\.(\d+)\.(\d+)")


def version_of(status: StatusResponse) -> tuple[int, ...]:
    """The version in a StatusResponse; () when it has none that is known."""
    found = _NUMBERS.match(status.version)
    return tuple(map(int, found.groups())) if found is not None else ()


def keeps_progress_promise(version: tuple[int, ...]) -> bool:
    """Whether after the answer to a progress request no event of its revision or before comes any more (WP5)."""
    return version >= ORDERED_PROGRESS
