"""The contexts under which a member asks for read indices: unique in the life of the cluster."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

_CONTEXT: Final = struct.Struct("<QQQ")

OWN: Final = 1 << 63
"""Bit of a number: raft asks for itself, not for apply."""


@dataclass(frozen=True, slots=True)
class ReadContext:
    """(member, incarnation) of who asks, with a number that it never uses twice."""

    member: int
    incarnation: int

    def pack(self, number: int) -> bytes:
        """The context of an ask."""
        return _CONTEXT.pack(self.member, self.incarnation, number)

    def number(self, context: bytes) -> int | None:
        """The number of an ask of this generation; None for any other."""
        if len(context) != _CONTEXT.size:
            return None  # another member made it up
        member, incarnation, number = _CONTEXT.unpack(context)
        return number if (member, incarnation) == (self.member, self.incarnation) else None
