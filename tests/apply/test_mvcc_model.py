"""Random sequences of everything the store does, against the plain model, with crashes and failing writes between."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvorum import errors
from kvorum.errors import ApiError, Status
from kvorum.pb.rpc_pb2 import (
    Compare,
    DeleteRangeRequest,
    DeleteRangeResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RequestOp,
    TxnRequest,
    TxnResponse,
)
from node.apply.mvcc import past
from tests.apply.mvcc_model import LEASES, Model
from tests.apply.mvcc_store import DiskFullError, StoreUnderTest

KEYS = st.sampled_from([b"a", b"a\0", b"a\0\xff", b"b", b"ba", b"c", b"\xff"])
ENDS = st.sampled_from([b"", b"\0", b"b", b"bb", b"z", b"a", b"\xff\xff"])
VALUES = st.sampled_from([b"", b"1", b"22", b"x" * 200])
REVISIONS = st.integers(-2, 30)
FILTERS = st.sampled_from([0, 0, 0, -1, 2, 4, 7])

PUTS = st.builds(
    PutRequest,
    key=KEYS,
    value=VALUES,
    lease=st.sampled_from([0, 0, *LEASES, 99]),
    prev_kv=st.booleans(),
) | st.builds(PutRequest, key=KEYS, ignore_value=st.just(True), ignore_lease=st.booleans(), prev_kv=st.booleans())
DELETES = st.builds(DeleteRangeRequest, key=KEYS, range_end=ENDS, prev_kv=st.booleans())
RANGES = st.builds(
    RangeRequest,
    key=KEYS,
    range_end=ENDS,
    limit=st.integers(-1, 4),
    revision=st.just(0) | REVISIONS,
    sort_order=st.sampled_from([0, 1, 2]),
    sort_target=st.sampled_from([0, 0, 1, 2, 3, 4]),
    keys_only=st.booleans(),
    count_only=st.sampled_from([False, False, True]),
    min_mod_revision=FILTERS,
    max_mod_revision=FILTERS,
    min_create_revision=FILTERS,
    max_create_revision=FILTERS,
)
COMPARES = st.builds(
    Compare,
    key=KEYS,
    range_end=ENDS,
    result=st.sampled_from([0, 1, 2, 3]),
    target=st.sampled_from([0, 1, 2, 3, 4]),
    version=st.integers(0, 3),
) | st.builds(Compare, key=KEYS, result=st.sampled_from([0, 1, 2, 3]), target=st.just("VALUE"), value=VALUES)


def txns(depth: int) -> st.SearchStrategy[TxnRequest]:
    operations = (
        st.builds(RequestOp, request_put=PUTS)
        | st.builds(RequestOp, request_range=RANGES)
        | st.builds(RequestOp, request_delete_range=DELETES)
    )
    if depth:
        operations |= st.builds(RequestOp, request_txn=txns(depth - 1))
    # Duplicate keys in one list are the front's to refuse; the store runs them in order, as with the from-key quirk.
    branch = st.lists(operations, max_size=4)
    return st.builds(TxnRequest, compare=st.lists(COMPARES, max_size=2), success=branch, failure=branch)


def outcome(call: Any, *arguments: Any) -> Any:
    """The reply, or the status of the API's error."""
    try:
        return call(*arguments)
    except ApiError as error:
        return error.status


