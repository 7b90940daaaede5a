"""The process that sends one snapshot to one member: it reads the checkpoint's files, and streams them.

When the stream breaks it begins another, at the place that the receiver names. It ends with 0 when the receiver has
all of it on disk, and else with 1, after the log line that says why.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import uvloop

from kvorum.errors import Code
from kvorum.lifeline import tie_to_parent
from kvorum.log import Logger, LogSettings
from kvorum.wire.client import Call, Channel, RpcError
from kvorum.wire.limits import KIB, MIB, ClientLimits
from node.config import PeerTls
from node.raft.peers.channel import CONNECT_TIMEOUT_S, peer_channel
from node.raft.snapshots.transfer import (
    CHUNK_BYTES,
    FINAL,
    SNAPSHOT,
    File,
    Malformed,
    Place,
    checksum,
    decode_place,
    encode_chunk,
    encode_header,
    is_name,
)

NICENESS: Final = 10

GIVE_UP_S: Final = 30.0
"""Without a byte more at the receiver for so long, whatever is tried, it is of no use to go on."""

STALL_S: Final = 60.0
"""For so long the receiver may take nothing, or not say that it has everything on disk."""

FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 1.0
"""Between two attempts: doubled each time that brought nothing."""

DAMAGES_MAX: Final = 5
"""So many times the receiver may say that what it got is damaged."""

READ_BYTES: Final = 4 * MIB
"""Of a file at once, for its checksum."""

SNAPSHOT_CLIENT_LIMITS: Final = ClientLimits(
    message_bytes=64 * KIB,
    unfinished_bytes=MIB,
    connect_timeout_s=CONNECT_TIMEOUT_S,
    backoff_first_s=0.0,
    backoff_max_s=0.0,
    keepalive_interval_s=10.0,
    keepalive_timeout_s=10.0,
)

T = TypeVar("T")


class SendFailed(Exception):
    """The snapshot cannot be sent."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to send, and where to. `message` is a batch (`codec`) of the one SNAP message; `metadata` is that of a
    stream between the two members; `path` is the checkpoint's directory."""

    parent_pid: int
    member: int
    urls: tuple[str, ...]
    tls: PeerTls | None
    metadata: dict[str, str]
    path: str
    message: bytes
    log: LogSettings


def describe(path: str) -> tuple[File, ...]:
    """The database's files in a directory, with their checksums. Raises OSError."""
    files: list[File] = []
    for name in sorted(entry.name for entry in Path(path).iterdir()):
        if is_name(name):
            crc = size_bytes = 0
            with Path(path, name).open("rb", buffering=0) as file:
                while data := file.read(READ_BYTES):
                    crc = checksum(data, crc)
                    size_bytes += len(data)
            files.append(File(name, size_bytes, crc))
    return tuple(files)


class Sending:
    """One snapshot on its way; `sent_bytes` counts data given to streams, also what had to be repeated."""

    def __init__(
        self, path: str, message: bytes, dial: Sequence[Callable[[], Channel]], metadata: dict[str, str], logger: Logger
    ) -> None:
        """`dial`: a channel to each URL of the receiver, made anew for each attempt."""
        self._path = path
        self._dial = dial
        self._metadata = metadata
        self._logger = logger
        self._files = describe(path)
        self._header = encode_header(message, self._files)
        self._furthest = Place(0, -1)
        self.size_bytes = sum(file.size_bytes for file in self._files)
        self.sent_bytes = 0

    async def run(self) -> None:
        """Returns when the receiver has all of it on disk. Raises SendFailed, OSError."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + GIVE_UP_S
        pause_s = FIRST_PAUSE_S
        damages = 0
        for dial in itertools.cycle(self._dial):
            before = self._furthest
            try:
                await self._attempt(dial)
                return
            except (RpcError, Malformed, TimeoutError, ValueError, ssl.SSLError, ConnectionError) as error:
                code = error.code if isinstance(error, RpcError) else None
                text = error.text if isinstance(error, RpcError) else str(error) or "the other member takes nothing"
            if code == Code.OK:
                return  # it needs no more
            damages += code == Code.DATA_LOSS
            if code in FINAL or damages == DAMAGES_MAX:
                raise SendFailed(text)
            now = loop.time()
            if self._furthest > before:
                give_up_at = now + GIVE_UP_S
                pause_s = FIRST_PAUSE_S
            elif now + pause_s > give_up_at:
                raise SendFailed(f"nothing more has arrived for {GIVE_UP_S:g} s: {text}")
            self._logger.warn("the stream of a snapshot broke, trying again", error=text)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        raise SendFailed("the member has no URL")

    async def _attempt(self, dial: Callable[[], Channel]) -> None:
        channel = dial()
        try:
            call = channel.stream(SNAPSHOT, self._metadata)
            await _in_time(call.send(self._header))
            reply = await _in_time(call.read())
            if reply is None:
                return
            place = decode_place(reply, self._files)
            self._furthest = max(self._furthest, place)
            await self._stream(call, place)
            call.half_close()
            if await _in_time(call.read()) is not None:
                raise Malformed("the other member answers where nothing was asked")
        finally:
            await channel.close()

    async def _stream(self, call: Call, place: Place) -> None:
        offset = place.offset
        for number in range(place.file, len(self._files)):
            name, size_bytes, _ = self._files[number]
            with Path(self._path, name).open("rb", buffering=0) as file:
                while offset < size_bytes:
                    data = os.pread(file.fileno(), CHUNK_BYTES, offset)
                    if not data:
                        raise SendFailed(f"{self._path}/{name} has become shorter")
                    await _in_time(call.send(encode_chunk(Place(number, offset), data)))
                    offset += len(data)
                    self.sent_bytes += len(data)
            offset = 0


async def _in_time(step: Awaitable[T]) -> T:
    async with asyncio.timeout(STALL_S):
        return await step


def main(order: Order) -> None:
    """The process's whole life."""
    tie_to_parent(order.parent_pid, "kvorum-snapshot")
    os.nice(NICENESS)
    logger = Logger.open(order.log)
    fields = {"remote_peer_id": f"{order.member:x}"}
    began = time.monotonic()

    def dialer(url: str) -> Callable[[], Channel]:
        return lambda: peer_channel(url, order.tls, SNAPSHOT_CLIENT_LIMITS)

    try:
        sending = Sending(order.path, order.message, [dialer(url) for url in order.urls], order.metadata, logger)
        logger.info("sending a snapshot", size_bytes=sending.size_bytes, path=order.path, **fields)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(sending.run())
    except (SendFailed, OSError) as error:
        logger.warn("cannot send a snapshot", error=str(error), **fields)
        sys.exit(1)
    took_s = round(time.monotonic() - began, 3)
    logger.info(
        "sent a snapshot", size_bytes=sending.size_bytes, sent_bytes=sending.sent_bytes, took_s=took_s, **fields
    )
