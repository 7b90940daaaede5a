"""A process of the member that stands still for a while: requests wait or are refused, and then all goes on."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvorum import errors
from kvorum.errors import Status
from kvorum.pb.rpc_pb2 import PutRequest, RangeRequest
from loadtest import processes
from loadtest.launcher import Server, wait_until
from tests.calls import OK, Api
from tests.servers import start_kvorum

VALUE = bytes(1 << 20)
PUTS = 100
"""More than a front lets wait: 64 MiB."""

REFUSALS = (
    errors.REQUEST_TOO_MANY_REQUESTS,
    # as many may have come in part at once, when the client is fast: they are on one connection
    Status(errors.Code.RESOURCE_EXHAUSTED, "grpc: too many unfinished messages on the connection"),
)


def process_named(server: Server, name: str) -> int:
    named = {Path(f"/proc/{pid}/comm").read_text().strip(): pid for pid in processes.children(server.pid)}
    return named[name]


@pytest.mark.parametrize("name", ["kvorum-apply", "kvorum-raft"])
def test_what_waits_is_bounded_and_everything_accepted_is_answered(name: str) -> None:
    """Invariant 8. Nothing of it is silent for long enough to be ended."""
    with start_kvorum() as server, Api(server.address) as api, ThreadPoolExecutor(PUTS) as pool:
        stalled = process_named(server, name)
        answers: list[tuple[bytes, Status]] = []
        lock = threading.Lock()

        def put(number: int) -> None:
            key = b"k%03d" % number
            status = api.status(PutRequest(key=key, value=VALUE))
            with lock:
                answers.append((key, status))

        def answered(*statuses: Status) -> list[bytes]:
            with lock:
                return sorted(key for key, status in answers if status in statuses)

        os.kill(stalled, signal.SIGSTOP)
        try:
            calls = [pool.submit(put, number) for number in range(PUTS)]
            wait_until(lambda: len(answered(*REFUSALS)) >= PUTS // 4, "calls to be refused")
            assert not answered(OK)
        finally:
            os.kill(stalled, signal.SIGCONT)
        for call in calls:
            call.result(30)
        assert not [status for _, status in answers if status not in (OK, errors.TIMEOUT, *REFUSALS)]
        accepted = answered(OK, errors.TIMEOUT)  # a slow machine needs more than a call's time to send all this
        assert 60 <= len(accepted) <= 75
        stored = [kv.key for kv in api(RangeRequest(key=b"k", range_end=b"l", keys_only=True)).kvs]
        assert set(answered(OK)) <= set(stored) <= set(accepted)
        assert api.status(PutRequest(key=b"after", value=VALUE)) == OK
        assert server.ready_count() == 1
