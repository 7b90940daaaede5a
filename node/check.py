"""Pure checks of KV requests: all that can be said of one without any state.

Front runs them before it proposes; apply relies on them. They are the field rules of the API, in the order in which
the API reports them: the first rule broken raises `ApiError`. `behaviour.md` rows: P7, R1, R2, RS2, PU1, T1 to T9, T28,
T29.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable

from kvorum import errors
from kvorum.errors import ApiError, Code, Status
from kvorum.pb.rpc_pb2 import DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest

_SORT_ORDERS = 3
_SORT_TARGETS = 5
_ASCEND = RangeRequest.SortOrder.ASCEND
_KEY = RangeRequest.SortTarget.KEY

STREAM_SORT = Status(Code.UNIMPLEMENTED, "RangeStream does not support custom sort orders")
STREAM_FILTER = Status(Code.UNIMPLEMENTED, "RangeStream does not support revision filters")


def check_range(request: RangeRequest) -> None:
    """Raise EmptyKey, then InvalidSortOption (order before target)."""
    if not request.key:
        raise ApiError(errors.EMPTY_KEY)
    if not (0 <= request.sort_order < _SORT_ORDERS and 0 <= request.sort_target < _SORT_TARGETS):
        raise ApiError(errors.INVALID_SORT_OPTION)


def check_range_stream(request: RangeRequest) -> None:
    """As `check_range`; then Unimplemented for an order that is not by key ascending, then for revision filters."""
    check_range(request)
    if request.sort_order and not (request.sort_order == _ASCEND and request.sort_target == _KEY):
        raise ApiError(STREAM_SORT)
    if has_filters(request):
        raise ApiError(STREAM_FILTER)


def has_filters(request: RangeRequest) -> bool:
    """Whether a min/max revision filter is on: any value but 0, negative ones too (R11)."""
    return bool(
        request.min_mod_revision
        or request.max_mod_revision
        or request.min_create_revision
        or request.max_create_revision
    )


def check_put(request: PutRequest) -> None:
    """Raise EmptyKey, then ValueProvided, then LeaseProvided."""
    if not request.key:
        raise ApiError(errors.EMPTY_KEY)
    if request.ignore_value and request.value:
        raise ApiError(errors.VALUE_PROVIDED)
    if request.ignore_lease and request.lease:
        raise ApiError(errors.LEASE_PROVIDED)


def check_delete_range(request: DeleteRangeRequest) -> None:
    """Raise EmptyKey."""
    if not request.key:
        raise ApiError(errors.EMPTY_KEY)


def check_txn(request: TxnRequest, max_ops: int) -> None:
    """Raise TooManyOps, EmptyKey, an operation's own error, or DuplicateKey, in the order of T1.

    `max_ops` bounds each of the three lists; a nested transaction gets what its parent's longest list leaves (T3).
    """
    _check_operations(request, max_ops)
    for branch in (request.success, request.failure):
        if len(branch) > 1 or (branch and branch[0].WhichOneof("request") == "request_txn"):
            _check_duplicates(branch)


def _check_operations(request: TxnRequest, max_ops: int) -> None:
    longest = max(len(request.compare), len(request.success), len(request.failure))
    if longest > max_ops:
        raise ApiError(errors.TOO_MANY_OPS)
    for compare in request.compare:
        if not compare.key:
            raise ApiError(errors.EMPTY_KEY)
    for branch in (request.success, request.failure):
        for operation in branch:
            match operation.WhichOneof("request"):
                case "request_put":
                    check_put(operation.request_put)
                case "request_range":
                    check_range(operation.request_range)
                case "request_delete_range":
                    check_delete_range(operation.request_delete_range)
                case "request_txn":
                    _check_operations(operation.request_txn, max_ops - longest)
                case None:
                    raise ApiError(errors.KEY_NOT_FOUND)


class _Intervals:
    """A union of half-open key ranges, kept as disjoint ones in order; an open end is None.

    Requests choose how many puts and deletes meet here, so both operations are logarithmic searches: comparing every
    put with every delete would let one request of 1.5 MiB cost minutes.
    """

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[bytes] = []
        self._ends: list[bytes] = []

    def add(self, start: bytes, end: bytes) -> None:
        """Add [start, end); an inverted or empty one covers nothing (T9)."""
        if start >= end:
            return
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def update(self, other: "_Intervals") -> None:
        for start, end in zip(other._starts, other._ends, strict=True):
            self.add(start, end)

    def covers(self, key: bytes) -> bool:
        position = bisect_right(self._starts, key) - 1
        return position >= 0 and key < self._ends[position]


def _check_duplicates(operations: Iterable[RequestOp]) -> tuple[set[bytes], _Intervals]:
    """Raise DuplicateKey where one list puts a key twice, or puts a key that one of its deletes covers (T6 to T8).

    Returns the keys put and the ranges deleted, nested ones included, for the list above. Deletes of a child count
    only for what stands after it, and then and else of one child never meet.
    """
    puts: set[bytes] = set()
    deletes = _Intervals()
    children: list[TxnRequest] = []
    own_puts: list[bytes] = []
    for operation in operations:
        match operation.WhichOneof("request"):
            case "request_put":
                own_puts.append(operation.request_put.key)
            case "request_delete_range":
                delete = operation.request_delete_range
                # One zero byte is an ordinary end here, so "from key" is an inverted range: the API's quirk (T9, Q3).
                deletes.add(delete.key, delete.range_end or delete.key + b"\0")
            case "request_txn":
                children.append(operation.request_txn)
    for child in children:
        then_puts, then_deletes = _check_duplicates(child.success)
        else_puts, else_deletes = _check_duplicates(child.failure)
        child_puts = then_puts | else_puts
        if not puts.isdisjoint(child_puts) or any(map(deletes.covers, child_puts)):
            raise ApiError(errors.DUPLICATE_KEY)
        puts |= child_puts
        deletes.update(then_deletes)
        deletes.update(else_deletes)
    for key in own_puts:
        if key in puts or deletes.covers(key):
            raise ApiError(errors.DUPLICATE_KEY)
        puts.add(key)
    return puts, deletes


def is_read_only(request: TxnRequest) -> bool:
    """Whether every operation of both branches is a plain range, or there is none; a nested one is a write (T28)."""
    return all(
        operation.WhichOneof("request") == "request_range"
        for branch in (request.success, request.failure)
        for operation in branch
    )


def is_serializable(request: TxnRequest) -> bool:
    """Whether a read-only transaction needs no read index: every range of both branches is serializable (T29)."""
    return all(
        operation.request_range.serializable for branch in (request.success, request.failure) for operation in branch
    )


def has_put(request: TxnRequest) -> bool:
    """Whether a put stands in either branch, nested ones too: what the NOSPACE alarm refuses (MA13)."""
    for branch in (request.success, request.failure):
        for operation in branch:
            match operation.WhichOneof("request"):
                case "request_put":
                    return True
                case "request_txn":
                    if has_put(operation.request_txn):
                        return True
    return False
