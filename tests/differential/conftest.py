"""The shared servers of this folder, which rows run against which, and the logs in a failure's report."""

from collections.abc import Generator, Iterator

import pytest

from loadtest.launcher import Kind, Server
from tests.differential.side import Side
from tests.servers import SUBJECT, attach_logs, kvorum_server, reference_server, start

__all__ = ["kvorum_server", "reference_server"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A row runs against both servers, unless the reference is known to differ."""
    if "kind" in metafunc.fixturenames:
        kinds = [Kind.KVORUM, Kind.REFERENCE]
        if hasattr(metafunc.function, "differs"):
            kinds = [Kind.KVORUM] if SUBJECT is Kind.KVORUM else []
        metafunc.parametrize("kind", kinds, ids=[kind.value for kind in kinds], scope="function")


@pytest.fixture
def server(kind: Kind, request: pytest.FixtureRequest) -> Server:
    """The shared server of that kind."""
    server: Server = request.getfixturevalue(f"{kind.value}_server")
    return server


@pytest.fixture
def api(kind: Kind, server: Server) -> Iterator[Side]:
    """The shared server, under a key prefix of the test's own."""
    with Side(kind, server) as side:
        yield side


@pytest.fixture
def fresh(kind: Kind) -> Iterator[Side]:
    """A server that nobody has used before."""
    with start(kind) as server, Side(kind, server) as side:
        yield side


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    attach_logs(item, report)
    return report
