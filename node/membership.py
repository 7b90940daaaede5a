"""The cluster's members as the log has made them. Raft and apply execute the same changes in the same order.

A change is valid or not by the members at its place in the log and by nothing else, so every member decides alike. The
limit of learners is an option of a member, and two members may have been given different ones: therefore the record
carries the limit of the member that was asked (`MemberChange.max_learners`), and execution knows no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from kvorum import errors
from kvorum.errors import Status
from kvorum.pb.internal_pb2 import ClusterVersion, Founding, MemberChange, MembershipState, Publish
from kvorum.pb.rpc_pb2 import Member
from node.raft.core.messages import ConfState
from node.requests import Op

TABLE: Final = b"n"
VERSION: Final = b"v"
"""Rows: TABLE + 8 bytes of id (big-endian) -> Member, or nothing: that id was a member's once, and never may be again.
TABLE + id + VERSION -> the API level that the member published. TABLE alone -> ClusterVersion."""

ID_END: Final = len(TABLE) + 8

Row = tuple[bytes, bytes | None]
"""Key and value; None: the row goes."""


class Membership:
    """Members by id, ids of removed members, and the cluster's version.

    Methods that change something return the rows that make it durable. A Member handed out is never changed later.
    `changes` counts whatever was executed, so that the others can be told when it has grown.
    """

    def __init__(self, rows: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self._members: dict[int, Member] = {}
        self._versions: dict[int, str] = {}
        self._removed: set[int] = set()
        self.cluster_version = ""
        self.changes = 0
        for key, value in rows:
            member_id = int.from_bytes(key[len(TABLE) : ID_END], "big")
            if key == TABLE:
                self.cluster_version = ClusterVersion.FromString(value).version
            elif key.endswith(VERSION) and len(key) > ID_END:
                self._versions[member_id] = value.decode()
            elif value:
                self._members[member_id] = Member.FromString(value)
            else:
                self._removed.add(member_id)

    @classmethod
    def restore(cls, state: MembershipState) -> Membership:
        """The membership that `state` was taken of."""
        restored = cls()
        restored._members = {member.ID: member for member in state.members}
        restored._removed = set(state.removed)
        restored.cluster_version = state.cluster_version
        return restored

    def state(self) -> MembershipState:
        """All of it, in one form whatever the history was."""
        return MembershipState(
            members=self.members(), removed=sorted(self._removed), cluster_version=self.cluster_version
        )

    def conf_state(self) -> ConfState:
        """Who votes and who learns, as the consensus core is started with it."""
        members = self.members()
        return ConfState(
            voters=tuple(member.ID for member in members if not member.isLearner),
            learners=tuple(member.ID for member in members if member.isLearner),
        )

    def members(self) -> list[Member]:
        """All members, by id ascending (M6)."""
        return [self._members[member_id] for member_id in sorted(self._members)]

    def get(self, member_id: int) -> Member | None:
        """The member with this id."""
        return self._members.get(member_id)

    def is_removed(self, member_id: int) -> bool:
        """Whether the id was a member's once, and may not be again (M17)."""
        return member_id in self._removed

    def voters(self) -> Iterator[Member]:
        """The members that are no learners."""
        return (member for member in self._members.values() if not member.isLearner)

    def found(self, data: bytes) -> list[Row]:
        """The log's first entry: the members the cluster was founded with."""
        return [self._set(member) for member in Founding.FromString(data).members]

    def publish(self, body: bytes) -> list[Row]:
        """A member says its name, client URLs and API level. One that is no member any more changes nothing."""
        request = Publish.FromString(body)
        member = self._members.get(request.member_id)
        if member is None:
            return []
        published = _copy(member)
        published.name = request.name
        published.clientURLs[:] = request.client_urls
        rows: list[Row] = [self._set(published)]
        if request.version:
            self._versions[member.ID] = request.version
            rows.append((_row_key(member.ID) + VERSION, request.version.encode()))
            rows += self._raise_cluster_version()
        return rows

    def learn(self, state: MembershipState) -> None:
        """What members published of themselves (names, client URLs), and the cluster's version, from one who executes
        that too."""
        self.cluster_version = state.cluster_version
        for other in state.members:
            member = self._members.get(other.ID)
            if member is not None:
                learnt = _copy(member)
                learnt.name = other.name
                learnt.clientURLs[:] = other.clientURLs
                self._members[other.ID] = learnt

    def set_cluster_version(self, body: bytes) -> list[Row]:
        """The members agreed on the API level of the cluster."""
        self.cluster_version = ClusterVersion.FromString(body).version
        self.changes += 1
        return [(TABLE, body)]

    def _raise_cluster_version(self) -> list[Row]:
        """The cluster speaks the lowest level of its members, patches aside, and none below one it spoke (M29).

        A member that never started has no say: it must speak the cluster's level when it comes.
        """
        lowest = min((_numbers(version) for version in self._versions.values()), default=None)
        if lowest is None or (self.cluster_version and lowest <= _numbers(self.cluster_version)):
            return []
        version = ClusterVersion(version=f"{lowest[0]}.{lowest[1]}.0")
        return self.set_cluster_version(version.SerializeToString())

    def check(self, op: int, change: MemberChange) -> Status | None:
        """What is wrong with the change, in the order of the API's checks (M4, M16, M17, M20, M24); None: it is valid.

        The last voter cannot be removed, also where the strict checks are off: nobody could change anything after it.
        """
        member = self._members.get(change.ID)
        if change.ID in self._removed:
            return errors.MEMBER_NOT_FOUND
        if op == Op.MEMBER_ADD:
            return self._check_add(change)
        if member is None:
            return errors.MEMBER_NOT_FOUND
        if op == Op.MEMBER_UPDATE:
            return errors.PEER_URL_EXIST if self._is_taken(change) else None
        if op == Op.MEMBER_PROMOTE:
            return None if member.isLearner else errors.MEMBER_NOT_LEARNER
        assert op == Op.MEMBER_REMOVE, f"op {op} changes no members"
        if [voter.ID for voter in self.voters()] == [change.ID]:
            return errors.MEMBER_NOT_ENOUGH_STARTED
        return None

    def _check_add(self, change: MemberChange) -> Status | None:
        if change.ID in self._members:
            return errors.MEMBER_EXIST
        if self._is_taken(change):
            return errors.PEER_URL_EXIST
        if change.isLearner and change.HasField("max_learners"):
            learners = sum(member.isLearner for member in self._members.values())
            if learners + 1 > change.max_learners:
                return errors.TOO_MANY_LEARNERS
        return None

    def _is_taken(self, change: MemberChange) -> bool:
        """Whether another member has one of the URLs."""
        urls = set(change.peerURLs)
        others = (member for member in self._members.values() if member.ID != change.ID)
        return any(not urls.isdisjoint(other.peerURLs) for other in others)

    def execute(self, op: int, change: MemberChange) -> list[Row]:
        """Carries out a change that `check` found valid."""
        member_id = change.ID
        if op == Op.MEMBER_ADD:
            return [self._set(Member(ID=member_id, peerURLs=change.peerURLs, isLearner=change.isLearner))]
        if op == Op.MEMBER_REMOVE:
            del self._members[member_id]
            self._removed.add(member_id)
            self.changes += 1
            rows: list[Row] = [(_row_key(member_id), b"")]
            if self._versions.pop(member_id, None) is not None:
                rows.append((_row_key(member_id) + VERSION, None))
                rows += self._raise_cluster_version()
            return rows
        member = _copy(self._members[member_id])
        if op == Op.MEMBER_UPDATE:
            member.peerURLs[:] = change.peerURLs
        else:
            assert op == Op.MEMBER_PROMOTE, f"op {op} changes no members"
            member.isLearner = False
        return [self._set(member)]

    def _set(self, member: Member) -> Row:
        self._members[member.ID] = member
        self.changes += 1
        return _row_key(member.ID), member.SerializeToString(deterministic=True)


def _row_key(member_id: int) -> bytes:
    return TABLE + member_id.to_bytes(8, "big")


def _numbers(version: str) -> tuple[int, int]:
    """MAJOR and MINOR of a version."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _copy(member: Member) -> Member:
    """Members handed out stay as they are: a change makes a new one."""
    copied = Member()
    copied.CopyFrom(member)
    return copied
