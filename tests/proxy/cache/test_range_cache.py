"""What the range cache keeps, and what makes it drop a reply."""

from __future__ import annotations

import gc

import pytest

from proxy.cache import range_cache
from proxy.cache.range_cache import CACHE_BYTES, MAX_AGE_S, MAX_NOTES, MAX_ODD_RANGES, RangeCache


class Kept:
    """A cache, with requests named as texts."""

    def __init__(self, size_bytes: int = CACHE_BYTES) -> None:
        self.cache = RangeCache(size_bytes)

    def put(
        self,
        name: str,
        start: bytes,
        end: bytes = b"",
        revision: int = 5,
        *,
        at: float = 0.0,
        at_revision: int = 0,
        reply: bytes = b"reply",
        token: str = "",
    ) -> bool:
        key = (token, b"", name.encode())
        kept = self.cache.put(key, start, end, revision, reply, at, at_revision=at_revision)
        self.cache.saw(revision)
        return kept

    def has(self, *names: str, now: float = 0.0) -> list[bool]:
        return [self.cache.get("", b"", name.encode(), now) is not None for name in names]


@pytest.fixture
def kept() -> Kept:
    return Kept()


def test_a_reply_is_for_the_same_caller_and_request(kept: Kept) -> None:
    kept.put("a", b"a", reply=b"seen")
    assert kept.cache.get("", b"", b"a", 0.0) == b"seen"
    assert kept.cache.get("token", b"", b"a", 0.0) is None
    assert kept.cache.get("", b"namespace/", b"a", 0.0) is None
    assert kept.cache.get("", b"", b"b", 0.0) is None
    assert kept.cache.hits == 1


def test_a_reply_is_used_for_a_while(kept: Kept) -> None:
    kept.put("a", b"a", at=100.0)
    assert kept.has("a", now=100.0 + MAX_AGE_S - 0.01) == [True]
    assert kept.has("a", now=100.0 + MAX_AGE_S) == [False]
    assert len(kept.cache) == 0 and kept.cache.size_bytes == 0


def test_a_reply_at_a_revision_is_of_the_past_and_used_for_a_while_too(kept: Kept) -> None:
    kept.put("a", b"a", at_revision=3)
    kept.cache.saw_key(b"a", 9)
    kept.cache.saw_range(b"a", b"b", 9)
    assert kept.has("a", now=MAX_AGE_S - 0.01) == [True]
    assert kept.has("a", now=MAX_AGE_S) == [False]


@pytest.mark.parametrize(("revision", "stays"), [(5, True), (6, False)])
def test_a_change_drops_what_is_older_and_holds_the_key(kept: Kept, revision: int, stays: bool) -> None:
    kept.put("key", b"ab/c")
    kept.put("prefix", b"ab", b"ac")
    kept.put("all", b"\0", b"\0")
    kept.put("interval", b"a", b"zz")
    kept.put("from", b"ab", b"\0")
    kept.put("other key", b"ab/d")
    kept.put("other prefix", b"ab/d", b"ab/e")
    kept.put("below", b"a", b"ab")
    kept.cache.saw_key(b"ab/c", revision)
    assert kept.has("key", "prefix", "all", "interval", "from") == [stays] * 5
    assert kept.has("other key", "other prefix", "below") == [True] * 3


def test_what_is_learnt_of_a_range_drops_what_overlaps_it(kept: Kept) -> None:
    kept.put("key", b"b")
    kept.put("prefix", b"b", b"c")
    kept.put("odd", b"bb", b"x")
    kept.put("outside", b"a")
    kept.put("end", b"c")
    kept.cache.saw_range(b"b", b"c", 5)
    assert kept.has("key", "prefix", "odd", "outside", "end") == [True] * 5
    kept.cache.saw_range(b"b", b"c", 6)
    assert kept.has("key", "prefix", "odd", "outside", "end") == [False, False, False, True, True]


def test_what_was_kept_after_a_note_is_not_compared_with_it(kept: Kept) -> None:
    kept.put("a", b"a")
    kept.cache.saw_range(b"a", b"b", 9)
    kept.cache.saw(9)
    assert kept.put("b", b"b", revision=9)
    kept.put("a", b"a", revision=9)
    assert kept.has("a", "b") == [True, True]


def test_only_so_many_notes_are_kept(kept: Kept) -> None:
    kept.put("old", b"old")
    kept.put("looked at", b"looked at")
    for number in range(MAX_NOTES):
        kept.cache.saw_range(b"x%d" % number, b"x%d/" % number, 6)
    assert kept.has("looked at") == [True]
    kept.cache.saw_range(b"y", b"z", 6)  # the first note is gone
    assert kept.has("old", "looked at") == [False, True]


def test_a_range_that_is_read_again_and_again_is_one_note(kept: Kept) -> None:
    kept.put("old", b"old")
    for revision in range(6, 6 + 3 * MAX_NOTES):
        kept.cache.saw_range(b"x", b"y", revision)
    assert kept.has("old") == [True]


