"""The checker accepts what a correct store may show, and names each way of being wrong."""

from tests.crash.history import Event, Read, Write, check

HISTORY = [Event(2, b"a", b"1"), Event(3, b"a", b"2"), Event(3, b"b", b"2"), Event(4, b"a", b"3")]
WRITES = [
    Write({b"a": b"1"}, 0.0, 1.0, 2),
    Write({b"a": b"2", b"b": b"2"}, 2.0, 3.0, None),
    Write({b"a": b"3"}, 4.0, 5.0, 4),
    Write({b"a": b"lost"}, 4.0, 5.0, None),
]
READS = [
    Read(1, b"a", 1.5, 1.6, 2, (b"1", 2), True),
    Read(1, b"a", 5.5, 5.6, 4, (b"3", 4), True),
    Read(2, b"c", 5.5, 5.6, 3, None, False),
]


def problems(
    history: list[Event] = HISTORY,
    writes: list[Write] = WRITES,
    reads: list[Read] = READS,
    watched: list[list[Event]] | None = None,
) -> str:
    return "\n".join(check(history, writes, reads, [history] if watched is None else watched))


def test_a_correct_run_passes() -> None:
    assert problems() == ""


def test_an_acknowledged_write_that_is_lost() -> None:
    assert "acknowledged but not there" in problems(writes=[*WRITES, Write({b"a": b"x"}, 6.0, 7.0, 5)])


def test_an_acknowledged_write_at_another_revision() -> None:
    assert "acknowledged but not there" in problems(writes=[WRITES[0]._replace(revision=3), *WRITES[1:]])


def test_a_write_applied_twice() -> None:
    assert "applied twice" in problems([*HISTORY, Event(5, b"a", b"3")])


def test_half_a_transaction() -> None:
    assert "nobody wrote as one" in problems([event for event in HISTORY if event.key != b"b"])


def test_a_value_nobody_wrote() -> None:
    assert "nobody wrote as one" in problems([*HISTORY, Event(5, b"a", b"?")])


def test_a_gap_in_the_revisions() -> None:
    assert "gaps" in problems([*HISTORY[:3], Event(5, b"a", b"3")])


def test_an_order_against_real_time() -> None:
    late = Write({b"a": b"2", b"b": b"2"}, 6.0, 7.0, None)
    assert "began after 4 was acknowledged" in problems(writes=[WRITES[0], late, *WRITES[2:]])


def test_a_stale_linearizable_read() -> None:
    assert "stale" in problems(reads=[Read(3, b"a", 5.5, 5.6, 2, (b"1", 2), True)])


def test_a_connection_that_goes_back_in_time() -> None:
    assert "back in time" in problems(reads=[*READS, Read(1, b"a", 6.0, 6.1, 3, (b"2", 3), False)])


def test_a_read_of_a_lost_revision() -> None:
    assert "was lost" in problems(reads=[*READS, Read(1, b"a", 6.0, 6.1, 9, (b"3", 4), False)])


def test_a_read_of_the_wrong_value() -> None:
    assert "should have found" in problems(reads=[Read(1, b"a", 5.5, 5.6, 4, (b"2", 3), False)])


def test_watchers_that_miss_repeat_or_swap() -> None:
    for wrong in (
        HISTORY[:1] + HISTORY[2:],
        HISTORY[:2] + HISTORY[1:],
        [HISTORY[1], HISTORY[0], *HISTORY[2:]],
        HISTORY[:3],
    ):
        assert "watcher 0 differs" in problems(watched=[wrong])
