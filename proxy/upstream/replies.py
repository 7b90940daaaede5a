"""Replies that the proxy itself reads. What it only passes on is read by who asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from kvorum.errors import Code, Status
from kvorum.wire.calls import UnaryDone

M = TypeVar("M", bound=Message)


def unreadable(error: Exception) -> Status:
    """What a call ends with whose reply is no message of the API."""
    return Status(Code.INTERNAL, f"grpc: error unmarshalling response: {error}")


def read_as(kind: type[M], done: Callable[[int, str, M], None]) -> UnaryDone:
    """What takes the answer to a call for `done`, which gets (code, text, reply), the reply empty for a failure. One
    that cannot be read is a failure too, so a member that sends such harms nobody but who asked it."""

    def read(code: int, text: str, message: bytes) -> None:
        reply = kind()
        if not code:
            try:
                reply.ParseFromString(message)
            except DecodeError as error:
                code, text = unreadable(error)
                reply = kind()
        done(code, text, reply)

    return read
