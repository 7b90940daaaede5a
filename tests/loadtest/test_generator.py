"""The load processes against the reference: every request is answered, and what is no answer is never counted."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from kvorum.pb.rpc_pb2 import RangeRequest
from loadtest import processes
from loadtest.generator import drive, same
from loadtest.h2_client import Connection, LoadError, grpc_message
from loadtest.launcher import Kind, Server, running, wait_until
from loadtest.loads import LOADS, fan_out, fill, own_load
from loadtest.messages import put_request, range_request
from tests.calls import Api

PUT, RANGE = b"/etcdserverpb.KV/Put", b"/etcdserverpb.KV/Range"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running(Kind.REFERENCE) as server:
        yield server


@pytest.mark.parametrize(("connections", "streams"), [(1, 1), (1, 50), (3, 7)])
def test_each_request_is_made_once(server: Server, connections: int, streams: int) -> None:
    with Api(server.address) as api:
        before = api(RangeRequest(key=b"any")).header.revision
        opened = [Connection(server.address, PUT) for _ in range(connections)]
        messages = same(grpc_message(put_request(b"k", b"v")))
        assert drive(opened, messages, 500, streams) > 0
        assert drive(opened, messages, 123, streams) > 0
        for connection in opened:
            connection.close()
        assert api(RangeRequest(key=b"any")).header.revision == before + 623


def test_more_than_a_window_of_requests_is_held_back_until_it_opens(server: Server) -> None:
    connection = Connection(server.address, PUT)
    large = grpc_message(put_request(b"large", bytes(16_000)))
    drive([connection], itertools.repeat(large), 50, 10)
    assert connection.ended == 50
    connection.close()


def test_replies_larger_than_any_frame(server: Server) -> None:
    fill(server, 2000)
    connection = Connection(server.address, RANGE)
    drive([connection], same(grpc_message(range_request(b"/fill/", b"/fill0"))), 20, 1)
    connection.close()


@pytest.mark.parametrize(
    ("path", "message"),
    [(RANGE, b""), (PUT, b"\xff\xff"), (b"/etcdserverpb.KV/Nothing", b"")],
)
def test_an_error_is_not_an_answer(server: Server, path: bytes, message: bytes) -> None:
    connection = Connection(server.address, path)
    with pytest.raises(LoadError, match="without a whole message"):
        drive([connection], same(grpc_message(message)), 5, 2)
    connection.close()


def test_a_server_that_goes_away_is_an_error() -> None:
    with running(Kind.REFERENCE) as server:
        connection = Connection(server.address, PUT)
        drive([connection], same(grpc_message(put_request(b"k", b"v"))), 5, 1)
        server.kill()
        with pytest.raises((LoadError, OSError)):
            drive([connection], same(grpc_message(put_request(b"k", b"v"))), 5, 1)
        connection.close()


def test_a_round_of_load_and_of_fan_out_measures_something(server: Server) -> None:
    measured = own_load([server], LOADS["put"]._replace(requests=300))
    assert min(measured["throughput"], measured["server CPU"], measured["mean latency"]) > 0
    assert fan_out(server, 2, 300, 2)["server CPU"] > 0


def test_a_tree_of_processes_is_found_and_its_cpu_counted() -> None:
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'while True: pass']); print(1); input()"
    command = [sys.executable, "-u", "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        (child,) = processes.children(parent.pid)
        try:
            assert processes.tree(parent.pid) == [parent.pid, child]
            assert processes.pss_bytes(parent.pid) > 1 << 20
            before = processes.cpu_s(parent.pid)
            while processes.cpu_s(parent.pid) < before + 0.01:  # the child computes for ever
                pass
        finally:
            os.kill(child, 9)
        parent.communicate(b"\n")
    wait_until(lambda: not processes.alive(child), "the killed child to be gone")
