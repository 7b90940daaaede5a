"""HPACK: the hpack package as the oracle in both directions, and what it must refuse."""

import hpack as oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvorum.wire import hpack, huffman
from kvorum.wire.hpack import Decoder, Encoder, HeaderListTooLarge, HpackError
from kvorum.wire.hpack_tables import HUFFMAN_CODES, STATIC_TABLE

NAMES = st.sampled_from([b":path", b":authority", b"content-type", b"token", b"grpc-timeout", b"x" * 60])
FIELD = st.tuples(NAMES | st.binary(min_size=1, max_size=80), st.binary(max_size=200) | st.sampled_from([b"a", b"b"]))
BLOCKS = st.lists(st.tuples(st.lists(FIELD, max_size=8), st.sampled_from([None, 0, 100, 4096])), max_size=8)


@given(st.binary(max_size=200))
def test_huffman_both_ways(text: bytes) -> None:
    coded = huffman.encode(text)
    assert huffman.encoded_size(text) == len(coded)
    assert huffman.decode(coded) == text


@given(st.binary(max_size=40))
def test_huffman_decodes_as_the_oracle_does(coded: bytes) -> None:
    try:
        expected = oracle.huffman_table.decode_huffman(coded)
    except oracle.HPACKDecodingError:
        expected = None
    try:
        found = huffman.decode(coded)
    except huffman.HuffmanError:
        found = None
    if expected is None or found is not None:
        assert found == expected
    else:
        # The oracle takes padding of more than seven bits; section 5.2 forbids it.
        assert coded.endswith(b"\xff")


def test_huffman_refuses_eos_and_bad_padding() -> None:
    for coded in (b"\xff\xff\xff\xff", b"\xff", b"\x07\xff", b"\x00"):
        with pytest.raises(huffman.HuffmanError):
            huffman.decode(coded)


@given(BLOCKS)
def test_decoder_against_the_oracles_encoder(blocks: list[tuple[list[hpack.Field], int | None]]) -> None:
    encoder = oracle.Encoder()
    decoder = Decoder(1 << 20)
    for fields, table_size in blocks:
        if table_size is not None:
            encoder.header_table_size = table_size
        assert decoder.fields(decoder.decode(encoder.encode(fields))) == fields
        assert decoder.table_size <= 4096


@given(BLOCKS)
def test_encoder_against_the_oracles_decoder(blocks: list[tuple[list[hpack.Field], int | None]]) -> None:
    encoder = Encoder()
    decoder = oracle.Decoder()
    for fields, table_size in blocks:
        if table_size is not None:
            encoder.set_table_size(table_size)
            decoder.max_allowed_table_size = table_size
        assert [tuple(field) for field in decoder.decode(encoder.encode(fields), raw=True)] == fields


@given(st.lists(FIELD, max_size=8))
def test_stateless_blocks_leave_the_table_alone(fields: list[hpack.Field]) -> None:
    decoder = oracle.Decoder()
    assert [tuple(field) for field in decoder.decode(hpack.encode_stateless(fields), raw=True)] == fields
    assert not decoder.header_table.dynamic_entries


@given(st.binary(max_size=60))
@settings(max_examples=500)
def test_any_octets_decode_as_the_oracle_does_or_are_refused(block: bytes) -> None:
    decoder = Decoder(1 << 20)
    try:
        found = decoder.fields(decoder.decode(block))
    except HpackError:
        return
    try:
        expected = [tuple(field) for field in oracle.Decoder().decode(block, raw=True)]
    except oracle.HPACKError:
        # The oracle also refuses what it takes for too long; ours has other limits, but never other fields.
        return
    assert found == expected


def test_keys_stay_true_while_the_table_shifts() -> None:
    encoder = oracle.Encoder()
    decoder = Decoder(1 << 20)
    first = decoder.decode(encoder.encode([(b"a", b"1"), (b"b", b"2")]))
    decoder.decode(encoder.encode([(b"c", b"3")]))
    again = decoder.decode(encoder.encode([(b"a", b"1"), (b"b", b"2")]))
    assert again == first
    assert not decoder.changed
    assert decoder.fields(again) == [(b"a", b"1"), (b"b", b"2")]


