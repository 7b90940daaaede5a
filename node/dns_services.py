"""SRV records as the system's name servers have them. Its library is large: import this only where it is needed."""

from dns.exception import DNSException
from dns.rdtypes.IN.SRV import SRV
from dns.resolver import NXDOMAIN, NoAnswer, Resolver

from node.peer_urls import ResolveFailed

LIFETIME_S = 5.0
"""For all attempts at one name."""


def srv_records(name: str, resolver: Resolver | None = None) -> list[tuple[str, int]]:
    """Target and port of each record, the most preferred first. Raises ResolveFailed."""
    try:
        answer = (resolver or Resolver()).resolve(name, "SRV", lifetime=LIFETIME_S)
    except (NXDOMAIN, NoAnswer):
        raise ResolveFailed(f"lookup {name}: no such host") from None
    except DNSException as error:
        raise ResolveFailed(f"lookup {name}: {error}") from None
    records = [record for record in answer if isinstance(record, SRV)]
    records.sort(key=lambda record: (record.priority, -record.weight, record.target.to_text(), record.port))
    return [(record.target.to_text(), record.port) for record in records]
