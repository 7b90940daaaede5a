"""Ids of member and cluster: those of the reference for the same flags."""

from kvorum.urls import parse_urls
from node.first_start import founder
from node.ids import cluster_id, member_id


def test_the_ids_of_all_defaults() -> None:
    urls = parse_urls("http://localhost:2380")
    identity = founder("default", {"default": urls}, "etcd-cluster")
    assert (identity.member_id, identity.cluster_id) == (0x8E9E05C52164694D, 0xCDF818194E3A8C32)


def test_the_order_of_urls_and_members_does_not_matter() -> None:
    urls = parse_urls("http://10.0.0.1:2380,http://10.0.0.2:2380")
    assert member_id(urls, "t") == member_id(reversed(urls), "t")
    assert cluster_id([1, 2**63]) == cluster_id([2**63, 1])


def test_another_token_is_another_cluster_and_other_members() -> None:
    """CL-4."""
    urls = parse_urls("http://localhost:2380")
    first, second = (founder("a", {"a": urls}, token) for token in ("t", "u"))
    assert first.member_id != second.member_id
    assert first.cluster_id != second.cluster_id


def test_members_have_the_name_of_no_importance() -> None:
    urls, others = parse_urls("http://a:1"), parse_urls("http://b:1")
    first, second = founder("a", {"a": urls, "b": others}, "t"), founder("x", {"x": urls, "y": others}, "t")
    assert first[:2] == second[:2]
