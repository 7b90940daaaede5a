"""RangeStream: a range in messages of growing size, all of one revision."""

from collections.abc import Iterator
from itertools import islice
from typing import Final

from kvorum import errors
from kvorum.errors import ApiError
from kvorum.pb.rpc_pb2 import RangeRequest
from node.apply.mvcc.keyspace import Keyspace, interval
from node.apply.mvcc.message import Headers, key_of, repeated, strip_value, varint
from node.apply.mvcc.past import PastScan, rewind, values_of
from node.apply.mvcc.ranges import ALL_ROWS, check_revision
from node.apply.mvcc.rows import CURRENT, CURRENT_END

_FIRST_ROWS: Final = 10


class RangeStream:
    """A RangeStream being answered: `step` gives its messages, `done` says that the last was given.

    All messages show one revision: the asked one or, with 0, that of creation (RS5). Between steps it may hold a view
    of the database; `release` lets go of it, for a stream whose client does not read, at the price of a scan of past
    versions when it goes on.
    """

    __slots__ = (
        "_at",
        "_chunk",
        "_chunk_rows",
        "_count",
        "_end",
        "_headers",
        "_keyspace",
        "_left",
        "_max_request_bytes",
        "_past",
        "_request",
        "_revision",
        "_source",
        "_start",
        "done",
    )

    def __init__(self, keyspace: Keyspace, headers: Headers, request: RangeRequest, max_request_bytes: int) -> None:
        """Raises FutureRev and Compacted."""
        check_revision(keyspace, request.revision)
        self._keyspace = keyspace
        self._headers = headers
        self._request = request
        self._max_request_bytes = max_request_bytes
        self._revision = keyspace.revision
        self._at = request.revision if request.revision > 0 else self._revision
        self._start, self._end = interval(request.key, request.range_end)
        self._count = -1
        self._left = 0
        # A negative limit sends everything in one message (RS9).
        self._chunk_rows = ALL_ROWS if request.limit < 0 else _FIRST_ROWS
        self._chunk: list[bytes] = []
        self._past: PastScan | None = None
        self._source: Iterator[bytes] | None = None
        self.done = False

    def step(self, rows: int) -> bytes | None:
        """Work off up to `rows` rows; a RangeStreamResponse when one is complete. Raises Compacted (RS11)."""
        assert not self.done
        if self._source is None and not self._open(rows):
            return None
        assert self._source is not None
        wanted = min(self._chunk_rows, self._left) - len(self._chunk)
        self._chunk += islice(self._source, min(wanted, rows))
        if wanted > rows:
            return None
        return self._message()

    def release(self) -> None:
        """Let go of the view of the database."""
        self._source = None
        self._past = None

    def _open(self, rows: int) -> bool:
        keyspace = self._keyspace
        if self._at == keyspace.revision:
            first, last = keyspace.current.ranks(self._start, self._end)
            self._counted(last - first)
            self._source = iter(())
            if self._left:
                stop = CURRENT_END if self._end is None else CURRENT + self._end
                self._source = keyspace.database.scan_values(CURRENT + keyspace.current.index[first], stop)
            return True
        if self._past is None:
            if self._at < keyspace.compacted_revision:
                raise ApiError(errors.COMPACTED)
            rewound = rewind(keyspace, self._start, self._end, self._at)
            if rewound is not None:
                self._counted(rewound.live_keys)
                self._source = rewound.values(keyspace.database, back=False)
                return True
            self._past = PastScan(keyspace.database, self._start, self._end, self._at)
        if not self._past.advance(rows):
            return False
        self._counted(len(self._past.rows))
        self._source = values_of(keyspace.database, self._past.rows)
        self._past = None
        return True

    def _counted(self, count: int) -> None:
        if self._count >= 0:
            return  # opened again: what is left is known
        self._count = count
        limit = self._request.limit
        self._left = 0 if self._request.count_only else min(count, limit) if limit > 0 else count

    def _message(self) -> bytes:
        chunk = self._chunk
        self._chunk = []
        self._left -= len(chunk)
        if chunk:
            self._start = key_of(chunk[-1]) + b"\0"
        if self._request.keys_only:
            chunk = [strip_value(kv, keep_lease=False) for kv in chunk]
        body = repeated(b"\x12", chunk)
        if self._chunk_rows < ALL_ROWS:
            if len(body) < self._max_request_bytes // 2:
                self._chunk_rows *= 2
            elif len(body) > self._max_request_bytes * 2:
                self._chunk_rows = max(1, self._chunk_rows // 2)
        if self._left == 0:
            self.done = True
            self.release()
            more = 0 < self._request.limit < self._count and not self._request.count_only
            body = b"".join(
                (
                    self._headers.full(self._revision),
                    body,
                    b"\x18\x01" if more else b"",
                    b" " + varint(self._count) if self._count else b"",
                )
            )
        return b"\n" + varint(len(body)) + body
