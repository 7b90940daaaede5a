"""A full disk ends nothing: what was acknowledged stays, reads go on, writes are refused by the API's error.

And when there is room again, the member goes on by itself; only the alarm has to be disarmed (MA14).
"""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvorum import errors
from kvorum.errors import ApiError
from kvorum.pb.rpc_pb2 import (
    AlarmRequest,
    AlarmType,
    CompactionRequest,
    DefragmentRequest,
    DeleteRangeRequest,
    PutRequest,
    RangeRequest,
    StatusRequest,
)
from kvorum.ranges import end_of_prefix
from loadtest import processes
from loadtest.cluster import Cluster
from loadtest.launcher import READY_TIMEOUT_S, Kind, Server, wait_until
from node.raft.wal.segment import SEGMENT_BYTES
from tests.calls import OK, Api
from tests.crash.small_disk import ServerOnDisk, SmallDisk, on_small_disk
from tests.servers import start_kvorum

MIB = 1 << 20
VALUE = bytes(100_000)


def alarms(api: Api) -> list[tuple[int, int]]:
    reply = api(AlarmRequest(action=AlarmRequest.GET))
    return [(alarm.memberID, alarm.alarm) for alarm in reply.alarms]


def disarm(api: Api) -> bool:
    for member, type_ in alarms(api):
        request = AlarmRequest(action=AlarmRequest.DEACTIVATE, memberID=member)
        request.alarm = AlarmType.Name(type_)  # type: ignore[assignment]
        api(request)
    return True


def put_until_refused(api: Api, prefix: bytes, most: int = 3000) -> list[bytes]:
    """The keys whose puts were acknowledged before one was refused with NoSpace."""
    stored: list[bytes] = []
    while len(stored) < most:
        key = prefix + b"%06d" % len(stored)
        try:
            api(PutRequest(key=key, value=VALUE))
        except ApiError as error:
            assert error.status == errors.NO_SPACE
            return stored
        stored.append(key)
    raise AssertionError(f"{most} puts of {len(VALUE)} bytes were not refused")


def keys(api: Api, prefix: bytes) -> list[bytes]:
    end = end_of_prefix(prefix)
    return [kv.key for kv in api(RangeRequest(key=prefix, range_end=end, keys_only=True)).kvs]


def is_refused(api: Api) -> bool:
    try:
        api(PutRequest(key=b"probe"))
    except ApiError as error:
        assert error.status == errors.NO_SPACE
        return True
    return False


