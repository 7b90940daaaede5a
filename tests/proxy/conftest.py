"""A member with a proxy in front of it, for the tests of this folder."""

from collections.abc import Generator, Iterator

import pytest

from loadtest.launcher import Server
from tests.calls import Api
from tests.servers import attach_logs, kvorum_server, reference_server, start_proxy

__all__ = ["kvorum_server", "reference_server"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds the ends of the servers' logs to a failure."""
    report = yield
    attach_logs(item, report)
    return report


@pytest.fixture(scope="session")
def proxy(kvorum_server: Server) -> Iterator[Server]:
    """A proxy without further flags, in front of the member."""
    with start_proxy([kvorum_server.address]) as server:
        yield server


@pytest.fixture
def api(proxy: Server) -> Iterator[Api]:
    """A connection to the proxy."""
    with Api(proxy.address) as api:
        yield api


@pytest.fixture
def direct(kvorum_server: Server) -> Iterator[Api]:
    """A connection to the member behind the proxy."""
    with Api(kvorum_server.address) as api:
        yield api
