"""Unary calls through a proxy: the member's own answers and errors."""

import os
import resource

from kvorum.errors import Code
from kvorum.pb.rpc_pb2 import (
    DeleteRangeRequest,
    LeaseGrantRequest,
    PutRequest,
    RangeRequest,
    StatusRequest,
    TxnRequest,
)
from loadtest.launcher import Server
from tests.calls import Api
from tests.servers import start_proxy


def test_keys_written_through_the_proxy_are_the_member_s(api: Api, direct: Api) -> None:
    put = api(PutRequest(key=b"unary/a", value=b"1"))
    assert direct(RangeRequest(key=b"unary/a")).kvs[0].mod_revision == put.header.revision
    assert api(RangeRequest(key=b"unary/a")) == direct(RangeRequest(key=b"unary/a"))
    assert api(DeleteRangeRequest(key=b"unary/a")).deleted == 1
    assert not direct(RangeRequest(key=b"unary/a")).kvs


def test_an_error_is_the_member_s_code_and_text(api: Api, direct: Api) -> None:
    for request in (PutRequest(), RangeRequest(key=b"a", revision=10**9), TxnRequest(success=[{}])):
        assert api.status(request) == direct.status(request)
        assert api.status(request).code != Code.UNKNOWN


def test_other_services(api: Api, direct: Api) -> None:
    assert api(LeaseGrantRequest(TTL=100)).TTL == 100
    assert api(StatusRequest()).version == direct(StatusRequest()).version


def test_a_method_that_no_service_has(api: Api) -> None:
    status, _ = api.raw("/etcdserverpb.KV/Nothing", b"")
    assert status.code == Code.UNIMPLEMENTED


def test_connections_may_take_all_the_descriptors_that_the_hard_limit_leaves(kvorum_server: Server) -> None:
    soft, hard = resource.prlimit(os.getpid(), resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        with start_proxy([kvorum_server.address]) as proxy:
            assert resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
