"""One server as the row tests see it: calls on keys of their own, and which rows a server has to keep to."""

import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from kvorum.pb.mvcc_pb2 import Event, KeyValue
from kvorum.pb.rpc_pb2 import (
    CompactionRequest,
    CompactionResponse,
    DeleteRangeRequest,
    DeleteRangeResponse,
    LeaseGrantRequest,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    RequestOp,
    TxnRequest,
    WatchCreateRequest,
    WatchRequest,
    WatchResponse,
)
from kvorum.ranges import end_of_prefix
from loadtest.launcher import Kind, Server
from tests.calls import Api, WatchStream
from tests.differential.behind_proxy import Elsewhere
from tests.differential.exceptions import EXCEPTIONS

Test = TypeVar("Test", bound=Callable[..., None])
_prefixes = itertools.count()


def differs(row: str) -> Callable[[Test], Test]:
    """The reference does otherwise, by that row of the exceptions: the test runs against kvorum alone."""
    assert row in EXCEPTIONS, row

    def mark(test: Test) -> Test:
        test.differs = row  # type: ignore[attr-defined]  # read by the folder's conftest
        return test

    return mark


class Side(Api):
    """An Api whose keys lie under a prefix that no other test uses."""

    def __init__(self, kind: Kind, server: Server, shared: Elsewhere | None = None) -> None:
        """`shared`: what the server is when others use it, too."""
        super().__init__(server.address)
        self.kind = kind
        self.server = server
        self.shared = shared
        self.prefix = b"row%06d/" % next(_prefixes)

    def key(self, name: bytes | str) -> bytes:
        """The full key of `name`; an empty name stays the empty key."""
        name = name.encode() if isinstance(name, str) else name
        return self.prefix + name if name else b""

    @property
    def end(self) -> bytes:
        """The end of the range of all this test's keys."""
        return end_of_prefix(self.prefix)

    def put(self, name: bytes | str, value: bytes = b"", **fields: Any) -> PutResponse:
        return self(PutRequest(key=self.key(name), value=value, **fields))  # type: ignore[no-any-return]

    def get(self, name: bytes | str, **fields: Any) -> RangeResponse:
        return self(RangeRequest(key=self.key(name), **fields))  # type: ignore[no-any-return]

    def all(self, **fields: Any) -> RangeResponse:
        """A range over all this test's keys."""
        return self(RangeRequest(key=self.prefix, range_end=self.end, **fields))  # type: ignore[no-any-return]

    def delete(self, name: bytes | str, **fields: Any) -> DeleteRangeResponse:
        return self(DeleteRangeRequest(key=self.key(name), **fields))  # type: ignore[no-any-return]

    def grant(self, ttl_s: int = 3600, lease: int = 0) -> int:
        return self(LeaseGrantRequest(TTL=ttl_s, ID=lease)).ID  # type: ignore[no-any-return]

    def lease_id(self, chosen: int) -> int:
        """The id that a row chooses for a lease; beside others one that they do not choose, since ids are the
        cluster's. Its sign and its low 16 bits stay, so it becomes none that a row takes for unknown."""
        return chosen if self.shared is None else chosen ^ os.getpid() << 16

    def compact(self, revision: int, **fields: Any) -> CompactionResponse:
        """Compacts; for a tenant, who may not, at the member."""
        request = CompactionRequest(revision=revision, **fields)
        if self.shared is not None:
            with Api(self.shared.member) as administrator:
                return administrator(request)  # type: ignore[no-any-return]
        return self(request)  # type: ignore[no-any-return]

    @property
    def revision(self) -> int:
        """The store's current revision."""
        return self.get("any").header.revision

    def names(self, kvs: Sequence[KeyValue]) -> str:
        """The names of the keys, joined by blanks."""
        return " ".join(kv.key.removeprefix(self.prefix).decode() for kv in kvs)

    def create(self, stream: WatchStream, name: bytes | str = b"", **fields: Any) -> WatchResponse:
        """Creates a watcher (of all this test's keys without a name) and returns its created reply."""
        if name:
            fields["key"] = self.key(name)
        elif "key" not in fields:
            fields |= {"key": self.prefix, "range_end": self.end}
        seen = sum(reply.created for reply in stream.replies)
        stream.send(WatchRequest(create_request=WatchCreateRequest(**fields)))
        return stream.wait(lambda replies: [reply for reply in replies if reply.created][seen:])[0]


def put_op(key: bytes, value: bytes = b"", **fields: Any) -> RequestOp:
    return RequestOp(request_put=PutRequest(key=key, value=value, **fields))


def range_op(key: bytes, range_end: bytes = b"", **fields: Any) -> RequestOp:
    return RequestOp(request_range=RangeRequest(key=key, range_end=range_end, **fields))


def delete_op(key: bytes, range_end: bytes = b"", **fields: Any) -> RequestOp:
    return RequestOp(request_delete_range=DeleteRangeRequest(key=key, range_end=range_end, **fields))


def txn_op(
    success: Sequence[RequestOp] = (), failure: Sequence[RequestOp] = (), compare: Sequence[Any] = ()
) -> RequestOp:
    return RequestOp(request_txn=TxnRequest(compare=compare, success=success, failure=failure))


def events(stream: WatchStream, count: int, watch_id: int = 0) -> list[Event]:
    """The first `count` events of a watcher."""

    def found(replies: list[WatchResponse]) -> list[Event]:
        seen = [event for reply in replies if reply.watch_id == watch_id for event in reply.events]
        return seen if len(seen) >= count else []

    return stream.wait(found)[:count] if count else []


def batches(stream: WatchStream, watch_id: int = 0) -> list[WatchResponse]:
    """The replies with events so far of a watcher."""
    return [reply for reply in stream.replies if reply.watch_id == watch_id and reply.events]


def canceled(stream: WatchStream, watch_id: int = 0) -> WatchResponse:
    """The cancel of a watcher that was created."""
    return stream.wait(lambda replies: [r for r in replies if r.canceled and not r.created and r.watch_id == watch_id])[
        0
    ]
