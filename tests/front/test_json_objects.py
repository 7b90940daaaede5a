"""The objects of a streaming body, however it is split."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.front.json_messages import JsonError
from node.front.json_objects import JsonObjects

BODY = b' {"a":"}\\"{\\\\"}\r\n{"b":[{},{"c":["]"]}]}{}\t'
OBJECTS = [b'{"a":"}\\"{\\\\"}', b'{"b":[{},{"c":["]"]}]}', b"{}"]


def drain(objects: JsonObjects) -> list[bytes]:
    found = []
    while (text := objects.next()) is not None:
        found.append(text)
    return found


def test_objects_of_a_body_fed_at_once() -> None:
    objects = JsonObjects(100)
    objects.feed(BODY)
    assert drain(objects) == OBJECTS
    assert not objects.pending


@pytest.mark.parametrize("at", range(len(BODY) + 1))
def test_objects_of_a_body_split_anywhere(at: int) -> None:
    objects = JsonObjects(100)
    objects.feed(BODY[:at])
    found = drain(objects)
    objects.feed(BODY[at:])
    assert found + drain(objects) == OBJECTS


def test_objects_of_a_body_fed_byte_by_byte() -> None:
    objects = JsonObjects(100)
    found = []
    for octet in BODY:
        objects.feed(bytes((octet,)))
        found += drain(objects)
    assert found == OBJECTS


@pytest.mark.parametrize("text", [b"null", b"[]", b"1", b'"x"', b"x", b"}", b"\xff"])
def test_what_is_no_object_is_refused(text: bytes) -> None:
    objects = JsonObjects(100)
    objects.feed(b"{} " + text)
    assert objects.next() == b"{}"
    with pytest.raises(JsonError):
        objects.next()


def test_an_object_that_never_ends_is_pending() -> None:
    objects = JsonObjects(100)
    objects.feed(b'{"a":')
    assert objects.next() is None
    assert objects.pending


@pytest.mark.parametrize("body", [b'{"a":"' + b"x" * 100, b'{"a":"' + b"x" * 100 + b'"}'])
def test_an_object_over_the_limit_is_refused(body: bytes) -> None:
    objects = JsonObjects(100)
    objects.feed(body)
    with pytest.raises(OverflowError):
        objects.next()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 53), 1 << 53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.lists(st.dictionaries(st.text(), json_values, max_size=3), max_size=4), st.integers(1, 9))
def test_any_objects_come_back_whole(values: list[object], step: int) -> None:
    body = b"\n".join(orjson.dumps(value) for value in values)
    objects = JsonObjects(1 << 20)
    found = []
    for at in range(0, len(body), step):
        objects.feed(body[at : at + step])
        found += drain(objects)
    assert [orjson.loads(text) for text in found] == values
