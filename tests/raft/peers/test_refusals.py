"""Who is not taken, what both sides log, and what a removed member hears."""

from tests.raft.peers.members import Place, TestMember, close, group, heartbeat, run, until

REFUSED_HERE = "refused a stream of another member"
REFUSED_THERE = "a member refuses this one"


async def refused(one: TestMember, two: TestMember, text: str) -> None:
    """`one` is refused where `two` listens, with this text; both say so once, and nothing is delivered."""
    await one.start()
    await two.start()
    one.transport.set_members({2: two.urls}, [])
    await until(lambda: bool(one.heard.said(REFUSED_THERE)) and bool(two.heard.said(REFUSED_HERE)))
    assert [line["error"] for line in one.heard.said(REFUSED_THERE)] == [text]
    assert [line["error"] for line in two.heard.said(REFUSED_HERE)] == [text]
    one.transport.send([heartbeat(1, 2)])
    await until(lambda: one.heard.unreachable == [2])
    assert two.heard.messages == []
    assert one.heard.removed == 0
    await close(one, two)


def test_members_of_two_clusters() -> None:
    async def test() -> None:
        two = TestMember(2, [Place.tcp()], cluster_id=0xC2)
        await refused(TestMember(1, [Place.tcp()]), two, "member 2 is of cluster c2, not of cluster c1")

    run(test)


def test_another_member_listens_at_the_url() -> None:
    async def test() -> None:
        await refused(TestMember(1, [Place.tcp()]), TestMember(3, [Place.tcp()]), "here is member 3, not member 2")

    run(test)


def test_members_of_two_major_versions() -> None:
    async def test() -> None:
        two = TestMember(2, [Place.tcp()], version="4.0.0")
        await refused(TestMember(1, [Place.tcp()]), two, "member 2 speaks API version 4.0.0, not '3.7.0'")

    run(test)


def test_a_removed_member_that_comes_back_is_told_so_once() -> None:
    async def test() -> None:
        one, two = TestMember(1, [Place.tcp()]), TestMember(2, [Place.tcp()])
        two.transport.set_members({}, [1])
        await one.start()
        await two.start()
        one.knows(two)
        await until(lambda: one.heard.removed == 1)
        assert [line["error"] for line in one.heard.said(REFUSED_THERE)] == [
            "the member has been permanently removed from the cluster"
        ]
        one.transport.set_members({}, [])
        one.knows(two)
        await until(lambda: one.transport._peers[2]._tried > 0)
        assert one.heard.removed == 1
        await close(one, two)

    run(test)


def test_a_member_that_is_removed_while_it_is_connected_is_told_so() -> None:
    async def test() -> None:
        one, two, three = (TestMember(id_, [Place.tcp()]) for id_ in (1, 2, 3))
        await group(one, two, three)
        two.knows(three, removed=[1])
        await until(lambda: one.heard.removed == 1)
        assert two.transport.connected_since(1) is None
        assert two.connected(three)
        await close(one, two, three)

    run(test)


def test_a_member_that_is_not_known_here_is_heard() -> None:
    """It may have been added while this one was away; the core decides what its messages are worth."""

    async def test() -> None:
        one, two = TestMember(1, [Place.tcp()]), TestMember(2, [Place.tcp()])
        await one.start()
        await two.start()
        one.knows(two)
        await until(lambda: one.connected(two))
        one.transport.send([heartbeat(1, 2)])
        await until(lambda: two.heard.messages == [heartbeat(1, 2)])
        await close(one, two)

    run(test)


def test_only_so_many_unknown_members_are_heard() -> None:
    async def test() -> None:
        crowd = [TestMember(100 + i, []) for i in range(17)]
        two, known = TestMember(2, [Place.tcp()]), TestMember(3, [Place.tcp()])
        for member in (*crowd, two, known):
            await member.start()
        for member in crowd[:16]:
            member.knows(two)
        await until(lambda: all(member.connected(two) for member in crowd[:16]))
        crowd[16].knows(two)
        await until(lambda: bool(crowd[16].heard.said("cannot connect to a member")))
        assert crowd[16].heard.said("cannot connect to a member")[0]["error"] == "too many unknown members"
        two.knows(known)
        known.knows(two)
        await until(lambda: known.connected(two) and two.connected(known))
        await close(crowd[0])
        await until(lambda: crowd[16].connected(two))
        await close(*crowd[1:], two, known)

    run(test)


def test_a_new_stream_of_a_member_takes_the_place_of_the_one_before() -> None:
    """Two processes with the identity of one member: the later is heard, and each knows of the other by its losses."""

    async def test() -> None:
        two = TestMember(2, [Place.tcp()])
        first, second = TestMember(1, []), TestMember(1, [])
        for member in (two, first, second):
            await member.start()
        first.knows(two)
        await until(lambda: first.connected(two))
        second.knows(two)
        await until(lambda: bool(first.heard.said("lost the connection to a member")))
        assert first.heard.said("lost the connection to a member")[0]["error"] == "the member has opened another stream"
        await close(first, second, two)

    run(test)
