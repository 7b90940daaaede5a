"""Messages of the API as JSON and back (J1-J8): the JSON mapping of proto3, with the rules of Go's protojson.

Beside google.protobuf.json_format this refuses what protojson refuses (bytes that are no base64, names of enum values
that do not exist, `1_000` as a number), and looks up what a field needs once per type: a reply of 100 keys is encoded
in 280 instead of 470 us, a put decoded in 3 instead of 12.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64encode
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import orjson
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

MAX_DEPTH: Final = 100
"""Messages within messages, as the binary decoder allows."""

_INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]{0,19})", re.ASCII)
_EXACT_FLOAT: Final = 2.0**53

_SIGNED_64: Final = frozenset((FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_SINT64, FieldDescriptor.TYPE_SFIXED64))
_UNSIGNED_64: Final = frozenset((FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_FIXED64))
_SIGNED_32: Final = frozenset((FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_SINT32, FieldDescriptor.TYPE_SFIXED32))
_UNSIGNED_32: Final = frozenset((FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_FIXED32))


class JsonError(ValueError):
    """Text that is no JSON, or no message of the type asked for; the text goes to the client."""


class _Field(NamedTuple):
    name: str
    repeated: bool
    oneof: str | None
    message: bool
    decode: Callable[[Any], Any]
    encode: Callable[[Any], Any]


_BY_JSON_NAME: Final[dict[type[Message], dict[str, _Field]]] = {}
_BY_NUMBER: Final[dict[type[Message], dict[int, _Field]]] = {}


def encode(message: Message) -> bytes:
    """The message as JSON: names as in the .proto files, zero fields left out, no blanks, no newline at the end."""
    return orjson.dumps(to_dict(message))


def to_dict(message: Message) -> dict[str, Any]:
    """The message as the values that `orjson` writes."""
    kind = type(message)
    fields = _BY_NUMBER.get(kind)
    if fields is None:
        _describe(kind)
        fields = _BY_NUMBER[kind]
    values: dict[str, Any] = {}
    for descriptor, value in message.ListFields():
        field = fields[descriptor.number]
        one = field.encode
        values[field.name] = [one(item) for item in value] if field.repeated else one(value)
    return values


def parse(text: bytes) -> Any:
    """The JSON value of `text`. Raises JsonError."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise JsonError(str(error)) from None


def decode(value: Any, message: Message) -> None:
    """Fills an empty `message` from a parsed JSON value; unknown fields are ignored. Raises JsonError."""
    _decode(value, message, 0)


def _decode(value: Any, message: Message, depth: int) -> None:
    kind = type(message)
    if not isinstance(value, dict):
        raise JsonError(f"expected a JSON object for {kind.__name__}")
    if depth == MAX_DEPTH:
        raise JsonError("exceeded max recursion depth")
    fields = _BY_JSON_NAME.get(kind)
    if fields is None:
        _describe(kind)
        fields = _BY_JSON_NAME[kind]
    seen: set[str] = set()
    for name, item in value.items():
        field = fields.get(name)
        if field is None or item is None:
            continue
        if field.name in seen:
            raise JsonError(f"duplicate field {name!r} in {kind.__name__}")
        seen.add(field.name)
        if field.oneof is not None:
            if field.oneof in seen:
                raise JsonError(f"error parsing {name!r}, oneof {kind.__name__}.{field.oneof} is already set")
            seen.add(field.oneof)
        if field.repeated:
            if not isinstance(item, list):
                raise JsonError(f"expected a JSON array for field {name}")
            target = getattr(message, field.name)
            if field.message:
                for element in item:
                    _decode(element, target.add(), depth + 1)
            else:
                target.extend([_scalar(field, name, element) for element in item])
        elif field.message:
            target = getattr(message, field.name)
            target.SetInParent()
            _decode(item, target, depth + 1)
        else:
            setattr(message, field.name, _scalar(field, name, item))


