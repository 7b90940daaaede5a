"""A running cluster as one of its members' peer listeners describes it: GET /members and /version, as in the reference.

Here is what the answers mean; `node.remote_http` asks.
"""

from typing import Final, NamedTuple

import orjson

from kvorum import API_VERSION
from kvorum.urls import parse_urls

CLUSTER_ID_HEADER: Final = "X-Etcd-Cluster-ID"
MAKE_HEADER: Final = "X-Kvorum-Version"
"""On the answer to /members of kvorum, of no other make: members of different makes cannot form one cluster."""


class RemoteMember(NamedTuple):
    """A member as the cluster has it; URLs are sorted."""

    id: int
    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
    is_learner: bool

    def __str__(self) -> str:
        raft = f"PeerURLs:[{' '.join(self.peer_urls)}] IsLearner:{str(self.is_learner).lower()}"
        attributes = f"Name:{self.name} ClientURLs:[{' '.join(self.client_urls)}]"
        return f"&{{ID:{self.id:x} RaftAttributes:{{{raft}}} Attributes:{{{attributes}}}}}"


class RemoteCluster(NamedTuple):
    """A running cluster: its members in the order of their ids, at least one.

    `incompatible` says why no member of this release can join it; empty if one can.
    """

    cluster_id: int
    members: tuple[RemoteMember, ...]
    incompatible: str = ""

    def member(self, member_id: int) -> RemoteMember | None:
        return next((member for member in self.members if member.id == member_id), None)

    def __str__(self) -> str:
        members = " ".join(map(str, self.members))
        return f"{{ClusterID:{self.cluster_id:x} Members:[{members}] RemovedMemberIDs:[]}}"


def read_cluster_id(header: str) -> int:
    """Of CLUSTER_ID_HEADER. Raises ValueError."""
    return _id(int(header, 16))


def read_members(body: bytes) -> tuple[RemoteMember, ...]:
    """The members of an answer to /members, by id. Raises ValueError for anything else."""
    try:
        members = [
            RemoteMember(
                _id(member["id"]),
                _text(member.get("name", "")),
                tuple(str(url) for url in parse_urls(",".join(map(_text, member["peerURLs"])))),
                tuple(sorted(map(_text, member.get("clientURLs", ())))),
                member.get("isLearner", False) is True,
            )
            for member in orjson.loads(body)
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a list of members: {error!r}") from None
    if not members:
        raise ValueError("the list of members is empty")
    return tuple(sorted(members))


def incompatibility(make: str | None, versions: bytes) -> str:
    """Why no member of this release can join a cluster: `make` is its MAKE_HEADER, `versions` its page /version.

    Raises ValueError for a page that is none.
    """
    if make is None:
        return "its members are not kvorum's"
    try:
        text = orjson.loads(versions)["etcdcluster"]
        theirs = tuple(map(int, text.split(".")[:2])) if text != "not_decided" else (0, 0)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a page of versions: {error!r}") from None
    ours = tuple(map(int, API_VERSION.split(".")[:2]))
    return f"it is at version {text}, this member at {API_VERSION}" if theirs > ours else ""


def _id(value: object) -> int:
    if not isinstance(value, int) or not 0 < value < 1 << 64:
        raise ValueError(f"not an id: {value!r}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"not a text: {value!r}")
    return value
