"""The upstream is lost, moves, lags or refuses: clients see nothing of it but what is their own affair."""

from __future__ import annotations

from typing import cast

import pytest

from kvorum import errors
from kvorum.errors import Code
from kvorum.pb.rpc_pb2 import ResponseHeader, WatchResponse
from kvorum.wire.grpc import Metadata
from proxy.watch.cohort import Cohort, Place
from proxy.watch.group import Group
from proxy.watch.line import Line, UpstreamStream, UpstreamWatch
from proxy.watch.session import REFRESH_S
from proxy.watch.spec import Spec
from tests.proxy.watch.assembly import ProxyWorld
from tests.proxy.watch.test_coalescing import opened, revisions


@pytest.fixture
def world() -> ProxyWorld:
    return ProxyWorld(fronts=2, ring_bytes=100_000)


def test_a_lost_stream_is_opened_again_and_nothing_is_lost_or_repeated(world: ProxyWorld) -> None:
    client = opened(world)
    seen = [world.put(), world.put()]
    world.run()
    world.upstream.lose()
    missed = [world.put(), world.put()]
    world.pass_time(1)
    later = world.put()
    world.run()
    replies = client.take()
    assert revisions(replies) == [*seen, *missed, later]
    assert not any(reply.created or reply.canceled for reply in replies)


def test_events_on_their_way_when_the_stream_is_lost_come_from_the_next(world: ProxyWorld) -> None:
    client = opened(world)
    at = [world.put(), world.put()]
    world.member.run_alone()
    (end,) = world.upstream.ends
    end.step_replies(1)
    world.upstream.lose()
    world.pass_time(1)
    assert revisions(client.take()) == at


def test_while_no_endpoint_is_up_creates_wait_and_it_is_tried_less_and_less_often(world: ProxyWorld) -> None:
    client = opened(world)
    world.upstream.up = False
    world.upstream.lose()
    waiting = world.open()
    waiting.create()
    world.pass_time(60)
    assert waiting.take() == client.take() == []
    assert world.upstream.opened < 60
    at = world.put()
    world.upstream.up = True
    world.pass_time(5)
    assert revisions(client.take()) == [at]
    (created,) = waiting.take()
    assert (created.created, created.header.revision) == (True, at)


def test_another_endpoint_in_use_takes_over_at_once(world: ProxyWorld) -> None:
    client = opened(world)
    behind = world.open()
    world.put()
    world.upstream.switch()
    at = world.put()
    behind.create(start_revision=2)
    world.run()
    assert revisions(client.take()) == revisions(behind.take()) == [2, at]
    assert world.member.fronts[0].deliveries.watches == 0
    assert world.member.fronts[1].deliveries.watches == 1


def test_a_catch_up_that_is_cut_off_goes_on_where_it_was(world: ProxyWorld) -> None:
    at = [world.put() for _ in range(5)]
    world.put(b"other")
    opened(world)
    client = world.open()
    client.create(start_revision=at[0])
    world.step_soon()
    world.upstream.step_calls()
    world.upstream.lose()
    world.pass_time(2)
    assert revisions(client.take()) == at
    assert world.upstream_watches == 1


def test_a_group_is_told_of_progress_so_that_a_compaction_does_not_end_it_when_its_stream_is_lost(
    world: ProxyWorld,
) -> None:
    client = opened(world)
    for _ in range(10):
        last = world.put(b"other")
    world.pass_time(2 * REFRESH_S)
    world.compact(last)
    world.upstream.lose()
    world.pass_time(1)
    at = world.put()
    world.run()
    assert revisions(client.take()) == [at]


def test_a_compaction_during_an_outage_ends_the_watches_that_missed_something(world: ProxyWorld) -> None:
    client = opened(world, watch_id=7)
    later = opened(world, start_revision=10)
    world.upstream.up = False
    world.upstream.lose()
    for _ in range(4):
        world.put()
    world.compact(5)
    world.upstream.up = True
    world.pass_time(5)
    (canceled,) = client.take()
    assert (canceled.watch_id, canceled.canceled, canceled.compact_revision) == (7, True, 5)
    for _ in range(5):
        world.put()
    world.run()
    assert revisions(later.take()) == [10]


def test_a_compaction_of_exactly_what_was_given_ends_nothing(world: ProxyWorld) -> None:
    client = opened(world)
    world.put()
    world.run()
    world.upstream.lose()
    at = world.put()
    world.compact(at)
    world.pass_time(2)
    assert revisions(client.take()) == [at - 1, at]


