"""Which reads wait for a read index, who asks for it when, and what becomes of them."""

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from kvorum.pb.rpc_pb2 import RangeRequest
from node.apply import read_index as module
from node.apply.read_index import RETRY_S, ReadIndex, Waiting, split
from node.requests import FIRST_READ_SEQUENCE, LINEARIZABLE, Op, pack_read

TIMEOUT_S = 7.0


def names(waiting: Iterable[Waiting]) -> list[bytes]:
    return [one.data for one in waiting]


class Under:
    """A ReadIndex with reads named by their data."""

    def __init__(self) -> None:
        self.index = ReadIndex(TIMEOUT_S)
        self.now = 100.0
        assert not self.index.on_leadership(2, 1)

    def add(self, *reads: bytes) -> None:
        for read in reads:
            assert self.index.add(16, read, 0, self.now)

    def ask(self) -> int | None:
        return self.index.ask(self.now)

    def ready(self, applied: int) -> list[bytes]:
        return names(self.index.ready(applied))

    def is_empty(self) -> bool:
        return (self.index.waiting, self.index.waiting_bytes, self.index.due_at) == (0, 0, None)


def test_reads_are_answered_once_the_index_is_applied() -> None:
    under = Under()
    assert under.ask() is None, "nobody reads"
    under.add(b"a", b"b")
    assert under.ask() == 1
    assert under.ready(99) == []
    under.index.on_index(1, 10)
    assert under.ready(9) == []
    assert under.ready(10) == [b"a", b"b"]
    assert under.is_empty()


def test_P19_a_read_joins_only_an_ask_that_has_not_left_yet() -> None:
    under = Under()
    under.add(b"a")
    assert under.ask() == 1
    under.add(b"b")
    assert under.ask() is None, "one ask at a time"
    under.index.on_index(1, 10)
    assert under.ask() == 2
    assert under.ready(10) == [b"a"]
    under.index.on_index(2, 10)
    assert under.ready(10) == [b"b"]


def test_asks_go_on_while_the_store_is_behind() -> None:
    under = Under()
    for number, read in enumerate((b"a", b"b", b"c"), 1):
        under.add(read)
        assert under.ask() == number
        under.index.on_index(number, 10 * number)
    assert under.ready(25) == [b"a", b"b"]
    assert under.ready(30) == [b"c"]


def test_P13_an_ask_is_repeated_under_a_new_number_and_any_answer_to_it_counts() -> None:
    under = Under()
    under.add(b"a")
    assert under.ask() == 1
    under.now += RETRY_S
    assert under.index.due_at == under.now
    assert under.ask() == 2
    assert under.ask() is None
    under.now += RETRY_S
    assert under.ask() == 3
    under.index.on_index(1, 10)
    assert under.ready(10) == [b"a"]
    under.add(b"b")
    assert under.ask() == 4
    under.index.on_index(3, 5)
    assert under.ready(10) == [], "that answer is older than the read"
    under.index.on_index(4, 11)
    assert under.ready(11) == [b"b"]
    assert under.index.slow == 1, "it is one ask, however often it was repeated"


def test_P13_a_read_is_given_up_after_its_own_time() -> None:
    under = Under()
    under.add(b"a")
    under.ask()
    under.now += 3
    under.add(b"b")
    under.now += 3.9
    assert names(under.index.expired(under.now)) == []
    under.now += 0.1
    assert under.index.due_at is not None and under.index.due_at <= under.now
    assert names(under.index.expired(under.now)) == [b"a"]
    assert under.index.failed == 0, "nobody has failed it"
    number = under.ask()
    assert number is not None, "the next is asked for at once"
    under.index.on_index(1, 10)
    assert under.ready(10) == [], "nobody waits for that any more"
    under.now += 3
    assert names(under.index.expired(under.now)) == [b"b"]
    assert under.is_empty()


def test_a_read_whose_index_is_known_is_not_given_up() -> None:
    under = Under()
    under.add(b"a")
    under.ask()
    under.index.on_index(1, 10)
    under.now += 100
    assert names(under.index.expired(under.now)) == []
    assert under.ready(10) == [b"a"]