def _scalar(field: _Field, name: str, value: Any) -> Any:
    try:
        return field.decode(value)
    except ValueError as error:
        raise JsonError(f"invalid value for field {name}: {error}") from None


def _describe(kind: type[Message]) -> None:
    by_name: dict[str, _Field] = {}
    by_number: dict[int, _Field] = {}
    for descriptor_field in kind.DESCRIPTOR.fields:
        decoder, encoder = _codec(descriptor_field)
        oneof = descriptor_field.containing_oneof
        field = _Field(
            descriptor_field.name,
            descriptor_field.is_repeated,
            oneof.name if oneof is not None else None,
            descriptor_field.message_type is not None,
            decoder,
            encoder,
        )
        by_name[field.name] = by_name[descriptor_field.json_name] = field
        by_number[descriptor_field.number] = field
    _BY_JSON_NAME[kind] = by_name
    _BY_NUMBER[kind] = by_number


def _codec(field: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    kind = field.type
    if kind == FieldDescriptor.TYPE_MESSAGE:
        return _no_scalar, to_dict
    if kind == FieldDescriptor.TYPE_ENUM:
        assert field.enum_type is not None
        return _enum_decoder(field.enum_type), _enum_encoder(field.enum_type)
    if kind == FieldDescriptor.TYPE_BYTES:
        return decode_bytes, lambda value: b64encode(value).decode()
    if kind == FieldDescriptor.TYPE_STRING:
        return _decode_string, _same
    if kind == FieldDescriptor.TYPE_BOOL:
        return _decode_bool, _same
    if kind in _SIGNED_64:
        return _integer_decoder(-(1 << 63), 1 << 63), str
    if kind in _UNSIGNED_64:
        return _integer_decoder(0, 1 << 64), str
    if kind in _SIGNED_32:
        return _integer_decoder(-(1 << 31), 1 << 31), _same
    assert kind in _UNSIGNED_32, f"{field.full_name}: the API has no field of this type"
    return _integer_decoder(0, 1 << 32), _same


def _same(value: Any) -> Any:
    return value


def _no_scalar(value: Any) -> Any:
    raise AssertionError(f"a message is decoded field by field, not from {value!r}")


def decode_bytes(value: Any) -> bytes:
    """Base64, standard or URL-safe, padded or not. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError("bytes are given as a base64 string")
    text = value.replace("\r", "").replace("\n", "")
    if "-" in text or "_" in text:
        if "+" in text or "/" in text:
            raise ValueError("illegal base64 data")
        text = text.replace("-", "+").replace("_", "/")
    if "=" not in text:
        text += "=" * (-len(text) % 4)
    return binascii.a2b_base64(text, strict_mode=True)


def _decode_string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("expected a string")
    return value


def _decode_bool(value: Any) -> bool:
    if value is not True and value is not False:
        raise ValueError("expected true or false")
    return value


def _integer(value: Any) -> int:
    if type(value) is int:
        return value
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value)
    # a float that is whole is a number like any other; beyond 2^53 its last digits may have been lost
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT_FLOAT:
        return int(value)
    raise ValueError("expected an integer in range")


def _integer_decoder(least: int, end: int) -> Callable[[Any], int]:
    def decode_integer(value: Any) -> int:
        number = _integer(value)
        if not least <= number < end:
            raise ValueError(f"{number} is out of range")
        return number

    return decode_integer


def _enum_decoder(enum: EnumDescriptor) -> Callable[[Any], int]:
    numbers = {name: value.number for name, value in enum.values_by_name.items()}
    decode_number = _integer_decoder(-(1 << 31), 1 << 31)

    def decode_enum(value: Any) -> int:
        if isinstance(value, str):
            number = numbers.get(value)
            if number is None:
                raise ValueError(f"unknown value {value!r} for enum {enum.full_name}")
            return number
        return decode_number(value)

    return decode_enum


def _enum_encoder(enum: EnumDescriptor) -> Callable[[int], str | int]:
    names = {number: value.name for number, value in enum.values_by_number.items()}
    return lambda number: names.get(number, number)
