"""What holds for all tests: those of services that are not there yet are expected to fail."""

import pytest
from hypothesis import HealthCheck, settings

from loadtest.launcher import Kind
from tests import not_yet
from tests.servers import SUBJECT

# A busy machine is slow, and no test asserts a duration.
settings.register_profile("kvorum", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kvorum")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What kvorum does not serve yet must fail, and be taken from the table once it does not."""
    for item in items:
        what = not_yet.reason(item.nodeid) if SUBJECT is Kind.KVORUM else None
        if what is not None:
            item.add_marker(pytest.mark.xfail(reason=f"{what} is not served yet", strict=True))
