"""CORS and the whitelist of host names (behaviour J28-J30)."""

import pytest

from node.front.access import Access, host_name
from tests.front.http_fake import FakeExchange

METHODS = "POST, GET, OPTIONS, PUT, DELETE"
HEADERS = "accept, content-type, authorization"


def cors(origin: str) -> dict[str, str]:
    return {
        "access-control-allow-headers": HEADERS,
        "access-control-allow-methods": METHODS,
        "access-control-allow-origin": origin,
    }


@pytest.mark.parametrize("origins", [(), ("*",), ("http://a.b", "*")])
@pytest.mark.parametrize("headers", [{}, {"Origin": "http://x.y"}])
def test_j28_any_origin(origins: tuple[str, ...], headers: dict[str, str]) -> None:
    exchange = FakeExchange("GET", "/", headers)
    request = Access(cors=origins).admit(exchange)
    assert request is not None
    request.not_found()
    assert exchange.reply_headers == {
        **cors("*"),
        "content-type": "text/plain; charset=utf-8",
        "x-content-type-options": "nosniff",
    }


def test_j28_a_listed_origin_is_named() -> None:
    exchange = FakeExchange("GET", "/", {"Origin": "http://a.b"})
    request = Access(cors=["http://a.b", "http://c.d"]).admit(exchange)
    assert request is not None
    request.respond(200, (), b"")
    assert exchange.reply_headers == cors("http://a.b")


@pytest.mark.parametrize("headers", [{}, {"Origin": "http://x.y"}])
def test_j29_another_origin_is_served_without_cors_headers(headers: dict[str, str]) -> None:
    exchange = FakeExchange("GET", "/", headers)
    request = Access(cors=["http://a.b"]).admit(exchange)
    assert request is not None
    request.respond(200, (), b"x")
    assert (exchange.status, exchange.reply_headers) == (200, {})


@pytest.mark.parametrize("path", ["/v3/kv/range", "/nowhere", "*"])
def test_j28_options_on_any_path_is_empty(path: str) -> None:
    exchange = FakeExchange("OPTIONS", path)
    assert Access().admit(exchange) is None
    assert (exchange.status, exchange.reply, exchange.reply_headers) == (200, b"", cors("*"))


@pytest.mark.parametrize("host", ["evil.com", "evil.com:2379", "", "localhost.evil.com", "[::2]:2379"])
def test_j30_a_host_that_is_not_listed(host: str) -> None:
    exchange = FakeExchange("GET", "/health", {"Host": host, "Origin": "http://x.y"})
    assert Access(hosts=["localhost", "::1"]).admit(exchange) is None
    assert exchange.status == 421
    assert b"CVE-2018-5702" in exchange.reply
    assert not any(name.startswith("access-control") for name in exchange.reply_headers)


@pytest.mark.parametrize("host", ["localhost", "localhost:2379", "[::1]:2379"])
def test_j30_a_listed_host(host: str) -> None:
    assert Access(hosts=["localhost", "::1"]).admit(FakeExchange("GET", "/health", {"Host": host})) is not None


@pytest.mark.parametrize("hosts", [(), ("*",), ("a", "*")])
def test_j30_everything_is_allowed(hosts: tuple[str, ...]) -> None:
    assert Access(hosts=hosts).admit(FakeExchange("GET", "/", {"Host": "evil.com"})) is not None


def test_j30_a_request_without_a_host_is_not_listed() -> None:
    assert Access(hosts=["localhost"]).admit(FakeExchange("GET", "/")) is None


def test_j30_tls_is_not_checked() -> None:
    exchange = FakeExchange("GET", "/", {"Host": "evil.com"})
    assert Access(hosts=["localhost"], tls=True).admit(exchange) is not None


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("a", "a"),
        ("a:1", "a"),
        ("a:", "a"),
        (":1", ""),
        ("[::1]:1", "::1"),
        ("[::1]", "[::1]"),
        ("::1", "::1"),
        ("", ""),
    ],
)
def test_host_name(host: str, name: str) -> None:
    assert host_name(host) == name
