"""Starts and stops gRPC proxies and gateways on loopback, kvorum's and the reference's, as `launcher` does members."""

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from loadtest.launcher import Kind, Server, reference_tool


class Proxy(Server):
    """A gRPC proxy in front of `endpoints`; `peer_address` is free for --metrics-addr."""

    ready_message = "started gRPC proxy"

    def __init__(
        self,
        kind: Kind,
        directory: Path,
        endpoints: Sequence[str],
        flags: Mapping[str, str] | None = None,
        name: str = "proxy",
    ) -> None:
        super().__init__(kind, directory, flags, name)
        self.endpoints = tuple(endpoints)
        self.log_path = directory / f"{kind.value}-{name}.log"

    def command(self) -> list[str]:
        """The command line that starts this proxy."""
        flags = {
            "endpoints": ",".join(self.endpoints),
            "listen-addr": self.address,
            "advertise-client-url": self.address,
            "data-dir": str(self.data_dir),
        } | self.flags
        ours = [sys.executable, "-m", "proxy"]
        program = ours if self.kind is Kind.KVORUM else [str(reference_tool("etcd")), "grpc-proxy"]
        return [*program, "start", *(f"--{name}={value}" for name, value in flags.items())]


class Gateway(Server):
    """A TCP gateway in front of `endpoints`."""

    ready_message = "ready to proxy client requests"

    def __init__(
        self,
        kind: Kind,
        directory: Path,
        endpoints: Sequence[str],
        flags: Mapping[str, str] | None = None,
        name: str = "gateway",
    ) -> None:
        super().__init__(kind, directory, flags, name)
        self.endpoints = tuple(endpoints)
        self.log_path = directory / f"{kind.value}-{name}.log"

    def command(self) -> list[str]:
        """The command line that starts this gateway."""
        flags = {"endpoints": ",".join(self.endpoints), "listen-addr": self.address} | self.flags
        ours = [sys.executable, "-m", "gateway"]
        program = ours if self.kind is Kind.KVORUM else [str(reference_tool("etcd")), "gateway"]
        return [*program, "start", *(f"--{name}={value}" for name, value in flags.items())]


@contextlib.contextmanager
def _running(
    server_type: type[Proxy] | type[Gateway], kind: Kind, endpoints: Sequence[str], flags: Mapping[str, str] | None
) -> Iterator[Server]:
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{kind.value}-proxy-")))
        server = server_type(kind, directory, endpoints, flags)
        stack.callback(server.close)
        server.start()
        yield server


def running_proxy(
    kind: Kind, endpoints: Sequence[str], flags: Mapping[str, str] | None = None
) -> contextlib.AbstractContextManager[Server]:
    """A gRPC proxy that is ready, ended on exit."""
    return _running(Proxy, kind, endpoints, flags)


def running_gateway(
    kind: Kind, endpoints: Sequence[str], flags: Mapping[str, str] | None = None
) -> contextlib.AbstractContextManager[Server]:
    """A gateway that is ready, ended on exit."""
    return _running(Gateway, kind, endpoints, flags)
