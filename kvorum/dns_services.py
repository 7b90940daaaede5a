"""SRV records as the system's name servers have them. Its library is large: import this only where it is needed."""

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
