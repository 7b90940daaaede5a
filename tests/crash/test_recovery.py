"""What a member finds when it starts, and what it refuses to start on."""

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from kvorum.pb.rpc_pb2 import (
    LeaseGrantRequest,
    LeaseTimeToLiveRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    StatusRequest,
    TxnRequest,
)
from loadtest.launcher import Kind, Server, wait_until
from tests.calls import Api

ALL = RangeRequest(key=b"\0", range_end=b"\0", count_only=True)
VALUE = bytes(100_000)


@contextlib.contextmanager
def stopped_after(directory: Path, puts: int, **flags: str) -> Iterator[Server]:
    """A member that was killed after so many puts."""
    server = Server(Kind.KVORUM, directory, {name.replace("_", "-"): value for name, value in flags.items()})
    try:
        server.start()
        with Api(server.address) as api:
            for number in range(puts):
                api(PutRequest(key=b"k%06d" % number, value=b"v"))
        server.kill()
        yield server
    finally:
        server.close()


def count(server: Server) -> int:
    with Api(server.address) as api:
        found = api(ALL).count
        assert isinstance(found, int)
        return found


def wal(server: Server) -> list[Path]:
    return sorted((server.data_dir / "member" / "wal").glob("*-*.wal"))


def refusal(server: Server) -> str:
    """The last error of a member that does not start, after three generations at most and exit status 1."""
    server.launch()
    process = server._process
    assert process is not None
    assert process.wait(30) == 1
    server._forget()
    lines = server.log_path.read_text().splitlines()
    assert sum('"a process of the member failed; all are started again"' in line for line in lines) == 2
    assert "the member could not be started" in lines[-1]
    return lines[-1]


def test_the_log_is_gone(tmp_path: Path) -> None:
    with stopped_after(tmp_path, 5) as server:
        server.start()
        server.stop()  # so that the store is on disk
        shutil.rmtree(server.data_dir / "member" / "wal")
        message = refusal(server)
        assert f"{server.data_dir}/member/db stands at entry" in message
        assert f"{server.data_dir}/member/wal ends at entry 1" in message  # a founder's new log


def test_the_store_is_gone_and_the_log_has_everything(tmp_path: Path) -> None:
    with stopped_after(tmp_path, 5) as server:
        shutil.rmtree(server.data_dir / "member" / "db")
        server.start()
        assert count(server) == 5


def test_the_log_of_another_member(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with stopped_after(tmp_path / "a", 1) as one, stopped_after(tmp_path / "b", 1) as two:
        shutil.rmtree(one.data_dir / "member" / "wal")
        shutil.copytree(two.data_dir / "member" / "wal", one.data_dir / "member" / "wal")
        message = refusal(one)
        assert f"the log {one.data_dir}/member/wal is that of member" in message
        assert f"but the data directory {one.data_dir} is that of member" in message


def test_a_write_torn_by_power_loss_is_cut(tmp_path: Path) -> None:
    with stopped_after(tmp_path, 20) as server:
        (segment,) = wal(server)
        data = segment.read_bytes()
        end = len(data.rstrip(b"\0"))
        segment.write_bytes(data[: end - 3])
        server.start()
        assert '"cut a torn write from the log\'s end"' in server.log_path.read_text()
        assert count(server) in (19, 20)


def test_damage_in_the_middle_of_the_log_is_refused_with_its_place(tmp_path: Path) -> None:
    with stopped_after(tmp_path, 200) as server:
        (segment,) = wal(server)
        data = bytearray(segment.read_bytes())
        offset = len(data.rstrip(b"\0")) // 2
        data[offset] ^= 0xFF
        segment.write_bytes(data)
        message = refusal(server)
        assert f"write-ahead log damaged: {segment.name}, offset " in message
        at = int(message.partition(", offset ")[2].partition(":")[0])
        assert offset - 200 < at <= offset
        assert segment.read_bytes() == data, "nothing was cut"


def test_kills_during_the_start(tmp_path: Path) -> None:
    with stopped_after(tmp_path, 50) as server:
        for delay_s in (0.05, 0.2, 0.3, 0.4, 0.5):
            server.launch()
            deadline = time.monotonic() + delay_s  # the moment of the kill is the point: nothing to wait for
            with contextlib.suppress(TimeoutError):
                wait_until(lambda until=deadline: time.monotonic() >= until, "the moment", delay_s + 1)  # type: ignore[misc]
            server.kill()
        server.start()
        assert count(server) == 50


def test_a_hundred_thousand_keys_are_replayed_and_more_than_once(tmp_path: Path) -> None:
    server = Server(Kind.KVORUM, tmp_path, {"max-txn-ops": "1000"})
    try:
        server.start()
        with Api(server.address) as api:
            for start in range(0, 100_000, 1000):
                puts = [PutRequest(key=b"%06d" % number, value=b"%d" % number) for number in range(start, start + 1000)]
                api(TxnRequest(success=[RequestOp(request_put=put) for put in puts]))
            revision = api(StatusRequest()).header.revision
        for _ in range(2):
            server.kill()
            server.start()
            with Api(server.address) as api:
                assert api(ALL).count == 100_000
                assert api(StatusRequest()).header.revision == revision == 101
                assert api(RangeRequest(key=b"012345")).kvs[0].value == b"12345"
    finally:
        server.close()


def test_L26_a_lease_is_not_shorter_than_promised_after_a_start(tmp_path: Path) -> None:
    with stopped_after(tmp_path, 0) as server:
        server.start()
        with Api(server.address) as api:
            lease = api(LeaseGrantRequest(TTL=30)).ID
            api(PutRequest(key=b"a", lease=lease))
        server.kill()
        server.start()
        with Api(server.address) as api:
            left = api(LeaseTimeToLiveRequest(ID=lease, keys=True))
            assert left.TTL >= 29
            assert list(left.keys) == [b"a"]


def test_the_log_lies_where_wal_dir_says(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    with stopped_after(tmp_path, 5, wal_dir=str(elsewhere)) as server:
        assert list(elsewhere.glob("*.wal"))
        assert not (server.data_dir / "member" / "wal").exists()
        server.start()
        assert count(server) == 5


def test_segments_that_a_snapshot_covers_are_released(tmp_path: Path) -> None:
    """The log shrinks while the member serves; what is left is enough to start on."""
    flags = {"snapshot_count": "10", "max_wals": "1", "snapshot_catchup_entries": "5"}
    with stopped_after(tmp_path, 0, **flags) as server:
        server.start()
        with Api(server.address) as api:
            written = 0
            while wal(server)[0].name.startswith("0000000000000000-"):
                assert written < 4000, "nothing was released after 400 MB"
                api(PutRequest(key=b"k%03d" % (written % 100), value=VALUE))
                written += 1
        server.kill()
        server.start()
        with Api(server.address) as api:
            assert api(StatusRequest()).header.revision == 1 + written
            assert api(ALL).count == min(written, 100)
        server.kill()
        shutil.rmtree(server.data_dir / "member" / "db")
        message = refusal(server)
        assert "stands at entry 0 of term 0" in message
        assert "wal begins with entry" in message


def test_a_database_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with stopped_after(tmp_path, 1) as server:
        path = server.data_dir / "member" / "db"
        shutil.rmtree(path)
        path.write_bytes(b"a file, no directory")
        assert f"cannot open the database {path}: " in refusal(server)
