"""The cluster's members as the log has made them, for answers; raft keeps its own view of who votes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from kvorum.pb.internal_pb2 import ClusterVersion, Founding, Publish
from kvorum.pb.rpc_pb2 import Member

TABLE: Final = b"n"
"""Rows: TABLE + 8 bytes of member id (big-endian) -> Member; TABLE alone -> ClusterVersion."""

Row = tuple[bytes, bytes]


class Membership:
    """Members by id. Changing methods return the rows that make the change durable."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._members: dict[int, Member] = {}
        self.cluster_version = ""
        for key, value in rows:
            if key == TABLE:
                self.cluster_version = ClusterVersion.FromString(value).version
            else:
                self._members[int.from_bytes(key[len(TABLE) :], "big")] = Member.FromString(value)

    def members(self) -> list[Member]:
        """All members, by id ascending (M6)."""
        return [self._members[member_id] for member_id in sorted(self._members)]

    def found(self, data: bytes) -> list[Row]:
        """The log's first entry: the members the cluster was founded with."""
        return [self._set(member) for member in Founding.FromString(data).members]

    def publish(self, body: bytes) -> list[Row]:
        """A member says its name and client URLs. One that is no member any more changes nothing."""
        request = Publish.FromString(body)
        member = self._members.get(request.member_id)
        if member is None:
            return []
        published = Member(
            ID=member.ID,
            name=request.name,
            peerURLs=member.peerURLs,
            clientURLs=request.client_urls,
            isLearner=member.isLearner,
        )
        return [self._set(published)]

    def set_cluster_version(self, body: bytes) -> list[Row]:
        """The members agreed on the API level of the cluster."""
        self.cluster_version = ClusterVersion.FromString(body).version
        return [(TABLE, body)]

    def _set(self, member: Member) -> Row:
        self._members[member.ID] = member
        return TABLE + member.ID.to_bytes(8, "big"), member.SerializeToString(deterministic=True)
