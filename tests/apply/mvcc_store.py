"""A store to test, spoken to in messages: each call sends a request's bytes and parses the reply's."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kvorum.pb.mvcc_pb2 import KeyValue
from kvorum.pb.rpc_pb2 import (
    CompactionRequest,
    CompactionResponse,
    Compare,
    DeleteRangeRequest,
    DeleteRangeResponse,
    HashKVRequest,
    HashKVResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    RangeStreamResponse,
    RequestOp,
    TxnRequest,
    TxnResponse,
)
from node.apply.mvcc.database import Cursor, Database
from node.apply.mvcc.message import Identity
from node.apply.mvcc.store import Reading, Store

IDENTITY = Identity(cluster_id=0xCDF818194E3A8C32, member_id=0x8E9E05C52164694D, raft_term=2)


class FakeLeases:
    """Leases that exist, and the keys attached to each."""

    def __init__(self, *ids: int) -> None:
        self.attached: dict[int, set[bytes]] = {lease_id: set() for lease_id in ids}

    def exists(self, lease_id: int) -> bool:
        return lease_id in self.attached

    def attach(self, key: bytes, lease_id: int) -> None:
        self.attached[lease_id].add(key)

    def detach(self, key: bytes, lease_id: int) -> None:
        self.attached[lease_id].remove(key)


class DiskFullError(Exception):
    """What the database raises in these tests."""


class FailingDatabase(Database):
    """A database whose next `failures` writes raise."""

    failures = 0

    def _write(self, rows: Iterable[tuple[bytes, bytes | None]]) -> None:
        if self.failures:
            self.failures -= 1
            raise DiskFullError
        super()._write(rows)


class StoreUnderTest:
    """A store in a directory, with leases 1 to 3; `reopen` closes it and opens it again."""

    def __init__(self, path: Path, *, cache_bytes: int = 1 << 20) -> None:
        self.path = path
        self.cache_bytes = cache_bytes
        self.leases = FakeLeases(1, 2, 3, -7)
        self.commits = 0
        self._open()

    def _open(self) -> None:
        self.database = FailingDatabase(str(self.path))
        self.store = Store(self.database, self.leases, IDENTITY, cache_bytes=self.cache_bytes)

    def reopen(self) -> None:
        self.store.close()
        del self.store, self.database
        self._open()

    def commit(self) -> None:
        self.commits += 1
        self.store.commit(Cursor(self.commits, 0, 2))

    @property
    def revision(self) -> int:
        return self.store.revision

    def put(self, key: bytes, value: bytes = b"", **options: Any) -> PutResponse:
        request = PutRequest(key=key, value=value, **options)
        return PutResponse.FromString(self.store.put(request.SerializeToString()))

    def get(self, key: bytes, range_end: bytes = b"", **options: Any) -> RangeResponse:
        request = RangeRequest(key=key, range_end=range_end, **options)
        return RangeResponse.FromString(self.store.range(request.SerializeToString()))

    def delete(self, key: bytes, range_end: bytes = b"", **options: Any) -> DeleteRangeResponse:
        request = DeleteRangeRequest(key=key, range_end=range_end, **options)
        return DeleteRangeResponse.FromString(self.store.delete_range(request.SerializeToString()))

    def txn(
        self,
        success: Iterable[RequestOp] = (),
        failure: Iterable[RequestOp] = (),
        compare: Iterable[Compare] = (),
    ) -> TxnResponse:
        return self.send_txn(TxnRequest(compare=compare, success=success, failure=failure))

    def send_txn(self, request: TxnRequest) -> TxnResponse:
        return TxnResponse.FromString(self.store.txn(request.SerializeToString()))

    def send_range(self, request: RangeRequest, *, slice_rows: int | None = None) -> RangeResponse:
        """At once, or in slices of so many rows."""
        data = request.SerializeToString()
        if slice_rows is None:
            return RangeResponse.FromString(self.store.range(data))
        reading = self.store.begin_range(data)
        return RangeResponse.FromString(finish(reading, slice_rows))

    def stream(self, request: RangeRequest, *, slice_rows: int = 1 << 30) -> list[RangeStreamResponse]:
        stream = self.store.begin_range_stream(request.SerializeToString(), MAX_REQUEST_BYTES)
        messages = []
        while not stream.done:
            message = stream.step(slice_rows)
            if message is not None:
                messages.append(RangeStreamResponse.FromString(message))
        return messages

    def compact(self, revision: int) -> CompactionResponse:
        request = CompactionRequest(revision=revision)
        return CompactionResponse.FromString(self.store.compact(request.SerializeToString()))

    def delete_compacted(self, slice_rows: int = 1000) -> None:
        """Commit, and let the compaction delete all it has to."""
        self.commit()
        while not self.store.compaction.step(slice_rows):
            pass

    def hash_kv(self, revision: int = 0, *, slice_rows: int = 1000) -> HashKVResponse:
        reading = self.store.begin_hash_kv(HashKVRequest(revision=revision).SerializeToString())
        return HashKVResponse.FromString(finish(reading, slice_rows))


MAX_REQUEST_BYTES = 1_572_864


def finish(reading: bytes | Reading, slice_rows: int) -> bytes:
    """Step a reading to its end; a reply given at once is one already."""
    if isinstance(reading, bytes):
        return reading
    while (message := reading.step(slice_rows)) is None:
        pass
    return message


def put_op(key: bytes, value: bytes = b"", **options: Any) -> RequestOp:
    return RequestOp(request_put=PutRequest(key=key, value=value, **options))


def range_op(key: bytes, range_end: bytes = b"", **options: Any) -> RequestOp:
    return RequestOp(request_range=RangeRequest(key=key, range_end=range_end, **options))


def delete_op(key: bytes, range_end: bytes = b"", **options: Any) -> RequestOp:
    return RequestOp(request_delete_range=DeleteRangeRequest(key=key, range_end=range_end, **options))


def txn_op(
    success: Iterable[RequestOp] = (), failure: Iterable[RequestOp] = (), compare: Iterable[Compare] = ()
) -> RequestOp:
    return RequestOp(request_txn=TxnRequest(compare=compare, success=success, failure=failure))


def keys(response: RangeResponse) -> list[bytes]:
    return [kv.key for kv in response.kvs]


def values(kvs: Iterable[KeyValue]) -> dict[bytes, bytes]:
    return {kv.key: kv.value for kv in kvs}
