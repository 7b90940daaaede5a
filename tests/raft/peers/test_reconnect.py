"""Connections that are lost come back: several URLs, restarts, and how soon."""

import pytest

from node.raft.peers import peer, transport
from tests.raft.peers.members import Place, TestMember, close, group, heartbeat, listen_tcp, run, until


async def deliver(sender: TestMember, to: TestMember, commit: int) -> None:
    """One message there; it may take repeats, as a dropped one does not come back by itself."""
    message = heartbeat(sender.id, to.id, commit)
    while message not in to.heard.messages:
        if sender.connected(to):
            sender.transport.send([message])
        await until(lambda: not sender.connected(to) or message in to.heard.messages)
        await until(lambda: sender.connected(to) or message in to.heard.messages)


def test_a_restarted_member_is_connected_again_though_it_knows_nobody() -> None:
    """It does not connect to us, so only our own attempts find it."""

    async def test() -> None:
        place = Place.tcp()
        port = place.port
        one, two = TestMember(1, [Place.tcp()]), TestMember(2, [place])
        await group(one, two)
        since = one.transport.connected_since(2)
        await close(two)
        await until(lambda: not one.connected(two))
        assert one.heard.unreachable == [2]
        assert len(one.heard.said("lost the connection to a member")) == 1
        again = TestMember(2, [Place.tcp(port=port)])
        await again.start()
        await until(lambda: one.connected(again))
        assert since is not None
        assert (one.transport.connected_since(2) or 0) > since
        await deliver(one, again, 5)
        await close(again)
        await until(lambda: not one.connected(again))
        for text in ("connected to a member", "lost the connection to a member"):
            assert len(one.heard.said(text)) == 2  # each time, however soon
        await close(one)

    run(test)


def test_a_member_that_reaches_us_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause is awaited then: the next attempt, in an hour, comes at once."""
    monkeypatch.setattr(peer, "FIRST_PAUSE_S", 3600.0)
    monkeypatch.setattr(peer, "LONGEST_PAUSE_S", 3600.0)

    async def test() -> None:
        gone = Place.tcp()
        one = TestMember(1, [Place.tcp()])
        await one.start()
        gone.sock.close()
        one.transport.set_members({2: [gone.url]}, [])
        await until(lambda: bool(one.heard.said("cannot connect to a member")))
        two = TestMember(2, [Place.tcp(port=int(gone.url.rpartition(":")[2]))])
        await two.start()
        two.knows(one)
        await until(lambda: one.connected(two) and two.connected(one))
        await close(one, two)

    run(test)


def test_several_urls_are_tried_in_turn() -> None:
    async def test() -> None:
        dead = Place.tcp()
        dead.sock.close()
        one, two, elsewhere = (
            TestMember(1, [Place.tcp()]),
            TestMember(2, [Place.tcp()]),
            TestMember(3, [Place.tcp()]),  # another member listens at one of the URLs
        )
        for member in (one, two, elsewhere):
            await member.start()
        one.transport.set_members({2: [dead.url, *elsewhere.urls, *two.urls]}, [])
        await until(lambda: one.connected(two))
        assert one.heard.said("connected to a member")[0]["url"] == two.urls[0]
        await deliver(one, two, 1)
        await close(one, two, elsewhere)

    run(test)


def test_a_member_listens_at_another_url() -> None:
    async def test() -> None:
        one, two = TestMember(1, [Place.tcp()]), TestMember(2, [Place.tcp(), Place.tcp()])
        first, second = two.urls
        await one.start()
        await two.start()
        one.transport.set_members({2: [first]}, [])
        await until(lambda: one.connected(two))
        since = one.transport.connected_since(2)
        one.transport.set_members({2: [first, second]}, [])  # the one in use is still among them
        assert one.transport.connected_since(2) == since
        one.transport.set_members({2: [second]}, [])
        assert not one.connected(two)
        await until(lambda: one.connected(two))
        assert one.heard.unreachable == [2]
        await deliver(one, two, 1)
        await close(one, two)

    run(test)


def test_urls_are_corrected_while_an_attempt_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "LONGEST_PAUSE_S", 3600.0)
    monkeypatch.setattr(peer, "FIRST_PAUSE_S", 3600.0)

    async def test() -> None:
        one, two = TestMember(1, [Place.tcp()]), TestMember(2, [Place.tcp()])
        await one.start()
        await two.start()
        one.transport.set_members({2: ["https://127.0.0.1:1"]}, [])
        await until(lambda: bool(one.heard.said("cannot connect to a member")))
        assert "needs certificates" in one.heard.said("cannot connect to a member")[0]["error"]
        one.knows(two)
        await until(lambda: one.connected(two))
        await close(one, two)

    run(test)


def test_a_member_without_urls_is_waited_for() -> None:
    async def test() -> None:
        one, two = TestMember(1, [Place.tcp()]), TestMember(2, [Place.tcp()])
        await one.start()
        await two.start()
        one.transport.set_members({2: []}, [])
        one.transport.send([heartbeat(1, 2)])
        await until(lambda: one.heard.unreachable == [2])
        one.knows(two)
        await until(lambda: one.connected(two))
        one.transport.set_members({2: []}, [])
        assert not one.connected(two)
        one.knows(two)
        await until(lambda: one.connected(two))
        await close(one, two)

    run(test)


def test_a_silent_listener_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is taken by the kernel, and by nobody else."""
    monkeypatch.setattr(transport, "PROBE_INTERVAL_S", 0.01)
    monkeypatch.setattr(peer, "ATTEMPT_TIMEOUT_S", 0.05)

    async def test() -> None:
        silent = listen_tcp()
        one, two = TestMember(1, [Place.tcp()]), TestMember(2, [Place.tcp()])
        await one.start()
        await two.start()
        one.transport.set_members({2: [f"http://127.0.0.1:{silent.getsockname()[1]}", *two.urls]}, [])
        await until(lambda: one.connected(two))
        silent.close()
        await close(one, two)

    run(test)


def test_a_forgotten_member_is_not_called_again() -> None:
    async def test() -> None:
        one, two = TestMember(1, [Place.tcp()]), TestMember(2, [Place.tcp()])
        await group(one, two)
        one.knows()
        two.knows()
        await until(lambda: not one.transport._incoming._streams and not two.transport._incoming._streams)
        assert one.transport.connected_since(2) is None
        one.transport.forward(2, b"x")
        one.transport.send([heartbeat(1, 2)])
        await until(lambda: 2 in one.heard.unreachable)
        await close(one, two)

    run(test)
