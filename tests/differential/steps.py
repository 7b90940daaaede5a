"""Random steps: what clients may send, from small alphabets so that requests meet, with the values at each border."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message
from hypothesis import strategies as st

from kvorum.pb.rpc_pb2 import (
    CompactionRequest,
    Compare,
    DeleteRangeRequest,
    HashKVRequest,
    LeaseGrantRequest,
    LeaseLeasesRequest,
    LeaseRevokeRequest,
    LeaseTimeToLiveRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
    WatchCreateRequest,
)


@dataclass(frozen=True)
class Rev:
    """A revision relative to the store's current or compacted one when the step runs."""

    base: str
    offset: int

    def __repr__(self) -> str:
        return f"{self.base}{self.offset:+d}"


class Ask:
    """A message whose fields may hold `Rev`s; `resolve` makes the message."""

    def __init__(self, kind: type[Message], fields: Mapping[str, Any]) -> None:
        self.kind = kind
        self.fields = dict(fields)

    def __repr__(self) -> str:
        return f"{self.kind.__name__}({', '.join(f'{name}={value!r}' for name, value in self.fields.items())})"

    def resolve(self, base: Mapping[str, int]) -> Any:
        return self.kind(**{name: _resolve(value, base) for name, value in self.fields.items()})


def _resolve(value: Any, base: Mapping[str, int]) -> Any:
    if isinstance(value, Rev):
        return base[value.base] + value.offset
    if isinstance(value, Ask):
        return value.resolve(base)
    if isinstance(value, list):
        return [_resolve(item, base) for item in value]
    return value


@dataclass(frozen=True)
class KeepAlive:
    """One keep-alive request on the example's keep-alive stream."""

    lease: int


@dataclass(frozen=True)
class Watch:
    """A create request on watch stream `stream`."""

    stream: int
    create: Ask


@dataclass(frozen=True)
class Cancel:
    """A cancel request; `watch_id` may be in use or not."""

    stream: int
    watch_id: int


@dataclass(frozen=True)
class Progress:
    """A progress request."""

    stream: int


Step = Ask | KeepAlive | Watch | Cancel | Progress

KEYS = (b"a", b"a\0", b"aa", b"b", b"c", b"\0", b"\xff")
STREAMS = 2
LEASES = (1, 2, -5, 1 << 62)
UNKNOWN_LEASE = 99

keys = st.sampled_from((*KEYS, b"a", b"a", b"b", *KEYS, b""))
ends = st.sampled_from((b"", b"", b"", b"\0", b"\0", b"c", b"\0\0", b"a", b"b", b"d", b"\xff\xff"))
values = st.sampled_from((b"", b"1", b"2", b"\xff" * 300))
lease_ids = st.sampled_from((*LEASES, UNKNOWN_LEASE, 0))
flags = st.just(True)  # every flag is optional, so false is drawn by leaving it out
past = st.builds(Rev, st.just("now"), st.integers(-8, 0))
revisions = st.one_of(
    past,
    past,
    past,
    st.builds(Rev, st.just("now"), st.integers(1, 2)),
    st.builds(Rev, st.just("compacted"), st.integers(-1, 1)),
    st.sampled_from((-1, -2, 1, 1 << 62)),
)


def _ask(
    kind: type[Message], required: dict[str, Any], optional: dict[str, Any] | None = None
) -> st.SearchStrategy[Ask]:
    """The required fields and mostly few of the optional ones, so that most calls succeed."""

    @st.composite
    def ask(draw: st.DrawFn) -> Ask:  # without arguments, which hypothesis would print at any length
        names = draw(st.lists(st.sampled_from(sorted(optional)), unique=True, max_size=3)) if optional else []
        chosen = required | {name: optional[name] for name in names if optional}
        return Ask(kind, {name: draw(value) for name, value in chosen.items()})

    return ask()


ranges = _ask(
    RangeRequest,
    {"key": keys, "range_end": ends},
    {
        "limit": st.sampled_from((-1, 1, 2, 3, 100)),
        "revision": revisions,
        "sort_order": st.sampled_from((1, 2)),  # X1: no unknown order
        "sort_target": st.sampled_from((1, 2, 3, 4)),  # Z1: no unknown target
        "serializable": flags,
        "keys_only": flags,
        "count_only": flags,
        "min_mod_revision": revisions,
        "max_mod_revision": revisions,
        "min_create_revision": revisions,
        "max_create_revision": revisions,
    },
)
plain_ranges = _ask(
    RangeRequest,
    {"key": keys, "range_end": ends},
    {"limit": st.sampled_from((1, 2, 3, 100)), "revision": revisions, "keys_only": flags},
)
puts = _ask(
    PutRequest,
    {"key": keys},
    {
        "value": values,
        "lease": st.sampled_from((*LEASES, UNKNOWN_LEASE)),
        "prev_kv": flags,
        "ignore_value": flags,
        "ignore_lease": flags,
    },
)
plain_puts = _ask(PutRequest, {"key": st.sampled_from(KEYS), "value": values})
leased_puts = _ask(PutRequest, {"key": st.sampled_from(KEYS), "value": values, "lease": st.sampled_from(LEASES)})
deletes = _ask(DeleteRangeRequest, {"key": keys, "range_end": ends}, {"prev_kv": flags})

_targets: dict[str, st.SearchStrategy[Any]] = {
    "version": st.integers(0, 2),
    "create_revision": st.one_of(st.just(0), past),
    "mod_revision": st.one_of(st.just(0), past),
    "value": values,
    "lease": st.sampled_from((0, *LEASES)),
}


