"""One stream of a sender's, driven by hand, message by message."""

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvorum.wire.head import Head
from kvorum.wire.routes import CancelReason, StreamHandler
from node.raft.core import Message
from node.raft.peers.identity import Identity
from node.raft.snapshots.sender import describe
from node.raft.snapshots.transfer import (
    CHUNK_BYTES,
    Place,
    decode_place,
    encode_chunk,
)
from tests.raft.snapshots.snapshots import (
    CLUSTER,
    FOLLOWER,
    LEADER,
    ReceiverUnderTest,
    header_of,
    snap,
)


class FakeStream:
    """The wire's stream: what was sent, how it ended, whether it is read."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.ended: tuple[int, str] | None = None
        self.reading = True
        self.waiting: deque[bytes] = deque()
        self.handler: StreamHandler | None = None

    def send(self, message: bytes) -> None:
        assert self.ended is None
        self.sent.append(message)

    def end(self, code: int = 0, text: str = "") -> None:
        assert self.ended is None, "ended twice"
        self.ended = (code, text)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True
        self.deliver()

    def deliver(self) -> None:
        assert self.handler is not None
        while self.waiting and self.reading and self.ended is None:
            self.handler.on_message(self.waiting.popleft())


class SenderUnderTest:
    """One stream of a sender's, driven by hand."""

    def __init__(
        self, under_test: ReceiverUnderTest, *, sender: int = LEADER, metadata: dict[str, str] | None = None
    ) -> None:
        self.stream = FakeStream()
        given = Identity(CLUSTER, sender).metadata(FOLLOWER) if metadata is None else metadata
        head: Any = Head.__new__(Head)
        head.metadata = {name: (value,) for name, value in given.items()}
        open_stream: Callable[[Any, Head], StreamHandler | None] = under_test.receiver.routes["/kvorum.Peer/Snapshot"]
        self.stream.handler = open_stream(self.stream, head)

    @property
    def ended(self) -> tuple[int, str] | None:
        return self.stream.ended

    @property
    def code(self) -> int | None:
        return self.stream.ended[0] if self.stream.ended is not None else None

    def say(self, message: bytes) -> None:
        self.stream.waiting.append(message)
        self.stream.deliver()

    def place(self, checkpoint: Path) -> Place:
        """Where the receiver has told to begin."""
        return decode_place(self.stream.sent[-1], describe(str(checkpoint)))

    def stream_files(self, checkpoint: Path, *, size: int = CHUNK_BYTES, until: int = 1 << 30) -> None:
        """Chunks from where the receiver told, at most so many."""
        begin = self.place(checkpoint)
        for number, file in enumerate(describe(str(checkpoint))):
            data = (checkpoint / file.name).read_bytes()
            first = begin.offset if number == begin.file else 0
            if number >= begin.file:
                for offset in range(first, len(data), size):
                    if not until:
                        return
                    until -= 1
                    self.say(encode_chunk(Place(number, offset), data[offset : offset + size]))

    def half_close(self) -> None:
        assert self.stream.handler is not None
        self.stream.handler.on_half_close()

    def lose(self, reason: CancelReason = CancelReason.LOST) -> None:
        assert self.stream.handler is not None
        self.stream.handler.on_cancel(reason)


def whole(receiver: ReceiverUnderTest, checkpoint: Path, message: Message | None = None) -> SenderUnderTest:
    sender = SenderUnderTest(receiver)
    sender.say(header_of(message or snap(), checkpoint))
    sender.stream_files(checkpoint)
    return sender
