"""Leases that are kept alive: every ask is answered, no lease that is kept alive ends, and one that is revoked does.

A user keeps its leases alive over one stream, each every --interval seconds, spread over that time, and watches the
keys that hang on them. Now and then it revokes one and grants another.
"""

import random
import time
from collections import deque

from locust import task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from kvorum.pb.mvcc_pb2 import Event
from kvorum.pb.rpc_pb2 import PutRequest
from kvorum.ranges import end_of_prefix
from loadtest.checks import AckedWrites, LeaseCheck, WatchCheck
from loadtest.messages import stamped_value
from loadtest.users.run import Run, define
from loadtest.users.streams import KeepAliveStream, WatchStream
from loadtest.users.user import EtcdUser


class KeepAlives(Run):
    @staticmethod
    def add_options(parser: LocustArgumentParser) -> None:
        parser.add_argument("--leases", type=int, default=10, help="of each user")
        parser.add_argument("--ttl", type=int, default=60, help="seconds; what the server raises it to holds")
        parser.add_argument("--interval", type=float, default=0.0, help="seconds between asks; 0: a third of the TTL")
        parser.add_argument("--turnover", type=float, default=0.1, help="part of the asks that replace the lease")


class Holder(EtcdUser):
    """Holds leases, with a key on each, and keeps them alive."""

    load: KeepAlives

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._prefix = self.load.prefix + b"%x/" % id(self)
        self._acked = AckedWrites()
        self._check = LeaseCheck(self._prefix.decode())
        self._leases: deque[int] = deque()  # the one to be asked for next first
        self._revoking: dict[bytes, float] = {}
        self._streams: tuple[KeepAliveStream, WatchStream] | None = None
        self._asked = 0.0

    def wait_time(self) -> float:
        options = self.load.options
        interval: float = options.interval or options.ttl / 3
        due = self._asked + interval / int(options.leases)
        return max(0.0, due - time.monotonic())

    @task
    def ask(self) -> None:
        """Asks for the next lease; at times replaces it instead."""
        self._asked = time.monotonic()
        while len(self._leases) < self.load.options.leases:
            self._grant()
        lease_id = self._leases.popleft()
        if random.random() < self.load.options.turnover:
            self._revoke(lease_id)
            self._grant()
        else:
            assert self._streams is not None
            self._streams[0].ask(lease_id)
            self._leases.append(lease_id)

    def _grant(self) -> None:
        granted = self.client.grant(self.load.options.ttl)
        if self._streams is None:
            self._streams = self._open(granted.TTL)
        key = self._prefix + b"%x" % granted.ID
        self._check.granted(granted.ID, key)
        put = PutRequest(key=key, value=stamped_value(time.time_ns(), 0), lease=granted.ID)
        self.client.put(put, acked=self._acked)
        self._leases.append(granted.ID)

    def _open(self, ttl_s: int) -> tuple[KeepAliveStream, WatchStream]:
        channel = self.client.channel
        listed = self.client.list(self._prefix)
        check = WatchCheck(self._prefix.decode(), listed.header.revision, listed.kvs, self._acked)
        watches = WatchStream(self.load, channel)
        watches.watch("Watch event", self._prefix, end_of_prefix(self._prefix), check, on_event=self._on_event)
        return KeepAliveStream(self.load, channel, self._check, ttl_s), watches

    def _revoke(self, lease_id: int) -> None:
        """Ends a lease; its key goes with it."""
        key = self._prefix + b"%x" % lease_id
        self._check.revoking(lease_id, key)
        self._revoking[key] = time.perf_counter()
        self.client.revoke(lease_id, self._acked)

    def _on_event(self, event: Event) -> None:
        if event.type == Event.DELETE:
            self.load.report("LeaseKeepAlive", self._check.deleted(event.kv.key))
            began = self._revoking.pop(event.kv.key, None)
            if began is not None:
                self.load.done("event", "Watch event (revoked)", time.perf_counter() - began)


define(KeepAlives)
