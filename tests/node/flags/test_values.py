"""The values of flags, by Go's rules (behaviour S11)."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.durations import PARSE_ERROR, format_duration, parse_duration_ns
from node.flags import values
from node.flags.gates import parse_gates

PARSE, RANGE = PARSE_ERROR, values.OUT_OF_RANGE


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (values.parse_bool, "t", True),
        (values.parse_bool, "FALSE", False),
        (values.parse_uint, "0", 0),
        (values.parse_uint, "0x1F", 31),
        (values.parse_uint, "017", 15),
        (values.parse_uint, "0o17", 15),
        (values.parse_uint, "0b11", 3),
        (values.parse_uint, "1_000", 1000),
        (values.parse_uint, str(2**64 - 1), 2**64 - 1),
        (values.parse_int, "-5", -5),
        (values.parse_int, "+5", 5),
        (values.parse_uint32, "4294967295", 2**32 - 1),
        (parse_duration_ns, "0", 0),
        (parse_duration_ns, "5s", 5_000_000_000),
        (parse_duration_ns, "1h15m30.918s", 4_530_918_000_000),
        (parse_duration_ns, "-1.5h", -5_400_000_000_000),
        (parse_duration_ns, ".5ms", 500_000),
        (parse_duration_ns, "3µs", 3_000),
        (values.parse_strings, "b,a,b", ("a", "b")),
        (values.parse_strings, "", ()),
    ],
)
def test_a_good_value(read: Callable[[str], object], text: str, value: object) -> None:
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "text", "reason"),
    [
        (values.parse_bool, "yes", PARSE),
        (values.parse_bool, "", PARSE),
        (values.parse_uint, "-1", PARSE),
        (values.parse_uint, "+1", PARSE),
        (values.parse_uint, "", PARSE),
        (values.parse_uint, " 1", PARSE),
        (values.parse_uint, "1_", PARSE),
        (values.parse_uint, "08", PARSE),
        (values.parse_uint, "١", PARSE),
        (values.parse_uint, str(2**64), RANGE),
        (values.parse_uint, "9" * 10_000, RANGE),
        (values.parse_int, str(2**63), RANGE),
        (values.parse_uint32, "x", 'strconv.ParseUint: parsing "x": invalid syntax'),
        (values.parse_uint32, str(2**32), 'strconv.ParseUint: parsing "4294967296": value out of range'),
        (parse_duration_ns, "5", PARSE),
        (parse_duration_ns, "", PARSE),
        (parse_duration_ns, ".s", PARSE),
        (parse_duration_ns, "1d", PARSE),
        (parse_duration_ns, "300000h" * 10, PARSE),
    ],
)
def test_a_bad_value(read: Callable[[str], object], text: str, reason: str) -> None:
    with pytest.raises(ValueError) as raised:
        read(text)
    assert str(raised.value) == reason


@pytest.mark.parametrize(
    ("duration_ns", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (1_500, "1.5µs"),
        (100_000_000, "100ms"),
        (1_000_000_000, "1s"),
        (90_500_000_000, "1m30.5s"),
        (7_200_000_000_000, "2h0m0s"),
        (-1_000_000_000, "-1s"),
    ],
)
def test_a_duration_is_written_as_go_does(duration_ns: int, text: str) -> None:
    assert format_duration(duration_ns) == text


@given(st.integers(-(2**63) + 1, 2**63 - 1))
def test_a_written_duration_is_read_back(duration_ns: int) -> None:
    assert parse_duration_ns(format_duration(duration_ns)) == duration_ns


def test_gates_have_their_defaults() -> None:
    gates = parse_gates("")
    assert {name for name, on in gates.items() if on} == {"TxnModeWriteWithSharedBuffer", "FastLeaseKeepAlive"}
    assert len(gates) == 9


def test_a_named_gate_wins_over_its_stage() -> None:
    gates = parse_gates("LeaseCheckpoint=false, AllAlpha=true,AllBeta=false")
    assert not gates["LeaseCheckpoint"]
    assert gates["PriorityRequest"]
    assert not gates["FastLeaseKeepAlive"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Foo=true", "unrecognized feature gate: Foo"),
        ("LeaseCheckpoint", "missing bool value for LeaseCheckpoint"),
        (
            "LeaseCheckpoint=x",
            'invalid value of LeaseCheckpoint=x, err: strconv.ParseBool: parsing "x": invalid syntax',
        ),
    ],
)
def test_a_bad_gate(text: str, reason: str) -> None:
    with pytest.raises(ValueError) as raised:
        parse_gates(text)
    assert str(raised.value) == reason
