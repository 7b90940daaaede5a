"""Endpoints from the SRV records of a DNS domain (--discovery-srv; RFC 2782).

Records can be forged, certificates cannot: without --insecure-discovery those without TLS are left out.
"""

from __future__ import annotations

from kvorum.dns_services import Services, client_services
from kvorum.log import Logger
from kvorum.resolver import ResolveFailed
from proxy.config import StartFailed
from proxy.upstream.endpoints import Endpoint, parse_endpoint


def discover(domain: str, suffix: str, insecure: bool, services: Services, log: Logger) -> tuple[Endpoint, ...]:
    """All that the domain names, the most preferred first. Raises StartFailed when there is none."""
    try:
        records = client_services(domain, suffix, services)
    except ResolveFailed as error:
        raise StartFailed(str(error)) from None
    found = [f"{scheme}://{record.target.removesuffix('.')}:{record.port}" for scheme, record in records]
    log.info("discovered cluster from SRV", srv_server=domain, endpoints=found)
    if not insecure:
        left_out = [url for url in found if not url.startswith("https:")]
        if left_out:
            log.warn("endpoints without TLS are left out; see --insecure-discovery", endpoints=left_out)
        found = [url for url in found if url.startswith("https:")]
    if not found:
        raise StartFailed("etcdclient: no available endpoints")
    return tuple(dict.fromkeys(parse_endpoint(url) for url in found))
