"""The first members by the SRV records of a DNS domain (behaviour S23, CL-14): the rules, and records on the wire."""

import socket
import threading
from collections.abc import Iterator, Mapping, Sequence

import dns.message
import dns.rcode
import dns.rrset
import orjson
import pytest
from dns.resolver import Resolver

from kvorum.dns_services import srv_records
from kvorum.log import Level, LogFormat, Logger
from kvorum.resolver import ResolveFailed
from kvorum.urls import parse_urls
from node.discovery_srv import discover
from node.flags.checks import StartFailed
from tests.node.flags.parsed import config, error

ADDRESSES = {"a.example.com": "10.0.0.1", "b.example.com": "10.0.0.2", "localhost": "127.0.0.1"}
Records = Mapping[str, Sequence[tuple[str, int]]]


class Domain:
    """The domain `example.com`: what is asked of it, and what the log says."""

    def __init__(self, records: Records) -> None:
        self._records = {f"_{service}._tcp.example.com": found for service, found in records.items()}
        self.lines: list[dict[str, object]] = []

    def members(self, name: str, advertised: str, suffix: str = "") -> dict[str, list[str]]:
        log = Logger((lambda _level, line: self.lines.append(orjson.loads(line)),), Level.INFO, LogFormat.JSON)
        urls = parse_urls(advertised)
        found = discover(name, "example.com", suffix, urls, self._services, self._resolve, log)
        return {name: [str(url) for url in urls] for name, urls in found.items()}

    def refusal(self, name: str, advertised: str) -> str:
        with pytest.raises(StartFailed) as raised:
            self.members(name, advertised)
        text = str(raised.value)
        assert text.startswith("error setting up initial cluster: ")
        return text.removeprefix("error setting up initial cluster: ")

    def _services(self, name: str) -> Sequence[tuple[str, int]]:
        if name not in self._records:
            raise ResolveFailed(f"lookup {name}: no such host")
        return self._records[name]

    def _resolve(self, host: str) -> str:
        if host.startswith("10.") or ":" in host:
            return host
        if host not in ADDRESSES:
            raise ResolveFailed(f"lookup {host}: no such host")
        return ADDRESSES[host]


A, B = ("a.example.com.", 2380), ("b.example.com.", 2380)


class TestRules:
    def test_the_member_is_known_by_its_address_and_the_others_are_numbered(self) -> None:
        domain = Domain({"etcd-server": [B, A, ("10.0.0.3", 1)]})
        expected = {"0": ["http://b.example.com:2380"], "me": ["http://a.example.com:2380"], "1": ["http://10.0.0.3:1"]}
        assert domain.members("me", "http://10.0.0.1:2380") == expected
        assert domain.members("me", "http://a.example.com:2380") == expected
        assert [line["msg"] for line in domain.lines[:2]] == [
            "failed to resolve during SRV discovery",
            "got bootstrap from DNS for etcd-server",
        ]

    def test_secure_members_have_a_service_of_their_own(self) -> None:
        domain = Domain({"etcd-server-ssl": [A], "etcd-server": [("10.0.0.9", 7)]})
        assert domain.members("me", "https://10.0.0.1:2380") == {
            "me": ["https://a.example.com:2380"],
            "0": ["http://10.0.0.9:7"],
        }

    def test_the_services_may_have_a_suffix(self) -> None:
        domain = Domain({"etcd-server-blue": [A]})
        assert domain.members("me", "http://10.0.0.1:2380", "blue") == {"me": ["http://a.example.com:2380"]}

    def test_one_without_an_address_is_left_out(self) -> None:
        domain = Domain({"etcd-server": [("gone.example.com.", 1), A]})
        assert domain.members("me", "http://10.0.0.1:2380") == {"me": ["http://a.example.com:2380"]}

    def test_an_ipv6_target(self) -> None:
        assert Domain({"etcd-server": [("fd00::1", 1)]}).members("me", "http://[fd00::1]:1") == {
            "me": ["http://[fd00::1]:1"]
        }

    def test_no_records(self) -> None:
        assert Domain({}).refusal("me", "http://10.0.0.1:2380") == (
            "error querying DNS SRV records for _etcd-server-ssl "
            "lookup _etcd-server-ssl._tcp.example.com: no such host; "
            "error querying DNS SRV records for _etcd-server lookup _etcd-server._tcp.example.com: no such host"
        )

    @pytest.mark.parametrize("advertised", ["http://10.0.0.9:2380", "http://10.0.0.1:2381", "unix://a"])
    def test_a_member_that_is_not_listed(self, advertised: str) -> None:
        text = 'cannot find local etcd member "me" in SRV records'
        assert Domain({"etcd-server": [A, B]}).refusal("me", advertised) == text

    def test_another_scheme_than_it_advertises(self) -> None:
        assert (
            Domain({"etcd-server": [A]})
            .refusal("me", "https://10.0.0.1:2380")
            .endswith(
                "error querying DNS SRV records for _etcd-server bootstrap at http://a.example.com:2380 from DNS for "
                "etcd-server has scheme mismatch with expected peer https://10.0.0.1:2380"
            )
        )

    def test_a_target_that_makes_no_url(self) -> None:
        domain = Domain({"etcd-server": [A, ("10.0 .0.1", 1)]})
        assert domain.refusal("me", "http://10.0.0.1:2380").startswith('parse "http://10.0 .0.1:1": invalid character')


