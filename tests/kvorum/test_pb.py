"""The generated messages are the v3 wire API, and what is committed is what proto/ generates."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import grpc_tools
import pytest
from google.protobuf.descriptor import FieldDescriptor
from grpc_tools import protoc

from node.front.json_routes import PATHS
from tests.kvorum.api_table import ENUMS, MESSAGES, METHODS

ROOT = Path(__file__).parents[2]
API_FILES = ("auth", "election", "health", "lock", "mvcc", "rpc")
FILES: list[Any] = [import_module(f"kvorum.pb.{name}_pb2").DESCRIPTOR for name in API_FILES]
PROTO_FILES = sorted(path.relative_to(ROOT / "proto") for path in (ROOT / "proto").rglob("*.proto"))

STREAMING = {"unary": (False, False), "server": (False, True), "client": (True, False), "bidi": (True, True)}
SCALARS = {
    name.removeprefix("TYPE_").lower(): number
    for name, number in vars(FieldDescriptor).items()
    if name.startswith("TYPE_") and isinstance(number, int)
}


def messages() -> Iterator[Any]:
    pending = [message for file in FILES for message in file.message_types_by_name.values()]
    while pending:
        message = pending.pop()
        yield message
        pending += message.nested_types


def enums() -> Iterator[Any]:
    for file in FILES:
        yield from file.enum_types_by_name.values()
    for message in messages():
        yield from message.enum_types


def type_name(field: Any) -> str:
    if field.message_type is not None:
        name = field.message_type.name
    elif field.enum_type is not None:
        name = field.enum_type.name
    else:
        (name,) = [scalar for scalar, number in SCALARS.items() if number == field.type]
    return f"repeated {name}" if field.is_repeated else name


def expected_fields() -> dict[str, list[str]]:
    expected: dict[str, list[str]] = {}
    for line in MESSAGES.strip().splitlines():
        if line.startswith("  "):
            expected[list(expected)[-1]].append(line.strip())
        else:
            expected[line] = []
    return expected


def expected_methods() -> Iterator[tuple[str, list[str]]]:
    service = ""
    for line in METHODS.strip().splitlines():
        if line.startswith("  "):
            yield service, line.split()
        else:
            service = line


def test_every_method_and_no_other() -> None:
    expected = {}
    for service, (method, request, reply, kind, *_) in expected_methods():
        expected[service, method] = (request, reply, STREAMING[kind])
    assert len(expected) == 51
    assert expected == {
        (service.full_name, method.name): (
            method.input_type.name,
            method.output_type.name,
            (method.client_streaming, method.server_streaming),
        )
        for file in FILES
        for service in file.services_by_name.values()
        for method in service.methods
    }


def test_every_http_path_of_the_gateway() -> None:
    expected = {}
    for service, (method, _, _, _, *http_paths) in expected_methods():
        for http_path in http_paths:
            expected[http_path] = f"/{service}/{method}"
    assert expected == PATHS


def test_every_message_and_no_other() -> None:
    assert {message.full_name for message in messages()} == expected_fields().keys()


@pytest.mark.parametrize(("name", "fields"), expected_fields().items(), ids=expected_fields())
def test_fields(name: str, fields: list[str]) -> None:
    (message,) = [message for message in messages() if message.full_name == name]
    assert sorted(fields) == sorted(
        f"{field.number} {field.name} {type_name(field)}"
        + (f" oneof {field.containing_oneof.name}" if field.containing_oneof else "")
        for field in message.fields
    )
    assert not message.extension_ranges


def test_every_enum_value_and_no_other() -> None:
    expected = {line.split()[0]: line.split()[1:] for line in ENUMS.strip().splitlines()}
    found = {enum.full_name: [f"{value.name}={value.number}" for value in enum.values] for enum in enums()}
    assert {name: sorted(values) for name, values in found.items()} == {
        name: sorted(values) for name, values in expected.items()
    }


def test_short_names_of_types_are_unique() -> None:
    names = [kind.name for kind in (*messages(), *enums())]
    assert len(names) == len(set(names))


def test_json_names_are_the_usual_camel_case() -> None:
    for message in messages():
        for field in message.fields:
            head, *rest = field.name.split("_")
            assert field.json_name == head + "".join(word[:1].upper() + word[1:] for word in rest)


def test_committed_code_is_what_proto_generates(tmp_path: Path) -> None:
    assert PROTO_FILES
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{ROOT / 'proto'}", f"-I{well_known}"]
    assert protoc.main([*arguments, f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", *map(str, PROTO_FILES)]) == 0
    fresh = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*_pb2.py*")}
    committed = {
        path.relative_to(ROOT): path.read_text() for path in (ROOT / "kvorum").rglob("*_pb2.py*") if path.is_file()
    }
    committed = {path: text for path, text in committed.items() if path.suffix in (".py", ".pyi")}
    assert len(fresh) == 2 * len(PROTO_FILES)
    assert fresh == committed
