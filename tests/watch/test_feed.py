"""What apply sends watch."""

import pytest

from kvorum import errors
from kvorum.errors import ApiError
from node.apply.feed import Feed
from node.events import Gap, History, HistoryAsk, Marker, MarkerAsk, Revision, decode, encode_ask
from tests.watch.store import Store


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def feed(store: Store) -> Feed:
    return Feed(store.history)


def items(payload: bytes | None) -> list[object]:
    """The items, events reduced to (revision, previous values sent)."""
    found: list[object] = []
    for item in decode(payload) if payload is not None else ():
        if isinstance(item, Revision):
            found.append((item.revision, [change[3] is not None for change in item.changes]))
        else:
            found.append(item)
    return found


def take(feed: Feed, store: Store, is_open: bool = True) -> list[object]:
    return items(feed.take(is_open, store.revision, store.compacted))


def put(feed: Feed, store: Store, with_prev: bool = True) -> None:
    feed.on_revisions([store.txn([(b"k", b"v")])], with_prev)


def ask_marker(feed: Feed, number: int, events: bool = True, prev: bool = False) -> None:
    feed.on_ask(encode_ask(MarkerAsk(number, events, prev)), 0)


def test_nobody_asked_nothing_is_sent(feed: Feed, store: Store) -> None:
    put(feed, store)
    assert feed.take(True, store.revision, store.compacted) is None
    assert not feed.wants_events and feed.pending_bytes == 0


def test_events_begin_after_the_marker(feed: Feed, store: Store) -> None:
    put(feed, store)
    ask_marker(feed, 1)
    assert take(feed, store) == [Marker(1, 2, -1)]
    put(feed, store)
    put(feed, store)
    assert feed.pending_bytes > 0
    assert take(feed, store) == [(3, [False]), (4, [False])]
    assert feed.pending_bytes == 0


def test_events_of_the_turn_come_before_its_marker(feed: Feed, store: Store) -> None:
    ask_marker(feed, 1)
    take(feed, store)
    put(feed, store)
    ask_marker(feed, 2)
    assert take(feed, store) == [(2, [False]), Marker(2, 2, -1)]


def test_previous_values_are_sent_when_wanted(feed: Feed, store: Store) -> None:
    put(feed, store)
    ask_marker(feed, 1, prev=True)
    take(feed, store)
    put(feed, store)
    assert take(feed, store) == [(3, [True])]
    ask_marker(feed, 2, prev=False)
    take(feed, store)
    put(feed, store)
    assert take(feed, store) == [(4, [False])]


def test_a_marker_may_end_the_events(feed: Feed, store: Store) -> None:
    ask_marker(feed, 1)
    take(feed, store)
    ask_marker(feed, 2, events=False)
    take(feed, store)
    put(feed, store)
    assert take(feed, store) == []


def test_without_credit_events_become_a_gap_and_asks_wait(feed: Feed, store: Store) -> None:
    ask_marker(feed, 1)
    take(feed, store)
    put(feed, store)
    assert take(feed, store, is_open=False) == []
    put(feed, store)
    assert feed.pending_bytes == 0, "nothing is encoded while there is no credit"
    ask_marker(feed, 2)
    assert take(feed, store, is_open=False) == []
    assert not feed.asked, "there is nothing to do before credit comes"
    put(feed, store)
    assert take(feed, store) == [Gap(1, 4), Marker(2, 4, -1)]
    put(feed, store)
    assert take(feed, store) == [(5, [False])]
    assert feed.gaps == 1


def test_what_was_executed_without_previous_values_is_a_gap_when_they_are_wanted(feed: Feed, store: Store) -> None:
    ask_marker(feed, 1, prev=True)
    take(feed, store)
    put(feed, store, with_prev=False)
    assert take(feed, store) == [Gap(1, 2)]
    put(feed, store, with_prev=False)
    put(feed, store)
    assert take(feed, store) == [Gap(2, 3), (4, [True])]


def test_what_was_executed_unseen_is_a_gap(feed: Feed, store: Store) -> None:
    ask_marker(feed, 1)
    take(feed, store)
    store.txn([(b"k", b"v")])
    put(feed, store)
    assert take(feed, store) == [Gap(1, 2), (3, [False])]


def test_one_slice_of_history_is_read_at_a_time(feed: Feed, store: Store) -> None:
    for _ in range(5):
        put(feed, store)
    feed.on_ask(encode_ask(HistoryAsk(1, 3, 1 << 20, 2, False, None)), 0)
    ask_marker(feed, 2)
    (history,) = take(feed, store)
    assert isinstance(history, History)
    assert (history.start, history.end, [revision for revision, _ in history.revisions]) == (3, 4, [3, 4])
    assert feed.asked and store.reads == 1
    assert take(feed, store) == [Marker(2, 6, -1)]


@pytest.mark.parametrize(
    ("ranges", "wanted"),
    [
        (((b"a", b""),), [b"a"]),
        (((b"a", b"b"),), [b"a", b"aa"]),
        (((b"b", b"\0"),), [b"b", b"c"]),
        (((b"c", b""), (b"a", b"")), [b"a", b"c"]),
        (None, [b"a", b"aa", b"b", b"c"]),
    ],
)
def test_history_is_asked_for_ranges(
    feed: Feed, store: Store, ranges: tuple[tuple[bytes, bytes], ...] | None, wanted: list[bytes]
) -> None:
    store.txn([(key, b"v") for key in (b"a", b"aa", b"b", b"c")])
    feed.on_ask(encode_ask(HistoryAsk(1, 2, 1 << 20, 10, True, ranges)), 0)
    (history,) = take(feed, store)
    assert isinstance(history, History)
    assert [change[1] for _, changes in history.revisions for change in changes] == wanted


def test_compacted_history_is_refused(feed: Feed, store: Store) -> None:
    put(feed, store)
    put(feed, store)
    store.compacted = 3
    feed.on_ask(encode_ask(HistoryAsk(1, 2, 1 << 20, 10, False, None)), 0)
    (history,) = take(feed, store)
    assert isinstance(history, History) and history.refused
    assert (history.compacted, history.revisions) == (3, [])


def test_another_error_is_not_hidden(store: Store) -> None:
    def history(*_: object, **__: object) -> None:
        raise ApiError(errors.CORRUPT)

    feed = Feed(history)  # type: ignore[arg-type]  # it never returns
    feed.on_ask(encode_ask(HistoryAsk(1, 2, 1, 1, False, None)), 0)
    with pytest.raises(ApiError, match="corrupt"):
        take(feed, store)


def test_asks_are_bounded(feed: Feed) -> None:
    ask_marker(feed, 1)
    ask_marker(feed, 2)
    with pytest.raises(AssertionError, match="too many asks"):
        ask_marker(feed, 3)
