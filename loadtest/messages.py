"""The requests that load is made of."""

from kvorum.pb.rpc_pb2 import PutRequest, RangeRequest, WatchCreateRequest, WatchRequest


def put_request(key: bytes, value: bytes) -> bytes:
    return PutRequest(key=key, value=value).SerializeToString()


def range_request(key: bytes, range_end: bytes = b"", *, serializable: bool = False) -> bytes:
    return RangeRequest(key=key, range_end=range_end, serializable=serializable).SerializeToString()


def watch_request(key: bytes) -> bytes:
    return WatchRequest(create_request=WatchCreateRequest(key=key)).SerializeToString()


_STAMP_BYTES = 20


def stamped_value(now_ns: int, size_bytes: int) -> bytes:
    """A value that says when it was written; never smaller than the stamp."""
    return (b"%020d" % now_ns).ljust(size_bytes, b".")


def stamp_ns(value: bytes) -> int:
    """When a stamped value was written."""
    return int(value[:_STAMP_BYTES])
