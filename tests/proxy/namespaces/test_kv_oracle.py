"""Whatever is done through a namespace is as if its keys were the only ones: two models of the store, side by side.

One has nothing but the namespace's keys, under their names inside. The other has keys of others, too, all around the
prefix; it is asked through the rewriting. Both must answer the same, and the keys of others must stay as they are.
"""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from kvorum.pb.rpc_pb2 import (
    DeleteRangeRequest,
    DeleteRangeResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    TxnRequest,
    TxnResponse,
)
from proxy.namespaces import calls
from proxy.namespaces.namespace import Namespace
from tests.apply.mvcc_model import Model
from tests.apply.test_mvcc_model import DELETES, PUTS, RANGES, outcome, txns

PREFIXES = (b"t/", b"\xff", b"a\xff", b"a", b"\0")


def neighbours(prefix: bytes) -> list[bytes]:
    """Keys of others, as near to the namespace as can be."""
    nearest = [prefix, prefix[:-1], prefix[:-1] + bytes((max(prefix[-1] - 1, 0),)), b"\0", b"a", b"b", b"z", b"\xff"]
    if Namespace(prefix).end != b"\0":
        nearest += [Namespace(prefix).end, Namespace(prefix).end + b"a", Namespace(prefix).end + b"\0"]
    return [key for key in nearest if key and (key == prefix or not key.startswith(prefix))]


class TwoModels(RuleBasedStateMachine):
    @initialize(prefix=st.sampled_from(PREFIXES))
    def open(self, prefix: bytes) -> None:
        self.namespace = Namespace(prefix)
        self.alone = Model()
        self.among_others = Model()

    def foreign(self) -> dict[bytes, Any]:
        prefix = self.namespace.prefix
        live = self.among_others.live()
        return {key: kv for key, kv in live.items() if key == prefix or not key.startswith(prefix)}

    def through(self, path: str, method: Any, request_type: Any, reply_type: Any, message: bytes) -> Any:
        before = self.foreign()
        request, strip = calls.UNARY[path](self.namespace, message)
        reply = outcome(method, request_type.FromString(request))
        assert self.foreign() == before
        if not isinstance(reply, reply_type):
            return reply
        raw = reply.SerializeToString()
        return reply_type.FromString(strip(self.namespace, raw) if strip is not None else raw)

    @rule(data=st.data(), value=st.binary(max_size=3))
    def somebody_else_puts(self, data: st.DataObject, value: bytes) -> None:
        key = data.draw(st.sampled_from(neighbours(self.namespace.prefix)))
        self.among_others.put(PutRequest(key=key, value=value))
        self.alone.revision += 1

    @rule(request=PUTS)
    def put(self, request: PutRequest) -> None:
        theirs = self.through(
            "/etcdserverpb.KV/Put", self.among_others.put, PutRequest, PutResponse, request.SerializeToString()
        )
        assert theirs == outcome(self.alone.put, request)

    @rule(request=RANGES)
    def range(self, request: RangeRequest) -> None:
        theirs = self.through(
            "/etcdserverpb.KV/Range", self.among_others.range, RangeRequest, RangeResponse, request.SerializeToString()
        )
        assert theirs == outcome(self.alone.range, request)

    @rule(request=DELETES)
    def delete(self, request: DeleteRangeRequest) -> None:
        theirs = self.through(
            "/etcdserverpb.KV/DeleteRange",
            self.among_others.delete_range,
            DeleteRangeRequest,
            DeleteRangeResponse,
            request.SerializeToString(),
        )
        assert theirs == outcome(self.alone.delete_range, request)

    @rule(request=txns(2))
    def txn(self, request: TxnRequest) -> None:
        theirs = self.through(
            "/etcdserverpb.KV/Txn", self.among_others.txn, TxnRequest, TxnResponse, request.SerializeToString()
        )
        assert theirs == outcome(self.alone.txn, request)


TestTwoModels = TwoModels.TestCase
TestTwoModels.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
