"""The Cluster service and MoveLeader: what the front refuses itself, and what it asks raft; what Status is made of."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha1
from typing import Any

import pytest
from google.protobuf.message import Message

from kvorum import API_VERSION, errors
from kvorum.errors import Code
from kvorum.pb.internal_pb2 import MemberChange
from kvorum.pb.rpc_pb2 import (
    MemberAddRequest,
    MemberListRequest,
    MemberPromoteRequest,
    MemberRemoveRequest,
    MemberUpdateRequest,
    MoveLeaderRequest,
    ResponseHeader,
    StatusRequest,
    StatusResponse,
)
from node.frames import Kind, Process, pack, unpack
from node.front import cluster, maintenance
from node.front.calls import Calls
from node.front.member import Limits, Member, UnaryHandler
from node.front.state import StateAsks, answer
from node.raft.changes import asked
from node.requests import LINEARIZABLE, READ, Op
from tests.front.test_services import CLUSTER, MEMBER, Head, Sink

URLS = ["http://10.0.0.2:2380", "http://10.0.0.1:2380"]
NOW_S = 1_700_000_000.9


class Front:
    def __init__(self) -> None:
        self.sent: list[tuple[int, int, bytes]] = []
        self.asks: list[tuple[int, bytes]] = []
        self.timers: list[Callable[[], None]] = []
        calls = Calls(
            origin=Process.FRONT,
            member=MEMBER,
            incarnation=1,
            send=lambda process, kind, payload: self.sent.append((process, kind, payload)),
            call_soon=lambda callback: callback(),
            now=lambda: 0.0,
            timeout_s=7.0,
        )
        self.states = StateAsks(lambda process, _kind, payload: self.asks.append((process, payload)), self._call_later)
        member = Member(MEMBER, CLUSTER, Limits(1_572_864, 128, 2, 7.0), calls)
        self.sink = Sink()
        self.unary: dict[str, UnaryHandler] = {
            **cluster.unary(member, max_learners=3, unix_s=lambda: NOW_S),
            **maintenance.unary(member, self.states),
        }

    def _call_later(self, _delay_s: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(callback)
        return Timer()

    def call(self, method: str, request: Message | bytes) -> list[tuple[object, ...]]:
        body = request if isinstance(request, bytes) else request.SerializeToString()
        self.unary[f"/etcdserverpb.{method}"](self.sink, 5, Head(), body)
        said, self.sink.said = self.sink.said, []
        return said

    def change(self) -> tuple[int, bytes]:
        """Op and body of the one change that was sent to raft."""
        ((process, kind, payload),) = self.sent
        assert (process, kind) == (Process.RAFT, Kind.CHANGES)
        (ask,) = asked(payload)
        return ask.op, ask.body


class Timer:
    def cancel(self) -> None:
        pass


@pytest.mark.parametrize(
    "urls",
    [
        [],
        ["10.0.0.1:2380"],
        ["http://10.0.0.1"],
        ["http://10.0.0.1:2380/path"],
        ["ftp://10.0.0.1:2380"],
        ["http://10.0.0.1:2380", ""],
        ["http://a:b"],
    ],
)
def test_M1_M21_urls_that_cannot_be_a_member_s_are_refused(urls: list[str]) -> None:
    front = Front()
    for method, request in (
        ("Cluster/MemberAdd", MemberAddRequest(peerURLs=urls)),
        ("Cluster/MemberUpdate", MemberUpdateRequest(ID=7, peerURLs=urls)),
    ):
        assert front.call(method, request) == [tuple(errors.MEMBER_BAD_URLS)]
    assert front.sent == []


@pytest.mark.parametrize("learner", [False, True])
def test_M1_M3_an_added_member_is_named_by_its_sorted_urls_and_the_second(learner: bool) -> None:
    front = Front()
    assert front.call("Cluster/MemberAdd", MemberAddRequest(peerURLs=URLS, isLearner=learner)) == []
    text = "http://10.0.0.1:2380http://10.0.0.2:23801700000000"
    op, body = front.change()
    assert op == Op.MEMBER_ADD
    assert MemberChange.FromString(body) == MemberChange(
        ID=int.from_bytes(sha1(text.encode()).digest()[:8], "big"),
        peerURLs=sorted(URLS),
        isLearner=learner,
        max_learners=3,
    )


def test_the_other_changes_name_a_member() -> None:
    requests: list[tuple[str, Message, Op, MemberChange]] = [
        ("MemberRemove", MemberRemoveRequest(ID=7), Op.MEMBER_REMOVE, MemberChange(ID=7)),
        ("MemberPromote", MemberPromoteRequest(ID=7), Op.MEMBER_PROMOTE, MemberChange(ID=7)),
        (
            "MemberUpdate",
            MemberUpdateRequest(ID=7, peerURLs=URLS),
            Op.MEMBER_UPDATE,
            MemberChange(ID=7, peerURLs=URLS),
        ),
    ]
    for method, request, op, change in requests:
        front = Front()
        assert front.call(f"Cluster/{method}", request) == []
        sent_op, body = front.change()
        assert (sent_op, MemberChange.FromString(body)) == (op, change)


def test_P3_a_change_over_the_request_limit_is_refused() -> None:
    front = Front()
    urls = [f"http://10.0.0.1:{port}" for port in range(1, 65_000)] * 2
    assert front.call("Cluster/MemberAdd", MemberAddRequest(peerURLs=urls)) == [tuple(errors.REQUEST_TOO_LARGE)]
    assert front.sent == []


@pytest.mark.parametrize(
    "method",
    [f"Cluster/Member{name}" for name in ("Add", "Remove", "Update", "Promote", "List")]
    + ["Maintenance/MoveLeader", "Maintenance/Status"],
)
def test_G8_what_is_no_protobuf_is_refused_and_nothing_is_sent(method: str) -> None:
    front = Front()
    ((code, text),) = front.call(method, b"\xff\xff")
    assert code == Code.INTERNAL
    assert str(text).startswith("grpc: error unmarshalling request: ")
    assert front.sent == []


@pytest.mark.parametrize(("linearizable", "flags"), [(True, LINEARIZABLE), (False, 0)])
def test_M9_the_list_of_members_is_read(linearizable: bool, flags: int) -> None:
    front = Front()
    assert front.call("Cluster/MemberList", MemberListRequest(linearizable=linearizable)) == []
    ((process, kind, payload),) = front.sent
    assert (process, kind) == (Process.APPLY, Kind.READS)
    assert READ.unpack_from(payload)[1:3] == (Op.MEMBER_LIST, flags)


def test_MA24_raft_decides_about_a_transfer() -> None:
    front = Front()
    request = MoveLeaderRequest(targetID=7)
    assert front.call("Maintenance/MoveLeader", request) == []
    assert front.change() == (Op.MOVE_LEADER, request.SerializeToString())


RAFT: dict[str, Any] = {"term": 3, "leader": 9, "committed": 12, "is_learner": False}
APPLY: dict[str, Any] = {
    "cluster_id": CLUSTER,
    "member_id": MEMBER,
    "revision": 4,
    "db_size": 30,
    "db_size_in_use": 20,
    "quota": 1000,
    "applied": 11,
    "cluster_version": "3.7.0",
    "alarms": [],
}


def status(raft: dict[str, Any], apply: dict[str, Any]) -> StatusResponse:
    return StatusResponse.FromString(maintenance.status_response(raft, apply))


def test_MA1_MA2_status_says_what_raft_and_apply_say() -> None:
    expected = StatusResponse(
        header=ResponseHeader(cluster_id=CLUSTER, member_id=MEMBER, revision=4, raft_term=3),
        version=API_VERSION,
        dbSize=30,
        dbSizeInUse=20,
        dbSizeQuota=1000,
        leader=9,
        raftIndex=12,
        raftTerm=3,
        raftAppliedIndex=11,
        storageVersion=API_VERSION,
    )
    expected.downgradeInfo.SetInParent()
    assert status(RAFT, APPLY) == expected
    expected.isLearner = True
    expected.leader = 0
    expected.errors.extend(["etcdserver: no leader", "memberID:1 alarm:NOSPACE"])
    assert (
        status(RAFT | {"leader": 0, "is_learner": True}, APPLY | {"alarms": ["memberID:1 alarm:NOSPACE"]}) == expected
    )


def test_MA6_status_has_no_storage_version_before_the_cluster_s_is_known() -> None:
    assert status(RAFT, APPLY | {"cluster_version": ""}).storageVersion == ""


@pytest.mark.parametrize("answering", [{Process.RAFT, Process.APPLY}, {Process.RAFT}])
def test_MA2_status_is_made_by_this_member_s_processes_alone(answering: set[int]) -> None:
    """No log and no leader: it is answered while both of them live."""
    front = Front()
    assert front.call("Maintenance/Status", StatusRequest()) == []
    assert front.sent == []
    assert {process for process, _ in front.asks} == {Process.RAFT, Process.APPLY}
    states: dict[int, dict[str, Any]] = {Process.RAFT: RAFT, Process.APPLY: APPLY}
    for process, payload in front.asks:
        if process in answering:
            asking = unpack(pack(Process.FRONT, Kind.STATE_ASK, 0, payload))
            front.states.on_state(unpack(pack(process, Kind.STATE, 0, answer(asking, states[process]))))
    for timer in front.timers:
        timer()
    if len(answering) == 2:
        assert front.sink.said == [("reply", 5, maintenance.status_response(RAFT, APPLY))]
    else:
        assert front.sink.said == [tuple(errors.TIMEOUT)]
