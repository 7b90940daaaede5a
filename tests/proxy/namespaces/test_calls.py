"""Calls through a namespace, method by method."""

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from kvorum.errors import ApiError, Code
from kvorum.pb import election_pb2, lock_pb2, rpc_pb2
from kvorum.pb.auth_pb2 import Permission
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
from kvorum.pb.mvcc_pb2 import Event, KeyValue
from kvorum.pb.rpc_pb2 import (
    AuthRoleGetRequest,
    AuthRoleGetResponse,
    AuthRoleGrantPermissionRequest,
    AuthRoleRevokePermissionRequest,
    DeleteRangeRequest,
    LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    RangeStreamResponse,
    ResponseHeader,
    TxnRequest,
    TxnResponse,
    WatchCancelRequest,
    WatchCreateRequest,
    WatchRequest,
    WatchResponse,
)
from proxy.namespaces.calls import SERVER_STREAMS, UNARY
from proxy.namespaces.lease import has_foreign_keys
from proxy.namespaces.namespace import ForeignKeyError, Namespace
from proxy.namespaces.watch import prefix_watch, strip_watch_bytes

NAMESPACE = Namespace(b"t/")
HEADER = ResponseHeader(cluster_id=1, member_id=2, revision=3, raft_term=4)
KV, AUTH = "/etcdserverpb.KV/", "/etcdserverpb.Auth/"
LOCK, ELECTION = "/v3lockpb.Lock/", "/v3electionpb.Election/"
ALL = {**UNARY, **SERVER_STREAMS}


def outwards(path: str, request: Any) -> Any:
    """The request as the server gets it."""
    message, _ = ALL[path](NAMESPACE, request.SerializeToString())
    return type(request).FromString(message)


def inwards(path: str, request: Any, reply: Any) -> Any:
    """The reply as the caller gets it."""
    _, strip = ALL[path](NAMESPACE, request.SerializeToString())
    assert strip is not None
    return type(reply).FromString(strip(NAMESPACE, reply.SerializeToString()))


def fields_of(message: Descriptor, seen: set[str]) -> Iterator[FieldDescriptor]:
    """All fields of a message and of those within it."""
    if message.full_name in seen:
        return
    seen.add(message.full_name)
    for field in message.fields:
        yield field
        if field.message_type is not None:
            yield from fields_of(field.message_type, seen)


