"""From flags to what the gateway does: where it listens and to which endpoints connections go (behaviour GW4, GW5)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from gateway.balance import Endpoint
from kvorum.urls import quote, split_host_port

DEFAULT_RETRY_DELAY_S: Final = 300.0
"""What a --retry-delay of 0 means."""

Lookup = Callable[[str], Sequence[str]]
"""All addresses of a host, as texts; raises OSError."""


class StartFailed(Exception):
    """The gateway cannot start; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The flags of `gateway start`, by their names. `endpoints_given`: they are not the default."""

    listen_addr: str
    endpoints: tuple[str, ...]
    endpoints_given: bool
    discovery_srv: str
    discovery_srv_name: str
    insecure_discovery: bool
    trusted_ca_file: str
    retry_delay_s: float


class Listen(NamedTuple):
    """Where to listen: the first address of the host, and its port."""

    address: str
    port: int


def read_endpoints(texts: Sequence[str]) -> tuple[Endpoint, ...]:
    """Endpoints as --endpoints gives them: `host:port`, also as a URL. Raises StartFailed."""
    return tuple(_read_endpoint(text) for text in texts)


def _read_endpoint(text: str) -> Endpoint:
    stripped = text.removeprefix("http://").removeprefix("https://").removesuffix("/")
    parts = split_host_port(stripped)
    if parts is None or not parts[0] or not _is_port(parts[1]) or int(parts[1]) == 0:
        raise StartFailed(f"error parsing endpoint {quote(stripped)}")
    return Endpoint(parts[0], int(parts[1]))


def read_listen_addr(text: str, lookup: Lookup) -> Listen:
    """Raises StartFailed."""
    parts = split_host_port(text)
    if parts is None:
        raise StartFailed(f"failed to validate listen address: {text}")
    host, port = parts
    try:
        addresses = lookup(host) if host else ()
    except OSError:
        addresses = ()
    if not addresses:
        raise StartFailed(f"failed to resolve listen host: {host}")
    if not _is_port(port):
        raise StartFailed(f"listen tcp: address {port}: invalid port")
    return Listen(next((address for address in addresses if ":" not in address), addresses[0]), int(port))


def check_endpoints(
    endpoints: Sequence[Endpoint], listen_addr: str, listen: Listen, lookup: Lookup, is_own: Callable[[str], bool]
) -> dict[str, Sequence[str]]:
    """See that every endpoint has an address and that none is the gateway itself; gives the addresses by host.

    Raises StartFailed.

    `is_own` tells whether this machine has an address: a gateway that listens on all of them must know.
    """
    if not endpoints:
        raise StartFailed("no endpoints found")
    found: dict[str, Sequence[str]] = {}
    everywhere = listen.address in ("0.0.0.0", "::")
    for endpoint in endpoints:
        try:
            addresses = lookup(endpoint.host)
        except OSError:
            addresses = ()
        if not addresses:
            raise StartFailed(f"failed to resolve endpoint host: {endpoint.host}")
        found[endpoint.host] = addresses
        if endpoint.port != listen.port:
            continue
        for address in addresses:
            if address == listen.address or (everywhere and is_own(address)):
                raise StartFailed(
                    f"SRV or endpoint ({endpoint.host}:{endpoint.port}->{address}:{endpoint.port}) "
                    f"should not resolve to the gateway listen addr ({listen_addr})"
                )
    return found


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535
