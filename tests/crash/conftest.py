"""The servers' logs in a failure's report."""

from collections.abc import Generator

import pytest

from tests.servers import attach_logs


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    attach_logs(item, report)
    return report