def test_every_method_that_carries_keys_is_rewritten() -> None:
    """Keys and names of locks are the API's fields of bytes; a method with one that is not here would leak."""
    with_bytes = set()
    for file in (rpc_pb2, lock_pb2, election_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                fields = [*fields_of(method.input_type, set()), *fields_of(method.output_type, set())]
                if any(field.type == FieldDescriptor.TYPE_BYTES for field in fields):
                    with_bytes.add(f"/{service.full_name}/{method.name}")
    elsewhere = {
        "/etcdserverpb.Watch/Watch",  # both ways a stream: `watch.py`
        "/etcdserverpb.Maintenance/Snapshot",  # the whole store: no tenant's call
    }
    assert set(ALL) | elsewhere == with_bytes


def test_put() -> None:
    assert outwards(KV + "Put", PutRequest(key=b"k", value=b"v", lease=7)) == PutRequest(
        key=b"t/k", value=b"v", lease=7
    )
    reply = PutResponse(header=HEADER, prev_kv=KeyValue(key=b"t/k", value=b"t/", lease=7, version=2))
    assert inwards(KV + "Put", PutRequest(key=b"k", prev_kv=True), reply) == PutResponse(
        header=HEADER, prev_kv=KeyValue(key=b"k", value=b"t/", lease=7, version=2)
    )


def test_a_reply_without_keys_is_not_looked_at() -> None:
    for path, request in (
        ("Put", PutRequest(key=b"k")),
        ("DeleteRange", DeleteRangeRequest(key=b"k")),
        ("Range", RangeRequest(key=b"k", count_only=True)),
        ("Txn", TxnRequest(success=[{"request_put": PutRequest(key=b"k")}])),
        ("Txn", TxnRequest(failure=[{"request_txn": TxnRequest(success=[{"request_put": PutRequest(key=b"k")}])}])),
    ):
        assert UNARY[KV + path](NAMESPACE, request.SerializeToString())[1] is None


@pytest.mark.parametrize(
    "shown",
    [
        {"request_range": RangeRequest(key=b"k")},
        {"request_put": PutRequest(key=b"k", prev_kv=True)},
        {"request_delete_range": DeleteRangeRequest(key=b"k", prev_kv=True)},
        {"request_txn": TxnRequest(failure=[{"request_range": RangeRequest(key=b"k")}])},
    ],
)
def test_a_txn_s_reply_is_looked_at_when_any_operation_may_show_a_key(shown: Any) -> None:
    for request in (TxnRequest(success=[shown]), TxnRequest(failure=[shown])):
        assert UNARY[KV + "Txn"](NAMESPACE, request.SerializeToString())[1] is not None


def test_txn_at_every_depth() -> None:
    def request(key: bytes, end: bytes) -> TxnRequest:
        inner = TxnRequest(
            compare=[{"key": key, "range_end": end, "version": 1}], failure=[{"request_put": PutRequest(key=key)}]
        )
        return TxnRequest(
            compare=[{"key": key, "target": "VALUE", "value": b"v"}],
            success=[
                {"request_range": RangeRequest(key=key, range_end=end)},
                {"request_delete_range": DeleteRangeRequest(key=key, range_end=end)},
                {"request_txn": TxnRequest(success=[{"request_txn": inner}])},
            ],
        )

    assert outwards(KV + "Txn", request(b"k", b"\0")) == request(b"t/k", b"t0")

    def reply(key: bytes) -> TxnResponse:
        kv = KeyValue(key=key, value=b"v")
        inner = TxnResponse(
            responses=[{"response_put": {"prev_kv": kv}}, {"response_delete_range": {"prev_kvs": [kv]}}]
        )
        return TxnResponse(
            header=HEADER, responses=[{"response_range": {"kvs": [kv, kv]}}, {"response_txn": inner}, {}]
        )

    assert inwards(KV + "Txn", request(b"k", b"\0"), reply(b"t/k")) == reply(b"k")


def test_P7_T4_empty_keys_and_operations_reach_the_server_as_they_are() -> None:
    request = TxnRequest(compare=[{"version": 1}], success=[{}, {"request_range": RangeRequest(limit=3)}])
    assert outwards(KV + "Txn", request) == request
    for path, empty in (("Range", RangeRequest(limit=1)), ("Put", PutRequest(value=b"v"))):
        assert outwards(KV + path, empty) == empty
    assert outwards(KV + "DeleteRange", DeleteRangeRequest(range_end=b"\0")) == DeleteRangeRequest()


def test_the_last_of_two_key_fields_counts_and_gets_the_prefix() -> None:
    message = PutRequest(key=b"a").SerializeToString() + PutRequest(key=b"b").SerializeToString()
    prefixed, _ = UNARY[KV + "Put"](NAMESPACE, message)
    assert prefixed == PutRequest(key=b"t/b").SerializeToString()


def test_fields_that_are_not_known_do_not_pass() -> None:
    unknown = b"\xfa\x07\x03u/k"  # field 127
    request = PutRequest(key=b"k", prev_kv=True)
    prefixed, strip = UNARY[KV + "Put"](NAMESPACE, request.SerializeToString() + unknown)
    assert prefixed == PutRequest(key=b"t/k", prev_kv=True).SerializeToString()
    assert strip is not None
    reply = PutResponse(header=HEADER).SerializeToString()
    assert strip(NAMESPACE, reply + unknown) == reply


def test_G8_what_is_no_message() -> None:
    with pytest.raises(ApiError) as raised:
        UNARY[KV + "Put"](NAMESPACE, b"\x0a\x7f")
    assert raised.value.status.code == Code.INTERNAL
    assert raised.value.status.message.startswith("grpc: error unmarshalling request: ")


def test_a_key_of_others_in_a_reply_is_never_passed_on() -> None:
    with pytest.raises(ForeignKeyError):
        inwards(KV + "Range", RangeRequest(key=b"k"), RangeResponse(kvs=[{"key": b"t/k"}, {"key": b"u/k"}]))


def test_RS6_range_stream() -> None:
    path = KV + "RangeStream"
    request = RangeRequest(key=b"\0", range_end=b"\0")
    assert outwards(path, request) == RangeRequest(key=b"t/\0", range_end=b"t0")
    part = RangeStreamResponse(range_response={"kvs": [{"key": b"t/k", "value": b"v"}]})
    assert inwards(path, request, part) == RangeStreamResponse(range_response={"kvs": [{"key": b"k", "value": b"v"}]})


def test_watch_requests() -> None:
    create = WatchRequest(create_request=WatchCreateRequest(key=b"k", range_end=b"\0", start_revision=5, watch_id=3))
    prefix_watch(NAMESPACE, create)
    assert create == WatchRequest(
        create_request=WatchCreateRequest(key=b"t/k", range_end=b"t0", start_revision=5, watch_id=3)
    )
    for other in (WatchRequest(cancel_request=WatchCancelRequest(watch_id=3)), WatchRequest(progress_request={})):
        unchanged = WatchRequest()
        unchanged.CopyFrom(other)
        prefix_watch(NAMESPACE, other)
        assert other == unchanged


def test_watch_replies() -> None:
    def reply(key: bytes) -> WatchResponse:
        put = Event(kv={"key": key, "value": b"2"}, prev_kv={"key": key, "value": b"1"})
        return WatchResponse(
            header=HEADER, watch_id=3, events=[put, Event(type=Event.DELETE, kv={"key": key}), Event(kv={"key": key})]
        )

    assert WatchResponse.FromString(strip_watch_bytes(NAMESPACE, reply(b"t/k").SerializeToString())) == reply(b"k")
    created = WatchResponse(header=HEADER, created=True)
    assert WatchResponse.FromString(strip_watch_bytes(NAMESPACE, created.SerializeToString())) == created


def test_the_keys_of_a_lease() -> None:
    path = "/etcdserverpb.Lease/LeaseTimeToLive"
    ask = LeaseTimeToLiveRequest(ID=7, keys=True)
    assert outwards(path, ask) == ask
    held = LeaseTimeToLiveResponse(header=HEADER, ID=7, TTL=3, grantedTTL=5, keys=[b"t/a", b"u/b", b"t/", b"t/c"])
    assert inwards(path, ask, held) == LeaseTimeToLiveResponse(
        header=HEADER, ID=7, TTL=3, grantedTTL=5, keys=[b"a", b"c"]
    )
    assert has_foreign_keys(NAMESPACE, held)
    assert not has_foreign_keys(NAMESPACE, LeaseTimeToLiveResponse(keys=[b"t/a"]))
    assert has_foreign_keys(NAMESPACE, LeaseTimeToLiveResponse(keys=[b"t/a", b"t/"]))
    assert UNARY[path](NAMESPACE, LeaseTimeToLiveRequest(ID=7).SerializeToString())[1] is None


def test_locks() -> None:
    assert outwards(LOCK + "Lock", LockRequest(name=b"n", lease=7)) == LockRequest(name=b"t/n", lease=7)
    assert outwards(LOCK + "Lock", LockRequest()) == LockRequest(name=b"t/")  # LE1: the key will be t//…
    assert inwards(LOCK + "Lock", LockRequest(name=b"n"), LockResponse(header=HEADER, key=b"t/n/7")) == LockResponse(
        header=HEADER, key=b"n/7"
    )
    assert outwards(LOCK + "Unlock", UnlockRequest(key=b"n/7")) == UnlockRequest(key=b"t/n/7")
    assert outwards(LOCK + "Unlock", UnlockRequest()) == UnlockRequest()  # LE11


def test_elections() -> None:
    assert outwards(ELECTION + "Campaign", CampaignRequest(name=b"n", value=b"v")) == CampaignRequest(
        name=b"t/n", value=b"v"
    )
    inside, whole = (
        LeaderKey(name=b"n", key=b"n/7", rev=3, lease=7),
        LeaderKey(name=b"t/n", key=b"t/n/7", rev=3, lease=7),
    )
    assert inwards(
        ELECTION + "Campaign", CampaignRequest(name=b"n"), CampaignResponse(header=HEADER, leader=whole)
    ) == CampaignResponse(header=HEADER, leader=inside)
    assert outwards(ELECTION + "Proclaim", ProclaimRequest(leader=inside, value=b"v")) == ProclaimRequest(
        leader=whole, value=b"v"
    )
    assert outwards(ELECTION + "Resign", ResignRequest(leader=inside)) == ResignRequest(leader=whole)
    for path, missing in (("Proclaim", ProclaimRequest(value=b"v")), ("Resign", ResignRequest())):
        assert outwards(ELECTION + path, missing) == missing  # LE19
    for path in ("Leader", "Observe"):
        assert outwards(ELECTION + path, LeaderRequest(name=b"n")) == LeaderRequest(name=b"t/n")
        found = LeaderResponse(header=HEADER, kv=KeyValue(key=b"t/n/7", value=b"v"))
        assert inwards(ELECTION + path, LeaderRequest(name=b"n"), found) == LeaderResponse(
            header=HEADER, kv=KeyValue(key=b"n/7", value=b"v")
        )


def test_permissions() -> None:
    grant = AuthRoleGrantPermissionRequest(name="r", perm=Permission(permType="WRITE", key=b"a", range_end=b"\0"))
    assert outwards(AUTH + "RoleGrantPermission", grant) == AuthRoleGrantPermissionRequest(
        name="r", perm=Permission(permType="WRITE", key=b"t/a", range_end=b"t0")
    )
    without = AuthRoleGrantPermissionRequest(name="r")
    assert outwards(AUTH + "RoleGrantPermission", without) == without  # A41
    assert outwards(
        AUTH + "RoleRevokePermission", AuthRoleRevokePermissionRequest(role="r", key=b"a", range_end=b"c")
    ) == AuthRoleRevokePermissionRequest(role="r", key=b"t/a", range_end=b"t/c")
    whole = AuthRoleGetResponse(
        header=HEADER,
        perm=[
            Permission(permType="READ", key=b"a", range_end=b"c"),
            Permission(permType="WRITE", key=b"t/a"),
            Permission(key=b"s", range_end=b"t/m"),
            Permission(key=b"u/a", range_end=b"\0"),
        ],
    )
    assert inwards(AUTH + "RoleGet", AuthRoleGetRequest(role="r"), whole) == AuthRoleGetResponse(
        header=HEADER, perm=[Permission(permType="WRITE", key=b"a"), Permission(key=b"\0", range_end=b"m")]
    )
