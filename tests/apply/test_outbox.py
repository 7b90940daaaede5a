"""Replies on their way to the fronts: one frame per flush, as far as there is credit."""

from node.apply.outbox import Outbox
from node.frames import Kind
from node.requests import MORE, REPLY
from tests.apply.shell import FRONT, FakeLinks, answers


def test_what_one_turn_brought_leaves_in_one_frame_per_front() -> None:
    links = FakeLinks(2)
    outbox = Outbox(links.outlet, links.send)
    outbox.add(FRONT, [REPLY.pack(1, 1, 0) + b"a"])
    outbox.reply(FRONT, 2, b"bb")
    outbox.part(FRONT, 3, b"c")
    outbox.fail(FRONT, 4, 5, "no")
    outbox.add(FRONT + 1, [])
    outbox.reply(FRONT + 1, 9, b"")
    outbox.flush()
    outbox.flush()
    assert [len(frames) for frames in links.sent.values()] == [1, 1]
    assert answers(links.take(FRONT, Kind.REPLIES)) == [(1, 0, b"a"), (2, 0, b"bb"), (3, MORE, b"c"), (4, 5, b"no")]
    assert answers(links.take(FRONT + 1, Kind.REPLIES)) == [(9, 0, b"")]


def test_without_credit_replies_wait_and_one_front_does_not_hold_up_another() -> None:
    links = FakeLinks(2, credit_bytes=10)
    outbox = Outbox(links.outlet, links.send)
    outbox.reply(FRONT, 1, bytes(100))
    assert outbox.open(FRONT), "what waits is one frame, which may be larger than the credit that is left"
    outbox.flush()
    assert not outbox.open(FRONT)
    outbox.reply(FRONT, 2, b"x")
    outbox.reply(FRONT + 1, 3, b"y")
    outbox.flush()
    assert len(links.take(FRONT, Kind.REPLIES)) == 1
    assert answers(links.take(FRONT + 1, Kind.REPLIES)) == [(3, 0, b"y")]
    links.grant(FRONT, Kind.REPLIES, 200)
    outbox.flush()
    assert answers(links.take(FRONT, Kind.REPLIES)) == [(2, 0, b"x")]
