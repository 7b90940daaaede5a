"""Who speaks to whom: the metadata of every stream between members, and whether a member takes the stream."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from kvorum import API_VERSION
from kvorum.errors import Code
from kvorum.urls import parse_urls
from kvorum.wire.grpc import Metadata

CLUSTER: Final = "kvorum-cluster-id"
FROM: Final = "kvorum-from-member"
TO: Final = "kvorum-to-member"
VERSION: Final = "kvorum-api-version"
URLS: Final = "kvorum-from-urls"
"""The sender's peer URLs, with commas: whoever does not know the sender yet answers it there."""

URLS_MAX: Final = 16
URL_MAX_BYTES: Final = 1024

_HEXADECIMAL: Final = re.compile("[0-9a-f]{1,16}")

REMOVED: Final = "the member has been permanently removed from the cluster"
"""What a removed member is told; hearing it, it ends."""


class StreamRefused(Exception):
    """A stream of another member's is not taken: the gRPC status it ends with."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


@dataclass(frozen=True, slots=True)
class Identity:
    """One member of a cluster."""

    cluster_id: int
    member_id: int
    version: str = API_VERSION

    def metadata(self, to: int) -> dict[str, str]:
        """What a stream of this member's to the member `to` says."""
        return {
            CLUSTER: f"{self.cluster_id:x}",
            FROM: f"{self.member_id:x}",
            TO: f"{to:x}",
            VERSION: self.version,
        }

    def sender(self, metadata: Metadata, removed: Collection[int]) -> int:
        """The member that opens a stream with this metadata to this member; raises StreamRefused.

        The order is from what makes all else meaningless to what is the sender's alone: only a member of this cluster
        that means this member can learn that it was removed.
        """
        version = _text(metadata, VERSION)
        cluster, sender, to = _id(metadata, CLUSTER), _id(metadata, FROM), _id(metadata, TO)
        if version.partition(".")[0] != self.version.partition(".")[0]:
            text = f"member {self.member_id:x} speaks API version {self.version}, not {_shown(version)}"
        elif cluster != self.cluster_id:
            text = f"member {self.member_id:x} is of cluster {self.cluster_id:x}, not of cluster {cluster:x}"
        elif to != self.member_id:
            text = f"here is member {self.member_id:x}, not member {to:x}"
        elif sender == self.member_id:
            text = f"here is member {self.member_id:x} itself"
        elif sender in removed:
            text = REMOVED
        else:
            return sender
        raise StreamRefused(Code.FAILED_PRECONDITION, text)


def urls_text(urls: Iterable[str]) -> str:
    """A member's peer URLs as `URLS` has them: those, and as many, as whoever is told will take."""
    told = [url for url in urls if url.isascii() and "," not in url and len(url) <= URL_MAX_BYTES]
    return ",".join(told[:URLS_MAX])


def urls_of(metadata: Metadata) -> tuple[str, ...]:
    """Where the sender of a stream with this metadata listens; empty if it does not say so. Raises StreamRefused."""
    if URLS not in metadata:
        return ()
    try:
        urls = tuple(str(url) for url in parse_urls(_text(metadata, URLS)))
    except ValueError as error:
        raise StreamRefused(Code.INVALID_ARGUMENT, f"{URLS}: {ascii(str(error))[:100]}") from None
    if len(urls) > URLS_MAX:
        raise StreamRefused(Code.INVALID_ARGUMENT, f"{URLS} has more than {URLS_MAX} URLs")
    return urls


def _text(metadata: Metadata, name: str) -> str:
    values = metadata.get(name, ())
    if len(values) != 1 or not isinstance(values[0], str):
        raise StreamRefused(Code.INVALID_ARGUMENT, f"a stream between members must have one {name}")
    return values[0]


def _id(metadata: Metadata, name: str) -> int:
    text = _text(metadata, name)
    if _HEXADECIMAL.fullmatch(text) is None or not int(text, 16):
        raise StreamRefused(Code.INVALID_ARGUMENT, f"{name} must be an id in hexadecimal")
    return int(text, 16)


def _shown(text: str) -> str:
    """What a peer sent, fit for a message."""
    return ascii(text[:40])
