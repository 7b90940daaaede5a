"""What tenants of one proxy share: the ids of leases, and revisions with their compaction."""

from collections.abc import Iterator

import pytest

from kvorum import errors
from kvorum.pb.mvcc_pb2 import Event
from kvorum.pb.rpc_pb2 import (
    CompactionRequest,
    DeleteRangeRequest,
    LeaseGrantRequest,
    LeaseKeepAliveRequest,
    LeaseRevokeRequest,
    LeaseTimeToLiveRequest,
    PutRequest,
    RangeRequest,
    WatchCreateRequest,
    WatchRequest,
    WatchResponse,
)
from loadtest.launcher import Server
from tests.calls import Api, WatchStream
from tests.servers import start_proxy

FILE = """
tenants:
  - {name: alpha, namespace: shared/alpha/, authorities: [alpha.test]}
  - {name: beta, namespace: shared/beta/, authorities: [beta.test]}
"""


@pytest.fixture(scope="module")
def shared(kvorum_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tmp_path_factory.mktemp("shared") / "tenants.yaml"
    path.write_text(FILE)
    with start_proxy([kvorum_server.address], {"namespaces-file": str(path)}) as proxy:
        yield proxy


@pytest.fixture
def alpha(shared: Server) -> Iterator[Api]:
    with Api(shared.address, authority="alpha.test:2379") as api:
        api(DeleteRangeRequest(key=b"\0", range_end=b"\0"))
        yield api


@pytest.fixture
def beta(shared: Server) -> Iterator[Api]:
    with Api(shared.address, authority="beta.test:2379") as api:
        api(DeleteRangeRequest(key=b"\0", range_end=b"\0"))
        yield api


def keys_of(api: Api, lease: int) -> list[bytes]:
    return sorted(api(LeaseTimeToLiveRequest(ID=lease, keys=True)).keys)


def keys(api: Api) -> list[bytes]:
    return [kv.key for kv in api(RangeRequest(key=b"\0", range_end=b"\0")).kvs]


def watch_everything(stream: WatchStream, start_revision: int = 0) -> None:
    """The stream's first watcher."""
    create = WatchCreateRequest(range_end=b"\0", start_revision=start_revision)
    stream.send(WatchRequest(create_request=create))
    stream.wait(lambda replies: [reply for reply in replies if reply.created])


def test_a_lease_with_keys_of_others_is_not_revoked(alpha: Api, beta: Api, direct: Api) -> None:
    lease = alpha(LeaseGrantRequest(TTL=600)).ID
    alpha(PutRequest(key=b"leased", lease=lease))
    assert beta.status(LeaseRevokeRequest(ID=lease)) == errors.PERMISSION_DENIED
    assert not keys_of(beta, lease)
    assert direct(RangeRequest(key=b"shared/alpha/leased")).count == 1
    alpha(LeaseRevokeRequest(ID=lease))
    assert alpha(RangeRequest(key=b"leased")).count == 0
    assert alpha.status(LeaseRevokeRequest(ID=lease)) == errors.LEASE_NOT_FOUND


def test_a_revoke_deletes_the_keys_of_that_lease_and_no_others(alpha: Api, beta: Api) -> None:
    leases = [api(LeaseGrantRequest(TTL=600)).ID for api in (alpha, beta)]
    for api, lease in zip((alpha, beta), leases, strict=True):
        api(PutRequest(key=b"free"))
        api(PutRequest(key=b"leased", lease=lease))
    alpha(LeaseRevokeRequest(ID=leases[0]))
    assert (keys(alpha), keys(beta)) == ([b"free"], [b"free", b"leased"])
    assert keys_of(beta, leases[1]) == [b"leased"]


def test_who_is_told_the_id_of_a_lease_can_use_it_and_each_sees_its_own_keys(
    alpha: Api, beta: Api, direct: Api
) -> None:
    lease = alpha(LeaseGrantRequest(TTL=600)).ID
    for api, names in ((alpha, (b"both", b"mine")), (beta, (b"both", b"of beta"))):
        for name in names:
            api(PutRequest(key=name, lease=lease))
    with beta.keep_alive() as stream:
        stream.send(LeaseKeepAliveRequest(ID=lease))
        assert stream.wait(lambda replies: replies)[0].TTL == 600
    assert keys_of(alpha, lease) == [b"both", b"mine"]
    assert keys_of(beta, lease) == [b"both", b"of beta"]
    assert keys_of(direct, lease) == [
        b"shared/alpha/both",
        b"shared/alpha/mine",
        b"shared/beta/both",
        b"shared/beta/of beta",
    ]
    for api in (alpha, beta):
        assert api.status(LeaseRevokeRequest(ID=lease)) == errors.PERMISSION_DENIED
    assert (keys(alpha), keys(beta)) == ([b"both", b"mine"], [b"both", b"of beta"])
    beta(PutRequest(key=b"both"))  # without the lease
    beta(DeleteRangeRequest(key=b"of beta"))
    alpha(LeaseRevokeRequest(ID=lease))
    assert (keys(alpha), keys(beta)) == ([], [b"both"])


def test_a_lease_that_two_use_ends_by_its_time(alpha: Api, beta: Api) -> None:
    lease = alpha(LeaseGrantRequest(TTL=2)).ID
    with alpha.watch() as of_alpha, beta.watch() as of_beta:
        for api, stream, name in ((alpha, of_alpha, b"a"), (beta, of_beta, b"b")):
            watch_everything(stream)
            api(PutRequest(key=name, lease=lease))
        for stream, name in ((of_alpha, b"a"), (of_beta, b"b")):

            def put_and_deleted(replies: list[WatchResponse]) -> list[Event]:
                events = [event for reply in replies for event in reply.events]
                return events if len(events) >= 2 else []

            events = stream.wait(put_and_deleted)
            assert [(event.type, event.kv.key) for event in events] == [(Event.PUT, name), (Event.DELETE, name)]
    assert [api(LeaseTimeToLiveRequest(ID=lease)).TTL for api in (alpha, beta)] == [-1, -1]


def test_a_lease_with_the_key_that_the_namespace_begins_with_is_not_revoked(alpha: Api, direct: Api) -> None:
    """That key has no name inside, so it is nobody's but an administrator's."""
    lease = alpha(LeaseGrantRequest(TTL=600)).ID
    direct(PutRequest(key=b"shared/alpha/", lease=lease))
    assert not keys_of(alpha, lease)
    assert alpha.status(LeaseRevokeRequest(ID=lease)) == errors.PERMISSION_DENIED
    assert direct(DeleteRangeRequest(key=b"shared/alpha/")).deleted == 1
    alpha(LeaseRevokeRequest(ID=lease))


def test_ids_that_tenants_choose_may_meet(alpha: Api, beta: Api) -> None:
    grant = LeaseGrantRequest(TTL=600, ID=271_828)
    alpha(grant)
    assert beta.status(grant) == errors.LEASE_EXIST
    assert beta(LeaseTimeToLiveRequest(ID=grant.ID)).grantedTTL == 600
    alpha(LeaseRevokeRequest(ID=grant.ID))
    assert beta(grant).ID == grant.ID
    beta(LeaseRevokeRequest(ID=grant.ID))


def test_a_compaction_is_everybody_s_and_takes_nobody_s_keys(alpha: Api, beta: Api, direct: Api) -> None:
    with alpha.watch() as of_alpha, beta.watch() as of_beta:
        streams = ((alpha, of_alpha), (beta, of_beta))
        for _, stream in streams:
            watch_everything(stream)
        old = [api(PutRequest(key=b"k", value=b"old")).header.revision for api in (alpha, beta)]
        at = [api(PutRequest(key=b"k", value=b"new")).header.revision for api in (alpha, beta)][-1]
        pasts = [RangeRequest(key=b"k", revision=revision, serializable=True) for revision in old]
        for (api, _), past in zip(streams, pasts, strict=True):
            assert api(past).kvs[0].value == b"old"
        direct(CompactionRequest(revision=at, physical=True))
        for (api, stream), past in zip(streams, pasts, strict=True):
            assert api(RangeRequest(key=b"k", revision=at)).kvs[0].value == b"new"
            linearizable = RangeRequest(key=b"k", revision=past.revision)
            # The first is told by a member; from then on no other answer comes from the proxy's cache.
            assert [api.status(read) for read in (linearizable, past)] == [errors.COMPACTED] * 2
            api(PutRequest(key=b"k", value=b"newest"))

            def three(replies: list[WatchResponse]) -> list[Event]:
                events = [event for reply in replies for event in reply.events]
                return events if len(events) == 3 else []

            assert [event.kv.value for event in stream.wait(three)] == [b"old", b"new", b"newest"]
            with api.watch() as late:
                watch_everything(late, old[0] - 1)
                canceled = late.wait(lambda replies: [reply for reply in replies if reply.canceled])[0]
                assert canceled.compact_revision == at
