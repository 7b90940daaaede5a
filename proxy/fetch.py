"""One page of another server by HTTP/1.1: a member's /metrics, parsed by h11."""

from __future__ import annotations

import asyncio
import ssl
from typing import Final

import h11

from kvorum.urls import split_host_port
from proxy.upstream.endpoints import Endpoint

TIMEOUT_S: Final = 10.0
BODY_BYTES: Final = 64 * 1024 * 1024
_READ_BYTES: Final = 256 * 1024


class FetchFailed(Exception):
    """The page could not be had; the text says why."""


async def fetch(endpoint: Endpoint, path: str, tls: ssl.SSLContext | None) -> bytes:
    """The body of a page. Raises FetchFailed."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await _fetch(endpoint, path, tls)
    except TimeoutError:
        raise FetchFailed(f"{endpoint.address}{path}: timed out") from None
    except (OSError, h11.RemoteProtocolError) as error:
        raise FetchFailed(f"{endpoint.address}{path}: {error}") from None


async def _fetch(endpoint: Endpoint, path: str, tls: ssl.SSLContext | None) -> bytes:
    address = endpoint.address
    if address.startswith("unix:"):
        host = "localhost"
        name = host if tls is not None else None
        opened = asyncio.open_unix_connection(address.removeprefix("unix:"), ssl=tls, server_hostname=name)
    else:
        parts = split_host_port(address)
        assert parts is not None
        host = parts[0]
        opened = asyncio.open_connection(host, int(parts[1]), ssl=tls)
    reader, writer = await opened
    try:
        connection = h11.Connection(h11.CLIENT)
        request = h11.Request(method="GET", target=path, headers=[("Host", host), ("Connection", "close")])
        writer.write((connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b""))
        parts_read: list[bytes] = []
        size = 0
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(_READ_BYTES))
            elif isinstance(event, h11.Response):
                if event.status_code != 200:
                    raise FetchFailed(f"{address}{path}: status {event.status_code}")
            elif isinstance(event, h11.Data):
                parts_read.append(bytes(event.data))
                size += len(event.data)
                if size > BODY_BYTES:
                    raise FetchFailed(f"{address}{path}: more than {BODY_BYTES} bytes")
            else:
                return b"".join(parts_read)
    finally:
        writer.close()
