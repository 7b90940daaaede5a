"""The choice of an endpoint: given what is heard of each, this one is in use."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream.endpoints import Endpoint, Endpoints, Health, parse_endpoint

A, B, C = (Endpoint(f"10.0.0.{n}:2379", None) for n in (1, 2, 3))


def first_of(*endpoints: Endpoint) -> Endpoints:
    return Endpoints(endpoints, lambda found: found[0])


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("10.0.0.1:2379", Endpoint("10.0.0.1:2379", None)),
        ("http://host:2379", Endpoint("host:2379", False)),
        ("http://host:2379/", Endpoint("host:2379", False)),
        ("https://host:1", Endpoint("host:1", True)),
        ("host", Endpoint("host:2379", None)),
        ("[::1]:2379", Endpoint("[::1]:2379", None)),
        ("unix:///run/member.sock", Endpoint("unix:/run/member.sock", False)),
        ("unixs://member.sock", Endpoint("unix:member.sock", True)),
        ("unix:/run/member.sock", Endpoint("unix:/run/member.sock", None)),
    ],
)
def test_how_endpoints_are_written(text: str, endpoint: Endpoint) -> None:
    assert parse_endpoint(text) == endpoint


@pytest.mark.parametrize(
    "text", ["", "http://", ":2379", "host:", "host:0", "host:65536", "ftp://host:1", "a:b:c", "h/p"]
)
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        parse_endpoint(text)


def test_the_choice_is_made_by_chance_and_kept() -> None:
    chosen = {Endpoints((A, B, C), random.Random(seed).choice).current for seed in range(50)}
    assert chosen == {A, B, C}
    endpoints = first_of(A, B)
    assert not endpoints.on_up(B)
    assert not endpoints.on_down(B)
    assert endpoints.current == A


def test_one_that_is_lost_is_left_for_one_that_serves() -> None:
    endpoints = first_of(A, B, C)
    endpoints.on_up(C)
    assert endpoints.on_down(A)
    assert endpoints.current == C


def test_when_all_are_lost_they_are_tried_in_turn() -> None:
    endpoints = first_of(A, B, C)
    tried = []
    for _ in range(6):
        tried.append(endpoints.current)
        endpoints.on_down(endpoints.current)
    assert tried == [A, B, C, A, B, C]
    assert not endpoints.serving


def test_a_sick_one_is_left_only_for_one_that_serves() -> None:
    endpoints = first_of(A, B)
    endpoints.on_up(B)
    assert not endpoints.on_sick(A)
    assert endpoints.current == A, "perhaps nobody serves"
    assert not endpoints.on_sick(B)
    assert not endpoints.on_up(A)
    assert endpoints.current == A, "it has recovered first"
    endpoints.on_sick(A)
    assert endpoints.on_up(B)
    assert endpoints.current == B


def test_one_that_cannot_be_reached_is_not_just_sick() -> None:
    endpoints = first_of(A, B)
    endpoints.on_down(B)
    endpoints.on_sick(B)
    assert endpoints.health(B) is Health.DOWN


def test_the_cluster_has_other_endpoints() -> None:
    endpoints = first_of(A, B)
    assert not endpoints.replace((A, C))
    assert endpoints.all == [A, C]
    assert endpoints.replace((B, C))
    assert endpoints.current == B
    assert not endpoints.on_down(A), "what is heard of strangers changes nothing"


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["up", "sick", "down"]), st.sampled_from([A, B, C])),
        st.tuples(st.just("replace"), st.sets(st.sampled_from([A, B, C]), min_size=1).map(tuple)),
    ),
    max_size=40,
)


@given(EVENTS, st.randoms(use_true_random=False))
def test_the_one_in_use_is_known_and_left_whenever_another_serves_and_it_does_not(
    events: list[tuple[str, object]], chance: random.Random
) -> None:
    endpoints = Endpoints((A, B), chance.choice)
    for name, what in events:
        before = endpoints.current
        if name == "replace":
            assert isinstance(what, tuple)
            changed = endpoints.replace(what)
        else:
            assert isinstance(what, Endpoint)
            known = what in endpoints.all
            changed = {"up": endpoints.on_up, "sick": endpoints.on_sick, "down": endpoints.on_down}[name](what)
            assert known or not changed
            if name == "up" and known:
                assert endpoints.serving
        assert changed == (endpoints.current != before)
        assert endpoints.current in endpoints.all
