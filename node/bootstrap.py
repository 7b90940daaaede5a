"""The start of a member: who it is, and whether it founds its cluster or joins one (behaviour S31-S41, CL-3 to CL-18).

Decided once. From then on only the data directory counts, and the flags about it do not (S40).
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from kvorum.log import Level, Logger
from kvorum.resolver import Resolve
from node import datadir, first_start
from node.config import ClusterState, Config
from node.datadir import DataDirError
from node.first_start import Members
from node.flags.checks import StartFailed
from node.identity import Identity, read_identity, write_identity
from node.remote_cluster import RemoteCluster


class Patience(NamedTuple):
    """How long each member that is asked may take, and how the log tells of one that does not answer."""

    timeout_s: float
    silence: Level


FOUNDER: Final = Patience(1.0, Level.DEBUG)
"""Is the cluster there already? Most often none of the others runs yet."""

JOINER: Final = Patience(10.0, Level.WARN)
"""Which cluster is to be joined? The first that answers is enough."""


class Outside(NamedTuple):
    """What the start of a member asks of other machines."""

    ask: Callable[[Sequence[str], Patience], RemoteCluster | None]
    """The members on these peer URLs, one after the other (`remote_http.ask`)."""
    resolve: Resolve
    discover: Callable[[], Members]
    """The first members by SRV records; raises StartFailed."""


def identify(config: Config, outside: Outside, log: Logger) -> Identity:
    """Who the member is: as its data directory says, else as the flags make it, which is then written there.

    Raises StartFailed and DataDirError.
    """
    has_log = datadir.holds_log(config.wal_path)
    if config.force_new_cluster and not has_log:
        log.warn("--force-new-cluster drops members of a cluster that is there, and here is no data yet")
    identity = read_identity(config.data_dir)
    if identity is None:
        if has_log or datadir.holds_database(config.db_path):
            raise DataDirError(
                f"data directory {config.data_dir} holds no identity, but there is data ({config.wal_path}, "
                f"{config.db_path}): it is another program's or another member's, or a part of it is missing"
            )
        identity = _first_identity(config, outside, log)
        if identity.founder:
            _check_not_founded(identity, outside)
        write_identity(config.data_dir, identity)
    elif identity.founder and not has_log:  # it ended before its log began, or the log was taken away
        _check_not_founded(identity, outside)
    return identity


def _first_identity(config: Config, outside: Outside, log: Logger) -> Identity:
    name, token = config.name, config.initial_cluster_token
    cluster = outside.discover() if config.discovery_srv else dict(config.initial_cluster)
    if config.initial_cluster_state is ClusterState.NEW:
        first_start.check_founder(name, cluster, config.initial_advertise_peer_urls, outside.resolve)
        return first_start.founder(name, cluster, token)
    first_start.check_joiner(name, cluster)
    others = sorted(str(url) for other in cluster if other != name for url in cluster[other])
    remote = outside.ask(others, JOINER)
    if remote is None:
        raise StartFailed(
            "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs"
        )
    identity = first_start.joined(name, cluster, token, config.max_learners, remote, outside.resolve)
    if remote.incompatible:
        log.warn("the running cluster cannot be joined", reason=remote.incompatible)
        raise StartFailed("incompatible with current running cluster")
    own = remote.member(identity.member_id)
    if own is not None and own.client_urls:
        log.warn(
            "this member has run before and has no data now; such a member should be removed and added anew",
            member_id=f"{identity.member_id:x}",
        )
    return identity


def _check_not_founded(identity: Identity, outside: Outside) -> None:
    others = sorted(url for member in identity.members if member.id != identity.member_id for url in member.peer_urls)
    remote = outside.ask(others, FOUNDER)
    if remote is not None:
        first_start.check_not_founded(identity, remote)
