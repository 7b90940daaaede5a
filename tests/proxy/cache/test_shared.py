"""What workers tell each other through a file that all of them map."""

import itertools
from pathlib import Path
from zlib import crc32

from proxy.cache.range_cache import RangeCache
from proxy.cache.shared import PLACES, open_shared


def test_what_one_notes_the_others_see(tmp_path: Path) -> None:
    one, two, three = [open_shared(tmp_path / "seen", index, 3) for index in range(3)]
    one.note_key(b"k", 7)
    one.note_key(b"k", 5)
    assert (one.key(b"k"), two.key(b"k"), three.key(b"k")) == (0, 7, 7)
    assert (two.key(b"l"), two.any) == (0, 7)
    two.note_range(9)
    assert (one.key(b"k"), one.key(b"l"), one.any, two.any) == (9, 9, 9, 7)
    three.note_compaction(3)
    three.note_clear()
    assert (one.compacted, one.cleared, three.cleared) == (3, 1, 0)


def test_a_worker_that_is_started_again_finds_what_it_noted(tmp_path: Path) -> None:
    open_shared(tmp_path / "seen", 0, 2).note_key(b"k", 7)
    open_shared(tmp_path / "seen", 0, 2)
    assert open_shared(tmp_path / "seen", 1, 2).key(b"k") == 7


def test_keys_that_share_a_place_are_forgotten_together(tmp_path: Path) -> None:
    one, two = [open_shared(tmp_path / "seen", index, 2) for index in range(2)]
    keys: dict[int, bytes] = {}
    for number in itertools.count():
        key = b"%d" % number
        other = keys.setdefault(crc32(key) % PLACES, key)
        if other is not key:
            break
    one.note_key(key, 3)
    assert two.key(other) == 3


def test_a_compaction_and_a_clearing_elsewhere(tmp_path: Path) -> None:
    mine, other = [RangeCache(shared=open_shared(tmp_path / "seen", index, 2)) for index in range(2)]
    mine.put(("", b"", b"past"), b"k", b"", 5, b"reply", 0.0, at_revision=2)
    mine.put(("", b"", b"now"), b"k", b"", 5, b"reply", 0.0)
    other.saw_compaction(3)
    assert mine.get("", b"", b"past", 0.0) is None
    assert mine.get("", b"", b"now", 0.0) is not None
    other.clear()
    assert mine.get("", b"", b"now", 0.0) is None and len(mine) == 0 and mine.size_bytes == 0
    mine.put(("", b"", b"now"), b"k", b"", 5, b"reply", 0.0)
    assert mine.get("", b"", b"now", 0.0) is not None
