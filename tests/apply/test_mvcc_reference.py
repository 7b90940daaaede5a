"""The store against the reference: one long sequence of requests, the same replies and the same HashKV."""

import random
from pathlib import Path
from typing import Any

from kvorum.errors import ApiError
from kvorum.pb.rpc_pb2 import (
    CompactionRequest,
    Compare,
    DeleteRangeRequest,
    DeleteRangeResponse,
    HashKVRequest,
    LeaseGrantRequest,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    RequestOp,
    ResponseHeader,
    TxnRequest,
    TxnResponse,
)
from tests.apply.mvcc_store import StoreUnderTest
from tests.calls import Api
from tests.servers import start_reference

STEPS = 500
KEYS = [b"a", b"a\0", b"ab", b"b", b"c", b"d", b"\xff"]
ENDS = [b"", b"", b"\0", b"b", b"d", b"\xff\xff"]


class Requests:
    """Random requests from a seed, duplicates in a transaction left out: the reference's front refuses them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def put(self) -> PutRequest:
        pick = self.random
        value = bytes(pick.randrange(300)) + b"%d" % pick.randrange(100)
        request = PutRequest(key=pick.choice(KEYS), value=value, prev_kv=pick.random() < 0.5)
        if pick.random() < 0.2:
            request.value = b""
            request.ignore_value = True
        if pick.random() < 0.1:
            request.ignore_lease = True
        else:
            request.lease = pick.choice([0, 0, 1, 2, -7, 99])
        return request

    def delete(self) -> DeleteRangeRequest:
        pick = self.random
        return DeleteRangeRequest(key=pick.choice(KEYS), range_end=pick.choice(ENDS), prev_kv=pick.random() < 0.5)

    def range(self, revision: int) -> RangeRequest:
        pick = self.random
        order = pick.choice([0, 0, 1, 2])
        # Ties come in any order from the reference (Q2), so only unique fields are sorted by.
        return RangeRequest(
            key=pick.choice(KEYS),
            range_end=pick.choice(ENDS),
            limit=pick.randrange(-1, 4),
            revision=pick.choice([0, 0, max(0, revision - pick.randrange(12)), revision + 1, -1]),
            sort_order=RangeRequest.SortOrder.Name(order),
            count_only=pick.random() < 0.1,
            min_mod_revision=pick.choice([0, 0, 0, revision // 2]),
            max_create_revision=pick.choice([0, 0, 0, revision // 2]),
        )

    def txn(self, revision: int) -> TxnRequest:
        pick = self.random
        compare = Compare(
            key=pick.choice(KEYS),
            range_end=pick.choice(ENDS),
            target=pick.choice(["VERSION", "CREATE", "MOD", "VALUE", "LEASE"]),
            result=pick.choice(["EQUAL", "GREATER", "LESS", "NOT_EQUAL"]),
        )
        branches = []
        for _ in range(2):
            put = self.put()
            ignores = put.ignore_value or put.ignore_lease
            if ignores and put.lease == 99:
                put.lease = 0  # within a transaction 3.5.1 looks for the key before the lease, 3.7 after it (PU1)
            branch = [RequestOp(request_range=self.range(revision)) for _ in range(2)]
            branch.append(RequestOp(request_put=put))
            if not ignores:
                # A put that ignores what a delete before it took away crashes the reference (Z4).
                delete = DeleteRangeRequest(key=pick.choice(KEYS), range_end=b"\0")
                branch.append(RequestOp(request_delete_range=delete))
            nested = TxnRequest(compare=[compare], success=[RequestOp(request_range=self.range(revision))])
            branch.append(RequestOp(request_txn=nested))
            pick.shuffle(branch)
            branches.append(branch[: pick.randrange(1, 6)])
        return TxnRequest(compare=[compare], success=branches[0], failure=branches[1])

    def any(self, revision: int) -> PutRequest | DeleteRangeRequest | RangeRequest | TxnRequest:
        match self.random.randrange(5):
            case 0:
                return self.delete()
            case 1:
                return self.range(revision)
            case 2:
                return self.txn(revision)
            case _:
                return self.put()


def ours(store: StoreUnderTest, request: Any) -> Any:
    """Our reply, or the status of the API's error."""
    data = request.SerializeToString()
    try:
        match request:
            case PutRequest():
                return PutResponse.FromString(store.store.put(data))
            case DeleteRangeRequest():
                return DeleteRangeResponse.FromString(store.store.delete_range(data))
            case RangeRequest():
                return RangeResponse.FromString(store.store.range(data))
            case TxnRequest():
                return TxnResponse.FromString(store.store.txn(data))
    except ApiError as error:
        return error.status
    raise AssertionError(request)


def without_ids(reply: Any) -> Any:
    if hasattr(reply, "header"):
        reply.header.CopyFrom(ResponseHeader(revision=reply.header.revision))
    return reply


def test_same_replies_and_hashes(tmp_path: Path) -> None:
    """H1 to H5, and all of V, R, PU, D, T and C that the sequence meets; compactions are physical."""
    store = StoreUnderTest(tmp_path / "db", cache_bytes=2000)
    requests = Requests(seed=3)
    hashes = 0
    with start_reference() as server, Api(server.address) as reference:
        for lease in (1, 2, -7):
            reference(LeaseGrantRequest(ID=lease, TTL=100_000))
        for step in range(STEPS):
            revision = store.revision
            request = requests.any(revision)
            assert without_ids(ours(store, request)) == without_ids(reference.outcome(request)), request
            if step % 7 == 0:
                store.commit()
            if step % 90 == 89:
                target = store.revision - requests.random.randrange(10)
                store.compact(target)
                reference(CompactionRequest(revision=target, physical=True))
                # The reference's deletion is done; ours comes later, and must not matter.
            if step % 90 == 40:
                store.delete_compacted(3)
            if step % 10 == 0:
                store.commit()
                asked = requests.random.choice(
                    [0, store.revision, max(1, store.revision - requests.random.randrange(8))]
                )
                if asked and asked <= store.store.compacted_revision:
                    continue  # X4, H8: the reference has no hash there
                hashes += 1
                theirs = reference(HashKVRequest(revision=asked))
                response = store.hash_kv(asked)
                assert (response.hash, response.compact_revision) == (theirs.hash, theirs.compact_revision), asked
    assert hashes > STEPS // 20
    store.store.close()
