"""Starts and stops gRPC proxies and gateways on loopback, kvorum's and the reference's, as `launcher` does members."""

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from loadtest.launcher import Kind, Server, reference_tool


class _InFront(Server):
    """What stands in front of `endpoints`: kvorum's `module`, the reference's `command_name`."""

    module: str
    command_name: str

    def __init__(
        self,
        kind: Kind,
        directory: Path,
        endpoints: Sequence[str],
        flags: Mapping[str, str] | None = None,
        name: str = "",
    ) -> None:
        super().__init__(kind, directory, flags, name or self.module)
        self.endpoints = tuple(endpoints)
        self.log_path = directory / f"{kind.value}-{self.name}.log"

    def command(self) -> list[str]:
        """The command line that starts it."""
        flags = {"endpoints": ",".join(self.endpoints), "listen-addr": self.address} | self.own_flags() | self.flags
        ours = [sys.executable, "-m", self.module]
        program = ours if self.kind is Kind.KVORUM else [str(reference_tool("etcd")), self.command_name]
        return [*program, "start", *(f"--{name}={value}" for name, value in flags.items())]

    def own_flags(self) -> dict[str, str]:
        """What it needs beside the endpoints and its address."""
        return {}


class Proxy(_InFront):
    """A gRPC proxy; `peer_address` is free for --metrics-addr."""

    module = "proxy"
    command_name = "grpc-proxy"
    ready_message = "started gRPC proxy"

    def own_flags(self) -> dict[str, str]:
        """Its address as others are told it, and where generated certificates go."""
        return {"advertise-client-url": self.address, "data-dir": str(self.data_dir)}


class Gateway(_InFront):
    """A TCP gateway."""

    module = "gateway"
    command_name = "gateway"
    ready_message = "ready to proxy client requests"


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
