"""Calls through an upstream to members that come and go; the members are this project's own wire."""

import asyncio

import pytest

from kvorum import errors
from kvorum.errors import Code
from proxy.paths import PUT, RANGE, WATCH
from proxy.upstream import upstream as upstream_module
from proxy.upstream.endpoints import Endpoint
from proxy.upstream.probes import Probes, serves
from proxy.upstream.upstream import Upstream, encode
from tests.proxy.fake_member import Ended, Fake, Told, ask, lose, until, with_members


@with_members(2)
async def test_all_calls_go_to_the_one_in_use(upstream: Upstream, one: Fake, other: Fake) -> None:
    for _ in range(3):
        assert await ask(upstream, RANGE) == (0, one.address.encode() + b" x")
    assert not other.calls


@with_members(1)
async def test_metadata_and_deadline_arrive(upstream: Upstream, one: Fake) -> None:
    told = Told()
    upstream.call(RANGE, b"", told, encode({"token": "abc"}), 20.0)
    await told.answer
    assert one.heads[-1].metadata == {"token": ("abc",)}
    timeout_s = one.heads[-1].timeout_s
    assert timeout_s is not None and 15.0 < timeout_s <= 20.0


@with_members(2)
async def test_calls_that_never_left_go_to_the_next_whatever_they_are(
    upstream: Upstream, one: Fake, other: Fake
) -> None:
    changes: list[Endpoint] = []
    upstream.on_change(lambda: changes.append(upstream.endpoints.current))
    await one.stop()
    assert (await ask(upstream, PUT))[0] == 0
    assert (await ask(upstream, RANGE))[0] == 0
    assert other.calls == [PUT, RANGE]
    assert changes == [other.endpoint]
    assert upstream.changes == 1


@with_members(1)
async def test_a_lone_endpoint_that_comes_back_serves(upstream: Upstream, one: Fake) -> None:
    assert await ask(upstream, RANGE) == (0, one.address.encode() + b" x")
    assert upstream.serving
    await one.stop()
    await until(lambda: not upstream.connected)
    assert not upstream.serving
    await one.start()
    assert await ask(upstream, RANGE) == (0, one.address.encode() + b" x")
    assert upstream.serving


@with_members(2)
async def test_a_read_under_way_when_its_member_is_lost_is_made_again(
    upstream: Upstream, one: Fake, other: Fake
) -> None:
    one.act = lambda connection, stream_id, path, message: lose(connection)
    assert await ask(upstream, RANGE) == (0, other.address.encode() + b" x")
    assert one.calls == [RANGE]


@with_members(2)
async def test_a_write_under_way_when_its_member_is_lost_is_not(upstream: Upstream, one: Fake, other: Fake) -> None:
    one.act = lambda connection, stream_id, path, message: lose(connection)
    assert (await ask(upstream, PUT))[0] == Code.UNAVAILABLE
    assert other.calls == []
    assert (await ask(upstream, PUT))[0] == 0
    assert other.calls == [PUT]


@with_members(3)
async def test_a_read_refused_for_want_of_a_leader_is_asked_of_each_once(
    upstream: Upstream, one: Fake, other: Fake, third: Fake
) -> None:
    for member in (one, other, third):
        member.act = member.no_leader
    assert await ask(upstream, RANGE) == (Code.UNAVAILABLE, errors.NO_LEADER.message.encode())
    assert (one.calls, other.calls, third.calls) == ([RANGE], [RANGE], [RANGE])
    third.act = third.reply
    assert await ask(upstream, RANGE) == (0, third.address.encode() + b" x")
    assert upstream.endpoints.current == one.endpoint, "one answer alone does not move all"


@with_members(2)
async def test_a_write_refused_for_want_of_a_leader_is_told_so(upstream: Upstream, one: Fake, other: Fake) -> None:
    one.act = one.no_leader
    assert await ask(upstream, PUT) == (Code.UNAVAILABLE, errors.NO_LEADER.message.encode())
    assert not other.calls


