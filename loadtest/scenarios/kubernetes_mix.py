"""What a Kubernetes control plane asks of its store: lists in pages, watches, guarded transactions, renewals of leases.

Informers list pods and node leases at one revision and watch on from there, with previous values and progress. Nodes
renew their lease object, update, create and delete pods of their own, and write events that end with an etcd lease;
all nodes contend for one object. A create is guarded by the create revision, an update and a delete by the mod
revision. A guard on an object that nobody else writes must hold.
"""

import random
import time
from argparse import Namespace
from collections.abc import Mapping

import gevent
from locust import User, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from kvorum.pb.mvcc_pb2 import KeyValue
from kvorum.pb.rpc_pb2 import (
    Compare,
    DeleteRangeRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
    TxnResponse,
)
from kvorum.ranges import end_of_prefix
from loadtest.checks import AckedWrites, Fault, FaultKind, WatchCheck
from loadtest.messages import stamped_value
from loadtest.users.run import Run, define
from loadtest.users.streams import WatchStream
from loadtest.users.user import EtcdUser

_EVENT_TTL_S = 3600
_LEASE_REUSE_S = 60.0
_MOST_CONFLICTS = 20


class ControlPlane(Run):
    rate = 10.0

    @staticmethod
    def add_options(parser: LocustArgumentParser) -> None:
        parser.add_argument("--informers", type=int, default=3, help="users that list and watch; the others are nodes")
        parser.add_argument("--pods", type=int, default=10, help="of each node, about")
        parser.add_argument("--object-size", type=int, default=1024, help="bytes")
        parser.add_argument("--page", type=int, default=500, help="objects in a page of a list")
        parser.add_argument("--progress-interval", type=float, default=0.1, help="seconds between requests; 0: none")

    @staticmethod
    def fixed_users(options: Namespace) -> Mapping[type[User], int]:
        return {Informer: options.informers}

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.acked = {b"pods/": AckedWrites(), b"leases/": AckedWrites(), b"endpoints/": AckedWrites()}
        """By kind of object, which is the first part of its name."""

    def key(self, name: bytes) -> bytes:
        return self.prefix + name

    def acked_of(self, key: bytes) -> AckedWrites:
        return self.acked[key.removeprefix(self.prefix).partition(b"/")[0] + b"/"]

    def value(self) -> bytes:
        return stamped_value(time.time_ns(), self.options.object_size)


class Informer(EtcdUser):
    """Lists all objects of each kind, watches them, and asks how far its watches are."""

    load: ControlPlane

    def wait_time(self) -> float:
        return 0.0

    @task
    def follow(self) -> None:
        load = self.load
        stream = WatchStream(load, self.client.channel)
        for kind, acked in load.acked.items():
            prefix = load.key(kind)
            revision, objects = self._list(prefix)
            check = WatchCheck(f"informer of {kind.decode()}", revision, objects, acked)
            name = f"Watch event ({kind.decode()[:-1]})"
            stream.watch(name, prefix, end_of_prefix(prefix), check, prev_kv=True, progress_notify=True)
        while not load.stopped.is_set():
            if load.options.progress_interval > 0:
                stream.ask_progress()
            load.stopped.wait(load.options.progress_interval or None)

    def _list(self, prefix: bytes) -> tuple[int, list[KeyValue]]:
        """All objects of one revision, in pages."""
        objects: list[KeyValue] = []
        request = RangeRequest(key=prefix, range_end=end_of_prefix(prefix), limit=self.load.options.page)
        while True:
            page = self.client.range(request, "Range (list)")
            objects += page.kvs
            request.revision = request.revision or page.header.revision
            if not page.more:
                return request.revision, objects
            request.key = page.kvs[-1].key + b"\0"


