"""The requests that load is made of."""

from kvorum.pb.rpc_pb2 import PutRequest, RangeRequest, WatchCreateRequest, WatchRequest


def put_request(key: bytes, value: bytes) -> bytes:
    return PutRequest(key=key, value=value).SerializeToString()


def range_request(key: bytes, range_end: bytes = b"", *, serializable: bool = False) -> bytes:
    return RangeRequest(key=key, range_end=range_end, serializable=serializable).SerializeToString()


def watch_request(key: bytes) -> bytes:
    return WatchRequest(create_request=WatchCreateRequest(key=key)).SerializeToString()
