"""The command line of `gateway`: flags to a `Config`, and how the process ends."""

import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import click
from click.core import ParameterSource

from gateway.config import DEFAULT_RETRY_DELAY_S, Config, StartFailed
from kvorum import go_flags
from kvorum.durations import format_duration
from kvorum.go_flags import BOOL, DURATION, EXIT_FAILED
from kvorum.log import Logger, LogSettings
from kvorum.urls import quote

_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


@click.group(name="gateway", context_settings=_HELP, options_metavar="")
def gateway() -> None:
    """The TCP gateway: passes connections on to the members of a cluster, byte for byte."""


@gateway.command(cls=go_flags.Command, context_settings=_HELP)
@click.option("--listen-addr", default="127.0.0.1:23790", show_default=True, metavar="string", help="Listen address.")
@go_flags.strings(
    "--endpoints", ("127.0.0.1:2379",), "Comma separated endpoints of the cluster: host:port, http:// or https:// cut."
)
@click.option(
    "--discovery-srv", default="", metavar="string", help="DNS domain whose SRV records name the endpoints instead."
)
@click.option(
    "--discovery-srv-name", default="", metavar="string", help="Suffix of the SRV services' names: etcd-client-NAME."
)
@click.option(
    "--insecure-discovery",
    type=BOOL,
    default=False,
    metavar="",
    help="Take SRV records as they are: those of endpoints without TLS, too, and unchecked.",
)
@click.option(
    "--trusted-ca-file",
    default="",
    metavar="string",
    help="Certificates of the authorities that must have signed the certificates of discovered endpoints.",
)
@click.option(
    "--retry-delay",
    type=DURATION,
    default="1m0s",
    show_default=True,
    metavar="duration",
    help="Time between attempts to reach an endpoint that failed; 0 means 5m.",
)
@click.argument("ignored", nargs=-1, metavar="")
@click.pass_context
def start(
    context: click.Context,
    listen_addr: str,
    endpoints: tuple[str, ...],
    discovery_srv: str,
    discovery_srv_name: str,
    insecure_discovery: bool,
    trusted_ca_file: str,
    retry_delay: int,
    ignored: tuple[str, ...],
) -> int:
    """Start the gateway."""
    from gateway.process import run

    if retry_delay < 0:
        raise click.UsageError(
            f'invalid argument {quote(format_duration(retry_delay))} for "--retry-delay" flag: it is negative'
        )
    config = Config(
        listen_addr=listen_addr,
        endpoints=endpoints,
        endpoints_given=context.get_parameter_source("endpoints") is not ParameterSource.DEFAULT,
        discovery_srv=discovery_srv,
        discovery_srv_name=discovery_srv_name,
        insecure_discovery=insecure_discovery,
        trusted_ca_file=trusted_ca_file,
        retry_delay_s=retry_delay / 1e9 or DEFAULT_RETRY_DELAY_S,
    )
    log = Logger.open(LogSettings())
    log.info("Running: ", args=sys.argv)
    if ignored:
        log.warn("arguments without a flag are ignored", arguments=ignored)
    try:
        number = run(config, os.environ, log)
    except StartFailed as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_FAILED
    if os.getpid() != 1:  # as pid 1 it would not be ended by a signal
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    return 0


def run(arguments: Sequence[str], program: str) -> int:
    """Run `gateway` with these arguments; gives the exit code unless a signal ends the process."""
    return go_flags.run(gateway, arguments, program)


def main(arguments: Sequence[str]) -> NoReturn:
    """Run `kvorum gateway` with these arguments, and end the process as it should end."""
    sys.exit(run(arguments, "kvorum gateway"))
