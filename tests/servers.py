"""The two servers tests speak to, and the fixtures that share them.

`KVORUM_SUBJECT=reference` puts the reference in kvorum's place: then every comparison must pass trivially, which tests
the tests.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from loadtest.cluster import Cluster, running_cluster
from loadtest.launcher import Kind, Server, running
from loadtest.proxies import running_gateway, running_proxy

SUBJECT = Kind(os.environ.get("KVORUM_SUBJECT", "kvorum"))


_not_ready: list[str] = []


@contextlib.contextmanager
def start_kvorum(flags: Mapping[str, str] | None = None, directory: Path | None = None) -> Iterator[Server]:
    """kvorum (or what KVORUM_SUBJECT puts in its place), ready to serve."""
    if _not_ready:  # so that not every test waits for the deadline once more
        raise RuntimeError(f"kvorum has failed to start before:\n{_not_ready[0]}")
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(running(SUBJECT, flags, directory=directory))
        except (RuntimeError, TimeoutError) as error:
            if not flags:
                _not_ready.append(str(error))
            raise
        yield server


def start_reference(
    flags: Mapping[str, str] | None = None, directory: Path | None = None
) -> AbstractContextManager[Server]:
    """The reference, ready to serve."""
    return running(Kind.REFERENCE, flags, directory=directory)


def start(kind: Kind, flags: Mapping[str, str] | None = None) -> AbstractContextManager[Server]:
    """The server of that kind, ready to serve, on empty data."""
    return start_kvorum(flags) if kind is Kind.KVORUM else start_reference(flags)


def start_kvorum_cluster(
    size: int = 3,
    flags: Mapping[str, str] | None = None,
    *,
    relayed: bool = False,
    directory: Path | None = None,
) -> AbstractContextManager[Cluster]:
    """A cluster of kvorum (or of what KVORUM_SUBJECT puts in its place) whose members all serve."""
    return running_cluster(SUBJECT, size, flags, relayed=relayed, directory=directory)


def start_reference_cluster(
    size: int = 3,
    flags: Mapping[str, str] | None = None,
    *,
    relayed: bool = False,
    directory: Path | None = None,
) -> AbstractContextManager[Cluster]:
    """A cluster of the reference whose members all serve."""
    return running_cluster(Kind.REFERENCE, size, flags, relayed=relayed, directory=directory)


def start_proxy(
    endpoints: Sequence[str], flags: Mapping[str, str] | None = None, kind: Kind = SUBJECT
) -> AbstractContextManager[Server]:
    """A gRPC proxy of kvorum (or of what KVORUM_SUBJECT puts in its place) in front of members, ready to serve."""
    return running_proxy(kind, endpoints, flags)


def start_gateway(
    endpoints: Sequence[str], flags: Mapping[str, str] | None = None, kind: Kind = SUBJECT
) -> AbstractContextManager[Server]:
    """A TCP gateway of kvorum (or of what KVORUM_SUBJECT puts in its place) in front of members, ready to serve."""
    return running_gateway(kind, endpoints, flags)


@contextlib.contextmanager
def start_behind(server: Server) -> Iterator[Server]:
    """A proxy behind a gateway behind which the server is."""
    with start_gateway([server.address]) as gateway, start_proxy([gateway.address]) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def kvorum_server() -> Iterator[Server]:
    """One kvorum for all tests of a folder."""
    with start_kvorum() as server:
        yield server


@pytest.fixture(scope="session")
def reference_server() -> Iterator[Server]:
    """One reference for all tests of a folder."""
    with start_reference() as server:
        yield server


def attach_logs(item: pytest.Item, report: pytest.TestReport) -> None:
    """Adds the end of the log of each server that a failed test used to its report."""
    if not report.failed:
        return
    servers: set[Server] = set()
    for value in getattr(item, "funcargs", {}).values():
        if isinstance(value, Cluster):
            servers.update(value.members)
        elif isinstance(server := value if isinstance(value, Server) else getattr(value, "server", None), Server):
            servers.add(server)
    for server in sorted(servers, key=lambda server: server.name):
        if server.log_path.exists():
            report.sections.append((f"log of {server.kind.value} {server.name} {server.address}", server.log_tail(20)))
