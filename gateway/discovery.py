"""Endpoints from the SRV records of a DNS domain (--discovery-srv; RFC 2782).

Unless --insecure-discovery is given only those that speak TLS are taken, and of these only those that `verify` finds
good.
"""

from collections.abc import Callable

from gateway.balance import Endpoint
from gateway.config import Config, StartFailed
from kvorum.dns_services import Services, client_services
from kvorum.log import Logger
from kvorum.resolver import ResolveFailed

Verify = Callable[[Endpoint], None]
"""Returns if an endpoint can be trusted; raises OSError that says why not."""


def discover(config: Config, services: Services, verify: Verify, log: Logger) -> tuple[Endpoint, ...]:
    """The endpoints of the domain, in the order of the records. Raises StartFailed when it has no records."""
    domain = config.discovery_srv
    try:
        records = client_services(domain, config.discovery_srv_name, services)
    except ResolveFailed as error:
        raise StartFailed(str(error)) from None
    found = [
        (scheme, Endpoint(record.target.removesuffix("."), record.port, record.priority, record.weight))
        for scheme, record in records
    ]
    endpoints = [f"{scheme}://{endpoint}" for scheme, endpoint in found]
    log.info("discovered cluster from SRV", srv_server=domain, endpoints=endpoints)
    if config.insecure_discovery:
        return tuple(endpoint for _, endpoint in found)

    log.info("validating discovered SRV endpoints", srv_server=domain, endpoints=endpoints)
    good: list[Endpoint] = []
    errors: list[str] = []
    for (scheme, endpoint), text in zip(found, endpoints, strict=True):
        if scheme != "https":
            errors.append(f'"{text}" is insecure')
            continue
        try:
            verify(endpoint)
        except OSError as error:
            errors.append(f'"{text}" failed to dial ({error})')
        else:
            good.append(endpoint)
    texts = [f"https://{endpoint}" for endpoint in good]
    if errors:
        log.warn("failed to validate discovered endpoints", srv_server=domain, endpoints=texts, error=",".join(errors))
    else:
        log.info("using validated discovered SRV endpoints", srv_server=domain, endpoints=texts)
    return tuple(good)
