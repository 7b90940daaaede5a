"""Alarms: what they are told, what is answered, and what they forbid (behaviour rows MA7 to MA17)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.message import Message

from kvorum import errors
from kvorum.errors import Status
from kvorum.pb.rpc_pb2 import (
    AlarmMember,
    AlarmRequest,
    AlarmResponse,
    AlarmType,
    CompactionRequest,
    DeleteRangeRequest,
    LeaseGrantRequest,
    LeaseRevokeRequest,
    PutRequest,
    TxnRequest,
)
from node.apply.alarms import describe
from tests.apply.entries import MachineUnderTest, batch, normal
from tests.apply.mvcc_store import delete_op, put_op, range_op, txn_op

GET, ACTIVATE, DEACTIVATE = AlarmRequest.GET, AlarmRequest.ACTIVATE, AlarmRequest.DEACTIVATE
NONE, NOSPACE, CORRUPT = AlarmType.NONE, AlarmType.NOSPACE, AlarmType.CORRUPT


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[MachineUnderTest]:
    opened = MachineUnderTest(tmp_path / "db")
    yield opened
    opened.close()


def alarm(
    machine: MachineUnderTest, action: AlarmRequest.AlarmAction, type_: int = NONE, member: int = 0
) -> set[tuple[int, int]]:
    request = AlarmRequest(action=action, memberID=member)
    request.alarm = type_  # type: ignore[assignment]  # an open enum: MA11 is about numbers without a name
    code, body = machine.request(request)
    assert code == 0
    response = AlarmResponse.FromString(body)
    assert response.header.revision == machine.store.revision
    return {(found.memberID, found.alarm) for found in response.alarms}


def test_MA7_get_filters_by_type_alone(machine: MachineUnderTest) -> None:
    alarm(machine, ACTIVATE, NOSPACE, 1)
    alarm(machine, ACTIVATE, CORRUPT, 2)
    assert alarm(machine, GET) == {(1, NOSPACE), (2, CORRUPT)}
    assert alarm(machine, GET, NOSPACE, 99) == {(1, NOSPACE)}


def test_MA8_activate(machine: MachineUnderTest) -> None:
    assert alarm(machine, ACTIVATE, NOSPACE, 0) == {(0, NOSPACE)}
    assert alarm(machine, ACTIVATE, NOSPACE, 0) == {(0, NOSPACE)}
    assert alarm(machine, ACTIVATE, NONE, 5) == set()
    assert alarm(machine, GET) == {(0, NOSPACE)}


def test_MA9_deactivate_matches_exactly(machine: MachineUnderTest) -> None:
    alarm(machine, ACTIVATE, NOSPACE, 1)
    assert alarm(machine, DEACTIVATE, NOSPACE, 2) == set()
    assert alarm(machine, DEACTIVATE, CORRUPT, 1) == set()
    assert alarm(machine, GET) == {(1, NOSPACE)}
    assert alarm(machine, DEACTIVATE, NOSPACE, 1) == {(1, NOSPACE)}
    assert alarm(machine, GET) == set()


@pytest.mark.parametrize("type_", [77, -3])
def test_MA11_a_type_without_a_name_is_stored_and_listed(machine: MachineUnderTest, type_: int) -> None:
    assert alarm(machine, ACTIVATE, type_, 4) == {(4, type_)}
    machine.reopen()
    assert alarm(machine, GET, type_) == {(4, type_)}
    assert [describe(found) for found in machine.alarms.active()] == [f"memberID:4 alarm:{type_}"]
    assert machine.request(PutRequest(key=b"a"))[0] == 0
    assert alarm(machine, DEACTIVATE, type_, 4) == {(4, type_)}
    machine.reopen()
    assert alarm(machine, GET) == set()


def test_MA3_alarms_in_words() -> None:
    assert describe(AlarmMember(memberID=11417610130673999598, alarm=CORRUPT)) == (
        "memberID:11417610130673999598 alarm:CORRUPT"
    )


PUT = PutRequest(key=b"a", value=b"1")
PUT_DEEP = TxnRequest(success=[txn_op(failure=[txn_op([put_op(b"z")])])])
GROWS: list[Message] = [
    PUT,
    LeaseGrantRequest(ID=8, TTL=60),
    TxnRequest(success=[put_op(b"a")]),
    TxnRequest(failure=[put_op(b"a")]),
    PUT_DEEP,
]
DOES_NOT_GROW: list[Message] = [
    DeleteRangeRequest(key=b"a"),
    TxnRequest(success=[delete_op(b"a")]),
    TxnRequest(success=[txn_op([range_op(b"a")])]),
    CompactionRequest(revision=1),
    LeaseRevokeRequest(ID=7),
]


def refused(machine: MachineUnderTest, requests: list[Message], status: Status) -> bool:
    return all(machine.request(request) == (status.code, status.message.encode()) for request in requests)


def test_MA13_nospace_refuses_what_may_grow(machine: MachineUnderTest) -> None:
    machine.request(LeaseGrantRequest(ID=7, TTL=60))
    machine.request(PUT)
    alarm(machine, ACTIVATE, NOSPACE, 5)
    assert refused(machine, GROWS, errors.NO_SPACE)
    assert [machine.request(request)[0] for request in DOES_NOT_GROW] == [0] * len(DOES_NOT_GROW)


def test_MA14_nospace_stays_until_disarmed(machine: MachineUnderTest) -> None:
    alarm(machine, ACTIVATE, NOSPACE, 5)
    machine.reopen()
    assert refused(machine, [PUT], errors.NO_SPACE)
    alarm(machine, DEACTIVATE, NOSPACE, 5)
    assert machine.request(PUT)[0] == 0


def test_MA16_MA17_corrupt_refuses_every_write_and_wins(machine: MachineUnderTest) -> None:
    machine.request(LeaseGrantRequest(ID=7, TTL=60))
    alarm(machine, ACTIVATE, NOSPACE, 5)
    alarm(machine, ACTIVATE, CORRUPT, 6)
    assert refused(machine, GROWS + DOES_NOT_GROW, errors.CORRUPT)
    assert alarm(machine, DEACTIVATE, CORRUPT, 6) == {(6, CORRUPT)}
    assert refused(machine, [PUT], errors.NO_SPACE)


def test_an_alarm_holds_from_the_next_request_of_the_same_batch_on(machine: MachineUnderTest) -> None:
    on = AlarmRequest(action=ACTIVATE, alarm=NOSPACE, memberID=1)
    off = AlarmRequest(action=DEACTIVATE, alarm=NOSPACE, memberID=1)
    answers = machine.execute(normal(batch(PUT, on, PUT, off, PUT)))
    assert [code for _, code, _ in answers] == [0, 0, errors.NO_SPACE.code, 0, 0]
