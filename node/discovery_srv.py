"""A new cluster's members, found by the SRV records of a DNS domain (--discovery-srv; behaviour CL-14, RFC 2782).

`_etcd-server-ssl._tcp` lists those with https peer URLs, `_etcd-server._tcp` those with http; records give no names, so
each member calls itself by its own and the others by numbers. Member ids do not depend on names.
"""

from collections.abc import Callable, Sequence

from kvorum.log import Logger
from kvorum.resolver import Resolve, ResolveFailed
from kvorum.urls import Url, quote
from node.flags.checks import StartFailed, read_initial_cluster

Services = Callable[[str], Sequence[tuple[str, int]]]
"""Target host and port of each SRV record of a name; raises ResolveFailed."""


def discover(
    name: str, domain: str, suffix: str, advertised: Sequence[Url], services: Services, resolve: Resolve, log: Logger
) -> dict[str, tuple[Url, ...]]:
    """The members as --initial-cluster would say them, this one as `name`: it is known by an address of `advertised`.

    `suffix` is what --discovery-srv-name appends to the services' names. Raises StartFailed.
    """
    listed: list[str] = []
    failures: list[str] = []
    for scheme, service in (("https", "etcd-server-ssl"), ("http", "etcd-server")):
        if suffix:
            service += "-" + suffix
        try:
            found = _listed(name, scheme, f"_{service}._tcp.{domain}", advertised, services, resolve)
        except ResolveFailed as error:
            failures.append(f"error querying DNS SRV records for _{service} {error}")
        else:
            listed += found
    if failures:
        log.warn("failed to resolve during SRV discovery", discovery_srv=domain, error="; ".join(failures))
    log.info("got bootstrap from DNS for etcd-server", discovery_srv=domain, members=listed)
    if not listed and failures:
        raise StartFailed(f"error setting up initial cluster: {'; '.join(failures)}")
    members = read_initial_cluster(",".join(listed)) if listed else {}
    if name not in members:
        raise StartFailed(
            f"error setting up initial cluster: cannot find local etcd member {quote(name)} in SRV records"
        )
    return members


def _listed(
    name: str, scheme: str, record: str, advertised: Sequence[Url], services: Services, resolve: Resolve
) -> list[str]:
    """NAME=URL for each record. One that does not fit is left out, if another does."""
    own = {(resolve(url.address[0]), url.address[1]): url for url in advertised if not url.is_unix}
    listed: list[str] = []
    failure: ResolveFailed | None = None
    unnamed = 0
    for target, port in services(record):
        host = target.removesuffix(".")
        try:
            url = own.get((resolve(host), str(port)))
        except ResolveFailed as error:
            failure = error
            continue
        place = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        if url is None:
            listed.append(f"{unnamed}={place}")
            unnamed += 1
        elif url.scheme == scheme:
            listed.append(f"{name}={place}")
        else:
            failure = ResolveFailed(
                f"bootstrap at {place} from DNS for {record.partition('.')[0][1:]} has scheme mismatch "
                f"with expected peer {url}"
            )
    if failure is not None and not listed:
        raise failure
    return listed
