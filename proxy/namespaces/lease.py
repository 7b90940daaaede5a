"""The replies of the Lease service that carry keys. Leases themselves belong to the cluster, not to a namespace."""

from kvorum.pb.rpc_pb2 import LeaseTimeToLiveResponse
from proxy.namespaces.namespace import Namespace


def strip_time_to_live(namespace: Namespace, response: LeaseTimeToLiveResponse) -> None:
    """Only the keys inside; a lease may have others."""
    response.keys[:] = _keys_inside(namespace, response)


def has_foreign_keys(namespace: Namespace, response: LeaseTimeToLiveResponse) -> bool:
    """Whether a key of somebody else's goes when this lease is revoked."""
    return len(_keys_inside(namespace, response)) < len(response.keys)


def _keys_inside(namespace: Namespace, response: LeaseTimeToLiveResponse) -> list[bytes]:
    prefix, size = namespace.prefix, len(namespace.prefix)
    return [key[size:] for key in response.keys if len(key) > size and key.startswith(prefix)]
