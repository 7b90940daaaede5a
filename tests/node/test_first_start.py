"""What must fit together when a cluster is founded or joined (behaviour S31-S33, S38, S39, RR-3): texts, and the same
asked of the reference.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from kvorum.log import Level, LogFormat, Logger
from kvorum.pb.rpc_pb2 import MemberAddRequest, MemberListRequest
from kvorum.resolver import ResolveFailed
from kvorum.urls import parse_urls
from loadtest.launcher import Kind, Port, Server
from node import remote_http
from node.config import ClusterState, Config
from node.first_start import check_founder, check_joiner, check_not_founded, founder, joined
from node.flags.checks import StartFailed
from node.remote_cluster import RemoteCluster, RemoteMember
from tests.calls import Api
from tests.node.flags.parsed import config as parsed
from tests.node.flags.test_reference import asked

QUIET = Logger((), Level.INFO, LogFormat.JSON)


def no_address(host: str) -> str:
    raise ResolveFailed(f"lookup {host}: no such host")


def refusal(config: Config, remote: RemoteCluster | None = None) -> str:
    """Why the member cannot found, or join `remote`; empty: it can."""
    cluster = dict(config.initial_cluster)
    try:
        if config.initial_cluster_state is ClusterState.NEW:
            check_founder(config.name, cluster, config.initial_advertise_peer_urls, no_address)
        else:
            check_joiner(config.name, cluster)
        if remote is not None:
            joined(config.name, cluster, config.initial_cluster_token, config.max_learners, remote, no_address)
    except StartFailed as error:
        return str(error)
    return ""


def words(text: str) -> list[str]:
    """The reference lists members and URLs in any order, another each time."""
    return sorted(text.translate(str.maketrans(",[]", "   ")).split())


@pytest.mark.parametrize(
    "arguments",
    [
        ("--name=a", "--initial-cluster=b=http://localhost:2380"),
        ("--name=", "--initial-cluster=b=http://localhost:2380"),
        ("--initial-cluster=default=http://localhost:2381",),
        ("--initial-cluster=default=http://127.0.0.1:2380",),
        ("--initial-cluster=default=http://localhost:2380,b=http://localhost:2380",),
        ("--initial-cluster=default=http://localhost:1,b=http://localhost:1",),
        ("--initial-cluster=default=http://localhost:2380", "--initial-advertise-peer-urls=http://localhost:1"),
        ("--initial-cluster=default=http://localhost:2380,default=http://localhost:2381",),
        ("--initial-cluster=default=http://localhost:2381,default=http://localhost:2382",),
        (
            "--initial-cluster=default=http://127.0.0.1:2,default=http://127.0.0.1:1",
            "--initial-advertise-peer-urls=http://127.0.0.1:4,http://127.0.0.1:3",
        ),
        (
            "--initial-cluster=default=http://127.0.0.1:2",
            "--initial-advertise-peer-urls=http://127.0.0.1:2,http://127.0.0.1:3",
        ),
        ("--initial-cluster=default=unix://x:1", "--initial-advertise-peer-urls=unix://y:1"),
        ("--initial-cluster=default=http://localhost:1,b=http://localhost:1", "--initial-cluster-state=existing"),
        ("--initial-cluster=b=http://localhost:1", "--initial-cluster-state=existing"),
    ],
)
def test_the_reference_says_the_same(arguments: tuple[str, ...], tmp_path: Path) -> None:
    code, text = asked(("--listen-peer-urls=http://127.0.0.1:0", *arguments), {}, tmp_path)
    assert (1, words(refusal(parsed(*arguments)))) == (code, words(text))


class TestFounder:
    def test_a_member_alone(self) -> None:
        assert refusal(parsed()) == ""
        urls = "http://10.0.0.1:2380,http://10.0.0.2:2380"
        cluster = "a=http://10.0.0.2:2380,a=http://10.0.0.1:2380"
        assert (
            refusal(parsed("--name=a", f"--initial-advertise-peer-urls={urls}", f"--initial-cluster={cluster}")) == ""
        )

    def test_several_members(self) -> None:
        """CL-3; the names of hosts need no addresses while their texts are the same."""
        cluster = "--initial-cluster=default=http://me.invalid:1,b=http://b.invalid:1"
        assert refusal(parsed(cluster, "--initial-advertise-peer-urls=http://me.invalid:1")) == ""

    def test_a_name_and_its_address_are_the_same_place(self) -> None:
        cluster = {"a": parse_urls("http://a:1")}
        check_founder("a", cluster, parse_urls("http://10.0.0.1:1"), {"a": "10.0.0.1"}.__getitem__)

    def test_a_name_without_an_address(self) -> None:
        with pytest.raises(StartFailed) as raised:
            check_founder("a", {"a": parse_urls("http://a:1")}, parse_urls("http://10.0.0.1:1"), no_address)
        assert str(raised.value) == (
            "--initial-cluster has a=http://a:1 but missing from --initial-advertise-peer-urls=http://10.0.0.1:1 "
            '(failed to resolve "http://a:1" (lookup a: no such host))'
        )

    @pytest.mark.parametrize("client_urls", [(), ("http://c:1",)])
    def test_a_cluster_that_has_seen_it_serve_is_not_founded_again(self, client_urls: tuple[str, ...]) -> None:
        """S39, CL-18: a member that is known but has never served may still found it with the others."""
        identity = founder("a", {"a": parse_urls("http://a:1"), "b": parse_urls("http://b:1")}, "t")
        members = [RemoteMember(id_, name, urls, ("http://c:2",), False) for id_, name, urls in identity.members]
        own = next(i for i, member in enumerate(members) if member.id == identity.member_id)
        members[own] = members[own]._replace(client_urls=client_urls)
        remote = RemoteCluster(identity.cluster_id, tuple(members))
        if not client_urls:
            check_not_founded(identity, remote)
            return
        with pytest.raises(StartFailed) as raised:
            check_not_founded(identity, remote)
        assert str(raised.value) == f"member {identity.member_id:x} has already been bootstrapped"

    def test_another_cluster_at_the_same_place(self) -> None:
        """CL-7."""
        identity = founder("a", {"a": parse_urls("http://a:1"), "b": parse_urls("http://b:1")}, "t")
        remote = RemoteCluster(0xC6AB534D07E8FCC4, (RemoteMember(7, "b", ("http://b:1",), (), False),))
        with pytest.raises(StartFailed) as raised:
            check_not_founded(identity, remote)
        assert str(raised.value) == (
            f"conflicting cluster ID to the target cluster ({identity.cluster_id:x} != c6ab534d07e8fcc4). Exiting."
        )


A = RemoteMember(0xA, "first", ("http://a:1",), ("http://c:1",), False)
B = RemoteMember(0xB, "", ("http://b:1", "http://b:2"), (), False)
BOTH = "a=http://a:1,b=http://b:2,b=http://b:1"


class TestJoiner:
    def join(self, name: str, cluster: str, *members: RemoteMember) -> str:
        return refusal(
            parsed(f"--name={name}", f"--initial-cluster={cluster}", "--initial-cluster-state=existing"),
            RemoteCluster(0xC, members),
        )

    def test_it_finds_itself_by_its_urls(self) -> None:
        """RR-3: ids and names of the others are the cluster's."""
        cluster = {"a": parse_urls("http://a:1"), "b": parse_urls("http://b:2,http://b:1")}
        identity = joined("b", cluster, "any", 1, RemoteCluster(0xC, (A, B)), no_address)
        assert identity[:3] == (0xB, 0xC, False)
        assert [tuple(member) for member in identity.members] == [
            (0xA, "first", ("http://a:1",)),
            (0xB, "", ("http://b:1", "http://b:2")),
        ]

    def test_by_addresses_where_the_texts_differ(self) -> None:
        cluster = {"a": parse_urls("http://10.0.0.1:1"), "b": parse_urls("http://10.0.0.2:1,http://b:2")}
        addresses = {"a": "10.0.0.1", "b": "10.0.0.2"}
        identity = joined("b", cluster, "t", 1, RemoteCluster(0xC, (A, B)), addresses.__getitem__)
        assert identity.member_id == 0xB

    def test_another_number_of_members(self) -> None:
        assert self.join("a", "a=http://a:1", A, B) == (
            "error validating peerURLs {ClusterID:c Members:["
            "&{ID:a RaftAttributes:{PeerURLs:[http://a:1] IsLearner:false} "
            "Attributes:{Name:first ClientURLs:[http://c:1]}} "
            "&{ID:b RaftAttributes:{PeerURLs:[http://b:1 http://b:2] IsLearner:false} "
            "Attributes:{Name: ClientURLs:[]}}] RemovedMemberIDs:[]}: member count is unequal"
        )

    @pytest.mark.parametrize(
        ("cluster", "why"),
        [
            ("b=http://b:1,b=http://b:2", 'len(["unix://x"]) != len(["http://b:1" "http://b:2"])'),
            ("b=unix://y", '"unix://x"(resolved from "unix://x") != "unix://y"(resolved from "unix://y")'),
        ],
    )
    def test_a_member_that_is_not_in_its_list(self, cluster: str, why: str) -> None:
        text = self.join("b", cluster, B._replace(peer_urls=("unix://x",)))
        assert text.startswith("error validating peerURLs {ClusterID:c Members:[")
        assert text.endswith(
            f"PeerURLs: no match found for existing member (b, [unix://x]), last resolver error ({why})"
        )

    def test_two_members_at_one_place(self) -> None:
        cluster = {"a": parse_urls("http://10.0.0.1:1"), "b": parse_urls("http://b:1")}
        same = RemoteMember(0xB, "", ("http://d:1",), (), False)
        addresses = {"a": "10.0.0.1", "d": "10.0.0.1", "b": "10.0.0.2"}
        with pytest.raises(StartFailed, match="no existing member found for local name"):
            joined("b", cluster, "t", 1, RemoteCluster(0xC, (A, same)), addresses.__getitem__)

    def test_too_many_learners(self) -> None:
        text = self.join("b", BOTH, A._replace(is_learner=True), B._replace(is_learner=True))
        assert text == "membership: too many learner members in cluster"
        assert self.join("b", BOTH, A, B._replace(is_learner=True)) == ""


