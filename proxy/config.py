"""What a proxy is told to do."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.upstream.endpoints import Endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of `grpc-proxy start`, checked. Fields are named as the flags are, with units."""

    endpoints: tuple[Endpoint, ...]
    listen_addr: str
    advertise_client_url: str
    data_dir: str
    workers: int = 1
    namespace: str = ""
    debug: bool = False
