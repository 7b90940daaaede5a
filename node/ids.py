"""The ids of a member and of its cluster: pure functions of what the first start was told (behaviour CL-4)."""

from collections.abc import Iterable
from hashlib import sha1

from kvorum.urls import Url


def member_id(peer_urls: Iterable[Url], cluster_token: str) -> int:
    """A first member's id: the first 8 bytes, big-endian, of SHA-1 over its sorted peer URLs and the cluster token."""
    text = "".join(sorted(str(url) for url in peer_urls)) + cluster_token
    return int.from_bytes(sha1(text.encode(), usedforsecurity=False).digest()[:8], "big")


def added_member_id(peer_urls: Iterable[Url], unix_s: int) -> int:
    """The id of a member that is added to a running cluster at that time (M3)."""
    return member_id(peer_urls, str(unix_s))


def cluster_id(member_ids: Iterable[int]) -> int:
    """A cluster's id: the same over its first members' ids, ascending, 8 bytes big-endian each."""
    packed = b"".join(member.to_bytes(8, "big") for member in sorted(member_ids))
    return int.from_bytes(sha1(packed, usedforsecurity=False).digest()[:8], "big")
