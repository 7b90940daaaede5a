"""The ring at its boundaries."""

from node.watch.ring import ENTRY_OVERHEAD_BYTES, Ring


def filled(limit_bytes: int, count: int, size_bytes: int = 700, first: int = 11) -> Ring:
    ring = Ring(limit_bytes)
    ring.reset(first - 1)
    for revision in range(first, first + count):
        ring.append((revision, []), size_bytes, has_prev=True)
    return ring


def test_an_empty_ring_begins_with_the_next_revision() -> None:
    ring = filled(10_000, 0)
    assert (ring.first, ring.first_for(True), ring.size_bytes) == (11, 11, 0)


def test_the_oldest_go_when_it_is_full() -> None:
    entry = 700 + ENTRY_OVERHEAD_BYTES
    for count in (1, 9, 10, 11, 5000):
        ring = filled(10 * entry, count)
        assert ring.first == 11 + max(0, count - 10)
        assert ring.size_bytes == min(count, 10) * entry
        assert [one for one, _ in ring.slice(ring.first, 100, 1 << 30)] == list(range(ring.first, 11 + count))
        assert len(ring._entries) < 2000, "what is gone is let go"


def test_a_revision_larger_than_the_ring_empties_it() -> None:
    ring = filled(10_000, 5)
    ring.append((16, []), 20_000, has_prev=True)
    assert (ring.first, ring.size_bytes) == (17, 0)
    ring.append((17, []), 1, has_prev=True)
    assert [one for one, _ in ring.slice(17, 10, 10)] == [17]


def test_slices_end_by_number_and_by_bytes_but_are_never_empty() -> None:
    ring = filled(1 << 30, 50)
    entry = 700 + ENTRY_OVERHEAD_BYTES
    assert [one for one, _ in ring.slice(20, 3, 1 << 30)] == [20, 21, 22]
    assert [one for one, _ in ring.slice(20, 1000, 3 * entry)] == [20, 21, 22]
    assert [one for one, _ in ring.slice(20, 1000, 1)] == [20]
    assert [one for one, _ in ring.slice(60, 1000, 1 << 30)] == [60]


def test_previous_values_count_from_the_last_revision_without_them() -> None:
    ring = filled(1 << 30, 5)
    ring.append((16, []), 1, has_prev=False)
    ring.append((17, []), 1, has_prev=True)
    assert (ring.first_for(False), ring.first_for(True)) == (11, 17)


def test_eviction_moves_the_first_with_previous_values_too() -> None:
    ring = filled(5000, 50)
    assert ring.first_for(True) == ring.first_for(False) > 11
