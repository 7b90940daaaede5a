"""When two lists of peer URLs are the same places, and how names get addresses (behaviour S32, S38)."""

from collections.abc import Sequence

import orjson
import pytest

from kvorum.log import Level, LogFormat, Logger
from kvorum.resolver import PATIENCE_S, RETRY_S, ResolveFailed, Resolver
from kvorum.urls import parse_urls
from node.peer_urls import difference

ADDRESSES = {"a": "10.0.0.1", "b": "10.0.0.2", "six": "fd00::6"}


def resolve(host: str) -> str:
    if host not in ADDRESSES:
        raise ResolveFailed(f"lookup {host}: no such host")
    return ADDRESSES[host]


@pytest.mark.parametrize(
    ("ours", "theirs", "why"),
    [
        ("http://x:1", "http://x:1", ""),
        ("http://x:1,http://y:1", "http://y:1,http://x:1", ""),
        ("http://a:1", "http://10.0.0.1:1", ""),
        ("http://b:1,http://a:1", "http://10.0.0.1:1,http://10.0.0.2:1", ""),
        ("http://six:1", "http://[fd00::6]:1", ""),
        ("unix://a:1", "unix://a:1", ""),
        ("http://a:1", "http://a:1,http://b:1", 'len(["http://a:1"]) != len(["http://a:1" "http://b:1"])'),
        (
            "http://a:1",
            "http://b:1",
            '"http://10.0.0.1:1"(resolved from "http://a:1") != "http://10.0.0.2:1"(resolved from "http://b:1")',
        ),
        (
            "http://localhost:1",
            "http://127.0.0.1:1",
            '"http://localhost:1"(resolved from "http://localhost:1") != '
            '"http://127.0.0.1:1"(resolved from "http://127.0.0.1:1")',
        ),
        (
            "http://a:1",
            "https://a:1",
            '"http://10.0.0.1:1"(resolved from "http://a:1") != "https://10.0.0.1:1"(resolved from "https://a:1")',
        ),
        ("http://a:1", "http://x:1", 'failed to resolve "http://x:1" (lookup x: no such host)'),
    ],
)
def test_difference(ours: str, theirs: str, why: str) -> None:
    assert difference(parse_urls(ours), parse_urls(theirs), resolve) == why


class Names:
    """The system's names, the time, and what the log was told."""

    def __init__(self, addresses: Sequence[str], failures: int = 0) -> None:
        self.addresses = list(addresses)
        self.failures = failures
        self.now_s = 1000.0
        self.asked: list[str] = []
        self.lines: list[dict[str, object]] = []
        log = Logger((lambda _level, line: self.lines.append(orjson.loads(line)),), Level.INFO, LogFormat.JSON)
        self.resolver = Resolver(log, PATIENCE_S, self._lookup, lambda: self.now_s, self._sleep)

    def _lookup(self, host: str) -> list[str]:
        self.asked.append(host)
        if len(self.asked) <= self.failures:
            raise OSError(-2, "Name or service not known")
        return self.addresses

    def _sleep(self, wait_s: float) -> None:
        assert wait_s == RETRY_S
        self.now_s += wait_s


class TestResolver:
    def test_ipv4_comes_first_and_each_name_is_asked_for_once(self) -> None:
        names = Names(["fd00::1", "10.0.0.1"])
        assert [names.resolver("a"), names.resolver("a")] == ["10.0.0.1", "10.0.0.1"]
        assert names.asked == ["a"]
        assert Names(["fd00::1"]).resolver("a") == "fd00::1"

    def test_it_asks_again_while_there_is_patience(self) -> None:
        names = Names(["10.0.0.1"], failures=2)
        assert names.resolver("a") == "10.0.0.1"
        assert [line["error"] for line in names.lines] == ["lookup a: name or service not known"] * 2

    def test_patience_is_for_all_names_together(self) -> None:
        names = Names([], failures=1000)
        with pytest.raises(ResolveFailed, match=r"^lookup a: name or service not known$"):
            names.resolver("a")
        assert names.now_s == 1000.0 + PATIENCE_S
        with pytest.raises(ResolveFailed):
            names.resolver("b")
        assert names.asked.count("b") == 1

    def test_without_patience_it_asks_once(self) -> None:
        names = Names(["10.0.0.1"], failures=1)
        names.resolver = Resolver(Logger((), Level.INFO, LogFormat.JSON), 0.0, names._lookup)
        with pytest.raises(ResolveFailed):
            names.resolver("a")
        assert names.resolver("a") == "10.0.0.1"

    def test_the_systems_names(self) -> None:
        quiet = Logger((), Level.INFO, LogFormat.JSON)
        assert Resolver(quiet)("localhost") == "127.0.0.1"
        with pytest.raises(ResolveFailed, match="no such host"):
            Resolver(quiet, sleep=lambda _wait_s: None, now=iter((0.0, PATIENCE_S)).__next__)("x" * 100)
