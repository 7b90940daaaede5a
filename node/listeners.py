"""The listening sockets of a member, bound before its processes start and kept open over their generations.

They are bound first, so that a port in use ends the start early. Those for clients listen once the member knows who it
is; those for other members once raft serves them: founders ask each other whether the cluster is there already
(`node.bootstrap`), and a connection that is refused says sooner that it is not than one that nobody answers.
"""

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from kvorum.listening import ListenFailed, bind_tcp, bind_unix, listen_failed, tcp_place
from kvorum.urls import Url
from node.child import Listener, Serves
from node.config import Config

BACKLOG: Final = 4096
"""Connections that wait while no process takes them; the kernel cuts it to net.core.somaxconn."""


def wanted(config: Config) -> list[tuple[Url, Serves]]:
    """What is to be bound: each URL with what it serves (behaviour HT22-HT24)."""
    clients = Serves.GRPC if config.listen_client_http_urls else Serves.ALL
    return [
        *((url, Serves.PEERS) for url in config.listen_peer_urls),
        *((url, clients) for url in config.listen_client_urls),
        *((url, Serves.HTTP) for url in config.listen_client_http_urls),
        *((url, Serves.METRICS) for url in config.listen_metrics_urls),
    ]


def bind(places: Sequence[tuple[Url, Serves]], reuse_port: bool) -> list[Listener]:
    """Bind all. Raises ListenFailed, with nothing left open."""
    listeners: list[Listener] = []
    try:
        for url, serves in places:
            sock = bind_unix(url.socket_path) if url.is_unix else _bind_tcp(url, reuse_port)
            listeners.append(Listener(url, serves, sock.detach()))
    except BaseException:
        close(listeners)
        raise
    return listeners


def listen(listeners: Sequence[Listener]) -> None:
    """Let clients' connections come. Raises ListenFailed if another process was faster; the sockets stay open."""
    for listener in listeners:
        if listener.serves is Serves.PEERS:
            continue
        sock = socket.socket(fileno=listener.fd)
        try:
            sock.listen(BACKLOG)
        except OSError as error:
            raise listen_failed(_place(listener.url), error) from None
        finally:
            sock.detach()


def close(listeners: Sequence[Listener]) -> None:
    """Close the sockets, and remove the files of unix ones."""
    for listener in listeners:
        os.close(listener.fd)
        if listener.url.is_unix:
            Path(listener.url.socket_path).unlink(missing_ok=True)


def _bind_tcp(url: Url, reuse_port: bool) -> socket.socket:
    host, port = url.address
    if len(port) > 5 or int(port or "0") > 65535:
        raise ListenFailed(f"listen tcp: address {port}: invalid port")
    return bind_tcp(_literal(host), int(port or "0"), reuse_port=reuse_port)


def _literal(host: str) -> str:
    """`localhost` is 127.0.0.1, as where the reference listens."""
    return "127.0.0.1" if host == "localhost" else host


def _place(url: Url) -> str:
    host, port = url.address
    return f"unix {url.socket_path}" if url.is_unix else tcp_place(_literal(host), int(port or "0"))
