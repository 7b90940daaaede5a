"""The Maintenance service, and of the Auth service what says that there is none."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError

from kvorum import API_VERSION, errors
from kvorum.errors import Status, unmarshal_error
from kvorum.pb.rpc_pb2 import (
    AlarmRequest,
    AuthStatusRequest,
    DefragmentRequest,
    HashKVRequest,
    HashRequest,
    MoveLeaderRequest,
    StatusRequest,
    StatusResponse,
)
from node.frames import Process
from node.front.calls import Sink
from node.front.kv import parse_error
from node.front.member import Head, Member, UnaryHandler, guarded
from node.front.state import StateAsks, States
from node.requests import Op

UNKNOWN_ALARM_ACTION = Status(errors.Code.INVALID_ARGUMENT, "etcdserver: unknown alarm action")
"""The reference has no answer to this (its member dies of it), so the text is ours."""


def unary(member: Member, states: StateAsks) -> dict[str, UnaryHandler]:
    """The unary methods of these services by path; those not named here are unknown to the wire."""
    calls = member.calls

    def read(message_type: Any, op: Op) -> UnaryHandler:
        def handle(sink: Sink, token: int, _head: Head, message: bytes) -> None:
            status = parse_error(message_type, message)
            if status is None:
                calls.read(sink, token, op, message)
            else:
                sink.fail(token, *status)

        return handle

    def alarm(sink: Sink, token: int, _head: Head, message: bytes) -> None:
        try:
            request = AlarmRequest.FromString(message)
        except DecodeError as error:
            sink.fail(token, *unmarshal_error(error))
            return
        if request.action not in AlarmRequest.AlarmAction.values():
            sink.fail(token, *UNKNOWN_ALARM_ACTION)
        else:
            calls.propose(sink, token, Op.ALARM, message)

    def status(sink: Sink, token: int, _head: Head, message: bytes) -> None:
        refused = parse_error(StatusRequest, message)
        if refused is not None:
            sink.fail(token, *refused)
            return

        def done(answers: States) -> None:
            if Process.RAFT in answers and Process.APPLY in answers:
                sink.reply(token, status_response(answers[Process.RAFT], answers[Process.APPLY]))
            else:
                sink.fail(token, *errors.TIMEOUT)

        states.ask({Process.RAFT, Process.APPLY}, done)

    def move_leader(sink: Sink, token: int, _head: Head, message: bytes) -> None:
        status = parse_error(MoveLeaderRequest, message)
        if status is None:
            calls.change(sink, token, Op.MOVE_LEADER, message)
        else:
            sink.fail(token, *status)

    methods = {
        "Maintenance/Alarm": alarm,
        "Maintenance/Status": status,
        "Maintenance/Hash": read(HashRequest, Op.HASH),
        "Maintenance/HashKV": read(HashKVRequest, Op.HASH_KV),
        "Maintenance/Defragment": read(DefragmentRequest, Op.DEFRAGMENT),
        "Maintenance/MoveLeader": move_leader,
        "Auth/AuthStatus": read(AuthStatusRequest, Op.AUTH_STATUS),
    }
    guards = {name: guarded(member, handler) for name, handler in methods.items()}
    guards["Maintenance/Status"] = guarded(member, status, learner_serves=lambda _message: True)
    return {f"/etcdserverpb.{name}": handler for name, handler in guards.items()}


def status_response(raft: dict[str, Any], apply: dict[str, Any]) -> bytes:
    """A StatusResponse from the states of the raft and the apply process (MA1-MA6)."""
    response = StatusResponse(
        version=API_VERSION,
        dbSize=apply["db_size"],
        dbSizeInUse=apply["db_size_in_use"],
        dbSizeQuota=apply["quota"],
        leader=raft["leader"],
        raftIndex=raft["committed"],
        raftTerm=raft["term"],
        raftAppliedIndex=apply["applied"],
        isLearner=raft["is_learner"],
        storageVersion=API_VERSION if apply["cluster_version"] else "",
    )
    response.header.cluster_id = apply["cluster_id"]
    response.header.member_id = apply["member_id"]
    response.header.revision = apply["revision"]
    response.header.raft_term = raft["term"]
    response.downgradeInfo.SetInParent()
    if not raft["leader"]:
        response.errors.append(errors.NO_LEADER.message)
    response.errors.extend(apply["alarms"])
    return response.SerializeToString()
