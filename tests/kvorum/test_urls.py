"""URLs of listeners and members (behaviour S22, HT27)."""

import pytest

from kvorum.urls import Url, is_ip, parse_url, parse_urls, quote, split_host_port


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://127.0.0.1:2379", Url("http", "127.0.0.1:2379")),
        (" https://[::1]:2379 ", Url("https", "[::1]:2379")),
        ("HTTP://Host:1", Url("http", "Host:1")),
        ("http://:2379", Url("http", ":2379")),
        ("unix://localhost:1234", Url("unix", "localhost:1234")),
        ("unixs:///run/k.sock", Url("unixs", "", "/run/k.sock")),
        ("unix://dir/k.sock", Url("unix", "dir", "/k.sock")),
    ],
)
def test_a_good_url(text: str, url: Url) -> None:
    assert parse_url(text) == url
    assert parse_url(str(url)) == url


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("foo://a", "URL scheme must be http, https, unix, or unixs: foo://a"),
        ("", "URL scheme must be http, https, unix, or unixs: "),
        ("localhost", "URL scheme must be http, https, unix, or unixs: localhost"),
        ("http://a", 'URL address does not have the form "host:port": http://a'),
        ("http://::1:2", 'URL address does not have the form "host:port": http://::1:2'),
        ("http://127.0.0.1:1/x", "URL must not contain a path: http://127.0.0.1:1/x"),
        ("http://127.0.0.1:1/", "URL must not contain a path: http://127.0.0.1:1/"),
        ("127.0.0.1:33", 'parse "127.0.0.1:33": first path segment in URL cannot contain colon'),
        (":33", 'parse ":33": missing protocol scheme'),
        ("http://a:b", 'parse "http://a:b": invalid port ":b" after host'),
        ("http://a b:1", 'parse "http://a b:1": invalid character " " in host name'),
        ("http://a\x01:1", 'parse "http://a\\x01:1": net/url: invalid control character in URL'),
    ],
)
def test_a_bad_url(text: str, reason: str) -> None:
    with pytest.raises(ValueError) as raised:
        parse_url(text)
    assert str(raised.value) == reason


def test_a_list_is_sorted_and_holds_each_url_once() -> None:
    urls = parse_urls("http://b:1,http://a:1,http://b:1")
    assert [str(url) for url in urls] == ["http://a:1", "http://b:1"]
    assert parse_urls("") == ()


def test_a_unix_url_names_a_file_by_host_and_path() -> None:
    assert parse_url("unix://localhost:1234").socket_path == "localhost:1234"
    assert parse_url("unixs://dir/k.sock").socket_path == "dir/k.sock"
    assert parse_url("unixs://dir/k.sock").is_secure
    assert not parse_url("unix://k").is_secure


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a:1", ("a", "1")),
        ("[::1]:2", ("::1", "2")),
        (":2", ("", "2")),
        ("a:", ("a", "")),
        ("a", None),
        ("::1", None),
        ("[::1]", None),
        ("[::1", None),
        ("a]:1", None),
    ],
)
def test_host_and_port(text: str, parts: tuple[str, str] | None) -> None:
    assert split_host_port(text) == parts


def test_an_ip_is_an_address_and_not_a_name() -> None:
    assert is_ip("127.0.0.1")
    assert is_ip("::")
    assert not is_ip("localhost")
    assert not is_ip("1.2.3")
    assert not is_ip("fe80::1%eth0")
    assert not is_ip("a\0")


def test_quoted_text_is_one_line() -> None:
    assert quote('a"b\\c\n\x7f') == '"a\\"b\\\\c\\n\\x7f"'
