"""What the proxy learns of keys from the calls that pass through it, for the range cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from google.protobuf.message import DecodeError

from kvorum import errors
from kvorum.errors import Code
from kvorum.pb.election_pb2 import CampaignResponse, ProclaimRequest, ResignRequest
from kvorum.pb.lock_pb2 import LockResponse, UnlockRequest
from kvorum.pb.rpc_pb2 import (
    CompactionRequest,
    DeleteRangeRequest,
    PutRequest,
    RangeRequest,
    RangeResponse,
    RangeStreamResponse,
    ResponseHeader,
    TxnRequest,
    TxnResponse,
    WatchResponse,
)
from proxy import paths
from proxy.cache.range_cache import RangeCache

SERIALIZABLE: Final = b"8\x01"
"""The field `serializable`, true, as it is encoded in a RangeRequest."""

NOT_DONE: Final = frozenset(
    {
        *(Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.PERMISSION_DENIED, Code.UNAUTHENTICATED),
        *(Code.RESOURCE_EXHAUSTED, Code.FAILED_PRECONDITION, Code.OUT_OF_RANGE, Code.UNIMPLEMENTED),
    }
)
"""A write that ends with one of these has changed nothing; with another one it may have."""

LOOK_BYTES: Final = 4096
"""A larger reply is not searched for revisions, which would cost more than it spares."""


def header_revision(reply: bytes) -> int:
    """The revision in the header of a reply; 0 where none can be read. The header is field 1 of every reply, and
    first."""
    if len(reply) < 2 or reply[0] != 0x0A or reply[1] > 0x7F:
        return 0
    try:
        return ResponseHeader.FromString(reply[2 : 2 + reply[1]]).revision
    except DecodeError:
        return 0


def lone_key(request: bytes) -> bytes | None:
    """The key of a RangeRequest that has nothing else, shorter than 128 bytes; None for any other."""
    if len(request) > 2 and request[0] == 0x0A and request[1] == len(request) - 2 and request[1] < 0x80:
        return request[2:]
    return None


def is_serializable(request: bytes) -> bool:
    """Whether a RangeRequest is. 40 ns for one without the field's bytes, which a parse (0.5 us) would tell of too."""
    if SERIALIZABLE not in request:
        return False
    try:
        return RangeRequest.FromString(request).serializable
    except DecodeError:
        return False


def serializable(message: bytes) -> bytes:
    """The same RangeRequest, serializable, as clients encode it: fields in order."""
    if lone_key(message) is not None:
        return message + SERIALIZABLE
    asked = RangeRequest.FromString(message)
    asked.serializable = True
    return asked.SerializeToString()


def linearizable(request: bytes) -> bytes:
    """The same RangeRequest, not serializable."""
    parsed = RangeRequest.FromString(request)
    parsed.serializable = False
    return parsed.SerializeToString()


