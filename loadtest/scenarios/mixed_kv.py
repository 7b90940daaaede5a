"""Reads and writes of single keys: every user one after the other, or at --user-rate.

A linearizable reply must be at least as new as everything answered before the call began, and of the key asked for.
"""

import random
import time

from locust import task
from locust.argument_parser import LocustArgumentParser

from kvorum.pb.rpc_pb2 import PutRequest, RangeRequest, RequestOp, TxnRequest
from loadtest.checks import Fault, FaultKind
from loadtest.messages import stamped_value
from loadtest.users.run import Run, define
from loadtest.users.user import Client, EtcdUser

_PUTS_A_TXN = 100


class MixedKv(Run):
    @staticmethod
    def add_options(parser: LocustArgumentParser) -> None:
        parser.add_argument("--read-ratio", type=float, default=0.9, help="part of the calls that read")
        parser.add_argument(
            "--serializable-ratio", type=float, default=0.0, help="part of the reads that need not be linearizable"
        )
        parser.add_argument("--keys", type=int, default=1000, help="how many")
        parser.add_argument("--key-size", type=int, default=64, help="bytes, with what all keys begin with")
        parser.add_argument("--value-size", type=int, default=256, help="bytes")

    def prepare(self) -> None:
        """Writes every key once."""
        client = Client(self, self.channel())
        for first in range(0, self.options.keys, _PUTS_A_TXN):
            numbers = range(first, min(first + _PUTS_A_TXN, self.options.keys))
            puts = [RequestOp(request_put=self.put(number)) for number in numbers]
            client.txn(TxnRequest(success=puts), "Txn (prepare)")

    def key(self, number: int) -> bytes:
        return (self.prefix + b"%08d" % number).ljust(self.options.key_size, b"k")

    def put(self, number: int) -> PutRequest:
        return PutRequest(key=self.key(number), value=stamped_value(time.time_ns(), self.options.value_size))


class Caller(EtcdUser):
    """Reads or writes a key at random."""

    load: MixedKv

    @task
    def call(self) -> None:
        options = self.load.options
        number = random.randrange(options.keys)
        if random.random() >= options.read_ratio:
            self.client.put(self.load.put(number))
            return
        key = self.load.key(number)
        serializable = random.random() < options.serializable_ratio
        name = "Range (serializable)" if serializable else "Range"
        reply = self.client.range(RangeRequest(key=key, serializable=serializable), name)
        if [kv.key for kv in reply.kvs] != [key]:
            self.load.report(name, [Fault(FaultKind.WRONG, f"{key!r}: {[kv.key for kv in reply.kvs]}")])


define(MixedKv)
