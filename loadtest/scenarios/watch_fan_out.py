"""Watchers and writers: every watcher of the range gets every write of every writer, once and in order.

An event's time is from the moment before its write is sent to its arrival. --writers users write, the others watch.
"""

import random
import time
from argparse import Namespace
from collections.abc import Mapping

from locust import User, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from kvorum.pb.rpc_pb2 import PutRequest
from kvorum.ranges import end_of_prefix
from loadtest.checks import AckedWrites, WatchCheck
from loadtest.messages import stamped_value
from loadtest.users.run import Run, define
from loadtest.users.streams import WatchStream
from loadtest.users.user import Client, EtcdUser


class FanOut(Run):
    rate = 10.0

    @staticmethod
    def add_options(parser: LocustArgumentParser) -> None:
        parser.add_argument("--writers", type=int, default=1, help="users that write; the others watch")
        parser.add_argument("--watches", type=int, default=1, help="of each watching user, on one stream")
        parser.add_argument("--keys", type=int, default=10, help="in the watched range")
        parser.add_argument("--value-size", type=int, default=256, help="bytes")

    @staticmethod
    def fixed_users(options: Namespace) -> Mapping[type[User], int]:
        return {Writer: options.writers}

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.acked = AckedWrites()

    def prepare(self) -> None:
        """Writes every key once, so that watchers start with keys that live."""
        client = Client(self, self.channel())
        for number in range(self.options.keys):
            client.put(self.put(number), "Put (prepare)", self.acked)

    def put(self, number: int) -> PutRequest:
        key = self.prefix + b"%08d" % number
        return PutRequest(key=key, value=stamped_value(time.time_ns(), self.options.value_size))


class Writer(EtcdUser):
    """Writes a key at random."""

    load: FanOut

    @task
    def write(self) -> None:
        number = random.randrange(self.load.options.keys)
        self.client.put(self.load.put(number), "Put", self.load.acked)


class Watcher(EtcdUser):
    """Lists the range, then watches on from there."""

    load: FanOut

    @task
    def watch(self) -> None:
        load = self.load
        stream = WatchStream(load, self.client.channel)
        for number in range(load.options.watches):
            listed = self.client.list(load.prefix)
            check = WatchCheck(f"watch {number}", listed.header.revision, listed.kvs, load.acked)
            stream.watch("Watch event", load.prefix, end_of_prefix(load.prefix), check)
        load.stopped.wait()


define(FanOut)
