"""Requests and replies of the Watch service, in place."""

from kvorum.pb.rpc_pb2 import WatchCreateRequest, WatchRequest, WatchResponse
from proxy.namespaces.kv import strip_kvs
from proxy.namespaces.namespace import Namespace


def prefix_create(namespace: Namespace, request: WatchCreateRequest) -> None:
    request.key, request.range_end = namespace.watch_interval(request.key, request.range_end)


def prefix_watch(namespace: Namespace, request: WatchRequest) -> None:
    """Cancel and progress requests name no key."""
    if request.WhichOneof("request_union") == "create_request":
        prefix_create(namespace, request.create_request)


def strip_watch(namespace: Namespace, response: WatchResponse) -> None:
    """The events' keys; `prev_kv` too."""
    events = response.events
    if events:
        strip_kvs(namespace, [event.kv for event in events])
        strip_kvs(namespace, [event.prev_kv for event in events if event.HasField("prev_kv")])


def strip_watch_bytes(namespace: Namespace, message: bytes) -> bytes:
    """A WatchResponse in bytes; DecodeError for what is none."""
    response = WatchResponse.FromString(message)
    response.DiscardUnknownFields()
    strip_watch(namespace, response)
    return response.SerializeToString()
