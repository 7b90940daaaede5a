"""Messages and forwards between members over loopback."""

from pathlib import Path

import pytest

from kvorum.pb.rpc_pb2 import Member
from node.raft.core import Message, MessageType
from tests.raft.peers.members import Place, TestMember, append, close, group, heartbeat, run, until


def test_messages_arrive_in_order_with_all_they_hold() -> None:
    async def test() -> None:
        one, two = TestMember(1, [Place.tcp()]), TestMember(2, [Place.tcp()])
        await group(one, two)
        sent = [append(1, 2, index, b"body %d" % index) for index in range(100)]
        for message in sent:
            one.transport.send([message])
        await until(lambda: len(two.heard.messages) == 100)
        assert two.heard.messages == sent
        assert {sender for sender, _ in two.heard.batches} == {1}
        await close(one, two)

    run(test)


def test_a_member_may_have_urls_that_nobody_can_use() -> None:
    """An operator's mistake, which every member hears of: it must end none of them, and cut off nobody."""
    wrong = ["http://127.0.0.1:", f"http://127.0.0.1:{1 << 40}", "http://a..b:1", "http://a,b:1", "http://\u00fc.x:1"]
    wrong += [f"http://no-such-host-{number}.invalid:1" for number in range(20)]

    async def test() -> None:
        place = Place.tcp()
        urls = [*wrong, place.url]
        one = TestMember(1, [Place.tcp()])
        two = TestMember(2, [place], members=[Member(ID=2, peerURLs=urls)])
        three = TestMember(3, [Place.tcp()])
        for member in (one, two, three):
            await member.start()
        one.transport.set_members({2: wrong, 3: three.urls}, ())
        three.knows(one)
        await until(lambda: one.connected(three) and three.connected(one))
        two.knows(one)
        await until(lambda: two.connected(one))
        one.transport.set_members({2: urls, 3: three.urls}, ())
        await until(lambda: one.connected(two))
        one.transport.send([heartbeat(1, 2)])
        await until(lambda: len(two.heard.messages) == 1)
        await close(one, two, three)

    run(test)


def test_three_members_get_what_is_theirs() -> None:
    async def test() -> None:
        members = [TestMember(id_, [Place.tcp()]) for id_ in (1, 2, 3)]
        await group(*members)
        for sender in members:
            others = [other for other in members if other is not sender]
            sender.transport.send([heartbeat(sender.id, other.id, 10 * sender.id + other.id) for other in others])
        await until(lambda: all(len(member.heard.messages) == 2 for member in members))
        for member in members:
            assert {message.commit for message in member.heard.messages} == {
                10 * other.id + member.id for other in members if other is not member
            }
        await close(*members)

    run(test)


def test_a_turns_messages_to_one_member_are_two_batches_the_small_ones_first() -> None:
    async def test() -> None:
        one, two = TestMember(1, [Place.tcp()]), TestMember(2, [Place.tcp()])
        await group(one, two)
        one.transport.send([append(1, 2, 0, b"x"), append(1, 2, 1, b"y"), heartbeat(1, 2), heartbeat(1, 2, 7)])
        await until(lambda: len(two.heard.messages) == 4)
        types = [[message.type for message in messages] for _, messages in two.heard.batches]
        assert types == [[MessageType.HEARTBEAT] * 2, [MessageType.APP] * 2]
        await close(one, two)

    run(test)


def test_appends_of_more_than_a_mebibyte_leave_as_several_batches() -> None:
    async def test() -> None:
        one, two = TestMember(1, [Place.tcp()]), TestMember(2, [Place.tcp()])
        await group(one, two)
        body = bytes(400_000)
        one.transport.send([append(1, 2, index, body) for index in range(6)])
        await until(lambda: len(two.heard.messages) == 6)
        assert [len(messages) for _, messages in two.heard.batches] == [2, 2, 2]
        assert [message.index for message in two.heard.messages] == list(range(6))
        await close(one, two)

    run(test)


