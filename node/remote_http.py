"""Asking the members of a running cluster over HTTP, with a limit on the time and size of every answer.

Only for the first start of a member that is not alone: its library is 2.6 MiB that the supervisor needs for nothing
else.
"""

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from kvorum.wire.tls import client_context
from node.config import PeerTls, TlsVersion
from node.log import Level, Logger
from node.remote_cluster import (
    CLUSTER_ID_HEADER,
    MAKE_HEADER,
    RemoteCluster,
    incompatibility,
    read_cluster_id,
    read_members,
)
from node.urls import Url, parse_url

ANSWER_MAX_BYTES: Final = 1 << 20
"""Some 5,000 members."""

_VERSIONS: Final = {TlsVersion.TLS12: ssl.TLSVersion.TLSv1_2, TlsVersion.TLS13: ssl.TLSVersion.TLSv1_3}


def ask(urls: Iterable[str], tls: PeerTls, timeout_s: float, log: Logger, silence: Level) -> RemoteCluster | None:
    """What the first member says that answers on one of the peer URLs; None if none does.

    Each is given `timeout_s`; `silence` is the level at which the log tells of one that gives no answer.

    Raises OSError or ssl.SSLError if the files of `tls` cannot be used.
    """
    context = _context(tls)
    for url in urls:
        try:
            return _ask_one(parse_url(url), context, timeout_s)
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            log.log(silence, "failed to get cluster response", address=f"{url}/members", error=reason)
    return None


def _ask_one(url: Url, context: ssl.SSLContext, timeout_s: float) -> RemoteCluster:
    connection = _Connection(url, context, timeout_s)
    timer = threading.Timer(timeout_s, connection.cut)
    timer.daemon = True
    timer.start()
    try:
        headers, page = connection.get("/members")
        cluster_id = read_cluster_id(headers.get(CLUSTER_ID_HEADER, ""))
        members = read_members(page)
        _, versions = connection.get("/version")
        return RemoteCluster(cluster_id, members, incompatibility(headers.get(MAKE_HEADER), versions))
    finally:
        timer.cancel()
        connection.close()


class _Connection(http.client.HTTPConnection):
    """One to the peer URL of a member, over a unix socket or TCP, with or without TLS."""

    def __init__(self, url: Url, context: ssl.SSLContext, timeout_s: float) -> None:
        host, port = ("localhost", "0") if url.is_unix else url.address
        super().__init__(host, int(port or "0"), timeout=timeout_s)
        self._url = url
        self._context = context
        self._is_cut = False

    def connect(self) -> None:
        """See HTTPConnection; it is called with the first request."""
        url = self._url
        if url.is_unix:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(self.timeout)
            self.sock.connect(url.socket_path)
        else:
            super().connect()
        if self._is_cut:
            raise TimeoutError("timed out")
        if url.is_secure:
            self.sock = self._context.wrap_socket(self.sock, server_hostname=self.host)

    def get(self, path: str) -> tuple[http.client.HTTPMessage, bytes]:
        """Headers and body of a page. Raises OSError, HTTPException and ValueError."""
        try:
            self.request("GET", path)
            response = self.getresponse()
            body = response.read(ANSWER_MAX_BYTES + 1)
        except (OSError, http.client.HTTPException):
            if not self._is_cut:
                raise
        if self._is_cut:  # what was read may only be a part
            raise TimeoutError("timed out")
        if response.status != 200:
            raise ValueError(f"status {response.status}")
        if len(body) > ANSWER_MAX_BYTES:
            raise ValueError(f"an answer of more than {ANSWER_MAX_BYTES} bytes")
        return response.headers, body

    def cut(self) -> None:
        """End it from another thread: the socket's own limit is for each piece, and a peer may send many."""
        self._is_cut = True
        sock = self.sock
        if sock is not None:
            with contextlib.suppress(OSError):  # it has just ended by itself
                sock.shutdown(socket.SHUT_RDWR)


def _context(tls: PeerTls) -> ssl.SSLContext:
    context = client_context(
        ca=Path(tls.trusted_ca_file) if tls.trusted_ca_file else None,
        certificate=Path(tls.client_cert_file) if tls.client_cert_file else None,
        key=Path(tls.client_key_file) if tls.client_key_file else None,
        verify=not tls.auto,
    )
    context.set_alpn_protocols(["http/1.1"])
    if tls.allowed_hostnames:
        context.check_hostname = False  # members' certificates then have names of their own
    context.minimum_version = _VERSIONS[tls.min_version]
    if tls.max_version is not None:
        context.maximum_version = _VERSIONS[tls.max_version]
    if tls.cipher_suites:
        context.set_ciphers(":".join(tls.cipher_suites))
    return context