class StoreMachine(RuleBasedStateMachine):
    @initialize(
        cache_bytes=st.sampled_from([0, 2000, 1 << 20]),
        back_rows=st.sampled_from([0, 3, past.BACK_ROWS]),
        back_keys=st.sampled_from([1, past.BACK_KEYS]),
    )
    def open(self, cache_bytes: int, back_rows: int, back_keys: int) -> None:
        self.limits = pytest.MonkeyPatch()
        self.limits.setattr(past, "BACK_ROWS", back_rows)
        self.limits.setattr(past, "BACK_KEYS", back_keys)
        self.directory = Path(tempfile.mkdtemp(prefix="kvorum-mvcc-"))
        self.store = StoreUnderTest(self.directory / "db", cache_bytes=cache_bytes)
        self.model = Model()
        self.committed = Model()

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.store.close()
            shutil.rmtree(self.directory)
            self.limits.undo()

    @rule(request=PUTS)
    def put(self, request: PutRequest) -> None:
        ours = outcome(self.store.store.put, request.SerializeToString())
        theirs = outcome(self.model.put, request)
        assert (PutResponse.FromString(ours) if isinstance(ours, bytes) else ours) == theirs

    @rule(request=DELETES)
    def delete(self, request: DeleteRangeRequest) -> None:
        ours = DeleteRangeResponse.FromString(self.store.store.delete_range(request.SerializeToString()))
        assert ours == self.model.delete_range(request)

    @rule(request=txns(2))
    def txn(self, request: TxnRequest) -> None:
        ours = outcome(self.store.store.txn, request.SerializeToString())
        theirs = outcome(self.model.txn, request)
        assert (TxnResponse.FromString(ours) if isinstance(ours, bytes) else ours) == theirs

    @rule(request=RANGES, slice_rows=st.sampled_from([None, 1, 3]))
    def range(self, request: RangeRequest, slice_rows: int | None) -> None:
        def ours() -> Any:
            return self.store.send_range(request, slice_rows=slice_rows)

        assert outcome(ours) == outcome(self.model.range, request)

    @rule(key=KEYS, end=ENDS, limit=st.integers(-1, 4), back=st.integers(0, 5), slice_rows=st.sampled_from([1, 100]))
    def stream(self, key: bytes, end: bytes, limit: int, back: int, slice_rows: int) -> None:
        revision = max(0, self.model.revision - back) if back else 0
        request = RangeRequest(key=key, range_end=end, limit=limit, revision=revision)

        def ours() -> Any:
            messages = [message.range_response for message in self.store.stream(request, slice_rows=slice_rows)]
            whole = messages[-1]
            kvs = [kv for message in messages for kv in message.kvs]
            del whole.kvs[:]
            whole.kvs.extend(kvs)
            return whole

        assert outcome(ours) == outcome(self.model.range, request)

    @rule(revision=REVISIONS)
    def compact(self, revision: int) -> None:
        assert isinstance(outcome(self.store.compact, revision), Status) == isinstance(
            outcome(self.model.compact, revision), Status
        )
        assert self.store.store.compacted_revision == self.model.compacted

    @rule(rows=st.integers(1, 5))
    def delete_compacted(self, rows: int) -> None:
        self.store.store.compaction.step(rows)

    @rule()
    def commit(self) -> None:
        self.store.commit()
        self.committed = self.model.copy()

    @rule(failures=st.integers(1, 2))
    def disk_full(self, failures: int) -> None:
        self.store.database.failures = failures
        for _ in range(failures):
            with pytest.raises(DiskFullError):
                self.store.commit()
        self.commit()

    @precondition(lambda self: not self.store.store.compaction.idle)
    @rule()
    def disk_full_in_a_compaction(self) -> None:
        self.store.database.failures = 1
        try:
            self.store.store.compaction.step(3)
        except DiskFullError:
            assert self.store.database.failures == 0
        self.store.database.failures = 0

    @rule()
    def crash(self) -> None:
        """Everything since the last commit is gone; raft would send it again."""
        self.store.reopen()
        self.model = self.committed.copy()
        self.store.leases.attached = {lease: set() for lease in LEASES}
        for key, kv in self.model.live().items():
            if kv.lease:
                self.store.leases.attached[kv.lease].add(key)

    @rule(start=REVISIONS, max_rows=st.integers(1, 6))
    def history(self, start: int, max_rows: int) -> None:
        start = max(start, 1)

        def ours() -> Any:
            events = []
            position = start
            while position <= self.committed.revision:
                slice_events, done = self.store.store.history(
                    position, max_rows=max_rows, max_bytes=1 << 20, want_prev=True
                )
                events += slice_events
                position = done + 1
            return events

        if start > self.committed.revision:
            return
        assert outcome(ours) == outcome(self.model.history, start, self.committed.revision)

    @rule(revision=REVISIONS, slice_rows=st.sampled_from([1, 1000]))
    def hash_kv(self, revision: int, slice_rows: int) -> None:
        self.commit()
        response = outcome(lambda: self.store.hash_kv(revision, slice_rows=slice_rows))
        if revision > 0 and self.store.store.compaction.hash_of(revision) is not None:
            return  # a stored one, tested apart
        if revision > self.model.revision:
            assert response == errors.FUTURE_REV
        elif 0 < revision < self.model.compacted:
            assert response == errors.COMPACTED
        else:
            assert response.hash == self.model.hash_kv(revision or self.model.revision)
            assert response.hash_revision == (revision or self.model.revision)
            assert response.compact_revision == self.model.compacted
            assert response.header == self.model.header()

    @invariant()
    def leases_agree(self) -> None:
        if not hasattr(self, "store"):
            return
        attached: dict[int, set[bytes]] = {lease: set() for lease in LEASES}
        for key, kv in self.model.live().items():
            if kv.lease:
                attached[kv.lease].add(key)
        assert self.store.leases.attached == attached
        assert self.store.revision == self.model.revision


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
