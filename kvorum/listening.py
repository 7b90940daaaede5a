"""Sockets to listen on; what fails is said in the reference's words (behaviour S37)."""

import socket
import stat
from pathlib import Path


class ListenFailed(Exception):
    """A listener cannot be had; the text says why."""


def bind_tcp(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """A bound socket, not blocking; `::` takes IPv4 too. Raises ListenFailed."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise listen_failed(tcp_place(host, port), error) from None
    sock.setblocking(False)
    return sock


def bind_unix(path: str) -> socket.socket:
    """The same at a path. A socket file that is there already is taken over, as the reference does: nobody knows
    whether it is in use. Raises ListenFailed."""
    file = Path(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if file.exists() and stat.S_ISSOCK(file.lstat().st_mode):
            file.unlink()
        sock.bind(path)
    except OSError as error:
        sock.close()
        raise listen_failed(f"unix {path}", error) from None
    sock.setblocking(False)
    return sock


def tcp_place(host: str, port: int) -> str:
    """How messages name where a TCP socket listens."""
    return f"tcp [{host}]:{port}" if ":" in host else f"tcp {host}:{port}"


def listen_failed(place: str, error: OSError) -> ListenFailed:
    """Why nobody can listen there."""
    return ListenFailed(f"listen {place}: bind: {(error.strerror or str(error)).lower()}")
