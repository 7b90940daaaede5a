"""Batches of messages as bytes: what goes in comes out, and nothing else is read as a message."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.raft.core import ConfState, EntryType, Message, MessageType, Snapshot
from node.raft.peers.codec import ENTRY_BYTES, MESSAGE_BYTES, decode, encode

NUMBERS = st.integers(0, (1 << 62) - 1)
IDS = st.integers(0, (1 << 64) - 1)
ID_SETS = st.lists(IDS, max_size=4).map(tuple)
ENTRY_TYPES = st.sampled_from(list(EntryType)).map(int)
TRAVELLERS = [type_ for type_ in MessageType if type_ <= MessageType.PRE_VOTE_RESP]

snapshots = st.builds(
    Snapshot,
    NUMBERS,
    NUMBERS,
    st.builds(ConfState, ID_SETS, ID_SETS, ID_SETS, ID_SETS, st.booleans()),
    st.binary(max_size=40),
)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    message = Message(
        draw(st.sampled_from(TRAVELLERS)),
        draw(IDS),
        draw(IDS),
        draw(NUMBERS),
        draw(NUMBERS),
        draw(st.integers(0, 1 << 60)),
        draw(NUMBERS),
        draw(IDS),
        (),
        draw(st.booleans()),
        draw(NUMBERS),
        draw(st.binary(max_size=40)),
        draw(st.none() | snapshots),
    )
    data = draw(st.lists(st.binary(max_size=40), max_size=4))
    if message.type is MessageType.APP:
        terms = sorted(draw(st.lists(NUMBERS, min_size=len(data), max_size=len(data))))
        indexes = list(range(message.index + 1, message.index + 1 + len(data)))
    else:
        terms = [draw(NUMBERS) for _ in data]
        indexes = [draw(NUMBERS) for _ in data]
    message.entries = [
        (term, index, draw(ENTRY_TYPES), body) for term, index, body in zip(terms, indexes, data, strict=True)
    ]
    return message


def equal(got: list[Message], sent: list[Message]) -> bool:
    """As values: entries may be a tuple or a list."""
    return [replace(message, entries=list(message.entries)) for message in got] == sent


batches = st.lists(messages(), min_size=1, max_size=4)


@given(batches)
def test_what_was_encoded_is_decoded(sent: list[Message]) -> None:
    assert equal(decode(b"".join(encode(sent))), sent)


@given(batches, st.data())
def test_a_truncated_batch_is_a_shorter_batch_or_refused(sent: list[Message], data: st.DataObject) -> None:
    encoded = b"".join(encode(sent))
    cut = data.draw(st.integers(0, len(encoded) - 1))
    ends = {len(b"".join(encode(sent[:count]))): count for count in range(1, len(sent))}
    if cut in ends:
        assert equal(decode(encoded[:cut]), sent[: ends[cut]])
    else:
        with pytest.raises(ValueError):
            decode(encoded[:cut])


@given(batches, st.data())
def test_a_damaged_batch_is_some_batch_or_refused(sent: list[Message], data: st.DataObject) -> None:
    encoded = bytearray(b"".join(encode(sent)))
    for at, octet in data.draw(
        st.lists(st.tuples(st.integers(0, len(encoded) - 1), st.integers(0, 255)), min_size=1, max_size=6)
    ):
        encoded[at] = octet
    try:
        got = decode(bytes(encoded))
    except ValueError:
        return
    assert equal(decode(b"".join(encode(got))), [replace(message, entries=list(message.entries)) for message in got])


@given(st.binary(max_size=300))
def test_any_bytes_are_a_batch_or_refused(data: bytes) -> None:
    try:
        got = decode(data)
    except ValueError:
        return
    assert got


APP = Message(MessageType.APP, 1, 2, 5, 4, 10, 9, entries=[(5, 11, 0, b"eleven"), (5, 12, 0, b"twelve")])


@pytest.mark.parametrize(
    ("at", "octet", "fault"),
    [
        (0, 14, "type 14"),
        (0, 255, "type 255"),
        (1, 4, "flags"),
        (2, 200, "context is cut off"),
        (4, 3, "entries"),
        (7, 255, "entries are cut off"),
        (31, 0x40, "impossible"),  # the term's highest byte
        (MESSAGE_BYTES + 8, 12, "do not follow entry 10"),
        (MESSAGE_BYTES + ENTRY_BYTES, 4, "do not follow entry 10"),  # the second's term is below the first's
        (MESSAGE_BYTES + 16, 200, "cut off"),
        (MESSAGE_BYTES + 20, 4, "type 4"),
    ],
)
def test_what_does_not_fit_is_refused(at: int, octet: int, fault: str) -> None:
    encoded = bytearray(b"".join(encode([APP])))
    encoded[at] = octet
    with pytest.raises(ValueError, match=fault):
        decode(bytes(encoded))


def test_a_batch_without_messages_is_refused() -> None:
    with pytest.raises(ValueError, match="without messages"):
        decode(b"")


@pytest.mark.parametrize("type_", [type_ for type_ in MessageType if type_ not in TRAVELLERS])
def test_what_is_between_core_and_storage_does_not_travel(type_: MessageType) -> None:
    with pytest.raises(AssertionError, match="does not travel"):
        encode([Message(type_)])


def test_the_data_of_entries_is_not_copied() -> None:
    body = b"x" * 1000
    message = Message(MessageType.APP, 1, 2, 5, 4, 10, entries=[(5, 11, 0, body)])
    assert any(part is body for part in encode([message]))
