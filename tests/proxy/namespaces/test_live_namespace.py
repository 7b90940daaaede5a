"""`--namespace` in front of members: only the keys under the prefix are there, and under their short names."""

import os
from collections.abc import Iterator

import pytest

from kvorum import errors
from kvorum.pb.auth_pb2 import Permission
from kvorum.pb.election_pb2 import CampaignRequest, LeaderRequest, ProclaimRequest, ResignRequest
from kvorum.pb.lock_pb2 import LockRequest, UnlockRequest
from kvorum.pb.rpc_pb2 import (
    AuthRoleAddRequest,
    AuthRoleGetRequest,
    AuthRoleGrantPermissionRequest,
    AuthRoleRevokePermissionRequest,
    DeleteRangeRequest,
    LeaseGrantRequest,
    LeaseTimeToLiveRequest,
    PutRequest,
    RangeRequest,
    TxnRequest,
)
from loadtest.launcher import Server
from tests.calls import Api
from tests.servers import start_proxy


@pytest.fixture(scope="module")
def namespaced(kvorum_server: Server) -> Iterator[Api]:
    """A connection to a proxy with a namespace, in front of kvorum."""
    with start_proxy([kvorum_server.address], {"namespace": "live/"}) as proxy, Api(proxy.address) as api:
        yield api


@pytest.fixture(scope="module")
def namespaced_reference(reference_server: Server) -> Iterator[Api]:
    """The same in front of the reference, which serves what kvorum does not serve yet."""
    with start_proxy([reference_server.address], {"namespace": "live/"}) as proxy, Api(proxy.address) as api:
        yield api


def test_PX22_keys_are_prefixed_and_stripped(namespaced: Api, direct: Api) -> None:
    direct(PutRequest(key=b"live0", value=b"behind"))
    direct(PutRequest(key=b"live.", value=b"before"))
    put = namespaced(PutRequest(key=b"a", value=b"1"))
    assert direct(RangeRequest(key=b"live/a")).kvs[0].mod_revision == put.header.revision
    assert [kv.key for kv in namespaced(RangeRequest(key=b"\0", range_end=b"\0")).kvs] == [b"a"]
    assert namespaced(PutRequest(key=b"a", value=b"2", prev_kv=True)).prev_kv.key == b"a"
    found = namespaced(
        TxnRequest(
            compare=[{"key": b"a", "range_end": b"\0", "target": "VALUE", "value": b"2"}],
            success=[{"request_range": RangeRequest(key=b"a")}],
        )
    )
    assert found.succeeded
    assert found.responses[0].response_range.kvs[0].key == b"a"
    assert [part.range_response.kvs[0].key for part in namespaced.stream(RangeRequest(key=b"a"))] == [b"a"]
    deleted = namespaced(DeleteRangeRequest(key=b"\0", range_end=b"\0", prev_kv=True))
    assert [kv.key for kv in deleted.prev_kvs] == [b"a"]
    assert direct(RangeRequest(key=b"live.", range_end=b"live1")).count == 2


def test_a_prefix_may_have_any_bytes(kvorum_server: Server, direct: Api) -> None:
    with (
        start_proxy([kvorum_server.address], {"namespace": os.fsdecode(b"\xff\xfe")}) as proxy,
        Api(proxy.address) as api,
    ):
        direct(PutRequest(key=b"\xff\xffbehind"))
        api(PutRequest(key=b"\xffa"))
        assert direct(RangeRequest(key=b"\xff\xfe\xffa")).count == 1
        assert [kv.key for kv in api(RangeRequest(key=b"\0", range_end=b"\0")).kvs] == [b"\xffa"]


def test_P7_an_empty_key_is_the_server_s_to_refuse(namespaced: Api) -> None:
    for request in (
        RangeRequest(range_end=b"\0"),
        PutRequest(value=b"v"),
        DeleteRangeRequest(range_end=b"\0"),
        TxnRequest(compare=[{"range_end": b"\0"}]),
    ):
        assert namespaced.status(request) == errors.EMPTY_KEY


def test_the_keys_of_a_lease(namespaced: Api, direct: Api) -> None:
    lease = namespaced(LeaseGrantRequest(TTL=60)).ID
    direct(PutRequest(key=b"other", lease=lease))
    namespaced(PutRequest(key=b"leased", lease=lease))
    assert list(namespaced(LeaseTimeToLiveRequest(ID=lease, keys=True)).keys) == [b"leased"]


def test_LE22_locks_and_elections_are_within_the_namespace(namespaced_reference: Api, reference_server: Server) -> None:
    api = namespaced_reference
    lock = api(LockRequest(name=b"lock"))
    assert lock.key.startswith(b"lock/")
    leader = api(CampaignRequest(name=b"election", value=b"1")).leader
    assert leader.name == b"election"
    assert leader.key.startswith(b"election/")
    with Api(reference_server.address) as direct:
        keys = [kv.key for kv in direct(RangeRequest(key=b"live/", range_end=b"live0")).kvs]
        assert keys == [b"live/" + leader.key, b"live/" + lock.key]
    api(ProclaimRequest(leader=leader, value=b"2"))
    assert (api(LeaderRequest(name=b"election")).kv.key, api(LeaderRequest(name=b"election")).kv.value) == (
        leader.key,
        b"2",
    )
    assert next(api.stream(LeaderRequest(name=b"election"))).kv.key == leader.key
    api(ResignRequest(leader=leader))
    api(UnlockRequest(key=lock.key))
    assert not api(RangeRequest(key=b"\0", range_end=b"\0")).kvs


def test_permissions_of_a_role(namespaced_reference: Api, reference_server: Server) -> None:
    api = namespaced_reference
    api(AuthRoleAddRequest(name="live-role"))
    api(AuthRoleGrantPermissionRequest(name="live-role", perm=Permission(key=b"a", range_end=b"\0")))
    with Api(reference_server.address) as direct:
        assert list(direct(AuthRoleGetRequest(role="live-role")).perm) == [
            Permission(key=b"live/a", range_end=b"live0")
        ]
        direct(AuthRoleGrantPermissionRequest(name="live-role", perm=Permission(key=b"other")))
    assert list(api(AuthRoleGetRequest(role="live-role")).perm) == [Permission(key=b"a", range_end=b"\0")]
    api(AuthRoleRevokePermissionRequest(role="live-role", key=b"a", range_end=b"\0"))
    assert not api(AuthRoleGetRequest(role="live-role")).perm
