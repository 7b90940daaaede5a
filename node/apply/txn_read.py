"""A transaction that only reads, worked off in slices: its ranges may be as long as any other."""

from __future__ import annotations

from collections import deque

from kvorum.pb.rpc_pb2 import RangeRequest, TxnRequest
from node.apply.mvcc.keyspace import Keyspace
from node.apply.mvcc.message import Headers, varint
from node.apply.mvcc.ranges import RangeRead
from node.apply.mvcc.reading import Reading
from node.apply.mvcc.txn import plan


class TxnRead(Reading):
    """A TxnRequest whose branches hold ranges alone, being answered. `rows` estimates the work.

    All its ranges show the moment of creation. `header` is the TxnResponse's.
    """

    __slots__ = ("_parts", "_reads", "rows")

    def __init__(self, keyspace: Keyspace, body: bytes, header: bytes) -> None:
        """Raises FutureRev and Compacted, of the first range that fails (T19)."""
        path = plan(keyspace, TxnRequest.FromString(body))
        inner = Headers.inner(keyspace.revision)
        self._parts = [header, b"\x10\x01" if path.succeeded else b""]
        self._reads: deque[RangeRead] = deque()
        for step in path.steps:
            assert isinstance(step, RangeRequest), "a transaction that writes was not logged"
            self._reads.append(RangeRead(keyspace, step, inner))
        self.rows = sum(read.rows for read in self._reads)

    def step(self, rows: int) -> bytes | None:
        """As `Reading.step`: some of one range."""
        reads = self._reads
        if reads:
            response = reads[0].step(rows)
            if response is None:
                return None
            reads.popleft()
            size = varint(len(response))
            # responses (3): a ResponseOp whose response_range (1) it is
            self._parts += (b"\x1a", varint(1 + len(size) + len(response)), b"\n", size, response)
        return None if reads else b"".join(self._parts)
