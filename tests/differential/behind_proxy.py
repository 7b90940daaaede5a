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


class Elsewhere(NamedTuple):
    """A proxy that is there already, and that somebody else uses at the same time."""

    address: str
    member: str
    """The member behind it, if this run compacts there and no other does; else empty."""


def _elsewhere() -> Elsewhere | None:
    address = os.environ.get("KVORUM_PROXY", "")
    return Elsewhere(address, os.environ.get("KVORUM_MEMBER", "")) if address else None


ELSEWHERE: Final = _elsewhere()

_COMPACTS: Final = "api.compact("
"""What the source of a row says that holds while others write, but not while they compact."""

_NEEDS_THE_STORE_ALONE: Final = re.compile("revision|compact|progress|T9|two_changes|too_large", re.IGNORECASE)
"""What the source of a row of keys and watches says that counts revisions, compacts, or is among the proxy's own rows:
a namespace ends what is open-ended (T9), and its prefix counts in the size of a request."""

_BY_EVENTS_ALONE: Final = frozenset({"test_WE12_a_revoke_deletes_all_keys_of_the_lease_at_one_revision_in_order"})
"""Rows that say `revision` and count none."""

_COUNTS: Final = "counts revisions, which are the cluster's"
_HASHES: Final = "hashes the whole store, which is no tenant's call and has the others' keys in it"
NEED_THE_STORE_ALONE: Final = {
    "test_L20_revoke_deletes_the_keys_in_one_revision": f"{_COUNTS}; WE12 tells of the deletes by their events",
    "test_C1_C3_borders_and_header": f"{_COUNTS}; and Compact itself is no tenant's call",
    "test_H6_revisions": _HASHES,
    "test_H6_H8_the_compacted_revision_has_the_hash_of_its_compaction": _HASHES,
    "test_H7_the_revision_hashed_is_told": _HASHES,
    "test_H12_hash_changes_with_the_store": _HASHES,
}
"""The rows of leases and compaction that do not hold beside others, and why. Those that restart a server, list all
leases, or begin with an empty store have a server of their own, and are asked behind no proxy."""

_ANSWERED_BY_THE_PROXY: Final = re.compile(r"MemberListRequest|\bmembers\(|member_id\(|/version")
"""What the source of a row says that asks for what a proxy answers of itself (PX1), or does not serve."""


def applies(metafunc: pytest.Metafunc) -> bool:
    """Whether the row is asked through a proxy as well; at a shared one, if it holds while others write, too."""
    if metafunc.module.__name__ not in MODULES:
        return False
    source = inspect.getsource(metafunc.function)
    if _ANSWERED_BY_THE_PROXY.search(source) is not None:
        return False
    return ELSEWHERE is None or _holds_beside_others(metafunc, source, ELSEWHERE)


def _holds_beside_others(metafunc: pytest.Metafunc, source: str, shared: Elsewhere) -> bool:
    name = metafunc.function.__name__
    if _COMPACTS in source:
        return shared.member != ""
    if metafunc.module.__name__.endswith(("_lease", "_compact_hash")):
        return name not in NEED_THE_STORE_ALONE
    return name in _BY_EVENTS_ALONE or _NEEDS_THE_STORE_ALONE.search(source) is None
