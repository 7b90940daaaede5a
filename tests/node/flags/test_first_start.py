"""What must fit together when a cluster is formed (behaviour S31-S33, S38): asked of the reference too."""

from pathlib import Path

import pytest

from node.config import ClusterState
from node.flags import Start, parse
from node.flags.checks import StartFailed, check_first_start
from node.urls import parse_url, parse_urls
from tests.node.flags.test_reference import asked


def first_start(arguments: tuple[str, ...]) -> str:
    """Why the member with these flags cannot form its cluster; empty: it can."""
    result = parse(["kvorum", *arguments], {}, lambda path: Path(path).read_bytes())
    assert isinstance(result, Start)
    config = result.config
    joining = config.initial_cluster_state is ClusterState.EXISTING
    try:
        check_first_start(config.name, dict(config.initial_cluster), config.initial_advertise_peer_urls, joining)
    except StartFailed as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("--name=a", "--initial-cluster=b=http://localhost:2380"),
        ("--name=", "--initial-cluster=b=http://localhost:2380"),
        ("--initial-cluster=default=http://localhost:2381",),
        ("--initial-cluster=default=http://localhost:2380,b=http://localhost:2380",),
        ("--initial-cluster=default=http://localhost:2380", "--initial-advertise-peer-urls=http://localhost:1"),
        ("--initial-cluster=default=http://localhost:2380,default=http://localhost:2381",),
        ("--initial-cluster=default=http://localhost:1,b=http://localhost:1",),
        ("--initial-cluster=default=http://localhost:1,b=http://localhost:1", "--initial-cluster-state=existing"),
        ("--initial-cluster=b=http://localhost:1", "--initial-cluster-state=existing"),
    ],
)
def test_the_reference_says_the_same(arguments: tuple[str, ...], tmp_path: Path) -> None:
    code, text = asked(("--listen-peer-urls=http://127.0.0.1:0", *arguments), {}, tmp_path)
    assert (1, first_start(arguments)) == (code, text)


def test_an_advertised_url_that_the_cluster_lacks() -> None:
    cluster = {"a": (parse_url("http://a:1"),)}
    with pytest.raises(StartFailed) as raised:
        check_first_start("a", cluster, parse_urls("http://a:1,http://a:2"), False)
    assert (
        str(raised.value)
        == "--initial-advertise-peer-urls has http://a:2 but missing from --initial-cluster=a=http://a:1"
    )


def test_a_member_alone_may_form_its_cluster() -> None:
    assert first_start(()) == ""
    urls = "http://10.0.0.1:2380,http://10.0.0.2:2380"
    cluster = "a=http://10.0.0.2:2380,a=http://10.0.0.1:2380"
    arguments = ("--name=a", f"--initial-advertise-peer-urls={urls}", f"--initial-cluster={cluster}")
    assert first_start(arguments) == ""


def test_localhost_is_the_same_place_by_name_and_by_address() -> None:
    assert first_start(("--initial-cluster=default=http://127.0.0.1:2380",)) == ""


def test_members_may_form_a_cluster() -> None:
    assert first_start(("--initial-cluster=default=http://localhost:2380,b=http://b:2380",)) == ""


def test_one_that_joins_need_not_advertise_what_the_cluster_was_told() -> None:
    cluster = "--initial-cluster=default=http://localhost:1,b=http://b:1"
    assert first_start((cluster, "--initial-cluster-state=existing")) == ""
