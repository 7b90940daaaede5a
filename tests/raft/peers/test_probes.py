"""What is measured of the connections to other members, and what of it is said."""

import time

import pytest

from kvorum.wire.head import Head
from kvorum.wire.server_connection import ServerConnection
from node.front.metrics_page import render
from node.raft.peers import incoming, transport
from node.raft.peers.peer import CLOCK
from node.stats import SERIES
from tests.raft.peers.members import Place, TestMember, append, close, group, heartbeat, run, until

DIFFER = "the clocks of two members differ"


def round_trips(member: TestMember) -> int:
    figures = member.transport.figures()["etcd_network_peer_round_trip_time_seconds"]
    return sum(snapshot["count"] for _, snapshot in figures)


def test_round_trips_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "PROBE_INTERVAL_S", 0.01)

    async def test() -> None:
        one, two = TestMember(1, [Place.tcp()]), TestMember(2, [Place.tcp()])
        await group(one, two)
        await until(lambda: round_trips(one) >= 3 and round_trips(two) >= 3)
        assert one.heard.said(DIFFER) == []
        await close(one, two)

    run(test)


@pytest.mark.parametrize("ahead_s", [5.0, -5.0])
def test_clocks_that_differ_are_said_once_in_a_while(monkeypatch: pytest.MonkeyPatch, ahead_s: float) -> None:
    monkeypatch.setattr(transport, "PROBE_INTERVAL_S", 0.01)

    def wrong(connection: ServerConnection, stream_id: int, head: Head, message: bytes) -> None:
        connection.reply(stream_id, CLOCK.pack(time.time_ns() + int(ahead_s * 1e9)))

    monkeypatch.setattr(incoming, "_probed", wrong)

    async def test() -> None:
        one, two = TestMember(1, [Place.tcp()]), TestMember(2, [Place.tcp()])
        await group(one, two)
        await until(lambda: round_trips(one) >= 3)
        (line,) = one.heard.said(DIFFER)
        assert (line["level"], line["remote-peer-id"]) == ("warn", "2")
        assert float(line["clock-drift"].removesuffix("s")) == pytest.approx(ahead_s, abs=1.0)
        await close(one, two)

    run(test)


def test_an_answer_that_is_none_is_no_round_trip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "PROBE_INTERVAL_S", 0.01)
    probes = 0

    def wrong(connection: ServerConnection, stream_id: int, head: Head, message: bytes) -> None:
        nonlocal probes
        probes += 1
        if probes % 2:
            connection.reply(stream_id, b"later")
        else:
            connection.fail(stream_id, 13, "no clock")

    monkeypatch.setattr(incoming, "_probed", wrong)

    async def test() -> None:
        one, two = TestMember(1, [Place.tcp()]), TestMember(2, [Place.tcp()])
        await group(one, two)
        await until(lambda: probes >= 8)
        assert round_trips(one) == 0
        assert one.connected(two)
        await close(one, two)

    run(test)


def test_the_figures_of_each_member() -> None:
    async def test() -> None:
        one, two, three = (TestMember(id_, [Place.tcp()]) for id_ in (0xA, 0xB, 0xC))
        await group(one, two, three)
        one.transport.send([append(0xA, 0xB, 0, bytes(10_000)), heartbeat(0xA, 0xB)])
        one.transport.forward(0xB, bytes(100))
        two.transport.send([heartbeat(0xB, 0xA)])
        await until(lambda: bool(two.heard.forwards) and bool(one.heard.messages) and len(two.heard.messages) == 2)
        figures = one.transport.figures()
        assert figures.keys() <= SERIES.keys()
        assert figures["etcd_network_known_peers"] == [[["a", "b"], 1], [["a", "c"], 1]]
        assert figures["etcd_network_active_peers"] == [[["a", "b"], 1], [["a", "c"], 1]]
        assert figures["etcd_network_disconnected_peers_total"] == [[["a", "b"], 0], [["a", "c"], 0]]
        assert figures["etcd_network_peer_sent_failures_total"] == [[["b"], 0], [["c"], 0]]
        sent = {to[0]: size for to, size in figures["etcd_network_peer_sent_bytes_total"]}
        received = two.transport.figures()["etcd_network_peer_received_bytes_total"]
        assert sent["c"] == 0
        assert 10_100 < sent["b"] < 10_400
        assert [["a"], sent["b"]] in received
        await close(three)
        await until(lambda: not one.connected(three))
        figures = one.transport.figures()
        assert figures["etcd_network_active_peers"] == [[["a", "b"], 1], [["a", "c"], 0]]
        assert figures["etcd_network_disconnected_peers_total"] == [[["a", "b"], 0], [["a", "c"], 1]]
        page = render({1: figures}, [], {}).decode()
        assert 'etcd_network_active_peers{Local="a",Remote="b"} 1.0' in page
        assert 'etcd_network_peer_round_trip_time_seconds_count{To="b"}' in page
        await close(one, two)

    run(test)
