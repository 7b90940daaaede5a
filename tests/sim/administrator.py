"""Who changes the cluster's members: adds, promotes, removes and replaces them, and moves the leadership."""

from __future__ import annotations

from typing import Any

from kvorum.errors import Status
from kvorum.pb.rpc_pb2 import (
    AlarmRequest,
    AlarmResponse,
    Member,
    MemberAddRequest,
    MemberAddResponse,
    MemberListRequest,
    MemberListResponse,
    MemberPromoteRequest,
    MemberPromoteResponse,
    MemberRemoveRequest,
    MemberRemoveResponse,
    MemberUpdateRequest,
    MemberUpdateResponse,
    MoveLeaderRequest,
    MoveLeaderResponse,
)
from tests.sim.clients import METHODS, Client
from tests.sim.cluster import Cluster

MOST_MEMBERS = 5

METHODS.update(
    {
        MemberAddRequest: ("/etcdserverpb.Cluster/MemberAdd", MemberAddResponse),
        MemberListRequest: ("/etcdserverpb.Cluster/MemberList", MemberListResponse),
        MemberPromoteRequest: ("/etcdserverpb.Cluster/MemberPromote", MemberPromoteResponse),
        MemberRemoveRequest: ("/etcdserverpb.Cluster/MemberRemove", MemberRemoveResponse),
        MemberUpdateRequest: ("/etcdserverpb.Cluster/MemberUpdate", MemberUpdateResponse),
        AlarmRequest: ("/etcdserverpb.Maintenance/Alarm", AlarmResponse),
        MoveLeaderRequest: ("/etcdserverpb.Maintenance/MoveLeader", MoveLeaderResponse),
    }
)


class Administrator(Client):
    """Looks at the list of members, starts those that it does not know yet, and then changes something."""

    def __init__(self, cluster: Cluster, number: int, *, most_members: int = MOST_MEMBERS) -> None:
        super().__init__(cluster, number)
        self._cluster = cluster
        self._most_members = most_members
        self.think_s = 1.0

    def think(self) -> None:
        self.ask(MemberListRequest(linearizable=True), self._on_list, recorded=False)

    def _on_list(self, outcome: Any) -> None:
        if not isinstance(outcome, MemberListResponse):
            self.begin()
            return
        for member in outcome.members:
            self._cluster.meet(member)
        request = self._change(list(outcome.members))
        if request is None:
            self.begin()
        else:
            self._cluster.note(0, f"asks for {type(request).__name__} {request}".replace("\n", " "))
            self.ask(request, self._on_changed, recorded=False)

    def _on_changed(self, outcome: Any) -> None:
        answer = outcome.message if isinstance(outcome, Status) else type(outcome).__name__
        self._cluster.note(0, f"the change of members ends: {answer}")
        self.begin()

    def _change(self, members: list[Member]) -> Any:
        random = self.random
        learners = [member for member in members if member.isLearner]
        draw = random.random()
        if learners and draw < 0.5:
            return MemberPromoteRequest(ID=random.choice(learners).ID)
        if draw < 0.75 and len(members) < self._most_members:
            url = f"http://added-{self.value().decode()}:2380"
            return MemberAddRequest(peerURLs=[url], isLearner=random.random() < 0.6)
        if draw < 0.9 and len(members) > 1:
            return MemberRemoveRequest(ID=random.choice(members).ID)
        if draw < 0.93:
            return MemberUpdateRequest(ID=random.choice(members).ID, peerURLs=[f"http://{self.value().decode()}:2380"])
        leader = self._cluster.leader()
        if leader is not None:
            self.member = leader
            return MoveLeaderRequest(targetID=random.choice(members).ID)
        return None


class Caretaker(Client):
    """Ends alarms, again and again."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        super().__init__(cluster, number)
        self.think_s = 1.0

    def think(self) -> None:
        self.ask(AlarmRequest(action=AlarmRequest.GET), self._on_alarms, recorded=False)

    def _on_alarms(self, outcome: Any) -> None:
        if isinstance(outcome, AlarmResponse) and outcome.alarms:
            alarm = outcome.alarms[0]
            request = AlarmRequest(action=AlarmRequest.DEACTIVATE, memberID=alarm.memberID, alarm=alarm.alarm)
            self.ask(request, lambda _: self.begin(), recorded=False)
        else:
            self.begin()
