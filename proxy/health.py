"""Whether the proxy and what is behind it serve (PX23)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from kvorum import errors
from kvorum.errors import Code
from kvorum.pb.rpc_pb2 import RangeRequest, WatchCreateRequest, WatchRequest, WatchResponse
from kvorum.wire import grpc
from kvorum.wire.calls import ClientStream
from proxy.paths import RANGE, WATCH
from proxy.upstream.upstream import Upstream

GET_TIMEOUT_S: Final = 1.0
WATCH_TIMEOUT_S: Final = 3.0

Done = Callable[[str | None], None]
"""None when all is well, else the reason why it is not."""

_GET: Final = RangeRequest(key=b"a").SerializeToString()
_CREATE: Final = WatchRequest(create_request=WatchCreateRequest(key=b"a")).SerializeToString()
_SERVED: Final = (errors.PERMISSION_DENIED.message, errors.USER_EMPTY.message)
"""Answers of a member that serves, but not us: the checks have no token."""


def check_get(upstream: Upstream, done: Done) -> None:
    """A read of the key `a`."""

    def answered(code: int, text: str, message: bytes) -> None:
        if code == Code.DEADLINE_EXCEEDED:
            text = "context deadline exceeded"
        done(f"GET ERROR:{text}" if code and text not in _SERVED else None)

    upstream.call(RANGE, _GET, answered, None, GET_TIMEOUT_S)


def check_all(upstream: Upstream, done: Done) -> None:
    """That read, then a watch of the key, which must come to be."""

    def read(reason: str | None) -> None:
        if reason is None:
            _CreatedWatch(upstream, done)
        else:
            done(reason)

    check_get(upstream, read)


class _CreatedWatch:
    """A watch that is ended as soon as it was created, or refused."""

    def __init__(self, upstream: Upstream, done: Done) -> None:
        self._done: Done | None = done
        self._stream: ClientStream | None = upstream.open(WATCH, self, None, WATCH_TIMEOUT_S)
        self._stream.send(_CREATE)

    def on_message(self, message: bytes) -> None:
        reply = WatchResponse.FromString(message)
        if reply.created:
            reason = reply.cancel_reason if reply.canceled and reply.cancel_reason not in _SERVED else None
            self._end(f"WATCH ERROR:{reason}" if reason else None)

    def on_end(self, code: int, text: str, trailers: grpc.Metadata) -> None:
        self._stream = None
        self._end(None if text in _SERVED else f"WATCH ERROR:{text or Code(code).name}")

    def on_writable(self) -> None:
        """One request needs no more room."""

    def _end(self, reason: str | None) -> None:
        done, self._done = self._done, None
        stream, self._stream = self._stream, None
        if stream is not None:
            # Not from within its own callback.
            asyncio.get_running_loop().call_soon(stream.cancel)
        if done is not None:
            done(reason)
