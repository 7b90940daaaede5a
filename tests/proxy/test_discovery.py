"""Endpoints from DNS, and from the cluster's list of its members."""

import re
from collections.abc import Sequence

import pytest

from kvorum.dns_services import Service
from kvorum.log import Level, LogFormat, Logger
from kvorum.pb.rpc_pb2 import Member
from kvorum.resolver import ResolveFailed
from proxy.config import StartFailed
from proxy.upstream.discovery import discover
from proxy.upstream.endpoints import Endpoint
from proxy.upstream.sync import endpoints_of

LOG = Logger((), Level.ERROR, LogFormat.JSON)
SECURE = "_etcd-client-ssl._tcp.example.com"
PLAIN = "_etcd-client._tcp.example.com"


class Zone:
    """SRV records by name."""

    def __init__(self, records: dict[str, list[Service]]) -> None:
        self._records = records

    def __call__(self, name: str) -> Sequence[Service]:
        if name not in self._records:
            raise ResolveFailed(f"lookup {name}: no such host")
        return self._records[name]


BOTH = Zone(
    {
        SECURE: [Service("a.example.com.", 2379, 0, 1), Service(".", 0, 0, 0)],
        PLAIN: [Service("b.example.com.", 2380, 0, 1)],
    }
)


def test_records_with_and_without_tls() -> None:
    secure, plain = Endpoint("a.example.com:2379", True), Endpoint("b.example.com:2380", False)
    assert discover("example.com", "", True, BOTH, LOG) == (secure, plain)
    assert discover("example.com", "", False, BOTH, LOG) == (secure,)


def test_a_service_s_own_name() -> None:
    zone = Zone({"_etcd-client-ssl-blue._tcp.example.com": [Service("c.example.com.", 1, 0, 0)]})
    assert discover("example.com", "blue", False, zone, LOG) == (Endpoint("c.example.com:1", True),)


def test_a_domain_without_records() -> None:
    text = f"dns lookup errors: lookup {SECURE}: no such host and lookup {PLAIN}: no such host"
    with pytest.raises(StartFailed, match=re.escape(text)):
        discover("example.com", "", True, Zone({}), LOG)


def test_a_domain_without_members_that_can_be_trusted() -> None:
    with pytest.raises(StartFailed, match="no available endpoints"):
        discover("example.com", "", False, Zone({PLAIN: [Service("b.example.com.", 1, 0, 0)]}), LOG)


def test_members_that_serve_clients() -> None:
    members = [
        Member(name="a", clientURLs=["http://10.0.0.1:2379", "https://a:2379"]),
        Member(name="", clientURLs=["http://10.0.0.2:2379"]),
        Member(name="learner", isLearner=True, clientURLs=["http://10.0.0.3:2379"]),
        Member(name="odd", clientURLs=["nonsense://", "unix:///run/member"]),
    ]
    assert endpoints_of(members) == (
        Endpoint("10.0.0.1:2379", False),
        Endpoint("a:2379", True),
        Endpoint("unix:/run/member", False),
    )
