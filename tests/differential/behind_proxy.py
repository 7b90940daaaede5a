"""Which rows hold behind a gateway and a proxy too: those of keys, leases and watches."""

from typing import Final

import pytest

MODULES: Final = frozenset(
    f"tests.differential.test_{name}"
    for name in ("compact_hash", "lease", "put_delete", "range", "revisions", "txn", "watch", "watch_events")
)


def applies(metafunc: pytest.Metafunc) -> bool:
    """Whether the row is asked through a proxy as well."""
    return metafunc.module.__name__ in MODULES
