"""What the apply process proposes by itself: revokes of leases that are over, automatic compactions, the NOSPACE alarm.

Nothing here insists: a proposal that is refused, or lost with a leader, is made again by whoever finds it due again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from kvorum.log import Logger
from kvorum.pb.rpc_pb2 import AlarmRequest, AlarmType, CompactionRequest, LeaseRevokeRequest
from node.apply.auto_compaction import AutoCompaction
from node.frames import HEADER_BYTES, Kind, Process
from node.requests import REPLY, Op, pack_batch, pack_record

FIRST_SEQUENCE: Final = 1


class OwnRequests:
    """Requests of apply's own, and the answers to them. What is not answered in `timeout_s` never will be.

    `send(process, kind, payload)` is the links'; `now` is always monotonic seconds.
    """

    def __init__(
        self,
        *,
        member_id: int,
        incarnation: int,
        send: Callable[[int, int, bytes], None],
        auto_compaction: AutoCompaction | None,
        logger: Logger,
        timeout_s: float,
    ) -> None:
        self._member_id = member_id
        self._incarnation = incarnation
        self._send = send
        self._auto_compaction = auto_compaction
        self._logger = logger
        self._timeout_s = timeout_s
        self._next_sequence = FIRST_SEQUENCE
        self._alarm: tuple[int, float] | None = None  # its sequence, and until when an answer may come
        self._compactions: dict[int, tuple[int, float]] = {}  # by sequence: the revision, likewise

    def revoke(self, lease_id: int) -> None:
        """The lease is over. The lessor asks again if need be (L31)."""
        self._propose(Op.LEASE_REVOKE, LeaseRevokeRequest(ID=lease_id).SerializeToString())

    def raise_no_space(self, reason: str, now: float) -> None:
        """This member has run out of space; once it has said so it waits for the answer."""
        if self._alarm is not None and now < self._alarm[1]:
            return
        self._logger.warn("raising the NOSPACE alarm", reason=reason)
        request = AlarmRequest(action=AlarmRequest.ACTIVATE, memberID=self._member_id, alarm=AlarmType.NOSPACE)
        self._alarm = (self._propose(Op.ALARM, request.SerializeToString()), now + self._timeout_s)

    def compact(self, revision: int, now: float, *, leads: bool) -> None:
        """Automatic compaction, at any rate: every member keeps the times, and the leader proposes (C12)."""
        if self._auto_compaction is None:
            return
        self._compactions = {sequence: asked for sequence, asked in self._compactions.items() if now < asked[1]}
        target = self._auto_compaction.tick(now, revision)
        if target is not None and leads:
            self._logger.info("starting auto compaction", revision=target)
            body = CompactionRequest(revision=target).SerializeToString()
            self._compactions[self._propose(Op.COMPACT, body)] = (target, now + self._timeout_s)

    def on_replies(self, packed: Iterable[bytes], now: float) -> None:
        """Answers to requests of these, from apply itself or from raft, which refuses what the log has no room for."""
        for reply in packed:
            sequence, _, code = REPLY.unpack_from(reply)
            if self._alarm is not None and sequence == self._alarm[0]:
                self._alarm = None
            asked = self._compactions.pop(sequence, None)
            if asked is None or self._auto_compaction is None:
                continue
            revision = asked[0]
            if code == 0:
                self._auto_compaction.done(now, revision)
                self._logger.info("completed auto compaction", revision=revision)
            else:
                text = reply[REPLY.size :].decode()
                self._logger.warn("failed auto compaction", revision=revision, error=text)

    def _propose(self, op: Op, body: bytes) -> int:
        sequence = self._next_sequence
        self._next_sequence += 1
        batch = pack_batch(Process.APPLY, self._member_id, self._incarnation, sequence, [pack_record(op, body)])
        self._send(Process.RAFT, Kind.PROPOSALS, batch)
        return sequence


def split_replies(data: bytes) -> Iterator[bytes]:
    """The packed replies of a frame, one by one."""
    at = HEADER_BYTES
    while at < len(data):
        end = at + REPLY.size + REPLY.unpack_from(data, at)[1]
        yield data[at:end]
        at = end