class Learner:
    """Tells the cache what calls have shown. Until somebody reads serializably that is the revision alone."""

    def __init__(self, cache: RangeCache) -> None:
        self.cache = cache
        self._wanted = False

    def ask(self, token: str, prefix: bytes, message: bytes, now: float) -> tuple[bytes | None, bool]:
        """(the kept reply or None, whether the read is serializable). `message` is as the client sent it."""
        cache = self.cache
        kept = cache.get(token, prefix, message, now)
        if kept is not None:
            return kept, True
        if not is_serializable(message):
            return None, False
        self._wanted = True
        cache.misses += 1
        return None, True

    def on_range(
        self, token: str, prefix: bytes, message: bytes, request: bytes, reply: bytes, shown: bytes, now: float
    ) -> None:
        """A read was answered. `message` and `shown` are what the client sent and gets; `request` and `reply` the same
        at the member, where the namespace is part of the keys."""
        cache = self.cache
        if not self._wanted and not cache.listens:
            cache.saw(header_revision(reply))
            return
        kept_for = message if is_serializable(message) else serializable(message)
        if cache.confirm((token, prefix, kept_for), shown, now):
            return
        revision = header_revision(reply)
        try:
            asked = RangeRequest.FromString(request)
            found = RangeResponse.FromString(reply) if len(reply) <= LOOK_BYTES else None
        except DecodeError:
            return  # who asked cannot read it either
        if asked.revision <= 0:
            self._saw_range(asked, found, revision)
        cache.put(
            (token, prefix, kept_for),
            asked.key,
            asked.range_end,
            revision,
            shown,
            now,
            at_revision=max(asked.revision, 0),
        )
        cache.saw(revision)

    def on_first_part(self, path: str, message: bytes) -> None:
        """The first reply on the stream of a call that has such."""
        if path == paths.RANGE_STREAM:
            revision = RangeStreamResponse.FromString(message).range_response.header.revision
            self.cache.saw_range(b"\0", b"\0", revision)  # whatever was asked for
            self.cache.saw(revision)
        else:
            self.on_reply(path, b"", message)

    def on_events(self, message: bytes) -> None:
        """A WatchResponse, with keys as at the member, is about to be delivered."""
        cache = self.cache
        if not cache.listens:
            cache.saw(header_revision(message))
            return
        for event in WatchResponse.FromString(message).events:
            cache.saw_key(event.kv.key, event.kv.mod_revision)
            cache.saw(event.kv.mod_revision)

    def on_reply(self, path: str, request: bytes, reply: bytes) -> None:
        """A call other than a Range was answered, with keys as at the member."""
        cache = self.cache
        revision = header_revision(reply)
        cache.saw(revision)
        if cache.listens:
            lesson = LESSONS.get(path)
            if lesson is not None:
                try:
                    lesson(self, request, reply, revision)
                except DecodeError:
                    cache.clear()  # something was done, and nobody can read what

    def on_failure(self, path: str, request: bytes, code: int, text: str) -> None:
        """A call ended with an error."""
        if code == errors.COMPACTED.code and text == errors.COMPACTED.message:
            if path == paths.RANGE:
                self.cache.saw_compaction(RangeRequest.FromString(request).revision + 1)
        elif code not in NOT_DONE and path in LESSONS and self.cache.listens:
            loss = LOSSES.get(path)
            if loss is None:
                self.cache.clear()
                return
            try:
                loss(self, request)
            except DecodeError:
                return  # nor could the member read it

    def _saw_range(self, asked: RangeRequest, found: RangeResponse | None, revision: int) -> None:
        """`found` is None where it was not looked at."""
        if asked.range_end:
            self.cache.saw_range(asked.key, asked.range_end, revision)
        else:
            # What was kept since the key changed last is as good.
            since = found.kvs[0].mod_revision if found is not None and found.kvs else revision
            self.cache.saw_key(asked.key, since)

    # Lessons: what each kind of call shows.

    def put(self, request: bytes, _reply: bytes, revision: int) -> None:
        self.cache.saw_key(PutRequest.FromString(request).key, revision)

    def delete_range(self, request: bytes, _reply: bytes, revision: int) -> None:
        asked = DeleteRangeRequest.FromString(request)
        self.cache.saw_range(asked.key, asked.range_end, revision)

    def txn(self, request: bytes, reply: bytes, revision: int) -> None:
        self._txn(TxnRequest.FromString(request), TxnResponse.FromString(reply), revision)

    def _txn(self, request: TxnRequest, reply: TxnResponse, revision: int) -> None:
        operations = request.success if reply.succeeded else request.failure
        for operation, answer in zip(operations, reply.responses, strict=False):
            match operation.WhichOneof("request"):
                case "request_put":
                    self.cache.saw_key(operation.request_put.key, revision)
                case "request_delete_range":
                    asked = operation.request_delete_range
                    self.cache.saw_range(asked.key, asked.range_end, revision)
                case "request_range" if operation.request_range.revision <= 0:
                    self._saw_range(operation.request_range, answer.response_range, revision)
                case "request_txn":
                    self._txn(operation.request_txn, answer.response_txn, revision)

    def compact(self, request: bytes, _reply: bytes, _revision: int) -> None:
        self.cache.saw_compaction(CompactionRequest.FromString(request).revision)

    def revoke(self, _request: bytes, _reply: bytes, revision: int) -> None:
        # Keys may have got the lease, and lost it now, since a reply was kept: it does not tell.
        self.cache.saw_range(b"\0", b"\0", revision)

    def lock(self, _request: bytes, reply: bytes, revision: int) -> None:
        self.cache.saw_key(LockResponse.FromString(reply).key, revision)

    def unlock(self, request: bytes, _reply: bytes, revision: int) -> None:
        self.cache.saw_key(UnlockRequest.FromString(request).key, revision)

    def campaign(self, _request: bytes, reply: bytes, revision: int) -> None:
        self.cache.saw_key(CampaignResponse.FromString(reply).leader.key, revision)

    def proclaim(self, request: bytes, _reply: bytes, revision: int) -> None:
        self.cache.saw_key(ProclaimRequest.FromString(request).leader.key, revision)

    def resign(self, request: bytes, _reply: bytes, revision: int) -> None:
        self.cache.saw_key(ResignRequest.FromString(request).leader.key, revision)

    def permissions(self, _request: bytes, _reply: bytes, _revision: int) -> None:
        self.cache.clear()

    # What is not known after a failure.

    def lost_put(self, request: bytes) -> None:
        self.cache.lost_sight(PutRequest.FromString(request).key, b"")

    def lost_delete(self, request: bytes) -> None:
        asked = DeleteRangeRequest.FromString(request)
        self.cache.lost_sight(asked.key, asked.range_end)


LESSONS: Final[dict[str, Callable[[Learner, bytes, bytes, int], None]]] = {
    paths.PUT: Learner.put,
    paths.DELETE_RANGE: Learner.delete_range,
    paths.TXN: Learner.txn,
    paths.COMPACT: Learner.compact,
    paths.LEASE_REVOKE: Learner.revoke,
    paths.LOCK: Learner.lock,
    paths.UNLOCK: Learner.unlock,
    paths.CAMPAIGN: Learner.campaign,
    paths.PROCLAIM: Learner.proclaim,
    paths.RESIGN: Learner.resign,
    **dict.fromkeys(paths.PERMISSION_CHANGES, Learner.permissions),
}
"""What the cache is told of the answers to calls, by path: (request, reply, revision)."""

LOSSES: Final[dict[str, Callable[[Learner, bytes], None]]] = {
    paths.PUT: Learner.lost_put,
    paths.DELETE_RANGE: Learner.lost_delete,
}
"""What is no longer known after a write that may have been done; for the others that is everything."""
