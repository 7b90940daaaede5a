"""Clients at full speed through crashes: writers, readers and watchers, each on a connection of its own."""

import contextlib
import itertools
import random
import threading
import time
from collections.abc import Callable

import grpc

from kvorum.errors import ApiError
from kvorum.pb.rpc_pb2 import (
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
    WatchCreateRequest,
    WatchRequest,
)
from tests.calls import Api
from tests.crash.history import Event, Read, Write

PREFIX, END = b"crash/", b"crash0"
MARK = PREFIX + b"mark"  # the last write of a workload, by which watchers know that they are done
CALL_TIMEOUT_S = 5.0


class Workload:
    """Starts its threads when made; `finish` ends them and leaves `writes`, `reads` and `watched` complete."""

    def __init__(self, address: str, seed: int, *, writers: int = 4, readers: int = 2, watchers: int = 2) -> None:
        self._address = address
        self._seed = seed
        self._stop = threading.Event()
        self._failures: list[BaseException] = []
        self.keys = [PREFIX + b"%d" % number for number in range(writers)] + [PREFIX + b"shared"]
        self.writes: list[list[Write]] = [[] for _ in range(writers)]
        self.reads: list[list[Read]] = [[] for _ in range(readers)]
        self.watched: list[list[Event]] = [[] for _ in range(watchers)]
        self._clients = [
            *(self._thread(self._write, number) for number in range(writers)),
            *(self._thread(self._read, number) for number in range(readers)),
        ]
        self._watchers = [self._thread(self._watch, number) for number in range(watchers)]

    def _thread(self, body: Callable[[int], None], number: int) -> threading.Thread:
        def run() -> None:
            try:
                body(number)
            except BaseException as failure:  # handed to the test's thread by `finish`
                self._failures.append(failure)

        thread = threading.Thread(target=run, name=f"{body.__name__}-{number}", daemon=True)
        thread.start()
        return thread

    @property
    def acknowledged(self) -> int:
        """How many writes have been acknowledged so far."""
        return sum(write.revision is not None for writes in self.writes for write in writes)

    def finish(self, timeout_s: float = 60.0) -> None:
        """Ends writers and readers, lets watchers come to the last write, and raises what any client raised."""
        self._stop.set()
        for thread in self._clients:
            thread.join(timeout_s)
            assert not thread.is_alive(), f"{thread.name} hangs"
        with Api(self._address) as api:
            began = time.monotonic()
            revision = api(PutRequest(key=MARK, value=b"end"), wait_for_ready=True).header.revision
            self.writes.append([Write({MARK: b"end"}, began, time.monotonic(), revision)])
        deadline = time.monotonic() + timeout_s
        for thread in self._watchers:
            thread.join(max(0.0, deadline - time.monotonic()))
        hanging = [thread.name for thread in self._watchers if thread.is_alive()]
        assert not hanging, f"{hanging} did not see revision {revision}"
        if self._failures:
            raise self._failures[0]

    def _write(self, number: int) -> None:
        """Puts of a key of its own, now and then a transaction with the key that all share."""
        records = self.writes[number]
        own, shared = self.keys[number], self.keys[-1]
        with Api(self._address) as api:
            for sequence in itertools.count():
                if self._stop.is_set():
                    return
                value = b"%d-%d" % (number, sequence)
                pairs = {own: value, shared: value} if sequence % 5 == 4 else {own: value}
                began = time.monotonic()
                revision = None
                try:
                    if len(pairs) == 1:
                        request: PutRequest | TxnRequest = PutRequest(key=own, value=value)
                    else:
                        puts = [RequestOp(request_put=PutRequest(key=k, value=v)) for k, v in pairs.items()]
                        request = TxnRequest(success=puts)
                    revision = api(request, timeout_s=CALL_TIMEOUT_S, wait_for_ready=True).header.revision
                except ApiError:
                    pass  # the outcome is unknown: the record says so
                records.append(Write(pairs, began, time.monotonic(), revision))

    def _read(self, number: int) -> None:
        """Linearizable and serializable reads in turn, on one channel that reconnects by itself."""
        records = self.reads[number]
        choose = random.Random(self._seed * 1000 + number)
        with Api(self._address) as api:
            while not self._stop.is_set():
                key, serializable = choose.choice(self.keys), choose.random() < 0.3
                began = time.monotonic()
                try:
                    request = RangeRequest(key=key, serializable=serializable)
                    reply = api(request, timeout_s=CALL_TIMEOUT_S, wait_for_ready=True)
                except ApiError:
                    continue
                found = (reply.kvs[0].value, reply.kvs[0].mod_revision) if reply.kvs else None
                ended = time.monotonic()
                records.append(Read(number, key, began, ended, reply.header.revision, found, not serializable))

    def _watch(self, number: int) -> None:
        """Watches from the first revision on; after a lost stream again from the last one seen + 1, up to the mark."""
        events = self.watched[number]
        with Api(self._address) as api:
            while not (events and events[-1].key == MARK):
                start = events[-1].revision + 1 if events else 1
                create = WatchCreateRequest(key=PREFIX, range_end=END, start_revision=start)
                with (
                    api.watch_unread([WatchRequest(create_request=create)], wait_for_ready=True) as replies,
                    contextlib.suppress(grpc.RpcError),  # a crash: resume
                ):
                    for reply in replies:
                        assert not reply.canceled, reply
                        events += [Event(event.kv.mod_revision, event.kv.key, event.kv.value) for event in reply.events]
                        if events and events[-1].key == MARK:
                            break
