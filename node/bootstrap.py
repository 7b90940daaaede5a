"""The first start of a member: who it is, and whether it founds its cluster or joins one (behaviour S31-S40)."""

from collections.abc import Mapping, Sequence

from node import ids
from node.config import ClusterState, Config
from node.flags.checks import StartFailed, check_first_start
from node.identity import FirstMember, Identity, read_identity, write_identity
from node.urls import Url


def identify(config: Config) -> Identity:
    """Who the member is: as its data directory says, else as the flags make it, which is then written there.

    Raises StartFailed and DataDirError.
    """
    identity = read_identity(config.data_dir)
    if identity is None:
        cluster = dict(config.initial_cluster)
        joining = config.initial_cluster_state is ClusterState.EXISTING
        check_first_start(config.name, cluster, config.initial_advertise_peer_urls, joining)
        if joining:
            raise StartFailed(
                "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs"
            )
        identity = founder(config.name, cluster, config.initial_cluster_token)
        write_identity(config.data_dir, identity)
    return identity


def founder(name: str, cluster: Mapping[str, Sequence[Url]], cluster_token: str) -> Identity:
    """The member `name` when the cluster of these names and peer URLs is founded. `name` is one of them."""
    members = {
        member: FirstMember(ids.member_id(urls, cluster_token), member, tuple(sorted(str(url) for url in urls)))
        for member, urls in cluster.items()
    }
    in_order = tuple(sorted(members.values()))
    return Identity(members[name].id, ids.cluster_id(member.id for member in in_order), True, in_order)