@pytest.mark.parametrize("code", [Code.UNAUTHENTICATED, Code.PERMISSION_DENIED, Code.UNIMPLEMENTED])
def test_a_stream_that_the_member_refuses_ends_the_clients_streams(world: ProxyWorld, code: Code) -> None:
    client = opened(world)
    world.upstream.ends[0].end(code, "not you")
    assert client.status == (code, "not you")


def test_a_learner_that_serves_no_watches_is_not_the_end(world: ProxyWorld) -> None:
    client = opened(world)
    world.upstream.ends[0].end(*errors.NOT_SUPPORTED_FOR_LEARNER)
    client.create(b"other")
    world.step_soon()
    world.upstream.calls.popleft().done(*errors.NOT_SUPPORTED_FOR_LEARNER, b"")
    at = world.put()
    world.pass_time(1)
    replies = client.take()
    assert revisions(replies) == [at]
    assert [(reply.created, reply.canceled) for reply in replies if not reply.events] == [(True, False)]


def test_WP11_PX17_a_lost_leader_ends_the_streams_that_wanted_one(world: ProxyWorld) -> None:
    client = opened(world)
    wanting = world.open(metadata={"hasleader": ("true",)})
    wanting.create()
    world.run()
    (end,) = [end for end in world.upstream.ends if end.fields]
    end.end(*errors.NO_LEADER)
    assert (client.status, wanting.status) == (None, tuple(errors.NO_LEADER))


def test_WP10_a_check_without_a_leader_ends_the_stream_that_wants_one(world: ProxyWorld) -> None:
    wanting = world.open(metadata={"hasleader": ("true",)})
    wanting.create()
    world.step_soon()
    world.upstream.calls.popleft().done(*errors.NO_LEADER, b"")
    assert wanting.status == tuple(errors.NO_LEADER)
    world.run()


def test_a_reply_that_cannot_be_read_is_a_lost_stream(world: ProxyWorld) -> None:
    client = opened(world)
    handler = world.upstream.ends[0].handler
    assert handler is not None
    handler.on_message(b"\xff")
    at = world.put()
    world.pass_time(1)
    assert revisions(client.take()) == [at]


class Stream:
    """An upstream stream that takes everything."""

    writable = True

    def send_framed(self, framed: bytes) -> None: ...

    def cancel(self) -> None: ...


class Owner:
    """What a line tells."""

    def __init__(self) -> None:
        self.covered: list[int] = []

    def on_line_message(self, line: Line) -> None: ...

    def on_line_progress(self, line: Line, covered: int, revision: int, header: bytes) -> None:
        self.covered.append(covered)

    def on_line_lost(self, line: Line, code: int, text: str) -> None: ...


class Progressing(Group):
    """A group that only notes what its cohorts are said to have been given."""

    __slots__ = ("advanced",)

    def advance(self, cohort: Cohort, next_revision: int) -> None:
        self.advanced = next_revision


def test_WP5_a_progress_reply_that_overtakes_is_not_taken_for_a_later_watch() -> None:
    """A member's replies to creates and to progress requests may come in another order than they were made in."""
    owner = Owner()
    line = Line(owner, lambda _: cast(UpstreamStream, Stream()))
    line.open()
    group = Progressing(cast("object", None), Spec(b"k", b"", 0, None))  # type: ignore[arg-type]  # asks for nothing
    group.advanced = 0
    cohort = Cohort(group, Place.BEHIND, 3)
    created = WatchResponse(header=ResponseHeader(revision=9), created=True, watch_id=1).SerializeToString()
    progress = WatchResponse(header=ResponseHeader(revision=9), watch_id=-1).SerializeToString()
    line.ask_progress()
    line.create(UpstreamWatch(group, cohort, exact=True))
    line.on_message(created)
    line.on_message(progress)
    assert (owner.covered, group.advanced) == ([1], 0)
    line.ask_progress()  # may have been dropped, or not
    line.ask_progress()
    line.on_message(progress)
    assert (owner.covered, group.advanced) == ([1, 2], 10)


def test_a_progress_reply_that_nobody_asked_for_means_nothing() -> None:
    owner = Owner()
    line = Line(owner, lambda _: cast(UpstreamStream, Stream()))
    line.open()
    line.on_message(WatchResponse(header=ResponseHeader(revision=9), watch_id=-1).SerializeToString())
    assert owner.covered == []


def test_the_end_of_a_stream_is_told_once() -> None:
    lost: list[int] = []

    class Counting(Owner):
        def on_line_lost(self, line: Line, code: int, text: str) -> None:
            lost.append(code)

    line = Line(Counting(), lambda _: cast(UpstreamStream, Stream()))
    line.open()
    none: Metadata = {}
    line.on_end(14, "", none)
    line.on_end(14, "", none)
    assert lost == [14]