def test_P14_another_leader_fails_what_was_asked_for_and_nothing_else() -> None:
    under = Under()
    under.add(b"known")
    under.ask()
    under.index.on_index(1, 10)
    under.add(b"asked")
    under.ask()
    under.add(b"gathers")
    assert names(under.index.on_leadership(2, 1)) == [], "the same"
    assert names(under.index.on_leadership(3, 0)) == [], "that there is none may pass"
    assert names(under.index.on_leadership(3, 5)) == [b"asked"]
    assert under.ready(10) == [b"known"]
    assert under.ask() == 3
    under.index.on_index(3, 11)
    assert under.ready(11) == [b"gathers"]
    assert under.index.failed == 1


def test_P14_the_same_leader_elected_anew_is_another() -> None:
    under = Under()
    under.add(b"a")
    under.ask()
    assert names(under.index.on_leadership(3, 1)) == [b"a"]
    under.add(b"b")
    under.ask()
    assert names(under.index.on_leadership(3, 1)) == [], "it was asked for under that one"


def test_a_sole_voter_s_reads_are_all_released() -> None:
    under = Under()
    under.add(b"a")
    under.ask()
    under.index.on_index(1, 10)
    under.add(b"b")
    under.ask()
    under.add(b"c")
    assert sorted(names(under.index.release())) == [b"a", b"b", b"c"]
    assert under.is_empty()
    under.index.on_index(2, 10)
    assert under.ready(10) == []


def test_what_waits_is_bounded() -> None:
    under = Under()
    assert under.index.add(16, bytes(module.MAX_WAITING_BYTES - 1), 0, under.now)
    assert under.index.add(16, b"abc", 2, under.now), "only what is not skipped counts"
    assert not under.index.add(16, b"d", 0, under.now)
    under.ask()
    under.index.on_index(1, 1)
    under.ready(1)
    for _ in range(module.MAX_WAITING):
        under.add(b"")
    assert not under.index.add(16, b"", 0, under.now)


# which reads wait

SKIPPED = b"header"

LONE = RangeRequest(key=b"k").SerializeToString()
SERIALIZABLE = RangeRequest(key=b"k", serializable=True).SerializeToString()


def frame(*records: bytes) -> bytes:
    return SKIPPED + b"".join(records)


def record(number: int, op: int, body: bytes, flags: int = 0) -> bytes:
    return pack_read(op, FIRST_READ_SEQUENCE + number, body, flags)


def test_frames_of_one_kind_are_not_copied() -> None:
    data = frame(record(0, Op.RANGE, LONE), record(1, Op.TXN_READ, b"", LINEARIZABLE))
    assert split(data, len(SKIPPED)) == (data, None)
    data = frame(record(0, Op.RANGE, SERIALIZABLE), record(1, Op.TXN_READ, b""), record(2, Op.LEASE_LEASES, b""))
    waits, others = split(data, len(SKIPPED))
    assert waits is None and others is data


def test_a_mixed_frame_is_parted_in_order() -> None:
    records = [
        record(0, Op.RANGE, LONE),
        record(1, Op.RANGE, SERIALIZABLE),
        record(2, Op.RANGE_STREAM, LONE, LINEARIZABLE),
        record(3, Op.RANGE_STREAM, SERIALIZABLE),
        record(4, Op.RANGE, LONE),
    ]
    assert split(frame(*records), len(SKIPPED)) == (
        frame(records[0], records[2], records[4]),
        frame(records[1], records[3]),
    )


@given(
    key=st.binary(max_size=200) | st.just(b"8\x01") | st.just(b"k8\x01"),
    range_end=st.binary(max_size=3) | st.just(b"8\x01"),
    limit=st.integers(0, 300),
    revision=st.sampled_from([0, 1, 56]),
    serializable=st.booleans(),
    unknown=st.sampled_from([b"", b"\xf8\x0a\x38", b"\xfa\x0a\x028\x01"]),
)
def test_a_range_waits_unless_it_is_serializable(
    key: bytes, range_end: bytes, limit: int, revision: int, serializable: bool, unknown: bytes
) -> None:
    request = RangeRequest(key=key, range_end=range_end, limit=limit, revision=revision, serializable=serializable)
    data = frame(record(0, Op.RANGE, request.SerializeToString() + unknown))
    assert split(data, len(SKIPPED)) == ((None, data) if serializable else (data, None))


@given(body=st.binary(max_size=20) | st.just(b"\x388"))
def test_what_does_not_parse_is_not_held_up_where_that_is_seen(body: bytes) -> None:
    data = frame(record(0, Op.RANGE, body))
    waits, others = split(data, len(SKIPPED))
    assert (waits, others) in ((data, None), (None, data))
    if b"8" not in body:
        assert others is None
