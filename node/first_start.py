"""The rules of a member's first start: what must fit together, and who the member then is (behaviour S31-S39).

Errors are StartFailed, with the reference's texts.
"""

from collections.abc import Mapping, Sequence

from kvorum.resolver import Resolve
from kvorum.urls import Url, parse_urls, quote
from node import ids
from node.flags.checks import StartFailed, cluster_text
from node.identity import FirstMember, Identity
from node.peer_urls import difference
from node.remote_cluster import RemoteCluster, RemoteMember

Members = Mapping[str, Sequence[Url]]
"""What --initial-cluster says: peer URLs by name."""


def check_founder(name: str, cluster: Members, advertised: Sequence[Url], resolve: Resolve) -> None:
    """What one that founds a cluster was told must fit together (S31-S33, CL-5)."""
    _check_listed(name, cluster)
    own = cluster[name]
    why = difference(advertised, own, resolve)
    if why:
        _refuse_advertised(name, own, advertised, why)
    _check_distinct(cluster)


def check_joiner(name: str, cluster: Members) -> None:
    """The same for one that joins; its URLs are compared with what the cluster was told (`joined`)."""
    _check_listed(name, cluster)
    _check_distinct(cluster)


def _check_listed(name: str, cluster: Members) -> None:
    if name not in cluster:
        raise StartFailed(f"couldn't find local name {quote(name)} in the initial cluster configuration")


def _check_distinct(cluster: Members) -> None:
    every = [url for urls in cluster.values() for url in urls]
    if len(set(every)) != len(every):
        raise StartFailed(f"initial cluster {cluster_text(cluster)} has duplicate url")


def _refuse_advertised(name: str, own: Sequence[Url], advertised: Sequence[Url], why: str) -> None:
    unadvertised = [f"{name}={url}" for url in own if url not in advertised]
    if unadvertised:
        listed = ",".join(map(str, advertised))
        raise StartFailed(
            f"--initial-cluster has {','.join(unadvertised)} but missing from "
            f"--initial-advertise-peer-urls={listed} ({why})"
        )
    unlisted = ",".join(str(url) for url in advertised if url not in own)
    told = cluster_text({name: advertised})
    raise StartFailed(f"--initial-advertise-peer-urls has {unlisted} but missing from --initial-cluster={told}")


def founder(name: str, cluster: Members, cluster_token: str) -> Identity:
    """The member `name` when the cluster of these members is founded. `name` is one of them."""
    members = {
        member: FirstMember(ids.member_id(urls, cluster_token), member, tuple(sorted(str(url) for url in urls)))
        for member, urls in cluster.items()
    }
    in_order = tuple(sorted(members.values()))
    return Identity(members[name].id, ids.cluster_id(member.id for member in in_order), True, in_order)


def check_not_founded(identity: Identity, remote: RemoteCluster) -> None:
    """The cluster that a founder is about to found must not be there already, with it or without it (S39, CL-7, CL-18).

    A member that lost its data must be removed and added anew: what it promised before is gone with the data.
    """
    own = remote.member(identity.member_id)
    if own is not None and own.client_urls:
        raise StartFailed(f"member {identity.member_id:x} has already been bootstrapped")
    if remote.cluster_id != identity.cluster_id:
        pair = f"{identity.cluster_id:x} != {remote.cluster_id:x}"
        raise StartFailed(f"conflicting cluster ID to the target cluster ({pair}). Exiting.")


def joined(
    name: str, cluster: Members, cluster_token: str, max_learners: int, remote: RemoteCluster, resolve: Resolve
) -> Identity:
    """The member `name` of the running cluster `remote`, whose members must be those of --initial-cluster (S38, RR-3).

    Members are known by their URLs: names are only those that this member's operator gives them.
    """
    shown = f"error validating peerURLs {remote}"
    if len(cluster) != len(remote.members):
        raise StartFailed(f"{shown}: member count is unequal")
    told = sorted(cluster.items(), key=lambda item: ids.member_id(item[1], cluster_token))
    own_id = None
    for member in remote.members:
        match, why = _find(member, told, resolve)
        if match is None:
            urls = " ".join(member.peer_urls)
            raise StartFailed(
                f"{shown}: PeerURLs: no match found for existing member ({member.id:x}, [{urls}]), "
                f"last resolver error ({why})"
            )
        if match == name:
            own_id = member.id
    if own_id is None:  # two members of one place: another has taken this one's
        raise StartFailed(f"{shown}: PeerURLs: no existing member found for local name {quote(name)}")
    if sum(member.is_learner for member in remote.members) > max_learners:
        raise StartFailed("membership: too many learner members in cluster")
    members = tuple(FirstMember(member.id, member.name, member.peer_urls) for member in remote.members)
    return Identity(own_id, remote.cluster_id, False, members)


def _find(member: RemoteMember, told: Sequence[tuple[str, Sequence[Url]]], resolve: Resolve) -> tuple[str | None, str]:
    """The name under which --initial-cluster has the member; else why the last one there is another."""
    urls = parse_urls(",".join(member.peer_urls))
    for name, told_urls in told:
        if urls == tuple(told_urls):
            return name, ""
    why = ""
    for name, told_urls in told:
        why = difference(urls, told_urls, resolve)
        if not why:
            return name, ""
    return None, why
