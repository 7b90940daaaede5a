"""kvorum's proxy before the reference: services that need more of a member than keys."""

import hashlib
import threading
from collections.abc import Iterator

import pytest

from kvorum import errors
from kvorum.errors import ApiError
from kvorum.pb.election_pb2 import CampaignRequest, LeaderRequest, ResignRequest
from kvorum.pb.lock_pb2 import LockRequest, UnlockRequest
from kvorum.pb.rpc_pb2 import (
    AuthDisableRequest,
    AuthEnableRequest,
    AuthenticateRequest,
    AuthRoleAddRequest,
    AuthRoleGrantPermissionRequest,
    AuthUserAddRequest,
    AuthUserGrantRoleRequest,
    LeaseGrantRequest,
    LeaseRevokeRequest,
    PutRequest,
    RangeRequest,
    SnapshotRequest,
)
from loadtest.launcher import Server
from tests.calls import Api
from tests.servers import start_proxy


@pytest.fixture(scope="module")
def proxy(reference_server: Server) -> Iterator[Server]:
    with start_proxy([reference_server.address]) as server:
        yield server


def test_a_lock_is_waited_for_and_given_up_by_those_who_leave(
    proxy: Server, api: Api, reference_server: Server
) -> None:
    first, second, third = (api(LeaseGrantRequest(TTL=60)).ID for _ in range(3))
    held = api(LockRequest(name=b"lock", lease=first))
    got: list[bytes] = []

    def wait_for_it() -> None:
        with Api(proxy.address) as other:
            got.append(other(LockRequest(name=b"lock", lease=third)).key)

    with pytest.raises(ApiError, match=r"[Dd]eadline"):
        api(LockRequest(name=b"lock", lease=second), timeout_s=0.5)
    waiting = threading.Thread(target=wait_for_it)
    waiting.start()
    try:
        assert not got
        api(UnlockRequest(key=held.key))
    finally:
        waiting.join(30.0)
    assert got == [b"lock/%x" % third], "the one that left is not in the way"
    for lease in (first, second, third):
        api(LeaseRevokeRequest(ID=lease))


def test_an_election(api: Api) -> None:
    lease = api(LeaseGrantRequest(TTL=60)).ID
    won = api(CampaignRequest(name=b"election", lease=lease, value=b"me"))
    assert api(LeaderRequest(name=b"election")).kv.value == b"me"
    api(ResignRequest(leader=won.leader))
    assert api.status(LeaderRequest(name=b"election")).message == "election: no leader"


def test_a_snapshot_comes_whole(api: Api) -> None:
    for n in range(20):
        api(PutRequest(key=b"snapshot/%d" % n, value=b"%d" % n * 10_000))
    parts = list(api.stream(SnapshotRequest()))
    database = b"".join(part.blob for part in parts)
    assert parts[-1].remaining_bytes == 0
    assert hashlib.sha256(database[:-32]).digest() == database[-32:]


def test_each_caller_has_its_own_token(api: Api, proxy: Server) -> None:
    api(AuthRoleAddRequest(name="root"))
    api(AuthUserAddRequest(name="root", password="r"))
    api(AuthUserGrantRoleRequest(user="root", role="root"))
    api(AuthRoleAddRequest(name="few"))
    api(
        AuthRoleGrantPermissionRequest(name="few", perm={"permType": "READWRITE", "key": b"few/", "range_end": b"few0"})
    )
    api(AuthUserAddRequest(name="user", password="u"))
    api(AuthUserGrantRoleRequest(user="user", role="few"))
    api(AuthEnableRequest())
    root = (("token", api(AuthenticateRequest(name="root", password="r")).token),)
    try:
        user = (("token", api(AuthenticateRequest(name="user", password="u")).token),)
        assert api.status(PutRequest(key=b"few/a")) == errors.USER_EMPTY
        api(PutRequest(key=b"few/a", value=b"1"), metadata=user)
        assert api.status(PutRequest(key=b"many/a"), metadata=user) == errors.PERMISSION_DENIED
        api(PutRequest(key=b"many/a"), metadata=root)
        # What is kept for one caller is not shown to another.
        read = RangeRequest(key=b"many/a", serializable=True)
        assert len(api(read, metadata=root).kvs) == 1
        assert len(api(read, metadata=root).kvs) == 1
        assert api.status(read, metadata=user) == errors.PERMISSION_DENIED
        assert api.status(read) == errors.USER_EMPTY
        assert api.status(read, metadata=(("token", "wrong.1"),)) == errors.INVALID_AUTH_TOKEN
    finally:
        api(AuthDisableRequest(), metadata=root)
