"""The rows of the contract that clients see: a proxy keeps them as a member does, by the member's own tests."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Final

import pytest

from tests.front import test_watch, test_watch_events, test_watch_progress
from tests.proxy.watch.assembly import ProxyClient, ProxyWorld

OF_THE_MEMBER_ALONE: Final = {
    # they step through the member's own processes, or look into them
    "test_W1_events_that_happen_meanwhile_follow_the_created_reply",
    "test_W12_X15_a_future_start_is_kept_through_a_gap_in_the_events",
    "test_W21_the_end_of_a_stream_ends_its_watches",
    "test_G8_garbage_ends_the_stream",
    "test_P16_a_stopping_member_ends_every_stream",
    "test_WP10_hasleader_without_a_leader_is_refused_at_once",
    "test_WP11_WP12_WP13_a_lost_leader_ends_the_streams_that_wanted_one",
    "test_WP4_WP6_no_progress_while_a_watch_catches_up",
    "test_a_paused_stream_gets_no_progress_before_it_has_gone_on",
    "test_no_progress_is_asked_for_twice_at_a_time",
    "test_ended_streams_do_not_pile_up_in_the_timer",
    "test_watches_of_one_front_share_an_event_s_bytes_on_the_link",
    "test_two_fronts_and_different_flags_of_one_range",
    "test_WE2_a_catch_up_reply_has_the_store_s_revision",
    "test_WE3_a_catch_up_reply_has_at_most_1000_revisions",
    "test_WE8_WE10_WE11_deletes_and_previous_values",
    "test_WE10_a_compacted_previous_value_is_absent",
    "test_WE10_the_ring_does_not_serve_previous_values_it_was_not_given",
    # the interval is that of the stream at the member, and counts events of all watches that share one there
    "test_WP1_the_interval_counts_from_the_stream_s_opening",
    "test_WP3_an_event_before_a_watch_was_created_does_not_count",
    # a proxy still has what a member has just compacted; `test_ends` has the same rows
    "test_W15_the_id_of_a_compacted_watch_is_taken_until_it_is_canceled",
    "test_W16_a_compacted_watch_stops_whole_stream_progress",
}


def _take_over(module: ModuleType) -> None:
    for name, test in inspect.getmembers(module, inspect.isfunction):
        uses = inspect.signature(test).parameters.keys()
        if name.startswith("test_") and "world" in uses and name not in OF_THE_MEMBER_ALONE:
            globals()[name] = test


for _module in (test_watch, test_watch_events, test_watch_progress):
    _take_over(_module)


@pytest.fixture
def world() -> ProxyWorld:
    return ProxyWorld(ring_bytes=100_000)


@pytest.fixture
def client(world: ProxyWorld) -> ProxyClient:
    return world.open(mark_bytes=1 << 40)
