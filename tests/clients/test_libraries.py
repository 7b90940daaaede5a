"""Client libraries: grpcio with all four kinds of call, and the Rust client under etcd-client-py."""

import asyncio

import etcd_client
import pytest

from kvorum.pb.rpc_pb2 import (
    LeaseGrantRequest,
    LeaseKeepAliveRequest,
    LeaseLeasesRequest,
    LeaseTimeToLiveRequest,
    PutRequest,
    RangeRequest,
    SnapshotRequest,
    WatchCreateRequest,
    WatchRequest,
)
from loadtest.launcher import Kind, Server
from tests.calls import Api
from tests.servers import SUBJECT

DEADLINE_S = 30.0


def test_grpcio_unary(api: Api) -> None:
    at = api(PutRequest(key=b"unary", value=b"1")).header.revision
    assert api(RangeRequest(key=b"unary")).kvs[0].mod_revision == at


def test_grpcio_server_stream(api: Api) -> None:
    assert sum(len(part.blob) for part in api.stream(SnapshotRequest())) % 512 == 32


def test_grpcio_server_stream_of_a_range(server: Server, api: Api) -> None:
    if Kind.REFERENCE in (server.kind, SUBJECT):
        pytest.skip("RangeStream is newer than the reference")
    for number in range(100):
        api(PutRequest(key=b"stream/%03d" % number))
    parts = list(api.stream(RangeRequest(key=b"stream/", range_end=b"stream0")))
    assert len(parts) > 1
    assert [kv.key for part in parts for kv in part.range_response.kvs] == [b"stream/%03d" % n for n in range(100)]


def test_grpcio_bidirectional_watch(api: Api) -> None:
    with api.watch() as stream:
        for watch_id in (1, 2):
            stream.send(WatchRequest(create_request=WatchCreateRequest(key=b"bidi", watch_id=watch_id)))
        stream.wait(lambda replies: len(replies) == 2)
        at = api(PutRequest(key=b"bidi")).header.revision
        stream.wait(lambda replies: len(replies) == 4)
        assert {(reply.watch_id, reply.header.revision) for reply in stream.replies[2:]} == {(1, at), (2, at)}


def test_grpcio_bidirectional_keep_alive(api: Api) -> None:
    lease = api(LeaseGrantRequest(TTL=600)).ID
    with api.keep_alive() as stream:
        for count in (1, 2, 3):
            stream.send(LeaseKeepAliveRequest(ID=lease))
            assert stream.wait(lambda replies, count=count: len(replies) == count and replies[-1]).TTL == 600  # type: ignore[misc]


def rust(server: Server) -> etcd_client.Client:
    return etcd_client.Client([f"http://{server.address}"])


def test_rust_client_reads_and_writes(server: Server) -> None:
    async def scenario() -> None:
        async with rust(server).connect() as etcd:
            assert await etcd.get(b"rust/none") is None
            for name in (b"a", b"b", b"c"):
                await etcd.put(b"rust/" + name, name)
            assert bytes(await etcd.get(b"rust/a")) == b"a"
            found = await etcd.get_prefix(b"rust/")
            assert [(bytes(key), bytes(value)) for key, value in found] == [
                (b"rust/a", b"a"),
                (b"rust/b", b"b"),
                (b"rust/c", b"c"),
            ]
            assert [bytes(key) for key in await etcd.keys_prefix(b"rust/")] == [b"rust/a", b"rust/b", b"rust/c"]
            await etcd.delete(b"rust/a")
            await etcd.delete_prefix(b"rust/")
            assert await etcd.get_prefix(b"rust/") == []

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))


def test_rust_client_transactions(server: Server) -> None:
    async def scenario() -> None:
        async with rust(server).connect() as etcd:
            await etcd.put(b"rust/txn", b"1")
            compare = etcd_client.Compare.value(b"rust/txn", etcd_client.CompareOp.EQUAL, b"1")
            txn = etcd_client.Txn().when([compare]).and_then([etcd_client.TxnOp.put(b"rust/txn", b"2")])
            assert (await etcd.txn(txn)).succeeded()
            assert not (await etcd.txn(txn)).succeeded()
            assert bytes(await etcd.get(b"rust/txn")) == b"2"

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))


def test_rust_client_leases(server: Server, api: Api) -> None:
    async def scenario() -> None:
        async with rust(server).connect() as etcd:
            before = {lease.ID for lease in api(LeaseLeasesRequest()).leases}
            await etcd.lease_grant(600)  # this client does not tell the id
            (lease,) = {lease.ID for lease in api(LeaseLeasesRequest()).leases} - before
            api(PutRequest(key=b"rust/lease", lease=lease))
            await etcd.lease_keep_alive(lease)
            assert api(LeaseTimeToLiveRequest(ID=lease)).grantedTTL == 600
            await etcd.lease_revoke(lease)
            assert await etcd.get(b"rust/lease") is None

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))


def test_rust_client_watches(server: Server, api: Api) -> None:
    async def scenario() -> None:
        async with rust(server).connect() as etcd:
            seen = []
            began = asyncio.Event()

            async def watch() -> None:
                async for event in etcd.watch_prefix(b"rust/watch"):
                    if bytes(event.key) == b"rust/watch/mark":
                        began.set()
                    else:
                        seen.append((event.event, bytes(event.key), bytes(event.value)))
                    if len(seen) == 3:
                        return

            watching = asyncio.create_task(watch())
            while not began.is_set():  # the client does not tell when its watcher has been created
                await etcd.put(b"rust/watch/mark", b"")
                await asyncio.sleep(0)
            await etcd.put(b"rust/watch/a", b"1")
            await etcd.put(b"rust/watch/a", b"2")
            await etcd.delete(b"rust/watch/a")
            await watching
            kind = etcd_client.WatchEventType
            assert seen == [
                (kind.PUT, b"rust/watch/a", b"1"),
                (kind.PUT, b"rust/watch/a", b"2"),
                (kind.DELETE, b"rust/watch/a", b""),
            ]

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))


def test_rust_client_locks_one_at_a_time(server: Server) -> None:
    async def scenario() -> None:
        holders = 0
        most = 0

        async def hold() -> None:
            nonlocal holders, most
            async with rust(server).with_lock(etcd_client.EtcdLockOption(lock_name=b"rust/lock")) as etcd:
                holders += 1
                most = max(most, holders)
                await etcd.put(b"rust/held", b"1")
                holders -= 1

        await asyncio.gather(*(hold() for _ in range(4)))
        assert most == 1

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))


def test_rust_client_maps_errors(server: Server) -> None:
    async def scenario() -> None:
        async with rust(server).connect() as etcd:
            with pytest.raises(etcd_client.GRPCStatusError) as refused:
                await etcd.put(b"", b"1")
            assert "etcdserver: key is not provided" in str(refused.value)

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))
