"""The listening sockets of a member, bound before its processes start and kept open over their generations.

They are bound first, so that a port in use ends the start early. Those for clients listen once the member knows who it
is; those for other members once raft serves them: founders ask each other whether the cluster is there already
(`node.bootstrap`), and a connection that is refused says sooner that it is not than one that nobody answers.
"""

import os
import socket
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from kvorum.urls import Url
from node.child import Listener, Serves
from node.config import Config

BACKLOG: Final = 4096
"""Connections that wait while no process takes them; the kernel cuts it to net.core.somaxconn."""


class ListenFailed(Exception):
    """A listener cannot be bound; the text is the reference's (behaviour S37)."""


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
            listeners.append(Listener(url, serves, _bind_unix(url) if url.is_unix else _bind_tcp(url, reuse_port)))
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
            raise _failed(listener.url, error) from None
        finally:
            sock.detach()


def close(listeners: Sequence[Listener]) -> None:
    """Close the sockets, and remove the files of unix ones."""
    for listener in listeners:
        os.close(listener.fd)
        if listener.url.is_unix:
            Path(listener.url.socket_path).unlink(missing_ok=True)


def _bind_tcp(url: Url, reuse_port: bool) -> int:
    """`localhost` is 127.0.0.1, as where the reference listens; `::` takes IPv4 too."""
    host, port_text = url.address
    if len(port_text) > 5 or int(port_text or "0") > 65535:
        raise ListenFailed(f"listen tcp: address {port_text}: invalid port")
    host = "127.0.0.1" if host == "localhost" else host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
        listener.bind((host, int(port_text or "0")))
    except OSError as error:
        listener.close()
        raise _failed(url, error) from None
    listener.setblocking(False)
    return listener.detach()


def _bind_unix(url: Url) -> int:
    """A socket file that is there already is taken over, as the reference does: nobody knows whether it is in use."""
    path = Path(url.socket_path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists() and stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise _failed(url, error) from None
    listener.setblocking(False)
    return listener.detach()


def _failed(url: Url, error: OSError) -> ListenFailed:
    place = f"unix {Path(url.socket_path)}" if url.is_unix else f"tcp {_literal(url)}"
    return ListenFailed(f"listen {place}: bind: {(error.strerror or str(error)).lower()}")


def _literal(url: Url) -> str:
    host, port = url.address
    return f"127.0.0.1:{port}" if host == "localhost" else url.host