def test_the_varying_field_is_apart_and_not_in_the_key() -> None:
    encoder = oracle.Encoder()
    decoder = Decoder(1 << 20, varying=b"grpc-timeout")
    decoder.decode(encoder.encode([(b"a", b"1"), (b"grpc-timeout", b"1S")]))
    keys = set()
    for number in range(2, 200):
        value = b"%dm" % number
        keys.add(decoder.decode(encoder.encode([(b"a", b"1"), (b"grpc-timeout", value)])))
        assert decoder.varying_value == value
        assert decoder.changed
    # One key for each time that (a, 1) was pushed out of the table and added again.
    assert len(keys) <= 3


def test_an_entry_evicted_by_its_own_block_still_counts() -> None:
    # Index 62, then a literal so large that it pushes entry 62 out.
    decoder = Decoder(1 << 20, table_size_limit=100)
    decoder.decode(b"\x40\x01a" + b"\x0a" + b"v" * 10)
    block = b"\xbe" + b"\x40\x01b" + bytes((60,)) + b"w" * 60
    assert decoder.fields(decoder.decode(block)) == [(b"a", b"v" * 10), (b"b", b"w" * 60)]


def test_an_entry_larger_than_the_table_empties_it() -> None:
    decoder = Decoder(1 << 20, table_size_limit=100)
    decoder.decode(b"\x40\x01a\x01v")
    assert decoder.fields(decoder.decode(b"\x40\x01b" + bytes((100,)) + b"w" * 100)) == [(b"b", b"w" * 100)]
    assert decoder.table_size == 0
    with pytest.raises(HpackError):
        decoder.decode(b"\xbe")


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",  # index 0
        b"\xbe",  # index 62 of an empty table
        b"\xff\xff\xff\xff\xff\xff\x0f",  # integer without end
        b"\x7f\xff\xff\xff\xff\x7f",
        b"\x40",  # ends inside a field
        b"\x40\x05ab",
        b"\x00\x01a\x7f\xff\xff\xff\x07",  # string of 256 MiB
        b"\x00\x01a\x81\x00",  # bad Huffman padding
        b"\x3f\xe2\x1f",  # table size 4097
        b"\x82\x20",  # size update after a field
        b"\x7e\x01a",  # name from an empty table
        b"\x0f",
    ],
)
def test_malformed_blocks_are_refused(block: bytes) -> None:
    with pytest.raises(HpackError):
        Decoder(1 << 20).decode(block)


def test_the_list_limit_counts_every_use_of_an_entry() -> None:
    decoder = Decoder(10_000)
    decoder.decode(b"\x40\x01a" + b"\x7f\xe9\x06" + b"v" * 1000)
    assert len(decoder.fields(decoder.decode(b"\xbe" * 9))) == 9
    key = decoder.decode(b"\xbe" * 10)
    with pytest.raises(HeaderListTooLarge):
        decoder.fields(key)
    assert len(decoder.fields(decoder.decode(b"\xbe"))) == 1


def test_a_repeated_block_is_indexes_only() -> None:
    encoder = Encoder()
    fields = [(b":path", b"/a/b"), (b"token", b"secret"), (b":method", b"POST")]
    assert len(encoder.encode(fields)) > 10
    version = encoder.version
    assert len(encoder.encode(fields)) == 3
    assert encoder.version == version


def test_a_table_size_shrunk_and_grown_again_is_announced_as_both() -> None:
    encoder = Encoder()
    encoder.encode([(b"a", b"1")])
    encoder.set_table_size(0)
    encoder.set_table_size(4096)
    decoder = oracle.Decoder()
    block = encoder.encode([(b"a", b"1")])
    assert block.startswith(b"\x20\x3f\xe1\x1f")
    assert [tuple(field) for field in decoder.decode(block, raw=True)] == [(b"a", b"1")]


def test_the_tables_are_those_of_the_oracle() -> None:
    assert tuple(oracle.table.HeaderTable.STATIC_TABLE) == STATIC_TABLE
    codes = zip(oracle.huffman_constants.REQUEST_CODES, oracle.huffman_constants.REQUEST_CODES_LENGTH, strict=True)
    assert tuple(codes) == HUFFMAN_CODES