@pytest.fixture(scope="class")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """A cluster of the reference, of one member and one that was added and has not come yet; its peer URL."""
    port = Port()
    server = Server(Kind.REFERENCE, tmp_path_factory.mktemp("reference"))
    try:
        server.start()
        url = f"http://127.0.0.1:{port.number}"
        with Api(server.address) as api:
            api(MemberAddRequest(peerURLs=[url]))
        yield server, url
    finally:
        server.close()
        port.release()


class TestReference:
    """A member of the reference and one of kvorum are told to join the same cluster."""

    CASES: ClassVar = {
        "count": "m1={first},default={second},c=http://127.0.0.1:1",
        "own url": "m1={first},default=http://127.0.0.1:1",
        "number of urls": "m1={first},default=http://127.0.0.1:1,default={second}",
        "urls of the other": "m1={first},m1=http://127.0.0.1:1,default={second}",
        "localhost": "m1={local},default={second}",
    }

    @pytest.mark.parametrize("case", list(CASES))
    def test_the_reference_says_the_same(self, running: tuple[Server, str], case: str, tmp_path: Path) -> None:
        server, second = running
        first = f"http://{server.peer_address}"
        cluster = self.CASES[case].format(first=first, second=second, local=first.replace("127.0.0.1", "localhost"))
        arguments = (f"--initial-cluster={cluster}", "--initial-cluster-state=existing")
        listen = ("--listen-peer-urls=http://127.0.0.1:0", "--listen-client-urls=http://127.0.0.1:0")
        code, text = asked((*listen, "--advertise-client-urls=http://a:1", *arguments), {}, tmp_path)
        config = parsed(*arguments)
        remote = remote_http.ask([first], config.peer_tls, 10.0, QUIET, Level.WARN)
        assert remote is not None
        assert code == 1
        assert words(refusal(config, remote)) == words(text)

    def test_its_members_are_understood(self, running: tuple[Server, str]) -> None:
        server, second = running
        remote = remote_http.ask([f"http://{server.peer_address}"], parsed().peer_tls, 10.0, QUIET, Level.WARN)
        assert remote is not None
        with Api(server.address) as api:
            listed = api(MemberListRequest())
        assert remote.cluster_id == listed.header.cluster_id
        assert [(m.id, m.name, m.peer_urls, m.client_urls) for m in remote.members] == [
            (m.ID, m.name, tuple(m.peerURLs), tuple(m.clientURLs)) for m in listed.members
        ]
        cluster = {"x": parse_urls(f"http://{server.peer_address}"), "y": parse_urls(second)}
        identity = joined("y", cluster, "t", 1, remote, no_address)
        assert identity.member_id == next(m.id for m in remote.members if m.peer_urls == (second,))

    def test_kvorum_does_not_join_it(self, running: tuple[Server, str]) -> None:
        server, _ = running
        remote = remote_http.ask([f"http://{server.peer_address}"], parsed().peer_tls, 10.0, QUIET, Level.WARN)
        assert remote is not None
        assert remote.incompatible == "its members are not kvorum's"
