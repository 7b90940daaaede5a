"""Addresses of hosts, asked of the system, with patience: at a start its network may still be coming up."""

import socket
import time
from collections.abc import Callable
from typing import Final

from kvorum.log import Logger

PATIENCE_S: Final = 30.0
"""By default, for all names together, counted from the first that is asked for."""

RETRY_S: Final = 1.0

Resolve = Callable[[str], str]
"""A host's address; raises ResolveFailed."""


class ResolveFailed(Exception):
    """A host's name has no address; the text says why."""


class Resolver:
    """A function from a host's name to its address, IPv4 if it has one; asks once for each name that has one.

    The arguments after `patience_s` are for tests.
    """

    def __init__(
        self,
        log: Logger,
        patience_s: float = PATIENCE_S,
        lookup: Callable[[str], list[str]] | None = None,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._log = log
        self._lookup = lookup or _lookup
        self._patience_s = patience_s
        self._now = now
        self._sleep = sleep
        self._addresses: dict[str, str] = {}
        self._until_s: float | None = None

    def __call__(self, host: str) -> str:
        """Raises ResolveFailed when patience is at its end."""
        if self._until_s is None:
            self._until_s = self._now() + self._patience_s
        while host not in self._addresses:
            try:
                addresses = self._lookup(host)
            except OSError as error:
                reason = f"lookup {host}: {(error.strerror or str(error)).lower()}"
                self._log.warn("failed to resolve URL Host", host=host, retry_interval_s=RETRY_S, error=reason)
                if self._now() + RETRY_S > self._until_s:
                    raise ResolveFailed(reason) from None
                self._sleep(RETRY_S)
                continue
            self._addresses[host] = next((text for text in addresses if ":" not in text), addresses[0])
        return self._addresses[host]


def _lookup(host: str) -> list[str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise OSError(0, "no such host") from None  # not a name that could be asked for
    return [str(address[0]) for *_, address in found]
