"""Many tenants, one of them noisy: what the others see alone, and what they see beside the noise.

In the first half of the run (or for --quiet-for seconds) the quiet tenants are alone; then the noisy one begins, and
their calls and events are reported under other names. With --tenancy=authority a tenant is known by the server name
that its connections ask for, tenant-0.loadtest and so on, noisy.loadtest, which a proxy's namespaces file maps to a
namespace; all tenants use the same keys. With --tenancy=prefix, for clusters without a proxy, their keys begin
differently. No tenant may see what another has written. Calls of the noisy tenant may be refused for its limits.
"""

import itertools
import random
import time
from argparse import Namespace
from collections.abc import Mapping

import grpc
from locust import User, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from kvorum.pb.mvcc_pb2 import Event, KeyValue
from kvorum.pb.rpc_pb2 import PutRequest, RangeRequest
from kvorum.ranges import end_of_prefix
from loadtest.checks import AckedWrites, Fault, FaultKind, WatchCheck
from loadtest.messages import stamped_value
from loadtest.users.run import Run, define
from loadtest.users.streams import WatchStream
from loadtest.users.user import Client, EtcdUser, pace

_KEYS = 20
_NOISY = "noisy"
_DEFAULT_QUIET_S = 10.0


class Tenants(Run):
    rate = 10.0

    @staticmethod
    def add_options(parser: LocustArgumentParser) -> None:
        parser.add_argument("--tenants", type=int, default=4, help="that are quiet; users are spread over them")
        parser.add_argument(
            "--tenancy", choices=["prefix", "authority"], default="prefix", help="how they are told apart"
        )
        parser.add_argument("--noisy-users", type=int, default=2, help="of the noisy tenant, of the number of users")
        parser.add_argument("--noise-rate", type=float, default=200.0, help="calls a second of each; 0: no pause")
        parser.add_argument("--quiet-for", type=float, default=0.0, help="seconds without noise; 0: half of the run")
        parser.add_argument("--value-size", type=int, default=256, help="bytes; 16 times as many of the noisy one")

    @staticmethod
    def fixed_users(options: Namespace) -> Mapping[type[User], int]:
        return {Noisy: options.noisy_users}

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.turns = itertools.count()
        self.acked = {name: AckedWrites() for name in [*map(self.tenant, range(self.options.tenants)), _NOISY]}
        run_s = self.options.run_time if isinstance(self.options.run_time, int) else 0  # the web page leaves it open
        self._noise_from = time.monotonic() + (self.options.quiet_for or run_s / 2 or _DEFAULT_QUIET_S)

    @staticmethod
    def tenant(number: int) -> str:
        return f"tenant-{number}"

    def authority(self, tenant: str) -> str:
        return f"{tenant}.loadtest" if self.options.tenancy == "authority" else ""

    def range_of(self, tenant: str) -> bytes:
        """What all keys of a tenant begin with."""
        return self.prefix if self.options.tenancy == "authority" else self.prefix + tenant.encode() + b"/"

    def put(self, tenant: str, size_bytes: int) -> PutRequest:
        value = stamped_value(time.time_ns(), 0) + tenant.encode() + b" "
        key = self.range_of(tenant) + b"%d" % random.randrange(_KEYS)
        return PutRequest(key=key, value=value.ljust(size_bytes, b"."))

    def check_owner(self, name: str, tenant: str, kv: KeyValue) -> None:
        """What a tenant gets is its own."""
        owner = kv.value[len(stamped_value(0, 0)) :].partition(b" ")[0]
        if owner != tenant.encode():
            self.report(name, [Fault(FaultKind.FOREIGN, f"{tenant} got {kv.key!r} of {owner!r}")])

    @property
    def noisy(self) -> bool:
        """The noise has begun."""
        return time.monotonic() >= self._noise_from

    def named(self, what: str) -> str:
        """The name under which quiet tenants' calls are reported now."""
        return f"{what} (beside noise)" if self.noisy else f"{what} (alone)"


class Quiet(EtcdUser):
    """A user of a quiet tenant: reads, writes and lists its tenant's keys, and watches them."""

    load: Tenants

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._watching = False

    def connect(self) -> Client:
        self._tenant = self.load.tenant(next(self.load.turns) % self.load.options.tenants)
        return Client(self.load, self.load.channel(self.load.authority(self._tenant)))

    @task(4)
    def put(self) -> None:
        load = self.load
        self._watch()
        self.client.put(load.put(self._tenant, load.options.value_size), load.named("Put"), load.acked[self._tenant])

    @task(4)
    def get(self) -> None:
        key = self.load.range_of(self._tenant) + b"%d" % random.randrange(_KEYS)
        name = self.load.named("Range")
        for kv in self.client.range(RangeRequest(key=key), name).kvs:
            self.load.check_owner(name, self._tenant, kv)

    @task(1)
    def list(self) -> None:
        name = self.load.named("Range (list)")
        for kv in self.client.list(self.load.range_of(self._tenant), name).kvs:
            self.load.check_owner(name, self._tenant, kv)

    def _watch(self) -> None:
        """Watches, once."""
        if self._watching:
            return
        load = self.load
        prefix = load.range_of(self._tenant)
        listed = self.client.list(prefix, load.named("Range (list)"))
        check = WatchCheck(self._tenant, listed.header.revision, listed.kvs, load.acked[self._tenant])
        stream = WatchStream(load, self.client.channel)
        self._watched = stream.watch(
            load.named("Watch event"), prefix, end_of_prefix(prefix), check, on_event=self._on_event
        )
        self._watching = True

    def _on_event(self, event: Event) -> None:
        self._watched.name = self.load.named("Watch event")
        self.load.check_owner("Watch event", self._tenant, event.kv)


class Noisy(EtcdUser):
    """A user of the noisy tenant: writes large values and lists them."""

    load: Tenants

    def connect(self) -> Client:
        client = Client(self.load, self.load.channel(self.load.authority(_NOISY)))
        client.refusal = grpc.StatusCode.RESOURCE_EXHAUSTED
        self.pace = pace(self.load.options.noise_rate)
        return client

    @task
    def shout(self) -> None:
        load = self.load
        if not load.noisy:
            load.stopped.wait(0.05)
        elif random.random() < 0.5:
            self.client.put(load.put(_NOISY, 16 * load.options.value_size), "Put (noisy)", load.acked[_NOISY])
        else:
            for kv in self.client.list(load.range_of(_NOISY), "Range (noisy list)").kvs:
                load.check_owner("Range (noisy list)", _NOISY, kv)


define(Tenants)
