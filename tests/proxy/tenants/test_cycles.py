"""Calls leave nothing behind that only a garbage collection would find: workers run without one."""

import gc

from kvorum.errors import ApiError
from kvorum.pb.rpc_pb2 import PutRequest, PutResponse, RangeRequest, RangeResponse, TxnRequest
from proxy.namespaces.passage import Later
from proxy.tenants.namespaces_file import Limits, TenantEntry
from proxy.tenants.tenant import Tenant

KV = "/etcdserverpb.KV/"


def test_admitted_refused_and_waiting_calls() -> None:
    entry = TenantEntry(name="a", namespace=b"a/", default=True, limits=Limits(1e9, 10, 2, 1000))
    tenant = Tenant(entry, lambda: 0.0)
    assert tenant.usage is not None
    tenant.usage.begin_reading()
    tenant.usage.end_reading(10)
    tenant.usage.is_followed = True
    put = PutRequest(key=b"k", prev_kv=True).SerializeToString()
    reply = PutResponse(header={"revision": 5}, prev_kv={"key": b"a/k"}).SerializeToString()
    foreign = RangeResponse(kvs=[{"key": b"b/k"}]).SerializeToString()
    many = TxnRequest(success=[{"request_put": PutRequest(key=b"%d" % n)} for n in range(3)]).SerializeToString()

    def calls() -> None:
        _, passage = tenant.enter(KV + "Put", put)
        assert passage is not None
        assert passage.settle(0, "", reply)[0] == 0
        _, passage = tenant.enter(KV + "Range", RangeRequest(key=b"k").SerializeToString())
        assert passage is not None
        assert passage.settle(0, "", foreign)[0] != 0
        refused = 0
        for path, message in (("Compact", b""), ("Put", b"\xff"), ("Txn", many)):
            try:
                tenant.enter(KV + path, message)
            except ApiError as error:
                refused += error.status.code != 0
            except Later as later:
                refused += later.join is not None
        assert refused == 3

    calls()
    gc.collect()
    gc.disable()
    try:
        before = gc.collect()
        for _ in range(100):
            calls()
        assert (before, gc.collect()) == (0, 0)
    finally:
        gc.enable()
