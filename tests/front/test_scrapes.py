"""Scrapes of /metrics that meet one another, a slow process, or the end of the member."""

from __future__ import annotations

import gzip
from collections.abc import Callable

import pytest

from node.frames import Process
from node.front.exchange import Request
from node.front.member_view import States
from node.front.scrapes import Scrapes
from tests.front.http_fake import FakeExchange, HeldThread
from tests.front.test_http_pages import FakeMember


class SlowMember(FakeMember):
    """Gatherings end when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.gathering: list[Callable[[States], None]] = []

    def gather(self, done: Callable[[States], None]) -> None:
        self.gathering.append(done)

    def answer(self, puts: int) -> None:
        """The processes answer the first gathering."""
        self.gathering.pop(0)({Process.APPLY: {"metrics": {"etcd_mvcc_put_total": puts}}})


class World:
    def __init__(self) -> None:
        self.member = SlowMember()
        self.thread = HeldThread()
        self.scrapes = Scrapes(self.member, dict, self.thread.run)

    def scrape(self, encoding: str = "") -> FakeExchange:
        exchange = FakeExchange("GET", "/metrics", {"Accept-Encoding": encoding})
        self.scrapes.add(Request(exchange))
        return exchange


@pytest.fixture
def world() -> World:
    return World()


def puts(exchange: FakeExchange) -> int:
    page = gzip.decompress(exchange.reply) if exchange.reply_headers.get("content-encoding") else exchange.reply
    (line,) = [line for line in page.decode().splitlines() if line.startswith("etcd_mvcc_put_total ")]
    return int(float(line.split()[1]))


def test_a_scrape_waits_for_the_processes_and_for_its_page(world: World) -> None:
    scrape = world.scrape()
    assert (len(world.member.gathering), len(world.thread.held), scrape.status) == (1, 0, None)
    world.member.answer(puts=3)
    assert (len(world.thread.held), scrape.status) == (1, None)
    world.thread.release()
    assert (scrape.status, puts(scrape)) == (200, 3)


def test_scrapes_that_come_meanwhile_share_the_next_page(world: World) -> None:
    """None gets figures older than its request, and no more than one page is being made."""
    first = world.scrape()
    while_gathering = world.scrape("gzip")
    world.member.answer(puts=3)
    while_writing = world.scrape()
    world.thread.release()
    assert (puts(first), while_gathering.status, while_writing.status) == (3, None, None)
    assert (len(world.member.gathering), len(world.thread.held)) == (1, 0)
    world.member.answer(puts=4)
    world.thread.release()
    assert (puts(while_gathering), puts(while_writing)) == (4, 4)
    assert while_gathering.reply_headers["content-encoding"] == "gzip"
    assert "content-encoding" not in while_writing.reply_headers
    assert not world.member.gathering


def test_a_gathering_that_ran_out_of_time_gives_the_page_without_the_silent(world: World) -> None:
    scrape = world.scrape()
    world.member.answer(puts=3)
    world.thread.release()
    lines = scrape.reply.decode().splitlines()
    assert 'kvorum_process_up{process="apply"} 1.0' in lines
    assert 'kvorum_process_up{process="raft"} 0.0' in lines
    assert not any(line.startswith("etcd_server_has_leader") for line in lines)


def test_no_process_answered(world: World) -> None:
    scrape = world.scrape()
    world.member.gathering.pop()({})
    world.thread.release()
    assert scrape.status == 200
    assert b'kvorum_process_up{process="apply"} 0.0\n' in scrape.reply


def test_a_client_that_left_does_not_hold_the_others_up(world: World) -> None:
    gone = world.scrape()
    gone.disconnect()
    other = world.scrape()
    world.member.answer(puts=1)
    world.thread.release()
    world.member.answer(puts=2)
    world.thread.release()
    assert (gone.status, puts(other)) == (None, 2)
