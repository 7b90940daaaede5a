"""Users that contend for locks, by the recipe that clients follow: a key under a lease, created by a transaction.

The lock belongs to the key with the smallest create revision; each of the others waits for the deletion of the key
right before its own. A lock must have one holder at a time and be given in the order of the create revisions, and each
deletion that somebody waits for must arrive. A holder writes under the guard of its key's create revision.
"""

import random
import time

import gevent
from gevent.event import Event as Moment
from locust import task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import StopUser

from kvorum.pb.mvcc_pb2 import Event, KeyValue
from kvorum.pb.rpc_pb2 import Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest
from kvorum.ranges import end_of_prefix
from loadtest.checks import AckedWrites, Fault, FaultKind, LeaseCheck, LockCheck, WatchCheck
from loadtest.messages import stamped_value
from loadtest.users.run import Run, define
from loadtest.users.streams import KeepAliveStream, WatchStream
from loadtest.users.user import EtcdUser

_TTL_S = 60
_RENEW_S = _TTL_S / 3


class Locks(Run):
    @staticmethod
    def add_options(parser: LocustArgumentParser) -> None:
        parser.add_argument("--locks", type=int, default=1, help="that the users contend for")
        parser.add_argument("--hold", type=float, default=0.005, help="seconds that a holder keeps its lock")

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.check = LockCheck()
        self.acked: dict[bytes, AckedWrites] = {}
        """Writes to each waiting key."""
        self.leaving: dict[bytes, float] = {}
        """When the delete of a waiting key was sent."""


class Contender(EtcdUser):
    """Takes a lock at random, holds it and gives it back."""

    load: Locks

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._lease_id = 0
        self._renewed = 0.0
        self._key: bytes | None = None  # that waits or holds, or may

    @task
    def lock(self) -> None:
        load = self.load
        if not self._lease_id:
            self._start()
        if self._key is not None:  # a call of the last round failed
            self._leave(self._key)
        lock = load.prefix + b"%d" % random.randrange(load.options.locks)
        began = time.perf_counter()
        self._key = key = b"%s/%x" % (lock, self._lease_id)
        create_revision = self._queue(key)
        self._wait_turn(lock, create_revision)
        load.report("Lock acquire", load.check.acquired(lock, key, create_revision))
        load.done("lock", "Lock acquire", time.perf_counter() - began)
        self._write(lock, key, create_revision)
        gevent.sleep(load.options.hold)
        began = time.perf_counter()
        load.check.released(lock, key)
        self._leave(key)
        load.done("lock", "Lock release", time.perf_counter() - began)

    def _start(self) -> None:
        granted = self.client.grant(_TTL_S)
        self._renewed = time.monotonic()
        check = LeaseCheck(f"lease {granted.ID:x}")
        check.granted(granted.ID)
        self._keep_alives = KeepAliveStream(self.load, self.client.channel, check, granted.TTL)
        self._watches = WatchStream(self.load, self.client.channel)
        self._lease_id = granted.ID

    def _renew(self) -> None:
        if time.monotonic() > self._renewed + _RENEW_S:
            self._renewed = time.monotonic()
            self._keep_alives.ask(self._lease_id)

    def _queue(self, key: bytes) -> int:
        """Creates the waiting key; its create revision."""
        created = self.client.txn(
            TxnRequest(
                compare=[Compare(key=key, target=Compare.CREATE, result=Compare.EQUAL, create_revision=0)],
                success=[RequestOp(request_put=PutRequest(key=key, value=self._value(), lease=self._lease_id))],
                failure=[RequestOp(request_range=RangeRequest(key=key))],
            ),
            "Txn (create)",
            self.load.acked.setdefault(key, AckedWrites()),
        )
        if not created.succeeded:
            self.load.report("Txn (create)", [Fault(FaultKind.WRONG, f"{key!r} is there, though it was deleted")])
            return created.responses[0].response_range.kvs[0].create_revision
        return created.header.revision

    def _wait_turn(self, lock: bytes, create_revision: int) -> None:
        """Returns when no older key waits."""
        prefix = lock + b"/"
        while True:
            self._renew()
            before = self.client.range(
                RangeRequest(
                    key=prefix,
                    range_end=end_of_prefix(prefix),
                    limit=1,
                    max_create_revision=create_revision - 1,
                    sort_order=RangeRequest.DESCEND,
                    sort_target=RangeRequest.CREATE,
                ),
                "Range (who is before)",
            )
            if not before.kvs:
                return
            self._await_deletion(before.kvs[0], before.header.revision)

    def _await_deletion(self, kv: KeyValue, revision: int) -> None:
        gone = Moment()

        def on_event(event: Event) -> None:
            if event.type == Event.DELETE:
                sent = self.load.leaving.get(event.kv.key)
                if sent is not None and not gone.is_set():
                    self.load.done("event", "Watch event (unlock)", time.perf_counter() - sent)
                gone.set()

        check = WatchCheck("unlock", revision, [kv], self.load.acked.setdefault(kv.key, AckedWrites()))
        watch = self._watches.watch("Watch event (unlock)", kv.key, b"", check, on_event=on_event)
        while not gone.is_set():
            self._renew()
            gevent.wait([gone, self.load.stopped], timeout=_RENEW_S, count=1)
            if self.load.stopped.is_set():
                raise StopUser
        self._watches.cancel(watch)

    def _write(self, lock: bytes, key: bytes, create_revision: int) -> None:
        """Writes what the lock guards, if it is still held."""
        guard = Compare(key=key, target=Compare.CREATE, result=Compare.EQUAL, create_revision=create_revision)
        put = RequestOp(request_put=PutRequest(key=b"%s-guarded" % lock, value=self._value()))
        if not self.client.txn(TxnRequest(compare=[guard], success=[put]), "Txn (guarded write)").succeeded:
            self.load.report("Txn (guarded write)", [Fault(FaultKind.ENDED, f"{key!r} is gone while it has the lock")])

    def _leave(self, key: bytes) -> None:
        self.load.leaving[key] = time.perf_counter()
        self.client.delete(DeleteRangeRequest(key=key), acked=self.load.acked[key])
        self._key = None

    @staticmethod
    def _value() -> bytes:
        return stamped_value(time.time_ns(), 0)


define(Locks)
