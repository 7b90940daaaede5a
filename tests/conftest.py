"""What holds for all tests: those of services that are not there yet are expected to fail."""

import pytest

from loadtest.launcher import Kind
from tests import not_yet
from tests.servers import SUBJECT


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What kvorum does not serve yet must fail, and be taken from the table once it does not."""
    for item in items:
        what = not_yet.reason(item.nodeid) if SUBJECT is Kind.KVORUM else None
        if what is not None:
            item.add_marker(pytest.mark.xfail(reason=f"{what} is not served yet", strict=True))
