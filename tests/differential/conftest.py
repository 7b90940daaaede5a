"""The shared servers of this folder, which rows run against which, and the logs in a failure's report."""

from collections.abc import Generator, Iterator

import pytest

from loadtest.launcher import Kind, Server
from tests.differential import behind_proxy
from tests.differential.side import Side
from tests.servers import SUBJECT, attach_logs, kvorum_server, reference_server, start, start_behind

__all__ = ["kvorum_server", "reference_server"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A row runs against both servers, unless the reference is known to differ, and at kvorum also behind a proxy."""
    if "kind" not in metafunc.fixturenames:
        return
    differs = hasattr(metafunc.function, "differs")
    routes: list[tuple[Kind, str]] = []
    if not (differs and SUBJECT is Kind.REFERENCE):
        routes.append((Kind.KVORUM, "kvorum_server"))
    if not differs:
        routes.append((Kind.REFERENCE, "reference_server"))
    if "route" not in metafunc.fixturenames:
        metafunc.parametrize("kind", [kind for kind, _ in routes], ids=[kind.value for kind, _ in routes])
        return
    if behind_proxy.applies(metafunc) and SUBJECT is Kind.KVORUM:
        routes.append((Kind.KVORUM, "proxied_server"))
    metafunc.parametrize(("kind", "route"), routes, ids=[route.removesuffix("_server") for _, route in routes])


@pytest.fixture(scope="session")
def proxied_server(request: pytest.FixtureRequest) -> Iterator[Server | behind_proxy.Elsewhere]:
    """The shared kvorum, behind a gateway and a proxy; or the proxy that KVORUM_PROXY names."""
    if behind_proxy.ELSEWHERE is not None:
        yield behind_proxy.ELSEWHERE
        return
    with start_behind(request.getfixturevalue("kvorum_server")) as proxy:
        yield proxy


@pytest.fixture
def server(route: str, request: pytest.FixtureRequest) -> Server:
    """The shared server of that kind, or what stands before it."""
    server: Server = request.getfixturevalue(route)
    return server


@pytest.fixture
def api(kind: Kind, server: Server, route: str) -> Iterator[Side]:
    """The shared server, under a key prefix of the test's own."""
    with Side(kind, server, behind_proxy.ELSEWHERE if route == "proxied_server" else None) as side:
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
