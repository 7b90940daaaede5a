"""The URLs of a member: where it listens, and what it advertises."""

import re
import socket
from typing import Final, NamedTuple

_SPLIT: Final = re.compile(r"(?:([A-Za-z][A-Za-z0-9+.\-]*):)?(?://([^/?#]*))?([^?#]*)(.*)", re.DOTALL)
_PORT: Final = re.compile(r"(?::[0-9]*)?")
_ESCAPES: Final = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}


class Url(NamedTuple):
    """One URL of a listener or a member: `scheme://host[path]`.

    `host` is what stands between `//` and the path: `127.0.0.1:2379`, `[::1]:2379`, or the first part of a socket
    file's name. `path` is empty except for unix sockets.
    """

    scheme: str
    host: str
    path: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}{self.path}"

    @property
    def is_unix(self) -> bool:
        return self.scheme in ("unix", "unixs")

    @property
    def is_secure(self) -> bool:
        return self.scheme in ("https", "unixs")

    @property
    def socket_path(self) -> str:
        """The file of a unix socket: host and path of the URL, relative to the working directory if it begins so."""
        assert self.is_unix
        return self.host + self.path

    @property
    def address(self) -> tuple[str, str]:
        """Host without brackets, and port, of an http or https URL."""
        assert not self.is_unix
        parts = split_host_port(self.host)
        assert parts is not None
        return parts


def split_host_port(text: str) -> tuple[str, str] | None:
    """Take `host:port` or `[v6]:port` apart; None if it has not that form."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not rest.startswith(":") or ":" in rest[1:] or "[" in host:
            return None
        return host, rest[1:]
    host, colon, port = text.rpartition(":")
    if not colon or ":" in host or "[" in host or "]" in host:
        return None
    return host, port


def is_ip(host: str) -> bool:
    """Whether the text is an IPv4 or IPv6 address (no name, no zone)."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return True
    return False


def quote(text: str) -> str:
    """The text in double quotes as error messages show values."""
    return '"' + "".join(_ESCAPES.get(char) or _escape(char) for char in text) + '"'


def _escape(char: str) -> str:
    if char.isprintable():
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def parse_url(text: str) -> Url:
    """Read one URL of a listener or member.

    Raises ValueError with the text that the reference gives for it (behaviour S22).
    """
    text = text.strip()
    match = _SPLIT.fullmatch(text)
    assert match is not None, "every part of the pattern is optional"
    scheme, host, path, _ = match.groups()
    if any(ord(char) < 0x20 or ord(char) == 0x7F for char in text):
        raise ValueError(f"parse {quote(text)}: net/url: invalid control character in URL")
    if scheme is None and host is None and ":" in path.partition("/")[0]:
        segment = path.partition("/")[0]
        if segment.startswith(":"):
            raise ValueError(f"parse {quote(text)}: missing protocol scheme")
        raise ValueError(f"parse {quote(text)}: first path segment in URL cannot contain colon")
    host = host or ""
    if " " in host:
        raise ValueError(f'parse {quote(text)}: invalid character " " in host name')
    _, bracket, after = host.rpartition("]")
    port = after if bracket else host[host.rfind(":") :] if ":" in host else ""
    if _PORT.fullmatch(port) is None:
        raise ValueError(f"parse {quote(text)}: invalid port {quote(port)} after host")
    scheme = (scheme or "").lower()
    if scheme in ("http", "https"):
        if split_host_port(host) is None:
            raise ValueError(f'URL address does not have the form "host:port": {text}')
        if path:
            raise ValueError(f"URL must not contain a path: {text}")
    elif scheme not in ("unix", "unixs"):
        raise ValueError(f"URL scheme must be http, https, unix, or unixs: {text}")
    return Url(scheme, host, path)


def parse_urls(text: str) -> tuple[Url, ...]:
    """Read a comma-separated list: each URL once, in the order of their texts. Raises ValueError as `parse_url`."""
    if not text:
        return ()
    return tuple(sorted({parse_url(part) for part in text.split(",")}, key=str))
