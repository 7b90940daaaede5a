"""The index of ranges against asking each range."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from kvorum.ranges import covers
from node.watch.ranges import CACHED_KEYS, Range, RangeIndex, _Node

keys = st.binary(max_size=3).map(lambda key: bytes(byte % 4 for byte in key) or b"\0")
ends = st.one_of(st.just(b""), st.just(b"\0"), keys)


def is_range(key_range: Range) -> bool:
    key, end = key_range
    return end in (b"", b"\0") or end > key


ranges = st.tuples(keys, ends).filter(is_range)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(ranges, st.booleans()), max_size=60), st.lists(keys, max_size=20))
def test_match_finds_the_ranges_that_hold_a_key(steps: list[tuple[Range, bool]], asked: list[bytes]) -> None:
    index: RangeIndex[Range] = RangeIndex()
    there: set[Range] = set()
    for key_range, removing in steps:
        if key_range in there:
            if removing:
                index.remove(key_range)
                there.remove(key_range)
        else:
            index.add(key_range, key_range)
            there.add(key_range)
        for key in asked:
            assert sorted(index.match(key)) == sorted(one for one in there if covers(*one, key))
    assert len(index) == len(there) == len(index.ranges())
    for key_range in there:
        assert index.get(key_range) == key_range


def check(node: _Node[int] | None) -> int:
    """Balanced, and the greatest ends right; returns the height."""
    if node is None:
        return 0
    left, right = check(node.left), check(node.right)
    assert abs(left - right) <= 1
    assert node.height == 1 + max(left, right)
    found = [node.end, *(child.max_end for child in (node.left, node.right) if child is not None)]
    assert node.max_end == (None if None in found else max(end for end in found if end is not None))
    return node.height


def test_the_tree_stays_balanced_whatever_the_order() -> None:
    for order in (range(600), reversed(range(600)), (number * 7919 % 600 for number in range(600))):
        index: RangeIndex[int] = RangeIndex()
        numbers = list(order)
        for number in numbers:
            index.add((b"%04d" % number, b"%04d" % (number + 300) if number % 5 else b"\0"), number)
        assert check(index._root) <= 1.45 * math.log2(601)
        for number in numbers[::2]:
            index.remove((b"%04d" % number, b"%04d" % (number + 300) if number % 5 else b"\0"))
            check(index._root)
        assert len(index) == 300
        index.clear()
        assert index.match(b"0001") == ()


def test_remembered_matches_are_bounded() -> None:
    index: RangeIndex[int] = RangeIndex()
    index.add((b"a", b"b"), 1)
    for number in range(3 * CACHED_KEYS):
        assert index.match(b"a%d" % number) == (1,)
        assert len(index._cache) <= CACHED_KEYS
    before = len(index._cache)
    assert index.match(b"a" * 10_000) == (1,)
    assert len(index._cache) == before, "long keys are not remembered"
