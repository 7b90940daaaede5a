"""The command line of `gateway`: flags to a `Config`, and how the process ends."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click
from click.core import ParameterSource

from gateway.config import DEFAULT_RETRY_DELAY_S, Config, StartFailed
from kvorum import go_flags
from kvorum.durations import format_duration
from kvorum.endings import die_by
from kvorum.go_flags import EXIT_FAILED, HELP, Command, duration, string, strings, switch
from kvorum.listening import ListenFailed
from kvorum.log import Logger, LogSettings
from kvorum.urls import quote


@click.group(name="gateway", context_settings=HELP, options_metavar="")
def gateway() -> None:
    """The TCP gateway: passes connections on to the members of a cluster, byte for byte."""


@gateway.command(cls=Command, context_settings=HELP)
@string("--listen-addr", "127.0.0.1:23790", "Where clients connect to: host:port.")
@strings("--endpoints", ["127.0.0.1:2379"], "The members, comma separated: host:port; http:// or https:// is cut.")
@string("--discovery-srv", "", "DNS domain whose SRV records name the members, instead of --endpoints.")
@string("--discovery-srv-name", "", "Suffix of the names of the services in DNS.")
@switch("--insecure-discovery", "Take SRV records as they are: those of endpoints without TLS, too, and unchecked.")
@string("--trusted-ca-file", "", "Authorities (PEM) that the certificates of discovered endpoints must come from.")
@duration("--retry-delay", "1m0s", "Time between attempts to reach an endpoint that failed; 0: 5m.")
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
    except (StartFailed, ListenFailed) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_FAILED
    die_by(number)
    return 0


def run(arguments: Sequence[str], program: str) -> int:
    """Run `gateway` with these arguments; gives the exit code unless a signal ends the process."""
    return go_flags.run(gateway, arguments, program)


def main(arguments: Sequence[str]) -> NoReturn:
    """Run `kvorum gateway` with these arguments, and end the process as it should end."""
    sys.exit(run(arguments, "kvorum gateway"))