@st.composite
def compares(draw: st.DrawFn) -> Ask:
    name = draw(st.sampled_from((*_targets, None)))
    fields: dict[str, Any] = {
        "key": draw(keys),
        "range_end": draw(ends),
        "result": draw(st.sampled_from((0, 1, 2, 3, 7))),
    }
    if name is not None:
        fields[name] = draw(_targets[name])
    # mostly the target of the value given; now and then another or an unknown one
    own = list(_targets).index(name) if name is not None else 0
    fields["target"] = draw(st.sampled_from((own, own, own, 0, 1, 2, 3, 4, 9)))
    return Ask(Compare, fields)


def _operations(txns_inside: st.SearchStrategy[Ask] | None) -> st.SearchStrategy[Ask]:
    kinds = [
        ("request_range", ranges),
        ("request_range", plain_ranges),
        ("request_put", puts),
        ("request_put", plain_puts),
        ("request_put", plain_puts),
        ("request_delete_range", deletes),
    ]
    if txns_inside is not None:
        kinds += [("request_txn", txns_inside)] * 2
    named = [st.builds(lambda ask, name=name: Ask(RequestOp, {name: ask}), ask) for name, ask in kinds]
    return st.one_of(*named, *named, *named, st.just(Ask(RequestOp, {})))


def _txns(depth: int) -> st.SearchStrategy[Ask]:
    operations = st.lists(_operations(_txns(depth - 1) if depth else None), max_size=3)
    return _ask(TxnRequest, {"compare": st.lists(compares(), max_size=2), "success": operations, "failure": operations})


def _operations_of(txn: Ask) -> list[Ask]:
    """All operations below `txn`, at every depth and in both branches."""
    found: list[Ask] = []
    for operation in (*txn.fields["success"], *txn.fields["failure"]):
        for ask in operation.fields.values():
            found += _operations_of(ask) if ask.kind is TxnRequest else [ask]
    return found


def _cannot_fail_halfway(txn: Ask) -> Ask:
    """Z4: only a delete from a key on passes the check for duplicates beside a put of a key that it deletes."""
    operations = _operations_of(txn)
    if any(ask.kind is DeleteRangeRequest and ask.fields["range_end"] == b"\0" for ask in operations):
        for ask in operations:
            if ask.kind is PutRequest:
                ask.fields.pop("ignore_value", None)
                ask.fields.pop("ignore_lease", None)
    return txn


def _cannot_fail_at_one_member_alone(step: Step) -> Step:
    """Z5: a range at a revision is all in a transaction that can fail when it is executed."""
    if isinstance(step, Ask) and step.kind is TxnRequest:
        for ask in _operations_of(step):
            if ask.kind is RangeRequest:
                ask.fields.pop("revision", None)
    return step


txns = _txns(2).map(_cannot_fail_halfway)
compactions = _ask(CompactionRequest, {"revision": st.one_of(past, past, revisions)}, {"physical": flags})
hashes = _ask(HashKVRequest, {}, {"revision": revisions})
grants = _ask(
    LeaseGrantRequest,
    {"ID": st.sampled_from(LEASES), "TTL": st.sampled_from((600, 1000, 5000, 9_000_000_000, 9_000_000_001))},
)
leases = st.one_of(
    grants,
    grants,
    _ask(LeaseRevokeRequest, {"ID": lease_ids}),
    _ask(LeaseTimeToLiveRequest, {"ID": lease_ids}, {"keys": flags}),
    st.just(Ask(LeaseLeasesRequest, {})),
)
_streams = st.integers(0, STREAMS - 1)
_watch_fields = {
    "key": keys,
    "range_end": st.sampled_from((b"", b"", b"\0", b"c", b"d", b"\xff\xff", b"a")),
    "watch_id": st.sampled_from((0, 0, 0, 1, 2, 3, -2, 1 << 40)),
}
_watch_options = {"prev_kv": flags, "fragment": flags, "progress_notify": flags}
watches = st.builds(
    Watch,
    _streams,
    st.one_of(
        _ask(WatchCreateRequest, _watch_fields, _watch_options | {"filters": st.lists(st.sampled_from((0, 1, 5)))}),
        _ask(
            WatchCreateRequest,
            _watch_fields
            | {
                "start_revision": st.one_of(  # X9: nothing negative
                    past,
                    st.builds(Rev, st.just("now"), st.integers(1, 6)),
                    st.builds(Rev, st.just("compacted"), st.integers(-1, 1)),
                    st.sampled_from((1, 1 << 62)),
                )
            },
            # with both filters nothing shows when such a watcher has caught up
            _watch_options | {"filters": st.lists(st.sampled_from((0, 1)), max_size=1)},
        ),
    ),
)
cancels = st.builds(Cancel, _streams, st.sampled_from((0, 1, 2, 3, -2, 1 << 40)))

steps: st.SearchStrategy[Step] = st.one_of(
    plain_puts,
    plain_puts,
    leased_puts,
    puts,
    ranges,
    plain_ranges,
    deletes,
    txns,
    txns,
    compactions,
    hashes,
    leases,
    leases,
    st.builds(KeepAlive, lease_ids),
    watches,
    watches,
    watches,
    cancels,
    st.builds(Progress, _streams),
)


@st.composite
def sequences(draw: st.DrawFn) -> list[Step]:
    """A few writes, so that there is something to ask for, then any steps."""
    writes = st.one_of(plain_puts, plain_puts, grants, leased_puts)
    # the length is drawn and not left to `lists`, whose mean length from zero on is five
    before = [draw(writes) for _ in range(draw(st.integers(0, 12)))]
    return before + [draw(steps) for _ in range(draw(st.integers(0, 45)))]


def at_clusters() -> st.SearchStrategy[list[Step]]:
    """The same, but for what does not do the same at every member of a cluster of the reference."""
    return sequences().map(lambda steps: [_cannot_fail_at_one_member_alone(step) for step in steps])
