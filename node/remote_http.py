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
from typing import Final

from kvorum.log import Level, Logger
from kvorum.urls import Url, parse_url
from node.config import PeerTls
from node.raft.peers.tls import client_context, name_refusal
from node.remote_cluster import (
    CLUSTER_ID_HEADER,
    MAKE_HEADER,
    RemoteCluster,
    incompatibility,
    read_cluster_id,
    read_members,
)

ANSWER_MAX_BYTES: Final = 1 << 20
"""Some 5,000 members."""


def ask(urls: Iterable[str], tls: PeerTls, timeout_s: float, log: Logger, silence: Level) -> RemoteCluster | None:
    """What the first member says that answers on one of the peer URLs; None if none does.

    Each is given `timeout_s`; `silence` is the level at which the log tells of one that gives no answer.

    Raises OSError or ssl.SSLError if the files of `tls` cannot be used.
    """
    context = client_context(tls)
    context.set_alpn_protocols(["http/1.1"])
    for url in urls:
        try:
            return _ask_one(_Connection(parse_url(url), tls, context, timeout_s), timeout_s)
        except (OSError, ValueError, OverflowError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            log.log(silence, "failed to get cluster response", address=f"{url}/members", error=reason)
    return None


def _ask_one(connection: "_Connection", timeout_s: float) -> RemoteCluster:
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

    def __init__(self, url: Url, tls: PeerTls, context: ssl.SSLContext, timeout_s: float) -> None:
        host, port = ("localhost", "0") if url.is_unix else url.address
        super().__init__(host, int(port or "0"), timeout=timeout_s)
        self._url = url
        self._tls = tls
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
            secured = self._context.wrap_socket(self.sock, server_hostname=self.host)
            self.sock = secured
            refusal = name_refusal(self._tls, secured.getpeercert() or {})
            if refusal is not None:
                raise ValueError(refusal)

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
