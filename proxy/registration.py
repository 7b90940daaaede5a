"""The proxies of a cluster know each other: each registers under a prefix, and MemberList shows all of them.

Without `--resolver-prefix` a proxy shows itself alone; without `--advertise-client-url` what the cluster says (PX1). A
registration is a key under a lease, which is renewed while the proxy runs, made again when it is lost, and revoked at
the stop (PX25).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import orjson

from kvorum.errors import ApiError
from kvorum.log import Logger
from kvorum.pb.mvcc_pb2 import Event
from kvorum.pb.rpc_pb2 import (
    LeaseGrantRequest,
    LeaseGrantResponse,
    LeaseKeepAliveRequest,
    LeaseKeepAliveResponse,
    LeaseRevokeRequest,
    Member,
    MemberListResponse,
    PutRequest,
    RangeRequest,
    RangeResponse,
    WatchCreateRequest,
    WatchRequest,
    WatchResponse,
)
from kvorum.ranges import end_of_prefix
from kvorum.wire.head import Head
from kvorum.wire.routes import StreamOpen, UnaryHandler
from kvorum.wire.server_connection import ServerConnection
from proxy.callers import Callers
from proxy.calls import again
from proxy.namespaces.passage import Later
from proxy.paths import KEEP_ALIVE, LEASE_GRANT, LEASE_REVOKE, MEMBER_LIST, PUT, RANGE, WATCH
from proxy.upstream.replies import read_as
from proxy.upstream.way import CallLater, Calls, Stream

MOST_PROXIES: Final = 10_000
RETRY_S: Final = 1.0
CALL_TIMEOUT_S: Final = 7.0
REVOKE_TIMEOUT_S: Final = 1.0

_ADD: Final = 0


def registered_value(address: str, name: str) -> bytes:
    """What a proxy writes under its key."""
    metadata = orjson.dumps({"name": name}).decode()
    return orjson.dumps({"Op": _ADD, "Addr": address, "Metadata": metadata})


def registered_member(value: bytes) -> Member | None:
    """The proxy that a value tells of; None when it tells of none."""
    try:
        update = orjson.loads(value)
        if not isinstance(update, dict) or update.get("Op", _ADD) != _ADD:
            return None
        address, metadata = update.get("Addr"), update.get("Metadata")
        told = orjson.loads(metadata) if isinstance(metadata, str) and metadata else {}
    except orjson.JSONDecodeError:
        return None
    name = told.get("name", "") if isinstance(told, dict) else ""
    if not isinstance(address, str) or not isinstance(name, str):
        return None
    return Member(name=name, clientURLs=[address])


class MemberList:
    """Answers MemberList with proxies: all that are registered, else this one alone."""

    def __init__(self, callers: Callers, address: str, name: str, registry: Registry | None) -> None:
        self._callers = callers
        self._self = Member(name=name, clientURLs=[address])
        self._registry = registry

    def unary(self) -> dict[str, UnaryHandler]:
        """Handlers by path."""
        return {MEMBER_LIST: self._answer}

    def streams(self) -> dict[str, StreamOpen]:
        """The service has no stream."""
        return {}

    def _answer(self, connection: ServerConnection, stream_id: int, head: Head, message: bytes) -> None:
        try:
            caller = self._callers.resolve_or_wait(connection, head)
            if caller.tenant is not None:
                caller.tenant.count_request(MEMBER_LIST)
        except ApiError as error:
            connection.fail(stream_id, *error.status)
        except Later as later:
            later.join(again(self._answer, connection, stream_id, head, message), len(message))
        else:
            members = [] if self._registry is None else self._registry.members
            connection.reply(stream_id, MemberListResponse(members=members or [self._self]).SerializeToString())


class Registry:
    """The proxies that are registered under a prefix; followed by a watch, and read anew when that is lost: they are
    few, and the cluster may have been restored to an earlier state meanwhile."""

    def __init__(self, upstream: Calls, prefix: bytes, *, call_later: CallLater, logger: Logger) -> None:
        """`prefix`: of the keys, with the namespace and the `/` behind it."""
        self._upstream = upstream
        self._prefix = prefix
        self._call_later = call_later
        self._logger = logger
        self._members: dict[bytes, Member] = {}
        self._stream: Stream | None = None
        self._stopped = False
        self.on_deleted: Callable[[bytes], None] | None = None
        """Told of each key that is gone."""

    @property
    def members(self) -> list[Member]:
        """By key."""
        return [self._members[key] for key in sorted(self._members)]

    def start(self) -> None:
        """Begin to follow."""
        if self._stopped:
            return
        request = RangeRequest(key=self._prefix, range_end=end_of_prefix(self._prefix), limit=MOST_PROXIES)
        self._upstream.call(
            RANGE, request.SerializeToString(), read_as(RangeResponse, self._on_read), (), CALL_TIMEOUT_S
        )

    def stop(self) -> None:
        self._stopped = True
        self.move()

    def move(self) -> None:
        """Another endpoint is in use: the stream must not stay at one that may stand still."""
        if self._stream is not None:
            self._stream.cancel()

    def _on_read(self, code: int, text: str, response: RangeResponse) -> None:
        if self._stopped:
            return
        if code:
            self._logger.warn("the registered proxies cannot be read", error=text)
            self._call_later(RETRY_S, self.start)
            return
        before = set(self._members)
        self._members = {}
        for kv in response.kvs:
            self._put(kv.key, kv.value)
        for key in sorted(before - set(self._members)):
            self._tell(key)
        self._watch(response.header.revision + 1)

    def _watch(self, start_revision: int) -> None:
        create = WatchCreateRequest(
            key=self._prefix, range_end=end_of_prefix(self._prefix), start_revision=start_revision
        )
        self._stream = self._upstream.open(WATCH, _Handler(self._on_watch, self._on_end), ())
        self._stream.send(WatchRequest(create_request=create).SerializeToString())

    def _on_watch(self, message: bytes) -> None:
        response = WatchResponse.FromString(message)
        if response.canceled:
            if self._stream is not None:
                self._stream.cancel()
            return
        for event in response.events:
            if event.type == Event.PUT:
                self._put(event.kv.key, event.kv.value)
            else:
                self._members.pop(event.kv.key, None)
                self._tell(event.kv.key)

    def _on_end(self, _text: str) -> None:
        self._stream = None
        if not self._stopped:
            self._call_later(RETRY_S, self.start)

    def _put(self, key: bytes, value: bytes) -> None:
        member = registered_member(value)
        if member is None:
            self._logger.warn("no registration of a proxy", key=key.decode("utf-8", "backslashreplace"))
        elif key in self._members or len(self._members) < MOST_PROXIES:
            self._members[key] = member

    def _tell(self, key: bytes) -> None:
        if self.on_deleted is not None:
            self.on_deleted(key)


class Registration:
    """This proxy's own key."""

    def __init__(
        self, upstream: Calls, key: bytes, value: bytes, ttl_s: int, *, call_later: CallLater, logger: Logger
    ) -> None:
        self._upstream = upstream
        self._key = key
        self._value = value
        self._ttl_s = ttl_s
        self._call_later = call_later
        self._logger = logger
        self._lease = 0
        self._attempt = 0
        self._stream: Stream | None = None
        self._asked = False
        self._stopped = False

    def start(self) -> None:
        """Register, and stay registered."""
        self._attempt += 1
        self._lease = 0
        done = read_as(LeaseGrantResponse, partial(self._on_granted, self._attempt))
        self._upstream.call(
            LEASE_GRANT, LeaseGrantRequest(TTL=self._ttl_s).SerializeToString(), done, (), CALL_TIMEOUT_S
        )

    def stop(self, done: Callable[[], None]) -> None:
        """The registration ends; `done` is called when the cluster knows, or cannot be told soon."""
        self._stopped = True
        self.move()
        if not self._lease:
            done()
            return
        request = LeaseRevokeRequest(ID=self._lease).SerializeToString()
        self._upstream.call(LEASE_REVOKE, request, lambda _code, _text, _message: done(), (), REVOKE_TIMEOUT_S)

    def move(self) -> None:
        """Another endpoint is in use: renewals go there."""
        if self._stream is not None:
            self._stream.cancel()

    def on_deleted(self, key: bytes) -> None:
        """Somebody deleted a key, perhaps ours."""
        if key == self._key and self._lease and not self._stopped:
            self._put()

    def _on_granted(self, attempt: int, code: int, text: str, granted: LeaseGrantResponse) -> None:
        if self._stopped or attempt != self._attempt:
            return
        if code:
            self._fail(text)
        else:
            self._lease = granted.ID
            self._put()
            self._renew_later(attempt)

    def _put(self) -> None:
        request = PutRequest(key=self._key, value=self._value, lease=self._lease)
        done = partial(self._on_put, self._attempt)
        self._upstream.call(PUT, request.SerializeToString(), done, (), CALL_TIMEOUT_S)

    def _on_put(self, attempt: int, code: int, text: str, _message: bytes) -> None:
        if self._stopped or attempt != self._attempt:
            return
        if code:
            self._fail(text)
        else:
            key = self._key.decode("utf-8", "backslashreplace")
            self._logger.info("registered session", key=key, lease_ttl=self._ttl_s)

    def _fail(self, text: str) -> None:
        self._logger.warn("failed to register", error=text)
        self._attempt += 1
        self._call_later(RETRY_S, partial(self._start_again, self._attempt))

    def _start_again(self, attempt: int) -> None:
        if not self._stopped and attempt == self._attempt:
            self.start()

    def _renew_later(self, attempt: int) -> None:
        self._call_later(max(self._ttl_s / 3, 0.5), partial(self._renew, attempt))

    def _renew(self, attempt: int) -> None:
        if self._stopped or attempt != self._attempt:
            return
        if self._stream is None:
            self._stream = self._upstream.open(KEEP_ALIVE, _Handler(self._on_renewed, self._on_end), ())
        self._asked = True
        self._stream.send(LeaseKeepAliveRequest(ID=self._lease).SerializeToString())

    def _on_renewed(self, message: bytes) -> None:
        response = LeaseKeepAliveResponse.FromString(message)
        if self._stopped or response.ID != self._lease:
            return
        self._asked = False
        if response.TTL > 0:
            self._renew_later(self._attempt)
        else:
            self._logger.warn("session expired; possible network partition or server restart")
            self.start()

    def _on_end(self, _text: str) -> None:
        self._stream = None
        if self._asked and not self._stopped:
            self._asked = False
            self._call_later(RETRY_S, partial(self._renew, self._attempt))


class _Handler:
    """The replies of one stream."""

    def __init__(self, on_message: Callable[[bytes], None], on_end: Callable[[str], None]) -> None:
        self.on_message = on_message
        self._on_end = on_end

    def on_end(self, _code: int, text: str, _trailers: Any) -> None:
        self._on_end(text)

    def on_writable(self) -> None:
        """What is sent is little."""
