"""The cluster's alarms. They are replicated, and decide what may still be written (MA7-MA17)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from kvorum import errors
from kvorum.errors import Status
from kvorum.pb.rpc_pb2 import AlarmMember, AlarmRequest, AlarmType

TABLE: Final = b"w"
"""Rows: TABLE + 4 bytes of alarm type + 8 bytes of member id (big-endian) -> AlarmMember."""

Change = tuple[bytes, bytes | None]
"""A row and its value, or None where it goes."""


class Alarms:
    """The alarms that are on."""

    def __init__(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        self._active: dict[tuple[int, int], AlarmMember] = {}
        for _, value in rows:
            alarm = AlarmMember.FromString(value)
            self._active[alarm.alarm, alarm.memberID] = alarm

    @property
    def any_active(self) -> bool:
        """Whether there is any alarm."""
        return bool(self._active)

    def active(self, type_: int = AlarmType.NONE) -> list[AlarmMember]:
        """All alarms, or those of one type, in a fixed order."""
        return [alarm for key, alarm in sorted(self._active.items()) if type_ in (AlarmType.NONE, key[0])]

    def refusal(self, grows: bool) -> Status | None:
        """What a write is refused with; `grows` says whether it may take more space. CORRUPT wins (MA17)."""
        if not self._active:
            return None
        types = {type_ for type_, _ in self._active}
        if AlarmType.CORRUPT in types:
            return errors.CORRUPT
        if grows and AlarmType.NOSPACE in types:
            return errors.NO_SPACE
        return None

    def execute(self, request: AlarmRequest) -> tuple[list[AlarmMember], list[Change]]:
        """Get, activate or deactivate: the alarms to answer with, and the rows that changed."""
        key = (request.alarm, request.memberID)
        if request.action == AlarmRequest.GET:
            return self.active(request.alarm), []
        if request.action == AlarmRequest.ACTIVATE:
            if request.alarm == AlarmType.NONE:
                return [], []
            alarm = AlarmMember(memberID=request.memberID, alarm=request.alarm)
            known = key in self._active
            self._active[key] = alarm
            return [alarm], [] if known else [(_row(key), alarm.SerializeToString(deterministic=True))]
        assert request.action == AlarmRequest.DEACTIVATE, "the front lets no unknown action through"
        gone = self._active.pop(key, None)
        return ([], []) if gone is None else ([gone], [(_row(key), None)])


def describe(alarm: AlarmMember) -> str:
    """An alarm in words (MA3). A type that has no name is stored and listed as well (MA11)."""
    known = alarm.alarm in AlarmType.values()
    return f"memberID:{alarm.memberID} alarm:{AlarmType.Name(alarm.alarm) if known else alarm.alarm}"


def _row(key: tuple[int, int]) -> bytes:
    type_, member_id = key
    return TABLE + (type_ & 0xFFFFFFFF).to_bytes(4, "big") + member_id.to_bytes(8, "big")
