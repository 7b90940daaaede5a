"""The messages in which a snapshot travels: what one side makes the other reads, and everything else is refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.raft.core import Message, MessageType
from node.raft.snapshots.sender import describe
from node.raft.snapshots.transfer import (
    CHUNK_HEAD_BYTES,
    CHUNK_MAX_BYTES,
    FILES_MAX,
    HEADER_MAX_BYTES,
    SIZE_MAX_BYTES,
    Chunk,
    File,
    Header,
    Malformed,
    Place,
    checksum,
    decode_chunk,
    decode_header,
    decode_place,
    encode_chunk,
    encode_header,
    encode_place,
)
from tests.raft.snapshots.snapshots import LEADER, encoded, make_checkpoint, snap

FILES = (File("CURRENT", 16, 1), File("000003.sst", 0, 0), File("000004.sst", 70_000, 2))
HEADER = Header(snap(), FILES)
SNAP = encoded(snap())


def test_crc_32c_is_castagnoli_s() -> None:
    """RFC 3720, appendix B.4."""
    assert checksum(bytes(32)) == 0x8A9136AA
    assert checksum(bytes(16), checksum(bytes(16))) == checksum(bytes(32))


def test_a_header_says_what_will_come() -> None:
    assert decode_header(encode_header(SNAP, FILES)) == HEADER
    assert HEADER.size_bytes == 70_016


def test_of_a_checkpoint_only_the_database_is_described(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    files = describe(str(checkpoint))
    assert [(file.name, file.size_bytes) for file in files] == [
        ("000004.log", 0),
        ("000008.sst", 700_000),
        ("CURRENT", 16),
        ("MANIFEST-000005", 900),
        ("OPTIONS-000007", 0),
    ]
    assert files[2].checksum == checksum((checkpoint / "CURRENT").read_bytes())


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../CURRENT",
        "/etc/passwd",
        "a/000001.sst",
        "CURRENT\0",
        "CURRENT\n",
        "current",
        "LOCK",
        "LOG",
        "MANIFEST-",
        "MANIFEST-1/../../x",
        "000001.sst.tmp",
        "١.sst",
        "1" * 21 + ".sst",
    ],
)
def test_a_file_of_another_name_is_refused(name: str) -> None:
    data = encode_header(SNAP, (*FILES, File("X" * len(name.encode()), 1, 1)))
    with pytest.raises(Malformed, match="with a file called"):
        decode_header(data.replace(b"X" * len(name.encode()), name.encode()) if name else data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "does not begin with a header"),
        (b"\2" + encode_header(SNAP, FILES)[1:], "does not begin with a header"),
        (encode_header(SNAP, FILES)[:-1], "000004.ss"),
        (encode_header(SNAP, FILES) + b"x", "not as long"),
        (encode_header(SNAP, FILES) + bytes(HEADER_MAX_BYTES), "does not begin with a header"),
        (encode_header(SNAP, FILES)[:-20], "cut off"),
        (encode_header(SNAP, ()), "of 0 files"),
        (encode_header(SNAP, tuple(File(f"{i}.sst", 0, 0) for i in range(FILES_MAX + 1))), f"of {FILES_MAX + 1} files"),
        (encode_header(SNAP, (*FILES, FILES[0])), "two files of one name"),
        (encode_header(SNAP, (File("CURRENT", SIZE_MAX_BYTES + 1, 0),)), "impossible size"),
        (encode_header(b"", FILES), "without messages"),
        (encode_header(SNAP + SNAP, FILES), "another message"),
        (encode_header(encoded(Message(MessageType.HEARTBEAT, 2, 1)), FILES), "another message"),
        (encode_header(encoded(Message(MessageType.SNAP, 2, 1)), FILES), "another message"),
    ],
)
def test_any_other_header_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        decode_header(data)


@given(st.binary(max_size=200))
def test_garbage_is_refused_and_nothing_else_happens(data: bytes) -> None:
    for read in (decode_header, lambda d: decode_chunk(d, Place(0, 0), HEADER), lambda d: decode_place(d, FILES)):
        try:
            read(data)
        except Malformed:
            continue


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_header_with_one_other_byte_is_refused_or_means_something(at: int, byte: int) -> None:
    data = bytearray(encode_header(SNAP, FILES))
    data[at % len(data)] = byte
    try:
        header = decode_header(bytes(data))
    except Malformed:
        return
    assert 1 <= len(header.files) <= FILES_MAX
    assert header.message.type is MessageType.SNAP


def test_a_chunk_arrives_where_it_belongs() -> None:
    data = bytes(range(256))
    message = encode_chunk(Place(2, 1000), data)
    assert len(message) == CHUNK_HEAD_BYTES + len(data)
    assert decode_chunk(message, Place(2, 1000), HEADER) == Chunk(Place(2, 1000), data)


@pytest.mark.parametrize(
    ("message", "expected", "reason"),
    [
        (encode_chunk(Place(0, 0), b"x" * 16), Place(0, 8), "should come"),
        (encode_chunk(Place(0, 0), b"x" * 16), Place(2, 0), "should come"),
        (encode_chunk(Place(0, 0), b"x" * 17), Place(0, 0), "beyond the end"),
        (encode_chunk(Place(2, 69_999), b"xy"), Place(2, 69_999), "beyond the end"),
        (encode_chunk(Place(3, 0), b"x"), Place(3, 0), "should come"),
        (encode_chunk(Place(0, 0), b""), Place(0, 0), "no chunk"),
        (encode_chunk(Place(2, 0), bytes(CHUNK_MAX_BYTES + 1)), Place(2, 0), "no chunk"),
        (b"\3" + encode_chunk(Place(0, 0), b"x")[1:], Place(0, 0), "no chunk"),
        (b"", Place(0, 0), "no chunk"),
    ],
)
def test_a_chunk_that_is_not_the_next_is_refused(message: bytes, expected: Place, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        decode_chunk(message, expected, HEADER)


@given(st.integers(CHUNK_HEAD_BYTES, CHUNK_HEAD_BYTES + 99), st.integers(1, 255))
def test_a_chunk_whose_data_changed_on_the_way_is_found(at: int, flip: int) -> None:
    message = bytearray(encode_chunk(Place(2, 0), bytes(100)))
    message[at] ^= flip
    assert decode_chunk(bytes(message), Place(2, 0), HEADER) is None


@pytest.mark.parametrize("place", [Place(0, 0), Place(0, 16), Place(2, 69_999), Place(3, 0)])
def test_a_place_is_read_as_it_was_meant(place: Place) -> None:
    assert decode_place(encode_place(place), FILES) == place


@pytest.mark.parametrize(
    "message",
    [b"", encode_place(Place(0, 17)), encode_place(Place(3, 1)), encode_place(Place(4, 0)), b"\1" * 16, b"\3" * 15],
)
def test_a_place_outside_is_refused(message: bytes) -> None:
    with pytest.raises(Malformed):
        decode_place(message, FILES)


def test_the_next_byte_is_behind_empty_files() -> None:
    assert HEADER.skip_empty(Place(0, 0)) == Place(0, 0)
    assert HEADER.skip_empty(Place(0, 16)) == Place(2, 0)
    assert HEADER.skip_empty(Place(2, 70_000)) == HEADER.end == Place(3, 0)
    assert Header(snap(sender=LEADER), (File("CURRENT", 0, 0),)).skip_empty(Place(0, 0)) == Place(1, 0)
