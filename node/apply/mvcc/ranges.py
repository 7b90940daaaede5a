"""Range: one request over one consistent view of the keys, at once or in slices.

The steps are the API's (behaviour.md R12): read, filter, sort, cut to the limit, strip the values.
"""

from collections.abc import Callable, Iterator
from heapq import merge
from itertools import islice
from operator import itemgetter
from typing import Any, Final

from kvorum import errors
from kvorum.errors import ApiError
from kvorum.pb.mvcc_pb2 import KeyValue
from kvorum.pb.rpc_pb2 import RangeRequest
from node.apply.mvcc.keyspace import Keyspace, interval
from node.apply.mvcc.message import VARINT, strip_value, varint
from node.apply.mvcc.past import PastScan, rewind, values_of, version_at
from node.apply.mvcc.reading import Reading
from node.apply.mvcc.rows import CURRENT, CURRENT_END
from node.check import has_filters

_KEY: Final = RangeRequest.SortTarget.KEY
_VALUE: Final = RangeRequest.SortTarget.VALUE
_NONE: Final = RangeRequest.SortOrder.NONE
_DESCEND: Final = RangeRequest.SortOrder.DESCEND

# A slice also ends after this many bytes of values: rows may be 1.5 MiB each.
_SLICE_BYTES: Final = 2 << 20
_CHUNK_ROWS: Final = 100
_JOIN_PARTS: Final = 60_000
# Up to so many rows each is looked up alone, for the cache; above, one scan is cheaper (5 us, then 0.2 us a row).
_LOOK_UPS: Final = 2

ALL_ROWS: Final = 1 << 62

_SORT_KEYS: Final[dict[int, Callable[[KeyValue], Any]]] = {
    RangeRequest.SortTarget.KEY: lambda kv: kv.key,
    RangeRequest.SortTarget.VERSION: lambda kv: kv.version,
    RangeRequest.SortTarget.CREATE: lambda kv: kv.create_revision,
    RangeRequest.SortTarget.MOD: lambda kv: kv.mod_revision,
    RangeRequest.SortTarget.VALUE: lambda kv: kv.value,
}


def check_revision(keyspace: Keyspace, revision: int) -> None:
    """Raise FutureRev or Compacted where the revision cannot be read (R4, R5); 0 and below is the current one."""
    if revision > keyspace.revision:
        raise ApiError(errors.FUTURE_REV)
    if 0 < revision < keyspace.compacted_revision:
        raise ApiError(errors.COMPACTED)