class Node(EtcdUser):
    """A node with its kubelet, and the controllers that act on its pods."""

    load: ControlPlane

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._name = b"%x" % id(self)
        self._lease_key = self.load.key(b"leases/" + self._name)
        self._endpoints_key = self.load.key(b"endpoints/shared")
        self._pods = 0
        self._mod_revisions: dict[bytes, int] = {}  # of the objects that only this node writes; not while unknown
        self._event_lease = (0, 0.0)

    @task(3)
    def get_pod(self) -> None:
        pod = self._pod()
        if pod is None:
            return
        reply = self.client.range(RangeRequest(key=pod, limit=1), "Range (get)")
        if [kv.mod_revision for kv in reply.kvs] != [self._mod_revisions[pod]]:
            self._wrong("Range (get)", f"{pod!r} is not what its only writer wrote")

    @task(5)
    def renew_lease(self) -> None:
        self._write("renew lease", self._lease_key)

    @task(8)
    def update_pod(self) -> None:
        pod = self._pod()
        if pod is not None:
            self._write("update", pod)

    @task(2)
    def create_pod(self) -> None:
        if len(self._mod_revisions) > self.load.options.pods:
            return
        self._pods += 1
        self._write("create", self.load.key(b"pods/%s-%d" % (self._name, self._pods)))

    @task(1)
    def delete_pod(self) -> None:
        pod = self._pod()
        if pod is None:
            return
        revision = self._mod_revisions.pop(pod)
        delete = RequestOp(request_delete_range=DeleteRangeRequest(key=pod))
        reply = self._guarded("Txn (delete)", Compare(target=Compare.MOD, mod_revision=revision), pod, delete)
        if not reply.succeeded:
            self._wrong("Txn (delete)", f"{pod!r} was not at revision {revision}")

    @task(2)
    def update_endpoints(self) -> None:
        """Reads what all nodes write and writes it, again when another one was quicker."""
        kvs = self.client.range(RangeRequest(key=self._endpoints_key, limit=1), "Range (get)").kvs
        for _ in range(_MOST_CONFLICTS):
            guard = self._guard(kvs[0].mod_revision if kvs else 0)
            reply = self._guarded("Txn (contended)", guard, self._endpoints_key, self._put(self._endpoints_key))
            if reply.succeeded:
                return
            kvs = reply.responses[0].response_range.kvs
            gevent.sleep(random.random() / 100)

    @task(1)
    def write_event(self) -> None:
        lease_id, granted = self._event_lease
        now = time.monotonic()
        if not lease_id or now > granted + _LEASE_REUSE_S:
            lease_id = self.client.grant(_EVENT_TTL_S).ID
            self._event_lease = lease_id, now
        key = self.load.key(b"events/%s-%d" % (self._name, time.monotonic_ns()))
        self.client.put(PutRequest(key=key, value=self.load.value(), lease=lease_id), "Put (event)")

    def _pod(self) -> bytes | None:
        """One of its pods whose revision it knows."""
        pods = [key for key in self._mod_revisions if key != self._lease_key]
        return random.choice(pods) if pods else None

    def _write(self, what: str, key: bytes) -> None:
        """Creates or updates an object that nobody else writes."""
        name = f"Txn ({what})"
        revision = self._mod_revisions.pop(key, 0)
        reply = self._guarded(name, self._guard(revision), key, self._put(key))
        if reply.succeeded:
            self._mod_revisions[key] = reply.header.revision
            return
        kvs = reply.responses[0].response_range.kvs
        if revision or not kvs:  # without a revision, an earlier call may have failed after it had an effect
            self._wrong(name, f"{key!r} was not at revision {revision}")
        if kvs:
            self._mod_revisions[key] = kvs[0].mod_revision

    def _put(self, key: bytes) -> RequestOp:
        return RequestOp(request_put=PutRequest(key=key, value=self.load.value()))

    @staticmethod
    def _guard(mod_revision: int) -> Compare:
        """The key is at that revision; 0: there is no such key."""
        if mod_revision:
            return Compare(target=Compare.MOD, mod_revision=mod_revision)
        return Compare(target=Compare.CREATE, create_revision=0)

    def _guarded(self, name: str, guard: Compare, key: bytes, operation: RequestOp) -> TxnResponse:
        """Does it if the guard holds, else reads the key."""
        guard.key = key
        guard.result = Compare.EQUAL
        read = RequestOp(request_range=RangeRequest(key=key))
        return self.client.txn(
            TxnRequest(compare=[guard], success=[operation], failure=[read]), name, self.load.acked_of(key)
        )

    def _wrong(self, name: str, detail: str) -> None:
        self.load.report(name, [Fault(FaultKind.WRONG, detail)])


define(ControlPlane)
