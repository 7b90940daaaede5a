"""Keys and ranges on either side of a namespace."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.ranges import FROM_KEY, covers
from proxy.namespaces.namespace import ForeignKeyError, Namespace

PREFIXES = st.sampled_from([b"t/", b"\0", b"\xff", b"\xff\xff", b"a\xff", b"a\xff\xff", b"aa"])
FEW_BYTES = st.binary(max_size=4) | st.text("\0\1aA\xff", max_size=4).map(lambda text: text.encode("latin-1"))


@pytest.mark.parametrize(
    ("inside", "whole"),
    [
        ((b"k", b""), (b"t/k", b"")),
        ((b"k", b"m"), (b"t/k", b"t/m")),
        ((b"k", FROM_KEY), (b"t/k", b"t0")),
        ((FROM_KEY, FROM_KEY), (b"t/\0", b"t0")),
        ((b"k", b"\0\0"), (b"t/k", b"t/\0\0")),  # an ordinary end (P8)
        ((b"m", b"k"), (b"t/m", b"t/k")),  # inverted stays inverted
        ((b"", b""), (b"", b"")),  # the server refuses an empty key
        ((b"", FROM_KEY), (b"", b"")),
        ((b"", b"z"), (b"", b"")),
    ],
)
def test_PX22_a_range_under_its_whole_name(inside: tuple[bytes, bytes], whole: tuple[bytes, bytes]) -> None:
    assert Namespace(b"t/").interval(*inside) == whole


def test_W8_a_watch_of_an_empty_key_watches_one_zero_byte() -> None:
    namespace = Namespace(b"t/")
    assert namespace.watch_interval(b"", b"") == (b"t/\0", b"")
    assert namespace.watch_interval(b"", FROM_KEY) == (b"t/\0", b"t0")
    assert namespace.watch_interval(b"", b"z") == (b"t/\0", b"t/z")


@given(PREFIXES, FEW_BYTES, FEW_BYTES, FEW_BYTES)
def test_a_range_covers_the_same_names_inside_and_nothing_outside(
    prefix: bytes, key: bytes, range_end: bytes, candidate: bytes
) -> None:
    namespace = Namespace(prefix)
    whole = namespace.interval(key, range_end)
    if key:
        inside = prefix + candidate
        assert covers(*whole, inside) == (bool(candidate) and covers(key, range_end, candidate))
    if not candidate.startswith(prefix):
        assert not candidate or not covers(*whole, candidate)
    assert not covers(*whole, prefix)


@given(PREFIXES, FEW_BYTES, FEW_BYTES, st.booleans(), st.booleans(), FEW_BYTES)
def test_a_range_in_a_reply_is_shown_as_far_as_it_lies_inside(
    prefix: bytes, key: bytes, range_end: bytes, key_inside: bool, end_inside: bool, candidate: bytes
) -> None:
    key = prefix + key if key_inside else key
    range_end = prefix + range_end if end_inside and range_end else range_end
    shown = Namespace(prefix).strip_interval(key, range_end)
    if candidate:
        assert (shown is not None and covers(*shown, candidate)) == covers(key, range_end, prefix + candidate)


@given(PREFIXES, FEW_BYTES.filter(bool), FEW_BYTES)
def test_a_permission_is_shown_as_it_was_given(prefix: bytes, key: bytes, range_end: bytes) -> None:
    namespace = Namespace(prefix)
    if not range_end or range_end == FROM_KEY or range_end > key:
        assert namespace.strip_interval(*namespace.interval(key, range_end)) == (key, range_end)


def test_A45_everything_is_shown_as_everything() -> None:
    assert Namespace(b"t/").strip_interval(b"", FROM_KEY) == (b"", FROM_KEY)
    assert Namespace(b"t/").strip_interval(b"a", FROM_KEY) == (FROM_KEY, FROM_KEY)


def test_a_key_of_others_is_never_passed_on() -> None:
    namespace = Namespace(b"t/")
    assert namespace.strip(b"t/k") == b"k"
    with pytest.raises(ForeignKeyError):
        namespace.strip(b"u/k")
