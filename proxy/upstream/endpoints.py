"""Which endpoint is in use, as a pure core: one chosen at random, kept while it serves, left when it does not.

All proxies choose by chance, so that the members share their clients; a choice is kept, since every change of endpoint
makes streams begin again.
"""

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final, NamedTuple
from urllib.parse import unquote

from kvorum.urls import split_host_port


class Health(Enum):
    """What is known of an endpoint."""

    UNKNOWN = "unknown"
    UP = "up"
    SICK = "sick"
    """It can be reached, but does not serve: it has no leader, or is too slow."""
    DOWN = "down"


class Endpoint(NamedTuple):
    """Where a member listens: `host:port`, or `unix:PATH`."""

    address: str
    secure: bool | None
    """As the URL's scheme says; None when it has none: then the proxy's own settings say."""


DEFAULT_PORT: Final = "2379"
_SCHEMES: Final = {"http": False, "https": True, "unix": False, "unixs": True}


def parse_endpoint(text: str) -> Endpoint:
    """Read `host:port`, `http[s]://host:port` or `unix[s]://PATH`. Raises ValueError."""
    scheme, mark, rest = text.partition("://")
    secure: bool | None = None
    if mark:
        if scheme not in _SCHEMES:
            raise ValueError(f'endpoint "{text}": unknown scheme "{scheme}"')
        secure = _SCHEMES[scheme]
        if scheme.startswith("unix"):
            if not rest:
                raise ValueError(f'endpoint "{text}": no path')
            return Endpoint(f"unix:{unquote(rest)}", secure)
    elif text.startswith("unix:"):
        return Endpoint(text, None)
    else:
        rest = text
    rest = rest.rstrip("/")
    parts = split_host_port(rest)
    if parts is None:
        if (rest and ":" not in rest) or (rest.startswith("[") and rest.endswith("]")):
            parts = (rest.removeprefix("[").removesuffix("]"), DEFAULT_PORT)
        else:
            raise ValueError(f'endpoint "{text}": not of the form host:port')
    host, port = parts
    if not host or "/" in host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f'endpoint "{text}": not of the form host:port')
    return Endpoint(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", secure)


class Endpoints:
    """The endpoints of one proxy; `current` is the one in use.

    `choose` picks one of several, at random. Every event tells whether `current` changed by it.
    """

    def __init__(self, endpoints: Sequence[Endpoint], choose: Callable[[Sequence[Endpoint]], Endpoint]) -> None:
        assert endpoints
        self._choose = choose
        self._health: dict[Endpoint, Health] = dict.fromkeys(endpoints, Health.UNKNOWN)
        self._failed_in_turn: dict[Endpoint, int] = {}
        self._failures = 0
        self.current = choose(list(self._health))

    @property
    def all(self) -> list[Endpoint]:
        return list(self._health)

    def health(self, endpoint: Endpoint) -> Health:
        return self._health[endpoint]

    @property
    def serving(self) -> bool:
        """Whether nothing speaks against the endpoint in use."""
        return self._health[self.current] in (Health.UP, Health.UNKNOWN)

    def on_up(self, endpoint: Endpoint) -> bool:
        """It serves: it has answered a probe. It takes the place of one that does not."""
        if endpoint not in self._health:
            return False
        self._health[endpoint] = Health.UP
        if self._health[self.current] in (Health.SICK, Health.DOWN):
            return self._move()
        return False

    def on_sick(self, endpoint: Endpoint) -> bool:
        """It does not serve just now. It is left only for one that does: the next that answers a probe, since before
        that the whole cluster may be without a leader, and moving about would help nobody."""
        if self._health.get(endpoint) not in (None, Health.DOWN):
            self._health[endpoint] = Health.SICK
        return False

    def on_down(self, endpoint: Endpoint) -> bool:
        """It could not be reached, or its connection was lost."""
        if endpoint not in self._health:
            return False
        self._health[endpoint] = Health.DOWN
        self._failures += 1
        self._failed_in_turn[endpoint] = self._failures
        return endpoint == self.current and self._move()

    def replace(self, endpoints: Sequence[Endpoint]) -> bool:
        """The cluster has these endpoints now; what is known of those that stay is kept."""
        assert endpoints
        self._health = {endpoint: self._health.get(endpoint, Health.UNKNOWN) for endpoint in endpoints}
        self._failed_in_turn = {one: turn for one, turn in self._failed_in_turn.items() if one in self._health}
        return self.current not in self._health and self._move()

    def _move(self) -> bool:
        """Take one that is up, else one of which less is known, else the one that failed longest ago."""
        before = self.current
        for wanted in (Health.UP, Health.UNKNOWN, Health.SICK):
            found = [endpoint for endpoint, health in self._health.items() if health is wanted]
            if found:
                self.current = self._choose(found)
                return self.current != before
        self.current = min(self._health, key=lambda endpoint: self._failed_in_turn[endpoint])
        return self.current != before
