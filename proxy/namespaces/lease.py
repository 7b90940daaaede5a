"""The replies of the Lease service that carry keys. Leases themselves belong to the cluster, not to a namespace."""

from kvorum.pb.rpc_pb2 import LeaseTimeToLiveResponse
from proxy.namespaces.namespace import Namespace


def strip_time_to_live(namespace: Namespace, response: LeaseTimeToLiveResponse) -> None:
    """Only the keys inside; a lease may have others."""
    prefix, size = namespace.prefix, len(namespace.prefix)
    inside = [key[size:] for key in response.keys if len(key) > size and key.startswith(prefix)]
    response.keys[:] = inside


def has_foreign_keys(namespace: Namespace, response: LeaseTimeToLiveResponse) -> bool:
    """Whether a key of somebody else's goes when this lease is revoked."""
    return not all(key.startswith(namespace.prefix) for key in response.keys)
