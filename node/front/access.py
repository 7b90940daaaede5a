"""Who may use the HTTP side of the client port: the CORS headers and the whitelist of host names (J28-J30)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from node.front.exchange import NO_SNIFF, TEXT, Exchange, Fields, Request, field_value

ANY: Final = "*"

REBINDING_TEXT: Final = """\
This host name is not one of those that the server answers to.

Ask for a name listed in --host-whitelist (such as --host-whitelist {host!r}), or connect over TLS.
The check protects browsers on this network against DNS rebinding: CVE-2018-5702.
"""


class Access:
    """The rules of --cors and --host-whitelist. Empty, or with `*`, each allows everything."""

    def __init__(self, *, cors: Collection[str] = (), hosts: Collection[str] = (), tls: bool = False) -> None:
        """`tls` says that the listener is one with TLS: there the host is not looked at."""
        self._origins = None if not cors or ANY in cors else frozenset(cors)
        self._hosts = None if tls or not hosts or ANY in hosts else frozenset(hosts)

    def admit(self, exchange: Exchange) -> Request | None:
        """The request, with the CORS headers its replies carry; None when it has been answered here already."""
        if self._hosts is not None:
            host = host_name(field_value(exchange.headers, b"host") or "")
            if host not in self._hosts:
                exchange.respond(421, (TEXT, NO_SNIFF), REBINDING_TEXT.format(host=host).encode())
                return None
        always = self._cors_headers(exchange)
        if exchange.method == "OPTIONS":
            exchange.respond(200, always, b"")
            return None
        return Request(exchange, always)

    def _cors_headers(self, exchange: Exchange) -> Fields:
        origin = ANY
        if self._origins is not None:
            asked = field_value(exchange.headers, b"origin")
            if asked is None or asked not in self._origins:
                return ()
            origin = asked
        return (
            (b"Access-Control-Allow-Headers", b"accept, content-type, authorization"),
            (b"Access-Control-Allow-Methods", b"POST, GET, OPTIONS, PUT, DELETE"),
            (b"Access-Control-Allow-Origin", origin.encode()),
        )


def host_name(host: str) -> str:
    """A Host header without its port; brackets of an IPv6 address go with the port."""
    if host.startswith("["):
        address, closed, port = host[1:].partition("]")
        return address if closed and port.startswith(":") else host
    name, colon, _ = host.rpartition(":")
    return name if colon and ":" not in name else host
