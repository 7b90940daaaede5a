"""What raft carries for others: questions to the leader's apply, changes for the leader, and the replies to both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from kvorum.errors import Status
from kvorum.log import Logger
from node.frames import FORWARD, Kind, Process
from node.link import Streams
from node.raft import changes
from node.raft.changes import Asked
from node.raft.core import NOBODY, RawNode
from node.raft.transport import Transport
from node.requests import REPLY, are_replies, batches

READS: Final = b"r"
REPLIES: Final = b"a"
CHANGE: Final = b"c"
"""First byte of what members send each other beside the core's messages."""


class Forwards:
    """`ask` takes a change that another member passed on to this one, which leads."""

    def __init__(
        self,
        member_id: int,
        incarnation: int,
        fronts: Sequence[int],
        links: Streams,
        transport: Transport,
        logger: Logger,
        ask: Callable[[RawNode, Asked], None],
    ) -> None:
        self._id = member_id
        self._incarnation = incarnation
        self._fronts = fronts
        self._links = links
        self._transport = transport
        self._logger = logger
        self._ask = ask

    def on_forward(self, node: RawNode, sender: int, payload: bytes) -> None:
        """Something came from another member's raft process."""
        kind, body = payload[:1], payload[1:]
        if kind == READS:
            if node.leads:
                self._links.send(Process.APPLY, Kind.FORWARDS, body)
        elif kind == REPLIES and len(body) > FORWARD.size and are_replies(body, FORWARD.size):
            self._deliver(body)
        elif kind == CHANGE and (ask := changes.passed_on(body)) is not None:
            if node.leads:
                self._ask(node, ask)
        else:
            self._logger.warn("dropped what a member sent", sender=f"{sender:x}", kind=kind.hex())

    def reads(self, node: RawNode | None, payload: bytes) -> None:
        """Of this member's fronts. Without a leader they are dropped: a front repeats them when it hears of one."""
        if node is None or node.lead == NOBODY:
            return
        if node.leads:
            self._links.send(Process.APPLY, Kind.FORWARDS, payload)
        else:
            self._transport.forward(node.lead, READS + payload)

    def pass_on(self, leader: int, ask: Asked) -> None:
        """A change that only the leader decides."""
        self._transport.forward(leader, CHANGE + ask.batch)

    def replies(self, payload: bytes) -> None:
        """Of this member's apply, to where the questions came from."""
        member, _, _ = FORWARD.unpack_from(payload)
        if member == self._id:
            self._deliver(payload)
        else:
            self._transport.forward(member, REPLIES + payload)

    def answer(self, ask: Asked, reply: bytes) -> None:
        """Answers a change where it was asked for."""
        batch = next(iter(batches(ask.batch)))
        self.replies(FORWARD.pack(batch.member, batch.incarnation, ask.origin) + reply)

    def refuse(self, process: int, first_sequence: int, count: int, status: Status) -> None:
        """Answers requests of one of this member's processes that were not logged."""
        code, text = status
        body = text.encode()
        self.send(process, b"".join([REPLY.pack(first_sequence + i, len(body), code) + body for i in range(count)]))

    def send(self, process: int, replies: bytes) -> None:
        """Nothing bounds what other members answer a front; what it does not take is lost, and it ends the request."""
        if self._links.outlet(process, Kind.REPLIES).open():
            self._links.send(process, Kind.REPLIES, replies)
        else:
            self._logger.warn("dropped replies that a process does not take", to=process, size_bytes=len(replies))

    def _deliver(self, payload: bytes) -> None:
        member, incarnation, front = FORWARD.unpack_from(payload)
        if (member, incarnation) == (self._id, self._incarnation) and front in self._fronts:
            self.send(front, payload[FORWARD.size :])
