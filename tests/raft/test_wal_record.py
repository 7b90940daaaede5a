"""Records: bytes out, the same values in; and the verdict on what stands behind the last whole one."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.raft.wal.record import (
    Entry,
    HardState,
    RecordReader,
    RecordType,
    SegmentHead,
    Snapshot,
    decode_entry,
    decode_hard_state,
    decode_segment_head,
    decode_snapshot,
    encode,
    encode_entries,
    encode_hard_state,
    encode_segment_head,
    encode_snapshot,
    payload_at,
    record_size,
)
from node.raft.wal.segment import parse_segment_name, segment_name
from node.raft.wal.tail import SECTOR_BYTES, Ending, ending

U64 = st.integers(0, 2**64 - 1)
entry_values = st.tuples(U64, U64, st.integers(0, 255), st.binary(max_size=70))


def entry_bytes(entries: list[Entry], chain: int = 0, offset: int = 0, synced_offset: int = 0) -> tuple[bytes, int]:
    parts, _, _, chain = encode_entries(entries, chain, offset, synced_offset)
    return b"".join(parts), chain


@given(st.lists(entry_values, max_size=5), U64, U64, U64, st.binary(max_size=40))
def test_what_is_written_is_read(entries: list[Entry], term: int, vote: int, commit: int, conf_state: bytes) -> None:
    state, snapshot = HardState(term, vote, commit), Snapshot(commit, term, conf_state)
    head = SegmentHead(1, term & 0xFFFFFFFF, vote, commit, term)
    data, chain = entry_bytes(entries, 7)
    for record_type, payload in (
        (RecordType.HARD_STATE, encode_hard_state(state)),
        (RecordType.SNAPSHOT, encode_snapshot(snapshot)),
        (RecordType.SEGMENT_HEAD, encode_segment_head(head)),
    ):
        record, chain = encode(record_type, payload, chain, 0)
        data += record
    reader = RecordReader(data + bytes(100), 0, 7)
    payloads = [record.payload for record in reader]
    assert [decode_entry(payload) for payload in payloads[:-3]] == entries
    assert decode_hard_state(payloads[-3]) == state
    assert decode_snapshot(payloads[-2]) == snapshot
    assert decode_segment_head(payloads[-1]) == head
    assert (reader.offset, reader.chain) == (len(data), chain)


@given(st.binary(max_size=40), st.integers(0, 2**32 - 1))
def test_a_record_is_aligned_and_ends_in_no_zero(payload: bytes, chain: int) -> None:
    record, _ = encode(RecordType.METADATA, payload, chain, 0)
    assert len(record) % 8 == 0
    assert len(record) == record_size(len(payload))
    assert record[0] and record[-1]


def test_offsets_point_at_entries() -> None:
    entries: list[Entry] = [(1, index, 0, bytes(index)) for index in range(1, 20)]
    parts, offsets, end, _ = encode_entries(entries, 0, 512, 0)
    data = bytes(512) + b"".join(parts)
    assert end == len(data)
    for offset, entry in zip(offsets, entries, strict=True):
        payload = payload_at(data, offset)
        assert payload is not None
        assert decode_entry(payload) == entry


@pytest.mark.parametrize(
    "decode", [decode_entry, decode_hard_state, decode_snapshot, decode_segment_head], ids=lambda f: f.__name__
)
def test_a_payload_too_short_is_refused(decode: object) -> None:
    assert callable(decode)
    with pytest.raises(ValueError, match=r"bytes|head"):
        decode(b"short")


def test_a_newer_format_is_refused_by_its_number() -> None:
    with pytest.raises(ValueError, match="format version 2, this program reads 1"):
        decode_segment_head(encode_segment_head(SegmentHead(2, 0, 0, 1, 0)))


@given(st.data())
def test_a_flipped_bit_anywhere_ends_the_reading_at_its_record(data: st.DataObject) -> None:
    entries = data.draw(st.lists(entry_values, min_size=1, max_size=4))
    written, _ = entry_bytes(entries)
    position = data.draw(st.integers(0, len(written) * 8 - 1))
    broken = bytearray(written)
    broken[position // 8] ^= 1 << position % 8
    reader = RecordReader(bytes(broken))
    offsets = [record.offset for record in reader]
    assert reader.offset <= position // 8 < len(written)
    assert [decode_entry(record.payload) for record in RecordReader(written[: reader.offset])] == entries[
        : len(offsets)
    ]
    next_offsets = [record.offset for record in RecordReader(written)]
    assert reader.offset == max(offset for offset in next_offsets if offset <= position // 8)


def test_names_of_segments() -> None:
    assert segment_name(26, 4096) == "000000000000001a-0000000000001000.wal"
    assert parse_segment_name("000000000000001a-0000000000001000.wal") == (26, 4096)
    for name in ("0.tmp", "1a-1000.wal", "000000000000001A-0000000000001000.wal", "db", "x" * 37):
        assert parse_segment_name(name) is None


class TestEnding:
    """One synced record, then what a test makes of a second one; `first` bytes long and `both` long."""

    def setup_method(self) -> None:
        self.first, self.chain = entry_bytes([(1, 1, 0, b"x" * 100)])
        second, self.chain_after = entry_bytes(
            [(1, 2, 0, b"y" * 2000)], self.chain, len(self.first), synced_offset=len(self.first)
        )
        self.both = self.first + second
        self.segment = self.both.ljust(8192, b"\0")

    def verdict(self, data: bytes) -> Ending:
        reader = RecordReader(data)
        assert len(list(reader)) >= 1
        return ending(data, reader.offset, reader.chain)

    def without(self, data: bytes, begin: int, end: int) -> bytes:
        return data[:begin] + bytes(end - begin) + data[end:]

    def test_zeros_are_a_clean_end(self) -> None:
        assert self.verdict(self.first) is Ending.CLEAN
        assert self.verdict(self.segment) is Ending.CLEAN
        assert self.verdict(self.first.ljust(3 << 20, b"\0")) is Ending.CLEAN

    def test_the_file_ending_inside_the_record_is_torn(self) -> None:
        for end in range(len(self.first) + 1, len(self.both)):
            assert self.verdict(self.both[:end]) is Ending.TORN

    def test_any_sector_not_written_is_torn(self) -> None:
        for sector in range(SECTOR_BYTES, len(self.both), SECTOR_BYTES):
            assert self.verdict(self.without(self.segment, sector, sector + SECTOR_BYTES)) is Ending.TORN

    def test_the_sector_shared_with_the_record_before_not_written_is_torn(self) -> None:
        assert self.verdict(self.without(self.segment, len(self.first), SECTOR_BYTES)) is Ending.TORN

    def test_the_header_across_two_sectors_torn_in_either(self) -> None:
        first, chain = entry_bytes([(1, 1, 0, b"x" * (SECTOR_BYTES - 56))])
        assert len(first) == SECTOR_BYTES - 8
        second, _ = entry_bytes([(1, 2, 0, b"y" * 600)], chain, len(first), len(first))
        segment = (first + second).ljust(4096, b"\0")
        assert self.verdict(self.without(segment, len(first), SECTOR_BYTES)) is Ending.TORN
        assert self.verdict(self.without(segment, SECTOR_BYTES, 2 * SECTOR_BYTES)) is Ending.TORN

    def test_less_than_a_sector_of_zeros_is_damage(self) -> None:
        begin = SECTOR_BYTES
        assert self.verdict(self.without(self.segment, begin, begin + SECTOR_BYTES - 1)) is Ending.DAMAGED
        assert self.verdict(self.without(self.segment, begin + 1, begin + SECTOR_BYTES)) is Ending.DAMAGED

    def test_a_length_that_is_wrong_is_damage_however_large(self) -> None:
        broken = bytearray(self.segment)
        broken[len(self.first) + 7] = 0x7F
        assert self.verdict(bytes(broken)) is Ending.DAMAGED

    def test_a_torn_record_may_be_followed_by_records_of_the_same_sync(self) -> None:
        third, _ = entry_bytes([(1, 3, 0, b"z" * 900)], self.chain_after, len(self.both), len(self.first))
        segment = (self.both + third).ljust(8192, b"\0")
        assert self.verdict(self.without(segment, 512, 1024)) is Ending.TORN

    def test_a_zero_sector_before_a_record_written_after_its_sync_is_damage(self) -> None:
        third, _ = entry_bytes([(1, 3, 0, b"z" * 900)], self.chain_after, len(self.both), len(self.both))
        segment = (self.both + third).ljust(8192, b"\0")
        # A sector of its data, its head, and all that stands in three sectors.
        for begin, end in ((512, 1024), (len(self.first), 512), (len(self.first), 1536)):
            assert self.verdict(self.without(segment, begin, end)) is Ending.DAMAGED

    @given(st.randoms(use_true_random=False), st.integers(0, 4000))
    def test_noise_behind_the_log_is_damage(self, random_source: random.Random, size: int) -> None:
        self.setup_method()
        noise = random_source.randbytes(size + 16).replace(b"\0", b"\1")
        assert self.verdict((self.both + noise).ljust(8192, b"\0")) is Ending.DAMAGED
