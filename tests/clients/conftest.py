"""Servers for this folder: a shared one of each kind, and which client tests run against which."""

from collections.abc import Generator, Iterator

import pytest

from loadtest.launcher import Kind, Server
from tests.calls import Api
from tests.servers import attach_logs, kvorum_server, reference_server

__all__ = ["kvorum_server", "reference_server"]


@pytest.fixture(params=list(Kind), ids=lambda kind: kind.value)
def server(request: pytest.FixtureRequest) -> Server:
    """Both servers in turn: the reference shows that the test itself is right."""
    server: Server = request.getfixturevalue(f"{request.param.value}_server")
    return server


@pytest.fixture
def api(server: Server) -> Iterator[Api]:
    with Api(server.address) as api:
        yield api


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    attach_logs(item, report)
    return report
