"""What a tenant stores: events, and writes on their way."""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvorum.pb.mvcc_pb2 import Event, KeyValue
from kvorum.pb.rpc_pb2 import PutRequest, TxnRequest
from proxy.tenants.usage import UNKNOWN_OUTCOME_S, Growth, Usage


def kv(key: bytes, value: bytes = b"") -> KeyValue:
    return KeyValue(key=b"t/" + key, value=value)


def put(key: bytes, value: bytes = b"") -> PutRequest:
    return PutRequest(key=b"t/" + key, value=value)


def event(key: bytes, value: bytes | None) -> Event:
    if value is None:
        return Event(type=Event.DELETE, kv=kv(key))
    return Event(kv=kv(key, value))


def known(*kvs: KeyValue, revision: int = 10) -> Usage:
    usage = Usage(2)
    usage.begin_reading()
    usage.on_page(kvs)
    usage.end_reading(revision)
    return usage


def figures(usage: Usage) -> tuple[int, int, int, int]:
    return usage.keys, usage.bytes, usage.held_keys, usage.held_bytes


def test_nothing_is_known_before_the_namespace_was_read() -> None:
    usage = Usage(2)
    assert usage.revision is None
    usage.begin_reading()
    usage.on_page([kv(b"a", b"1")])
    assert usage.revision is None
    usage.end_reading(7)
    assert usage.revision == 7
    assert figures(usage) == (1, 2, 0, 0)


def test_events_move_the_figures() -> None:
    usage = known(kv(b"a", b"123"), kv(b"b"))
    usage.on_events([event(b"c", b"xx"), event(b"a", b"1"), event(b"b", None)], 11)
    assert figures(usage) == (2, 5, 0, 0)
    assert usage.revision == 11
    usage.on_events([event(b"b", None), event(b"c", b"xx")], 12)  # repeated after a lost stream
    assert figures(usage) == (2, 5, 0, 0)


def test_a_write_counts_from_when_it_leaves_until_its_events_have_come() -> None:
    usage = known()
    growth = usage.growth_of_put(put(b"a", b"12"))
    assert (growth.keys, growth.bytes) == (1, 3)
    usage.hold(growth)
    assert figures(usage) == (0, 0, 1, 3)
    usage.on_acknowledged(growth, 11)
    assert usage.waits_for == 11
    assert figures(usage) == (0, 0, 1, 3)
    usage.on_events([event(b"a", b"12")], 11)
    assert figures(usage) == (1, 3, 0, 0)
    assert usage.waits_for is None


def test_a_write_whose_events_come_before_its_answer_does_not_count_twice() -> None:
    usage = known()
    growth = usage.growth_of_put(put(b"a", b"12"))
    usage.hold(growth)
    usage.on_events([event(b"a", b"12")], 11)
    assert figures(usage) == (1, 3, 0, 0)
    usage.on_acknowledged(growth, 11)
    assert figures(usage) == (1, 3, 0, 0)


def test_a_refused_write_counts_no_more() -> None:
    usage = known()
    growth = usage.growth_of_put(put(b"a"))
    usage.hold(growth)
    usage.on_refused(growth)
    assert figures(usage) == (0, 0, 0, 0)


def test_a_write_of_unknown_outcome_counts_for_a_while() -> None:
    usage = known()
    growth = usage.growth_of_put(put(b"a"))
    usage.hold(growth)
    usage.on_unknown(growth, now=100.0)
    usage.expire(100.0 + UNKNOWN_OUTCOME_S - 0.1)
    assert usage.held_keys == 1
    usage.expire(100.0 + UNKNOWN_OUTCOME_S)
    assert usage.held_keys == 0


def test_a_write_that_changed_nothing_is_forgotten_at_the_next_progress() -> None:
    usage = known()
    growth = usage.growth_of_put(put(b"a"))
    usage.hold(growth)
    usage.on_acknowledged(growth, 12)
    usage.on_progress(11)
    assert usage.held_keys == 1
    usage.on_progress(12)
    assert usage.held_keys == 0


def test_only_what_grows_is_measured_against_a_limit() -> None:
    usage = known(kv(b"a", b"123"))
    assert usage.fits(usage.growth_of_put(put(b"a", b"1")), 1, 4) is None
    assert usage.fits(usage.growth_of_put(put(b"a", b"1234")), 1, 4) == "bytes"
    assert usage.fits(usage.growth_of_put(put(b"b")), 1, None) == "keys"
    assert usage.fits(usage.growth_of_put(put(b"b")), 2, 5) is None
    assert usage.fits(usage.growth_of_put(PutRequest(key=b"t/b", ignore_value=True)), 0, 0) is None
    assert usage.fits(usage.growth_of_put(put(b"b")), None, None) is None


