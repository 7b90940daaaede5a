"""Ranges of keys: which keys they hold, and where they end (P8, R20)."""

import pytest

from kvorum.ranges import FROM_KEY, covers, end_of_prefix, overlap


@pytest.mark.parametrize(
    ("start", "end", "held", "others"),
    [
        (b"b", b"", [b"b"], [b"a", b"b\0", b"c"]),
        (b"b", b"d", [b"b", b"b\0", b"c"], [b"a", b"d", b"d\0"]),
        (b"b", FROM_KEY, [b"b", b"c", b"\xff\xff"], [b"a", b"\0"]),
        (b"\0", FROM_KEY, [b"\0", b"a"], []),
        (b"b", b"\0\0", [], [b"a", b"b", b"\0"]),  # an ordinary end
        (b"b", b"a", [], [b"a", b"b", b"c"]),
    ],
)
def test_covers(start: bytes, end: bytes, held: list[bytes], others: list[bytes]) -> None:
    assert [key for key in held + others if covers(start, end, key)] == held


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        ((b"a", b""), (b"a", b""), True),
        ((b"a", b""), (b"b", b""), False),
        ((b"a", b""), (b"a", b"b"), True),
        ((b"b", b""), (b"a", b"b"), False),
        ((b"a", b"c"), (b"b", b"d"), True),
        ((b"a", b"b"), (b"b", b"d"), False),
        ((b"a", b"b"), (b"\0", b"\0"), True),
        ((b"x", b"\0"), (b"a", b"y"), True),
        ((b"x", b"\0"), (b"a", b"x"), False),
        ((b"x", b"\0"), (b"a", b"\0"), True),
    ],
)
def test_overlap(one: tuple[bytes, bytes], other: tuple[bytes, bytes], common: bool) -> None:
    assert overlap(*one, *other) is overlap(*other, *one) is common


@pytest.mark.parametrize(
    ("prefix", "end"),
    [
        (b"t/", b"t0"),
        (b"a\xff", b"b"),
        (b"a\xff\xff", b"b"),
        (b"\0", b"\1"),
        (b"\xff", FROM_KEY),
        (b"\xff\xff", FROM_KEY),
    ],
)
def test_the_end_of_a_prefix(prefix: bytes, end: bytes) -> None:
    assert end_of_prefix(prefix) == end
