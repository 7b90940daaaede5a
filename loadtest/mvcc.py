"""Microbenchmarks of the MVCC store: `python -m loadtest.mvcc [--keys N]`. Prints microseconds per operation."""

import argparse
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kvorum.pb.rpc_pb2 import CompactionRequest, HashKVRequest, PutRequest, RangeRequest, RequestOp, TxnRequest
from node.apply.mvcc.database import Cursor
from node.apply.mvcc.message import Identity
from node.apply.mvcc.store import Reading, Store

_BATCH = 50
_VALUE = os.urandom(256)


class NoLeases:
    """No lease exists."""

    def exists(self, lease_id: int) -> bool:
        return False

    def attach(self, key: bytes, lease_id: int) -> None:
        raise AssertionError

    def detach(self, key: bytes, lease_id: int) -> None:
        raise AssertionError


def key_name(number: int) -> bytes:
    return b"/registry/pods/default/%08d" % number


def timed(label: str, count: int, call: Callable[[], object]) -> None:
    start = time.perf_counter()
    call()
    elapsed = time.perf_counter() - start
    print(f"{label:44} {elapsed / count * 1e6:10.2f} us   ({count} in {elapsed:.3f} s)")


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)


def put_all(store: Store, requests: list[bytes]) -> None:
    """In batches, committing and taking the events of each, as apply does."""
    put = store.put
    for start in range(0, len(requests), _BATCH):
        for request in requests[start : start + _BATCH]:
            put(request)
        store.commit(Cursor(start, 0, 2))
        store.take_events()


def put_only(store: Store, requests: list[bytes]) -> float:
    """Seconds spent in `put` alone, without the commits."""
    spent = 0.0
    put = store.put
    for start in range(0, len(requests), _BATCH):
        batch = requests[start : start + _BATCH]
        begin = time.perf_counter()
        for request in batch:
            put(request)
        spent += time.perf_counter() - begin
        store.commit(Cursor(start, 0, 2))
        store.take_events()
    return spent


def fill(store: Store, keys: int) -> None:
    for start in range(0, keys, 10_000):
        put_all(store, puts(range(start, min(keys, start + 10_000))))


def get_all(store: Store, requests: list[bytes]) -> None:
    read = store.range
    for request in requests:
        read(request)


def finish(reading: bytes | Reading, slice_rows: int) -> float:
    """Step to the end; returns the longest slice in seconds."""
    assert not isinstance(reading, bytes)
    longest = 0.0
    done = False
    while not done:
        begin = time.perf_counter()
        done = reading.step(slice_rows) is not None
        longest = max(longest, time.perf_counter() - begin)
    return longest


def puts(numbers: range) -> list[bytes]:
    return [PutRequest(key=key_name(i), value=_VALUE).SerializeToString() for i in numbers]


def gets(numbers: list[int]) -> list[bytes]:
    return [RangeRequest(key=key_name(i)).SerializeToString() for i in numbers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=100_000)
    keys = parser.parse_args().keys
    directory = Path(tempfile.mkdtemp(prefix="kvorum-mvcc-bench-"))
    identity = Identity(cluster_id=0xCDF818194E3A8C32, member_id=0x8E9E05C52164694D, raft_term=2)
    try:
        store = Store.open(str(directory / "db"), NoLeases(), identity)
        timed("put, new keys, with commit", keys, lambda: fill(store, keys))
        hot = puts(range(1000)) * 20
        put_all(store, hot[:1000])
        print(f"{'put, cached keys, without commit':44} {put_only(store, hot) / len(hot) * 1e6:10.2f} us")
        timed("put, cached keys, with commit", len(hot), lambda: put_all(store, hot))
        spread = [i * 7919 % keys for i in range(20_000)]
        cold = [puts(range(i, i + 1))[0] for i in spread]
        print(f"{'put, keys not cached, without commit':44} {put_only(store, cold) / len(cold) * 1e6:10.2f} us")
        requests = gets(list(range(1000))) * 20
        get_all(store, requests[:1000])
        timed("get, cached", len(requests), lambda: get_all(store, requests))
        timed(
            "get, not cached", 20_000, lambda: get_all(store, gets([(i * 104729 + 13) % keys for i in range(20_000)]))
        )
        timed("get, absent", 20_000, lambda: get_all(store, gets([keys + i for i in range(20_000)])))
        txn = TxnRequest(
            compare=[{"key": key_name(5), "target": "MOD", "result": "GREATER", "mod_revision": 1}],
            success=[RequestOp(request_put=PutRequest(key=key_name(5), value=_VALUE))],
            failure=[RequestOp(request_range=RangeRequest(key=key_name(5)))],
        ).SerializeToString()
        timed("txn: compare, put", 5000, lambda: [store.txn(txn) for _ in range(5000)])
        store.commit(Cursor(1, 0, 2))
        store.take_events()
        listing = RangeRequest(key=key_name(0), range_end=key_name(min(keys, 10_000))).SerializeToString()
        timed("list 10,000 keys", 10, lambda: [store.range(listing) for _ in range(10)])
        print(f"{'list 10,000 keys, longest slice of 1,000':44} {max_slice(store, listing) * 1e3:10.2f} ms")
        now = store.revision
        past = RangeRequest(
            key=key_name(0), range_end=key_name(min(keys, 10_000)), revision=now - 10
        ).SerializeToString()
        timed("list 10,000 keys, 10 revisions ago", 5, lambda: [store.range(past) for _ in range(5)])
        past_one = RangeRequest(key=key_name(5), revision=now - 10).SerializeToString()
        timed("get, 10 revisions ago", 2000, lambda: get_all(store, [past_one] * 2000))
        timed("history, 10,000 rows", 10_000, lambda: store.history(now - 10_000, max_rows=10_000, max_bytes=1 << 30))
        timed(
            "history with previous values, 10,000 rows",
            10_000,
            lambda: store.history(now - 10_000, max_rows=10_000, max_bytes=1 << 30, want_prev=True),
        )
        begin = time.perf_counter()
        longest = finish(store.begin_hash_kv(HashKVRequest().SerializeToString()), 1000)
        print(f"{'HashKV':44} {time.perf_counter() - begin:10.2f} s    (longest slice {longest * 1e3:.1f} ms)")
        store.compact(CompactionRequest(revision=now).SerializeToString())
        store.commit(Cursor(2, 0, 2))
        begin = time.perf_counter()
        longest = 0.0
        idle = False
        while not idle:
            slice_begin = time.perf_counter()
            idle = store.compaction.step(100)
            longest = max(longest, time.perf_counter() - slice_begin)
        spent = time.perf_counter() - begin
        print(f"{'compaction of all, with its hash':44} {spent:10.2f} s    (longest slice {longest * 1e3:.1f} ms)")
        print(f"{'sizes':44} {store.sizes()[0] >> 20:10} MiB  ({store.sizes()[1] >> 20} MiB in use)")
        print(f"{'resident after all this':44} {resident_mib():10.0f} MiB")
        timed("flush", 1, store.database.flush)
        store.close()
        pid = os.fork()
        if pid == 0:
            before = resident_mib()
            begin = time.perf_counter()
            store = Store.open(str(directory / "db"), NoLeases(), identity)
            spent = time.perf_counter() - begin
            label = f"open with {keys} keys"
            print(f"{label:44} {spent:10.2f} s    ({resident_mib() - before:.0f} MiB more)", flush=True)
            store.close()
            os._exit(0)
        os.waitpid(pid, 0)
    finally:
        shutil.rmtree(directory)


def max_slice(store: Store, request: bytes) -> float:
    return finish(store.begin_range(request), 1000)


if __name__ == "__main__":
    main()