def test_the_next_write_of_a_key_on_its_way_is_an_update() -> None:
    usage = known()
    usage.hold(usage.growth_of_put(put(b"a", b"12")))
    assert usage.fits(usage.growth_of_put(put(b"a", b"34")), 1, 3) is None
    assert usage.fits(usage.growth_of_put(put(b"b")), 1, None) == "keys"


def test_a_transaction_adds_what_the_larger_branch_adds() -> None:
    usage = known(kv(b"old", b"1"))
    growth = usage.growth_of_txn(
        TxnRequest(
            success=[{"request_put": put(b"a", b"1")}, {"request_put": put(b"old", b"12")}],
            failure=[
                {"request_put": put(b"b", b"123456")},
                {"request_txn": TxnRequest(success=[{"request_put": put(b"c")}])},
                {"request_delete_range": {"key": b"t/old"}},
            ],
        )
    )
    assert (growth.keys, growth.bytes) == (2, 8)
    assert growth.sizes == {b"t/a": 2, b"t/old": 5, b"t/b": 7, b"t/c": 1}


def test_reading_again_replaces_what_was_known() -> None:
    usage = known(kv(b"a", b"1"))
    growth = usage.growth_of_put(put(b"b", b"1"))
    usage.hold(growth)
    usage.lose()
    assert usage.revision is None
    usage.begin_reading()
    usage.on_page([kv(b"b", b"1"), kv(b"c")])
    usage.end_reading(20)
    assert figures(usage) == (2, 3, 0, 0)
    usage.on_acknowledged(growth, 15)
    assert figures(usage) == (2, 3, 0, 0)


@dataclass
class Cluster:
    """Keys as they are, and what became of them, revision by revision."""

    keys: dict[bytes, bytes] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    @property
    def revision(self) -> int:
        return 1 + len(self.events)

    def write(self, key: bytes, value: bytes | None) -> None:
        if value is not None or key in self.keys:
            self.events.append(event(key, value))
        if value is None:
            self.keys.pop(key, None)
        else:
            self.keys[key] = value


KEYS = st.sampled_from([b"a", b"b", b"c", b"d"])
VALUES = st.binary(max_size=3)
MOST_KEYS, MOST_BYTES = 3, 7


class OneProxy(RuleBasedStateMachine):
    """Writes through one proxy, and the events whenever they come: the cluster never holds more than the limits."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster()
        self.usage = known(revision=1)
        self.leaving: list[tuple[bytes, bytes, Growth]] = []
        self.unanswered: list[tuple[int, Growth]] = []

    @rule(key=KEYS, value=VALUES)
    def write(self, key: bytes, value: bytes) -> None:
        growth = self.usage.growth_of_put(put(key, value))
        if self.usage.fits(growth, MOST_KEYS, MOST_BYTES) is None:
            self.usage.hold(growth)
            self.leaving.append((key, value, growth))

    @rule(key=KEYS)
    def delete(self, key: bytes) -> None:
        self.cluster.write(key, None)

    @precondition(lambda self: self.leaving)
    @rule(done=st.booleans())
    def arrive(self, done: bool) -> None:
        key, value, growth = self.leaving.pop(0)
        if done:
            self.cluster.write(key, value)
            self.unanswered.append((self.cluster.revision, growth))
        else:
            self.usage.on_refused(growth)

    @precondition(lambda self: self.unanswered)
    @rule()
    def answer(self) -> None:
        revision, growth = self.unanswered.pop(0)
        self.usage.on_acknowledged(growth, revision)

    @rule(count=st.integers(1, 5))
    def see(self, count: int) -> None:
        assert self.usage.revision is not None
        for revision in range(self.usage.revision + 1, min(self.cluster.revision, self.usage.revision + count) + 1):
            self.usage.on_events([self.cluster.events[revision - 2]], revision)

    @rule()
    def read_again(self) -> None:
        self.usage.lose()
        self.usage.begin_reading()
        self.usage.on_page([kv(key, value) for key, value in self.cluster.keys.items()])
        self.usage.end_reading(self.cluster.revision)

    @invariant()
    def the_cluster_holds_no_more_than_the_limits(self) -> None:
        keys = self.cluster.keys
        # A key that was deleted and is written again before the deletion was seen is no new one by the figures.
        unseen = {
            self.cluster.events[n - 2].kv.key for n in range((self.usage.revision or 0) + 1, self.cluster.revision + 1)
        }
        if not unseen:
            assert len(keys) <= MOST_KEYS
            assert sum(len(key) + len(value) for key, value in keys.items()) <= MOST_BYTES

    @invariant()
    def with_nothing_on_its_way_the_figures_are_the_cluster_s(self) -> None:
        if not self.leaving and not self.unanswered and self.usage.revision == self.cluster.revision:
            size = sum(len(key) + len(value) for key, value in self.cluster.keys.items())
            assert figures(self.usage) == (len(self.cluster.keys), size, 0, 0)


TestOneProxy = OneProxy.TestCase
TestOneProxy.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
