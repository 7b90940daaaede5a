"""Requests and replies of the Lock and Election services, in place.

Their keys are `name/lease`: an empty name is legal (LE1), and under it everything still lies in the namespace.
"""

from kvorum.pb.election_pb2 import (
    CampaignRequest,
    CampaignResponse,
    LeaderKey,
    LeaderRequest,
    LeaderResponse,
    ProclaimRequest,
    ResignRequest,
)
from kvorum.pb.lock_pb2 import LockRequest, LockResponse, UnlockRequest
from proxy.namespaces.kv import strip_kvs
from proxy.namespaces.namespace import Namespace


def prefix_lock(namespace: Namespace, request: LockRequest) -> None:
    request.name = namespace.prefix + request.name


def strip_lock(namespace: Namespace, response: LockResponse) -> None:
    response.key = namespace.strip(response.key)


def prefix_unlock(namespace: Namespace, request: UnlockRequest) -> None:
    request.key = namespace.key(request.key)


def prefix_campaign(namespace: Namespace, request: CampaignRequest) -> None:
    request.name = namespace.prefix + request.name


def strip_campaign(namespace: Namespace, response: CampaignResponse) -> None:
    if response.HasField("leader"):
        leader = response.leader
        leader.name = namespace.strip(leader.name)
        leader.key = namespace.strip(leader.key)


def prefix_leader(namespace: Namespace, request: LeaderRequest) -> None:
    """For Leader and Observe."""
    request.name = namespace.prefix + request.name


def strip_leader(namespace: Namespace, response: LeaderResponse) -> None:
    if response.HasField("kv"):
        strip_kvs(namespace, (response.kv,))


def prefix_proclaim(namespace: Namespace, request: ProclaimRequest) -> None:
    if request.HasField("leader"):  # without one the server says so (LE19)
        _prefix_leader_key(namespace, request.leader)


def prefix_resign(namespace: Namespace, request: ResignRequest) -> None:
    if request.HasField("leader"):
        _prefix_leader_key(namespace, request.leader)


def _prefix_leader_key(namespace: Namespace, leader: LeaderKey) -> None:
    leader.name = namespace.prefix + leader.name
    leader.key = namespace.key(leader.key)