def test_a_single_entry_may_be_large() -> None:
    async def test() -> None:
        one, two = TestMember(1, [Place.tcp()]), TestMember(2, [Place.tcp()])
        await group(one, two)
        sent = append(1, 2, 0, bytes(range(256)) * (64 * 1024))
        one.transport.send([sent])
        await until(lambda: len(two.heard.messages) == 1)
        assert two.heard.messages == [sent]
        await close(one, two)

    run(test)


@pytest.mark.parametrize("type_", [MessageType.READ_INDEX, MessageType.PROP])
def test_what_is_passed_on_names_another_sender(type_: MessageType) -> None:
    async def test() -> None:
        one, two = TestMember(1, [Place.tcp()]), TestMember(2, [Place.tcp()])
        await group(one, two)
        one.transport.send([Message(type_, to=2, sender=3)])
        await until(lambda: len(two.heard.messages) == 1)
        assert two.heard.messages[0].sender == 3
        await close(one, two)

    run(test)


def test_forwards_arrive_with_their_sender() -> None:
    async def test() -> None:
        one, two = TestMember(1, [Place.tcp()]), TestMember(2, [Place.tcp()])
        await group(one, two)
        one.transport.forward(2, b"ask")
        one.transport.forward(2, b"")
        two.transport.forward(1, b"answer")
        await until(lambda: len(two.heard.forwards) == 2 and len(one.heard.forwards) == 1)
        assert two.heard.forwards == [(1, b"ask"), (1, b"")]
        assert one.heard.forwards == [(2, b"answer")]
        await close(one, two)

    run(test)


def test_unix_sockets_carry_messages(tmp_path: Path) -> None:
    async def test() -> None:
        one, two = TestMember(1, [Place.unix(tmp_path / "1.sock")]), TestMember(2, [Place.unix(tmp_path / "2.sock")])
        await group(one, two)
        one.transport.send([heartbeat(1, 2)])
        await until(lambda: two.heard.messages == [heartbeat(1, 2)])
        await close(one, two)

    run(test)


def test_a_member_that_is_not_known_or_not_there_is_unreachable() -> None:
    async def test() -> None:
        one = TestMember(1, [Place.tcp()])
        await one.start()
        one.transport.send([heartbeat(1, 9)])
        assert one.heard.unreachable == []  # never inside a call
        await until(lambda: one.heard.unreachable == [9])
        gone = Place.tcp()
        one.transport.set_members({2: [gone.url]}, [])
        gone.sock.close()
        one.transport.send([heartbeat(1, 2), heartbeat(1, 2)])
        await until(lambda: one.heard.unreachable == [9, 2])
        assert one.transport.connected_since(2) is None
        await until(lambda: len(one.heard.said("cannot connect to a member")) == 1)
        await close(one)

    run(test)


def test_a_member_that_was_added_while_this_one_was_away_is_answered() -> None:
    async def test() -> None:
        place = Place.tcp()
        added = TestMember(2, [place], members=[Member(ID=1), Member(ID=2, peerURLs=[place.url])])
        back = TestMember(1, [Place.tcp()])
        for member in (added, back):
            await member.start()
        added.knows(back)
        back.knows()
        await until(lambda: added.connected(back) and back.connected(added))
        added.transport.send([heartbeat(2, 1)])
        await until(lambda: len(back.heard.messages) == 1)
        answer = Message(MessageType.HEARTBEAT_RESP, 2, 1, 1)
        back.transport.send([answer])
        await until(lambda: added.heard.messages == [answer])
        back.knows(added)  # it has caught up
        assert back.connected(added)
        back.transport.set_members({}, [2])
        assert not back.connected(added)
        await close(added, back)

    run(test)


def test_a_member_that_is_not_known_is_left_when_it_goes() -> None:
    async def test() -> None:
        place = Place.tcp()
        added = TestMember(2, [place], members=[Member(ID=2, peerURLs=[place.url])])
        back = TestMember(1, [Place.tcp()])
        for member in (added, back):
            await member.start()
        added.knows(back)
        await until(lambda: back.connected(added))
        back.knows()  # other members have changed
        assert back.connected(added)
        await close(added)
        await until(lambda: not back.transport.urls_of(2))
        await close(back)

    run(test)