class TestFlags:
    def test_the_members_are_not_known_before_they_are_looked_up(self) -> None:
        read = config("--discovery-srv=example.com", "--discovery-srv-name=blue")
        assert (read.discovery_srv, read.discovery_srv_name, read.initial_cluster) == ("example.com", "blue", ())
        assert config().discovery_srv == ""

    def test_beside_initial_cluster(self) -> None:
        """S23."""
        msg, text = error("--discovery-srv=example.com", "--initial-cluster=a=http://a:1")
        assert msg == "failed to verify flags"
        assert text.startswith("multiple discovery or bootstrap flags are set.")


class NameServer:
    """One on loopback that knows a few records."""

    def __init__(self, zone: Mapping[str, Sequence[str]]) -> None:
        self._zone = zone
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def resolver(self) -> Resolver:
        made = Resolver(configure=False)
        made.nameservers = ["127.0.0.1"]
        made.port = self._socket.getsockname()[1]
        return made

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            packet, client = self._socket.recvfrom(4096)
            if not packet:
                return
            query = dns.message.from_wire(packet)
            response = dns.message.make_response(query)
            name = query.question[0].name.to_text()
            if name in self._zone:
                records = self._zone[name]
                if records:
                    response.answer.append(dns.rrset.from_text(name, 60, "IN", "SRV", *records))
            else:
                response.set_rcode(dns.rcode.NXDOMAIN)
            self._socket.sendto(response.to_wire(), client)


class TestRecords:
    @pytest.fixture
    def server(self) -> Iterator[NameServer]:
        server = NameServer(
            {
                "_etcd-server._tcp.example.com.": ["20 1 3 c.", "10 1 2 b.", "10 9 1 a.example.com."],
                "_none._tcp.example.com.": [],
            }
        )
        yield server
        server.close()

    def test_the_most_preferred_come_first(self, server: NameServer) -> None:
        found = srv_records("_etcd-server._tcp.example.com", server.resolver())
        assert [service[:2] for service in found] == [("a.example.com.", 1), ("b.", 2), ("c.", 3)]

    @pytest.mark.parametrize("name", ["_none._tcp.example.com", "_other._tcp.example.com"])
    def test_none(self, server: NameServer, name: str) -> None:
        with pytest.raises(ResolveFailed, match=rf"^lookup {name}: no such host$"):
            srv_records(name, server.resolver())

    def test_not_a_name(self, server: NameServer) -> None:
        with pytest.raises(ResolveFailed, match="lookup "):
            srv_records("x" * 100, server.resolver())
