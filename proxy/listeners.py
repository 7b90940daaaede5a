"""The listening sockets of a proxy, bound before its workers start, so that a port in use ends the start."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Final

from kvorum.lifeline import inherit
from kvorum.listening import ListenFailed, bind_tcp, bind_unix, listen_failed, tcp_place
from kvorum.urls import Url, split_host_port
from proxy.config import StartFailed

BACKLOG: Final = 4096


class Place:
    """A bound socket by its descriptor, which a worker that is being spawned inherits.

    It stays open beside what listens on it, so that connections that come while a worker is started again wait; at a
    stop it is closed, so that they are refused.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> tuple[type[Place], tuple[int]]:
        return Place, (inherit(self.fd),)

    def socket(self) -> socket.socket:
        """The socket, to listen on."""
        os.set_inheritable(self.fd, False)
        sock = socket.socket(fileno=os.dup(self.fd))
        sock.setblocking(False)
        return sock

    def close(self) -> None:
        """Give it up; it may have been before."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def bind_clients(address: str, count: int) -> list[Place]:
    """`count` sockets for --listen-addr that share its port (SO_REUSEPORT): the kernel gives each its part of the
    connections. Raises StartFailed."""
    if address.startswith("unix:"):
        assert count == 1
        return [_bind_unix(address.removeprefix("unix:").removeprefix("//"))]
    parts = split_host_port(address)
    assert parts is not None, "checked with the flags"
    if count > 1:
        # Another proxy's sockets would share the port as well: see first that nobody has it.
        _bind_tcp(*parts, reuse_port=False).close()
    return [_bind_tcp(*parts, reuse_port=count > 1) for _ in range(count)]


def bind_url(url: Url) -> Place:
    """A socket for --metrics-addr. Raises StartFailed."""
    return _bind_unix(url.socket_path) if url.is_unix else _bind_tcp(*url.address, reuse_port=False)


def forget(address: str) -> None:
    """Remove the file of a unix socket."""
    if address.startswith("unix:"):
        Path(address.removeprefix("unix:").removeprefix("//")).unlink(missing_ok=True)


def _bind_tcp(host: str, port: str, *, reuse_port: bool) -> Place:
    try:
        host = "127.0.0.1" if host == "localhost" else host or "::"
        sock = bind_tcp(host, int(port or "0"), reuse_port=reuse_port)
        try:
            # Two that are bound and do not listen yet may share a port; the loop would not say that it cannot listen.
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            raise listen_failed(tcp_place(host, int(port or "0")), error) from None
    except ListenFailed as error:
        raise StartFailed(str(error)) from None
    return Place(sock.detach())


def _bind_unix(path: str) -> Place:
    try:
        return Place(bind_unix(path).detach())
    except ListenFailed as error:
        raise StartFailed(str(error)) from None
