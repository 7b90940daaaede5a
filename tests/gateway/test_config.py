"""Endpoints and the listen address as flags give them, and when the gateway must not start (behaviour GW4, GW5)."""

import re
from collections.abc import Sequence

import pytest

from gateway.balance import Endpoint
from gateway.config import Listen, StartFailed, check_endpoints, read_endpoints, read_listen_addr
from gateway.process import SPARE_FDS, is_own_address, room

HOSTS = {
    "127.0.0.1": ["127.0.0.1"],
    "0.0.0.0": ["0.0.0.0"],
    "::": ["::"],
    "here": ["::1", "127.0.0.1"],
    "there": ["192.0.2.1", "192.0.2.2"],
}


def lookup(host: str) -> Sequence[str]:
    if host not in HOSTS:
        raise OSError(0, "no such host")
    return HOSTS[host]


def own(address: str) -> bool:
    return address in ("127.0.0.1", "::1")


class TestEndpoints:
    def test_schemes_are_cut(self) -> None:
        assert read_endpoints(["http://a:1", "https://b:2/", "c:3", "[::1]:4"]) == (
            Endpoint("a", 1),
            Endpoint("b", 2),
            Endpoint("c", 3),
            Endpoint("::1", 4),
        )

    @pytest.mark.parametrize(
        "text", ["h", "a:b:1", "a:", "a:x", "a:0", "a:65536", ":1", "a:+1", "unix://a.sock", "[::1]"]
    )
    def test_what_is_no_host_and_port_is_refused(self, text: str) -> None:
        with pytest.raises(StartFailed, match=f'^error parsing endpoint "{re.escape(text)}"$'):
            read_endpoints(["ok:1", text])


class TestListenAddr:
    @pytest.mark.parametrize(
        ("text", "at"),
        [
            ("127.0.0.1:23790", Listen("127.0.0.1", 23790)),
            ("here:0", Listen("127.0.0.1", 0)),
            ("[::]:1", Listen("::", 1)),
        ],
    )
    def test_a_host_with_ipv4_listens_there(self, text: str, at: Listen) -> None:
        assert read_listen_addr(text, lookup) == at

    @pytest.mark.parametrize(
        ("text", "error"),
        [
            ("x", "failed to validate listen address: x"),
            (":23790", "failed to resolve listen host: "),
            ("nowhere:1", "failed to resolve listen host: nowhere"),
            ("127.0.0.1:65536", "listen tcp: address 65536: invalid port"),
            ("127.0.0.1:", "listen tcp: address : invalid port"),
        ],
    )
    def test_errors(self, text: str, error: str) -> None:
        with pytest.raises(StartFailed, match=f"^{re.escape(error)}$"):
            read_listen_addr(text, lookup)


class TestChecks:
    def check(self, endpoints: Sequence[Endpoint], listen_addr: str) -> dict[str, Sequence[str]]:
        return check_endpoints(endpoints, listen_addr, read_listen_addr(listen_addr, lookup), lookup, own)

    def test_the_addresses_that_were_found_are_kept(self) -> None:
        assert self.check([Endpoint("there", 1), Endpoint("here", 2)], "127.0.0.1:1") == {
            "there": HOSTS["there"],
            "here": HOSTS["here"],
        }

    @pytest.mark.parametrize("listen_addr", ["127.0.0.1:2379", "here:2379", "0.0.0.0:2379", "[::]:2379"])
    def test_an_endpoint_that_is_the_gateway_itself(self, listen_addr: str) -> None:
        with pytest.raises(StartFailed) as failed:
            self.check([Endpoint("there", 2379), Endpoint("127.0.0.1", 2379)], listen_addr)
        assert str(failed.value) == (
            "SRV or endpoint (127.0.0.1:2379->127.0.0.1:2379) "
            f"should not resolve to the gateway listen addr ({listen_addr})"
        )

    def test_an_endpoint_without_an_address(self) -> None:
        with pytest.raises(StartFailed, match=r"^failed to resolve endpoint host: nowhere$"):
            self.check([Endpoint("there", 1), Endpoint("nowhere", 1)], "127.0.0.1:2")

    def test_no_endpoints(self) -> None:
        with pytest.raises(StartFailed, match=r"^no endpoints found$"):
            self.check([], "127.0.0.1:2")

    def test_own_addresses_are_those_that_can_be_bound(self) -> None:
        assert is_own_address("127.0.0.1")
        assert not is_own_address("192.0.2.1")


@pytest.mark.parametrize("fds_max", [16, 64, 100, 1024, 20_000, 1 << 20])
def test_descriptors_that_are_planned_for_exist(fds_max: int) -> None:
    limits = room(fds_max)
    assert limits.connections >= 1
    assert 0 <= limits.pipes <= 64
    if fds_max >= 64:
        assert 2 * limits.connections + 2 * limits.pipes + SPARE_FDS <= fds_max
