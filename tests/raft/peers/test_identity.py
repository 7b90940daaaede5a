"""Whether a member takes a stream, by what the stream says of itself."""

from types import MappingProxyType

import pytest

from kvorum.errors import Code
from node.raft.peers.identity import REMOVED, URLS, Identity, StreamRefused, urls_of, urls_text

ME = Identity(cluster_id=0xC1, member_id=0xA, version="3.7.0")
THEM = Identity(cluster_id=0xC1, member_id=0xB, version="3.7.0")

Metadata = dict[str, tuple[str | bytes, ...]]


def metadata(sender: Identity = THEM, to: int = 0xA, **changed: tuple[str | bytes, ...]) -> Metadata:
    """What `sender` says to the member `to`; `changed` by the last part of a name."""
    said: Metadata = {name: (value,) for name, value in sender.metadata(to).items()}
    for name in list(said):
        value = changed.get(name.split("-")[1])
        if value is not None:
            said[name] = value
    return said


def refusal(said: Metadata, removed: frozenset[int] = frozenset()) -> tuple[Code, str]:
    with pytest.raises(StreamRefused) as caught:
        ME.sender(MappingProxyType(said), removed)
    return caught.value.code, caught.value.text


def test_a_member_of_the_cluster_is_taken() -> None:
    assert ME.sender(MappingProxyType(metadata()), frozenset()) == 0xB


@pytest.mark.parametrize("version", ["3.7.1", "3.8.0", "3.0.0", "3"])
def test_any_version_of_the_same_major_is_taken(version: str) -> None:
    assert ME.sender(MappingProxyType(metadata(Identity(0xC1, 0xB, version))), frozenset()) == 0xB


def test_another_cluster_is_refused_with_both_ids() -> None:
    assert refusal(metadata(Identity(0xC2, 0xB))) == (
        Code.FAILED_PRECONDITION,
        "member a is of cluster c1, not of cluster c2",
    )


def test_who_looks_for_another_member_is_told_who_is_here() -> None:
    assert refusal(metadata(to=0xD)) == (Code.FAILED_PRECONDITION, "here is member a, not member d")


def test_a_member_does_not_speak_with_itself() -> None:
    assert refusal(metadata(Identity(0xC1, 0xA))) == (Code.FAILED_PRECONDITION, "here is member a itself")


@pytest.mark.parametrize("version", ["4.0.0", "2.3.8", "", "three"])
def test_another_major_version_is_refused_with_both_versions(version: str) -> None:
    code, text = refusal(metadata(Identity(0xC1, 0xB, version)))
    assert (code, text) == (Code.FAILED_PRECONDITION, f"member a speaks API version 3.7.0, not {version!r}")


def test_a_removed_member_is_told_so() -> None:
    assert refusal(metadata(), frozenset((0xB,))) == (Code.FAILED_PRECONDITION, REMOVED)


def test_a_removed_member_of_another_cluster_is_of_another_cluster() -> None:
    _, text = refusal(metadata(Identity(0xC2, 0xB)), frozenset((0xB,)))
    assert text == "member a is of cluster c1, not of cluster c2"


@pytest.mark.parametrize("name", sorted(THEM.metadata(0xA)))
def test_nothing_may_be_missing_or_there_twice(name: str) -> None:
    said = metadata()
    del said[name]
    assert refusal(said) == (Code.INVALID_ARGUMENT, f"a stream between members must have one {name}")
    said[name] = ("1", "1")
    assert refusal(said) == (Code.INVALID_ARGUMENT, f"a stream between members must have one {name}")


@pytest.mark.parametrize("value", ["", "0", "xyz", "-1", "+1", "0x1", " 1", "1_0", "1" * 17, "\u0661"])
def test_an_id_is_hexadecimal_digits(value: str) -> None:
    assert refusal(metadata(cluster=(value,))) == (
        Code.INVALID_ARGUMENT,
        "kvorum-cluster-id must be an id in hexadecimal",
    )


def test_what_is_no_text_is_shown_as_what_it_is() -> None:
    _, text = refusal(metadata(Identity(0xC1, 0xB, "\n\x1b[31m" + "9" * 100)))
    assert text == r"member a speaks API version 3.7.0, not '\n\x1b[31m" + "9" * 34 + "'"


def test_a_stream_may_say_where_its_sender_listens() -> None:
    assert urls_of(metadata()) == ()
    assert urls_of({URLS: ("http://b:2,http://a:1",)}) == ("http://a:1", "http://b:2")


@pytest.mark.parametrize(
    "text", ["a", "http://a:1,", "http://a:1 http://b:2", ",".join(f"http://a:{i}" for i in range(1, 18))]
)
def test_urls_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(StreamRefused) as caught:
        urls_of({URLS: (text,)})
    assert caught.value.code == Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("urls", "told"),
    [
        ([], 0),
        (["http://b:2", "http://a:1"], 2),
        ([f"http://a:{port}" for port in range(100)], 16),
        (["http://a,b:1", "http://\u00fc:1", f"http://{'a' * 2000}:1", "unix://a/b c", "http://a:1"], 2),
    ],
)
def test_one_with_whatever_urls_tells_those_that_are_taken(urls: list[str], told: int) -> None:
    taken = urls_of({URLS: (urls_text(urls),)})
    assert set(taken) <= set(urls)
    assert len(taken) == told
