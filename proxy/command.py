"""The command line of `grpc-proxy`: flags to a `Config`, and the proxy's run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from kvorum.log import Level, Logger, LogSettings
from proxy.config import Config
from proxy.upstream.endpoints import parse_endpoint


@click.group(name="grpc-proxy", context_settings={"help_option_names": ["-h", "--help"]})
def grpc_proxy() -> None:
    """The gRPC proxy tier."""


@grpc_proxy.command()
@click.option("--endpoints", default="127.0.0.1:2379", show_default=True, help="comma separated cluster endpoints")
@click.option("--listen-addr", default="127.0.0.1:23790", show_default=True, help="listen address")
@click.option("--advertise-client-url", default="127.0.0.1:23790", show_default=True, help="address to register")
@click.option("--data-dir", default="default.proxy", show_default=True, help="directory for generated certificates")
@click.option("--workers", default=1, show_default=True, help="processes that serve together")
@click.option("--namespace", default="", help="string to prefix to all keys for namespacing requests")
@click.option("--debug/--no-debug", default=False, help="debug-level logging")
def start(
    endpoints: str,
    listen_addr: str,
    advertise_client_url: str,
    data_dir: str,
    workers: int,
    namespace: str,
    debug: bool,
) -> None:
    """Start the gRPC proxy."""
    from proxy.process import run

    config = Config(
        endpoints=tuple(parse_endpoint(text) for text in endpoints.split(",")),
        listen_addr=listen_addr,
        advertise_client_url=advertise_client_url,
        data_dir=data_dir,
        workers=workers,
        namespace=namespace,
        debug=debug,
    )
    sys.exit(run(config, Logger.open(LogSettings(level=Level.DEBUG if debug else Level.INFO))))


def main(arguments: Sequence[str]) -> NoReturn:
    """Run `grpc-proxy` with these arguments, and end the process as it should end."""
    grpc_proxy.main(args=list(arguments), prog_name="kvorum grpc-proxy")
    raise AssertionError("click ends the process")