class Unharmed:
    """No process of the member ends while this is open."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._processes = processes.tree(server.pid)

    def check(self) -> None:
        assert processes.tree(self._server.pid) == self._processes
        assert self._server.ready_count() == 1


@pytest.fixture
def roomy(tmp_path: Path) -> Iterator[tuple[SmallDisk, ServerOnDisk]]:
    """Room for two segments of the log and 60 MiB."""
    with on_small_disk(tmp_path, 188 * MIB) as (disk, server):
        disk.settle(2 * SEGMENT_BYTES)
        yield disk, server


def test_a_disk_filled_by_puts(roomy: tuple[SmallDisk, ServerOnDisk]) -> None:
    disk, server = roomy
    unharmed = Unharmed(server)
    with Api(server.address) as api:
        member = api(StatusRequest()).header.member_id
        disk.fill(leave_bytes=40 * MIB)
        stored = put_until_refused(api, b"a")
        assert len(stored) > 20
        assert alarms(api) == [(member, AlarmType.NOSPACE)]
        assert api(StatusRequest()).errors == [f"memberID:{member} alarm:NOSPACE"]
        assert keys(api, b"a") == stored, "reads go on"
        api(DeleteRangeRequest(key=stored[-1]))
        disk.fill()
        assert keys(api, b"a") == stored[:-1]
        disk.release()
        assert is_refused(api), "MA14: until disarmed, even with space free"
        disarm(api)
        api(PutRequest(key=b"b", value=VALUE))
        unharmed.check()
        server.restart()
    with Api(server.address) as api:
        assert keys(api, b"a") == stored[:-1]
        assert api(RangeRequest(key=b"b")).kvs[0].value == VALUE
        assert alarms(api) == []


def test_a_database_that_could_not_flush_goes_on_when_there_is_room(roomy: tuple[SmallDisk, ServerOnDisk]) -> None:
    """RocksDB refuses every write after a failed flush, and resumes by itself within seconds of there being room."""
    disk, server = roomy
    unharmed = Unharmed(server)
    with Api(server.address) as api, ThreadPoolExecutor(1) as pool:
        for number in range(20):
            api(PutRequest(key=b"a%02d" % number, value=VALUE))
        disk.fill()
        with pytest.raises(ApiError, match="No space left on device"):
            api(DefragmentRequest())
        deleted = pool.submit(api, DeleteRangeRequest(key=b"a00"))
        wait_until(lambda: server.logged("cannot write to the database, trying again") > 0, "a refused write")
        assert len(keys(api, b"a")) in (19, 20), "reads go on"
        assert not deleted.done(), "what the log has accepted is neither lost nor answered before it is written"
        disk.release()
        assert deleted.result(30).deleted == 1
        assert len(keys(api, b"a")) == 19
        wait_until(lambda: disarm(api) and not is_refused(api), "writes to be accepted again")
        unharmed.check()
        server.kill()
        server.start()
    with Api(server.address) as api:
        assert len(keys(api, b"a")) == 19


def test_a_log_without_room_for_a_segment_refuses(tmp_path: Path) -> None:
    """Its one segment holds 64 MiB. Also what apply itself proposes (the alarm) is refused, and proposed again."""
    with on_small_disk(tmp_path, 100 * MIB) as (disk, server):
        unharmed = Unharmed(server)
        with Api(server.address) as api:
            api(PutRequest(key=b"a", value=b"1"))
            logged_bytes = 0
            for size_bytes in (1_400_000, 100_000, 5_000, 500, 50, 1):  # such requests need room in the log alone
                while (status := api.status(DeleteRangeRequest(key=b"n" * size_bytes))) == OK:
                    logged_bytes += size_bytes
                assert status == errors.NO_SPACE
            assert 60 * MIB < logged_bytes < 64 * MIB
            disk.fill()
            wait_until(lambda: server.logged("raising the NOSPACE alarm") > 1, "the alarm to be proposed twice")
            assert api(RangeRequest(key=b"a")).kvs[0].value == b"1"
            unharmed.check()
            server.kill()
            disk.release()
            server.launch()
            wait_until(lambda: server.logged("there is no room for the log") > 1, "two attempts to serve")
            disk.resize(300 * MIB)
            wait_until(server.is_ready, "the member to serve")
        with Api(server.address) as api:
            assert api(RangeRequest(key=b"a")).kvs[0].value == b"1"
            wait_until(lambda: disarm(api) and not is_refused(api), "writes to be accepted")
            server.restart()
        with Api(server.address) as api:
            assert api(RangeRequest(key=b"probe")).count == 1


def test_a_leader_without_room_for_its_log_hands_on_to_one_that_has_some(tmp_path: Path) -> None:
    """The log lies on a disk of its own, so no alarm is raised; the others go on, and it catches up when it can."""
    with contextlib.ExitStack() as stack:
        disk = SmallDisk(tmp_path / "disk", 100 * MIB)
        stack.callback(disk.close)
        cluster = Cluster(Kind.KVORUM, tmp_path)
        stack.callback(cluster.close)
        first, second, _ = cluster.members
        first.flags["wal-dir"] = str(disk.outside / "wal")
        cluster.start()
        if cluster.wait_for_leader() is not first:
            cluster.move_leader(first, READY_TIMEOUT_S)
        api = stack.enter_context(Api(first.address))
        logged_bytes = 0
        while api.status(DeleteRangeRequest(key=b"n" * 1_400_000)) == OK:
            logged_bytes += 1_400_000
            assert logged_bytes < 200 * MIB
        assert cluster.wait_for_leader(lambda member: member is not first)
        with Api(second.address) as others:
            others(PutRequest(key=b"a", value=b"1"))
            assert alarms(others) == []
        disk.resize(300 * MIB)
        assert api(RangeRequest(key=b"a")).kvs[0].value == b"1"
        api(PutRequest(key=b"a", value=b"2"))


def test_a_start_on_a_full_disk_waits_for_room(roomy: tuple[SmallDisk, ServerOnDisk]) -> None:
    disk, server = roomy
    with Api(server.address) as api:
        for number in range(20):
            api(PutRequest(key=b"a%02d" % number, value=VALUE))
        server.kill()
        disk.fill()
        server.launch()
        before = server.logged("cannot open the database, trying again")
        wait_until(
            lambda: server.logged("cannot open the database, trying again") >= before + 2, "two attempts to open"
        )
        assert not server.is_ready()
        disk.release()
        wait_until(server.is_ready, "the member to serve")
        assert server.logged("a process of the member failed") == 0
    with Api(server.address) as api:
        assert len(keys(api, b"a")) == 20
        wait_until(lambda: disarm(api) and not is_refused(api), "writes to be accepted")


def test_a_member_that_waits_for_room_can_be_stopped(roomy: tuple[SmallDisk, ServerOnDisk]) -> None:
    disk, server = roomy
    server.stop()
    disk.fill()
    server.launch()
    wait_until(lambda: server.logged("cannot open the database, trying again") > 0, "an attempt to open")
    assert server.stop() == -15


def test_MA13_MA15_the_quota(tmp_path: Path) -> None:
    """What does not grow goes on; space comes back by delete, compact and defragment."""
    with start_kvorum({"quota-backend-bytes": str(16 * MIB)}) as server, Api(server.address) as api:
        unharmed = Unharmed(server)
        stored = put_until_refused(api, b"a", most=400)
        assert 40 < len(stored) < 160
        assert [type_ for _, type_ in alarms(api)] == [AlarmType.NOSPACE]
        assert api(StatusRequest()).dbSizeQuota == 16 * MIB
        disarm(api)
        wait_until(lambda: bool(alarms(api)), "the alarm to be raised again, since nothing was freed")
        assert keys(api, b"a") == stored
        api(DeleteRangeRequest(key=b"a", range_end=b"b"))
        revision = api(StatusRequest()).header.revision
        api(CompactionRequest(revision=revision, physical=True))
        api(DefragmentRequest())
        assert api(StatusRequest()).dbSize < MIB
        assert is_refused(api)
        disarm(api)
        api(PutRequest(key=b"b", value=VALUE))
        unharmed.check()