@with_members(2)
async def test_calls_wait_while_nobody_can_be_reached(upstream: Upstream, one: Fake, other: Fake) -> None:
    await one.stop()
    await other.stop()
    waiting = [asyncio.ensure_future(ask(upstream, path)) for path in (PUT, RANGE)]
    await until(lambda: upstream.changes >= 4)
    assert not any(call.done() for call in waiting)
    await other.start()
    assert [code for code, _ in await asyncio.gather(*waiting)] == [0, 0]


@with_members(1)
async def test_they_wait_no_longer_than_their_own_deadline(upstream: Upstream, one: Fake) -> None:
    await one.stop()
    assert (await ask(upstream, PUT, timeout_s=0.05))[0] == Code.DEADLINE_EXCEEDED


def test_and_no_longer_than_a_member_would_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_module, "PATIENCE_S", 0.1)

    @with_members(1)
    async def check(upstream: Upstream, one: Fake) -> None:
        await one.stop()
        code, text = await ask(upstream, PUT)
        assert code == Code.UNAVAILABLE
        assert text.startswith(b"connection error")

    check()


@with_members(2)
async def test_a_stream_ends_with_its_member_and_the_next_goes_to_another(
    upstream: Upstream, one: Fake, other: Fake
) -> None:
    ended = Ended()
    upstream.open(WATCH, ended).send(b"create")
    await until(lambda: bool(one.streams))
    await one.stop()
    assert (await ended.end)[0] == Code.UNAVAILABLE
    upstream.open(WATCH, Ended()).send(b"create")
    await until(lambda: bool(other.streams))


def test_endpoints_that_leave_the_cluster_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_module, "RETIRE_S", 2.0)

    @with_members(2)
    async def check(upstream: Upstream, one: Fake, other: Fake) -> None:
        one.act = one.hold
        ended, told = Ended(), Told()
        upstream.open(WATCH, ended).send(b"create")
        upstream.call(PUT, b"x", told)
        await until(lambda: bool(one.streams) and bool(one.held))
        upstream.replace([other.endpoint])
        assert await ask(upstream, RANGE) == (0, other.address.encode() + b" x")
        connection, stream_id = one.held[0]
        connection.reply(stream_id, b"done")
        assert await told.answer == (0, "", b"done"), "calls under way may end"
        assert (await ended.end)[0] == Code.UNAVAILABLE, "streams begin again elsewhere"

    check()


def test_a_member_that_does_not_serve_is_left_by_probing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.upstream.probes.INTERVAL_S", 0.02)

    @with_members(2)
    async def check(upstream: Upstream, one: Fake, other: Fake) -> None:
        one.act = one.no_leader
        ended = Ended()
        upstream.open(WATCH, ended).send(b"create")
        await until(lambda: bool(one.streams))
        probes = Probes(upstream)
        await until(lambda: upstream.endpoints.current == other.endpoint)
        assert (await ended.end)[0] == Code.UNAVAILABLE, "its streams begin again where they are served"
        probes.close()

    check()


@pytest.mark.parametrize(
    ("status", "is_serving"),
    [
        ((0, ""), True),
        (errors.USER_EMPTY, True),
        (errors.PERMISSION_DENIED, True),
        (errors.NO_LEADER, False),
        (errors.NOT_SUPPORTED_FOR_LEARNER, False),
        ((Code.DEADLINE_EXCEEDED, "context deadline exceeded"), False),
    ],
)
def test_what_a_probe_s_answer_says(status: tuple[int, str], is_serving: bool) -> None:
    assert serves(*status) == is_serving


def test_without_a_member_that_serves_nobody_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.upstream.probes.INTERVAL_S", 0.02)

    @with_members(2)
    async def check(upstream: Upstream, one: Fake, other: Fake) -> None:
        one.act = one.no_leader
        other.act = other.no_leader
        probes = Probes(upstream)
        await until(lambda: len(other.calls) >= 5)
        assert upstream.endpoints.current == one.endpoint
        probes.close()

    check()