def test_a_reply_older_than_what_was_seen_is_not_kept(kept: Kept) -> None:
    kept.cache.saw(7)
    assert not kept.put("a", b"a", revision=6)
    assert kept.put("a", b"a", revision=7)
    assert kept.put("past", b"a", revision=6, at_revision=2)


def test_a_compaction_ends_older_revisions(kept: Kept) -> None:
    for revision in (2, 3, 4):
        kept.put(f"at {revision}", b"a", at_revision=revision)
    kept.put("latest", b"a")
    kept.cache.saw_compaction(3)
    assert kept.has("at 2", "at 3", "at 4", "latest") == [False, True, True, True]
    assert not kept.put("at 2", b"a", at_revision=2)  # it was under way


def test_a_write_with_an_unknown_end_drops_what_it_may_have_changed(kept: Kept) -> None:
    for _ in range(2):  # also the second time at the same revision
        kept.put("a", b"a")
        kept.put("b", b"b")
        kept.cache.lost_sight(b"a", b"")
        assert kept.has("a", "b") == [False, True]
        kept.put("a", b"a")
        kept.cache.lost_sight(b"a", b"c")
        assert kept.has("a", "b") == [False, False]


def test_the_bound_in_bytes_holds_and_the_longest_unused_goes_first() -> None:
    kept = Kept(10_000)
    for number in range(5):
        kept.put(f"{number}", b"k%d" % number, reply=b"r" * 1000)
    assert len(kept.cache) == 5
    assert kept.has("0") == [True]
    kept.put("5", b"k5", reply=b"r" * 1000)
    assert kept.has("0", "1", "2", "3", "4", "5") == [True, False, True, True, True, True]
    assert kept.cache.size_bytes <= 10_000
    assert not kept.put("large", b"l", reply=b"r" * 1251)


def test_a_reply_kept_again_replaces_the_first(kept: Kept) -> None:
    kept.put("a", b"a", reply=b"1")
    kept.put("a", b"a", reply=b"2", revision=6)
    assert len(kept.cache) == 1
    assert kept.cache.get("", b"", b"a", 0.0) == b"2"
    kept.cache.saw_key(b"a", 7)
    assert len(kept.cache) == 0 and kept.cache.size_bytes == 0


def test_the_same_reply_again_is_kept_for_longer(kept: Kept) -> None:
    kept.put("a", b"a", reply=b"1")
    assert not kept.cache.confirm(("", b"", b"b"), b"1", 4.0)
    assert not kept.cache.confirm(("", b"", b"a"), b"2", 4.0)
    assert kept.cache.confirm(("", b"", b"a"), b"1", 4.0)
    assert kept.has("a", now=4.0 + MAX_AGE_S - 0.01) == [True]


def test_a_reply_of_a_member_that_lags_confirms_nothing(kept: Kept) -> None:
    kept.put("a", b"a", reply=b"1")
    kept.cache.saw(6)
    assert not kept.cache.confirm(("", b"", b"a"), b"1", 4.0)


def test_ranges_that_are_no_prefix_are_few(kept: Kept) -> None:
    for number in range(MAX_ODD_RANGES + 1):
        kept.put(f"{number}", b"a%d" % number, b"z")
    assert kept.has("0", "1") == [False, True]
    assert len(kept.cache) == MAX_ODD_RANGES


def test_clear(kept: Kept) -> None:
    kept.put("a", b"a")
    kept.put("p", b"p", b"q")
    kept.put("o", b"o", b"z")
    kept.put("at", b"o", at_revision=1)
    kept.cache.saw_range(b"a", b"b", 6)
    kept.cache.clear()
    assert kept.has("a", "p", "o", "at") == [False] * 4
    assert kept.cache.figures()["kvorum_grpc_proxy_cache_bytes"] == 0
    kept.put("a", b"a", revision=6)
    kept.cache.saw_key(b"a", 7)
    assert kept.has("a") == [False]


def test_figures(kept: Kept) -> None:
    kept.put("a", b"a")
    kept.has("a")
    figures = kept.cache.figures()
    assert figures["etcd_grpc_proxy_cache_hits_total"] == figures["etcd_grpc_proxy_cache_keys_total"] == 1
    assert figures["kvorum_grpc_proxy_cache_bytes"] == range_cache.ENTRY_BYTES + len(b"a" + b"reply")


def test_the_core_makes_no_cyclic_garbage(kept: Kept) -> None:
    gc.collect()
    gc.disable()
    try:
        for revision in range(6, 100):
            kept.put(f"{revision}", b"a", revision=revision)
            kept.put("p", b"a", b"b", revision=revision)
            kept.cache.saw_range(b"a", b"b", revision)
            kept.has("p", f"{revision}")
        kept.cache.clear()
        assert gc.collect() == 0
    finally:
        gc.enable()