class RangeRead(Reading):
    """A RangeRequest being answered. `step` until it returns the RangeResponse, which begins with `header`.

    The view is that of the moment of creation. A past revision that is compacted while the read runs may end it with
    Compacted. `rows` estimates the work.
    """

    __slots__ = (
        "_count",
        "_database",
        "_filter",
        "_joined",
        "_keep_lease",
        "_kept",
        "_limit",
        "_output_rows",
        "_parts",
        "_past",
        "_read_limit",
        "_request",
        "_reverse",
        "_sort_key",
        "_sorted",
        "_sorted_chunks",
        "_source",
        "rows",
    )

    def __init__(self, keyspace: Keyspace, request: RangeRequest, header: bytes) -> None:
        """Raises FutureRev and Compacted."""
        check_revision(keyspace, request.revision)
        self._request = request
        self._database = keyspace.database
        self._limit = request.limit if request.limit > 0 else ALL_ROWS
        self._filter = has_filters(request)
        self._keep_lease = request.sort_target == _VALUE
        # The reply in pieces, joined once: copying 3 MiB again costs a millisecond. Of a very long one, parts are
        # joined on the way, so that the last slice does not get long.
        self._parts = [header]
        self._joined: list[bytes] = []
        self._kept = 0
        self._output_rows = 0
        self._past: PastScan | None = None
        self._source: Iterator[bytes] = iter(())
        # Key order, either way, needs no sort; the other targets do, ascending when no order is given (R13, R14).
        self._sort_key = None if request.sort_target == _KEY else _SORT_KEYS[request.sort_target]
        self._reverse = request.sort_order == _DESCEND
        self._sorted_chunks: list[list[tuple[Any, bytes]]] = []
        self._sorted: Iterator[tuple[Any, bytes]] | None = None
        # How many rows to take of the range. A filter may drop any number of them; a sort needs all, but without an
        # order only the first limit + 1 are read, in key order, and sorted then: the API's quirk (R14).
        self._read_limit = ALL_ROWS
        if not self._filter:
            if self._sort_key is None:
                self._read_limit = self._limit
            elif request.sort_order == _NONE:
                self._read_limit = self._limit + 1

        start, end = interval(request.key, request.range_end)
        if 0 < request.revision < keyspace.revision:
            self._open_past(keyspace, start, end)
        else:
            self._open_current(keyspace, start, end)

    def _open_current(self, keyspace: Keyspace, start: bytes, end: bytes | None) -> None:
        current = keyspace.current
        first, last = current.ranks(start, end)
        self._count = last - first
        self.rows = rows = 0 if self._request.count_only else min(self._count, self._read_limit)
        if rows == 0:
            return
        back = self._reverse and self._sort_key is None
        if rows <= _LOOK_UPS:
            keys = current.index[last - rows : last] if back else current.index[first : first + rows]
            entries = [entry for key in keys if (entry := current.get(key)) is not None]
            assert len(entries) == rows
            self._source = iter([entry[0] for entry in (reversed(entries) if back else entries)])
        elif back:
            # From the last live key to the first, so that no deleted rows before or after them are crossed.
            rows_back = keyspace.database.scan_back(
                CURRENT + current.index[first], CURRENT + current.index[last - 1] + b"\0"
            )
            self._source = islice(map(itemgetter(1), rows_back), rows)
        else:
            stop = CURRENT_END if end is None else CURRENT + end
            self._source = islice(keyspace.database.scan_values(CURRENT + current.index[first], stop), rows)

    def _open_past(self, keyspace: Keyspace, start: bytes, end: bytes | None) -> None:
        request = self._request
        if not request.range_end:
            row = version_at(self._database, start, request.revision)
            self._start_past([] if row is None else [row])
            return
        rewound = rewind(keyspace, start, end, request.revision)
        if rewound is None:
            self._count = 0
            self.rows = ALL_ROWS
            self._past = PastScan(self._database, start, end, request.revision)
            return
        self._count = rewound.live_keys
        self.rows = 0 if request.count_only else min(self._count, self._read_limit)
        if self.rows:
            back = self._reverse and self._sort_key is None
            self._source = islice(rewound.values(self._database, back=back), self.rows)

    def _start_past(self, rows: list[bytes]) -> None:
        self._count = len(rows)
        self.rows = 0 if self._request.count_only else min(len(rows), self._read_limit)
        if self._reverse and self._sort_key is None:
            rows.reverse()
        self._source = values_of(self._database, rows[: self.rows])

    def step(self, rows: int) -> bytes | None:
        """Work off about `rows` rows, or 2 MiB; the RangeResponse when that was the last slice."""
        if self._past is not None:
            if not self._past.advance(rows):
                return None
            self._start_past(self._past.rows)
            self._past = None
            if rows < ALL_ROWS:
                return None
        if self._sorted is None:
            if not self._read(rows):
                return None
            if self._sort_key is not None:
                self._sorted = merge(*self._sorted_chunks, key=itemgetter(0), reverse=self._reverse)
                if rows < ALL_ROWS:
                    return None
        if self._sorted is not None and not self._emit_sorted(rows):
            return None
        return self._response()

    def _read(self, rows: int) -> bool:
        """Read a slice, filter it, and emit it or keep it for the sort; True when all that is wanted is read."""
        slice_bytes = 0
        while rows > 0 and slice_bytes < _SLICE_BYTES:
            chunk_rows = min(rows, _CHUNK_ROWS)
            kvs = list(islice(self._source, chunk_rows))
            rows -= len(kvs)
            slice_bytes += sum(map(len, kvs))
            at_end = len(kvs) < chunk_rows
            if self._filter:
                kvs = self._filtered(kvs)
            self._kept += len(kvs)
            if self._sort_key is None:
                self._emit(kvs)
                if at_end or self._kept > self._limit:
                    return True
            else:
                sort_key = self._sort_key
                chunk = [(sort_key(KeyValue.FromString(kv)), kv) for kv in kvs]
                chunk.sort(key=itemgetter(0), reverse=self._reverse)
                self._sorted_chunks.append(chunk)
                if at_end:
                    return True
        return False

    def _filtered(self, kvs: list[bytes]) -> list[bytes]:
        request = self._request
        least_mod = request.min_mod_revision
        most_mod = request.max_mod_revision
        least_create = request.min_create_revision
        most_create = request.max_create_revision
        kept = []
        for kv in kvs:
            parsed = KeyValue.FromString(kv)
            mod_revision = parsed.mod_revision
            create_revision = parsed.create_revision
            if (
                (not least_mod or mod_revision >= least_mod)
                and (not most_mod or mod_revision <= most_mod)
                and (not least_create or create_revision >= least_create)
                and (not most_create or create_revision <= most_create)
            ):
                kept.append(kv)
        return kept

    def _emit_sorted(self, rows: int) -> bool:
        assert self._sorted is not None
        wanted = min(rows, self._limit - self._output_rows)
        chunk = [kv for _, kv in islice(self._sorted, wanted)]
        self._emit(chunk)
        return len(chunk) < rows or self._output_rows == self._limit

    def _emit(self, kvs: list[bytes]) -> None:
        room = self._limit - self._output_rows
        if len(kvs) > room:
            kvs = kvs[:room]
        self._output_rows += len(kvs)
        if self._request.keys_only:
            keep_lease = self._keep_lease
            kvs = [strip_value(kv, keep_lease=keep_lease) for kv in kvs]
        parts = self._parts
        for kv in kvs:
            size = len(kv)
            parts += (b"\x12", VARINT[size] if size < 16384 else varint(size), kv)
        if len(parts) > _JOIN_PARTS:
            self._joined.append(b"".join(parts))
            parts.clear()

    def _response(self) -> bytes:
        matched = self._kept if self._filter else self._count
        if not self._request.count_only and matched > self._limit:
            self._parts.append(b"\x18\x01")
        if self._count:
            self._parts.append(b" " + varint(self._count))
        return b"".join(self._joined + self._parts)


def range_at_once(keyspace: Keyspace, request: RangeRequest, header: bytes) -> bytes:
    """The RangeResponse, beginning with `header`. Raises FutureRev and Compacted."""
    read = RangeRead(keyspace, request, header)
    while True:
        response = read.step(ALL_ROWS)
        if response is not None:  # a slice ends at its bytes too
            return response
