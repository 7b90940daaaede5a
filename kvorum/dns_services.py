"""SRV records as the system's name servers have them. Its library is large: import this only where it is needed."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from dns.exception import DNSException
from dns.rdtypes.IN.SRV import SRV
from dns.resolver import NXDOMAIN, NoAnswer, Resolver

from kvorum.resolver import ResolveFailed

LIFETIME_S = 5.0
"""For all attempts at one name."""


class Service(NamedTuple):
    """One SRV record (RFC 2782): the lowest priority is to be used, by weight among equals."""

    target: str
    port: int
    priority: int
    weight: int


Services = Callable[[str], Sequence[Service]]
"""All records of a name; raises ResolveFailed."""


def client_services(domain: str, suffix: str, services: Services) -> list[tuple[str, Service]]:
    """(scheme, record) of what serves clients at a domain: first the records of `_etcd-client-ssl._tcp`, which speak
    TLS, then those of `_etcd-client._tcp`. `suffix` is what --discovery-srv-name appends to both names. Raises
    ResolveFailed if the domain has neither.
    """
    ending = f"-{suffix}" if suffix else ""
    found: list[tuple[str, Service]] = []
    failures: list[str] = []
    for scheme, service in (("https", "etcd-client-ssl"), ("http", "etcd-client")):
        try:
            records = services(f"_{service}{ending}._tcp.{domain}")
        except ResolveFailed as error:
            failures.append(str(error))
            continue
        # A target "." means: the service is decidedly not available at this domain (RFC 2782).
        found += [(scheme, record) for record in records if record.target != "."]
    if len(failures) == 2:
        raise ResolveFailed(f"dns lookup errors: {' and '.join(failures)}")
    return found


def srv_records(name: str, resolver: Resolver | None = None) -> list[Service]:
    """All records of a name, the most preferred first. Raises ResolveFailed."""
    try:
        answer = (resolver or Resolver()).resolve(name, "SRV", lifetime=LIFETIME_S)
    except (NXDOMAIN, NoAnswer):
        raise ResolveFailed(f"lookup {name}: no such host") from None
    except DNSException as error:
        raise ResolveFailed(f"lookup {name}: {error}") from None
    records = [record for record in answer if isinstance(record, SRV)]
    records.sort(key=lambda record: (record.priority, -record.weight, record.target.to_text(), record.port))
    return [Service(record.target.to_text(), record.port, record.priority, record.weight) for record in records]
