"""Endpoints from the SRV records of a DNS domain (--discovery-srv; RFC 2782).

`_etcd-client-ssl._tcp` lists members that speak TLS, `_etcd-client._tcp` the others; --discovery-srv-name is appended
to both services' names. Records can be forged, certificates cannot: without --insecure-discovery those without TLS are
left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvorum.dns_services import Service
from kvorum.log import Logger
from kvorum.resolver import ResolveFailed
from proxy.config import StartFailed
from proxy.upstream.endpoints import Endpoint, parse_endpoint


def discover(
    domain: str, suffix: str, insecure: bool, services: Callable[[str], Sequence[Service]], log: Logger
) -> tuple[Endpoint, ...]:
    """All that the domain names, the most preferred first. Raises StartFailed when there is none."""
    ending = f"-{suffix}" if suffix else ""
    found: list[str] = []
    failures: list[str] = []
    for scheme, service in (("https", "etcd-client-ssl"), ("http", "etcd-client")):
        try:
            records = services(f"_{service}{ending}._tcp.{domain}")
        except ResolveFailed as error:
            failures.append(str(error))
            continue
        for record in records:
            host = record.target.removesuffix(".")
            if host:  # else the service is decidedly not available at this domain
                found.append(f"{scheme}://{host}:{record.port}")
    if len(failures) == 2:
        raise StartFailed(f"dns lookup errors: {' and '.join(failures)}")
    log.info("discovered cluster from SRV", srv_server=domain, endpoints=found)
    if not insecure:
        left_out = [url for url in found if not url.startswith("https:")]
        if left_out:
            log.warn("endpoints without TLS are left out; see --insecure-discovery", endpoints=left_out)
        found = [url for url in found if url.startswith("https:")]
    if not found:
        raise StartFailed("etcdclient: no available endpoints")
    return tuple(dict.fromkeys(parse_endpoint(url) for url in found))
