"""What a tenant stores is known again after the member was away, and after its history was compacted meanwhile."""

from functools import partial
from pathlib import Path

from kvorum.errors import Code
from kvorum.pb.rpc_pb2 import CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest
from tests.calls import Api
from tests.proxy.tenants.test_live_tenants import wait_for
from tests.servers import start_kvorum, start_proxy

FILE = """
tenants:
  - {name: small, namespace: small/, default: true, limits: {keys: 3}}
"""


def test_the_member_is_killed_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_text(FILE)
    with (
        start_kvorum() as member,
        start_proxy([member.address], {"namespaces-file": str(path)}) as proxy,
        Api(proxy.address) as api,
    ):
        for key in (b"a", b"b"):
            api(PutRequest(key=key))
        member.kill()
        member.start()
        with Api(member.address) as direct:
            # Behind the proxy's back, and with no history left that would tell of it.
            direct(DeleteRangeRequest(key=b"small/a"), wait_for_ready=True)
            direct(PutRequest(key=b"small/c"))
            revision = direct(PutRequest(key=b"small/d")).header.revision
            direct(CompactionRequest(revision=revision, physical=True))
            wait_for(partial(is_refused, api, b"e"))
            api(PutRequest(key=b"b", value=b"an update"))
            direct(DeleteRangeRequest(key=b"small/d"))
            api(PutRequest(key=b"e"))
            assert is_refused(api, b"f")
            assert direct(RangeRequest(key=b"small/", range_end=b"small0", count_only=True)).count == 3


def is_refused(api: Api, key: bytes) -> bool:
    return api.status(PutRequest(key=key)).code == Code.RESOURCE_EXHAUSTED
