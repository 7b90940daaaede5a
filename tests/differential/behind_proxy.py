"""Which rows hold behind a gateway and a proxy too: all but those of HTTP, and what a proxy answers of itself."""

import inspect
import os
import re
from typing import Final, NamedTuple

import pytest

MODULES: Final = frozenset(
    f"tests.differential.test_{name}"
    for name in (
        "compact_hash",
        "grpc",
        "lease",
        "maintenance",
        "members",
        "put_delete",
        "range",
        "revisions",
        "txn",
        "watch",
        "watch_events",
    )
)

ELSEWHERE: Final = os.environ.get("KVORUM_PROXY", "")
"""The address of a proxy that is there already, and that somebody else uses at the same time."""

_NEEDS_THE_STORE_ALONE: Final = re.compile("revision|compact|progress|T9|two_changes|too_large", re.IGNORECASE)
"""What the source of a row says that counts revisions, compacts, or is among the proxy's own rows: a namespace ends
what is open-ended (T9), and its prefix counts in the size of a request."""

_ANSWERED_BY_THE_PROXY: Final = re.compile(r"MemberListRequest|\bmembers\(|member_id\(|/version")
"""What the source of a row says that asks for what a proxy answers of itself (PX1), or does not serve."""


class Elsewhere(NamedTuple):
    """A server that was started elsewhere."""

    address: str


def applies(metafunc: pytest.Metafunc) -> bool:
    """Whether the row is asked through a proxy as well; at a shared one, if it holds while others write, too."""
    if metafunc.module.__name__ not in MODULES:
        return False
    source = inspect.getsource(metafunc.function)
    if _ANSWERED_BY_THE_PROXY.search(source) is not None:
        return False
    return not ELSEWHERE or _NEEDS_THE_STORE_ALONE.search(source) is None
