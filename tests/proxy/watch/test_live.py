"""Watches through a real proxy in front of real members."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import threading
from collections.abc import Iterator

import pytest
import uvloop

from kvorum import errors
from kvorum.errors import ApiError
from kvorum.pb.mvcc_pb2 import Event
from kvorum.pb.rpc_pb2 import (
    PutRequest,
    WatchCancelRequest,
    WatchCreateRequest,
    WatchProgressRequest,
    WatchRequest,
    WatchResponse,
)
from loadtest.cluster import Cluster
from loadtest.launcher import Server, wait_until
from loadtest.proxy_hang import watch_all
from tests.calls import OK, Api, WatchStream
from tests.servers import start_kvorum, start_kvorum_cluster, start_proxy

PREFIX, END = b"live-watch/", b"live-watch0"


def create(**fields: object) -> WatchRequest:
    return WatchRequest(create_request=WatchCreateRequest(**fields))  # type: ignore[arg-type]  # a create's fields


def events_of(replies: list[WatchResponse], watch_id: int = 0) -> list[Event]:
    return [event for reply in replies if reply.watch_id == watch_id for event in reply.events]


def figure(address: str, path: str, name: str) -> float:
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request("GET", path)
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    (line,) = [line for line in text.splitlines() if line.startswith(name + " ")]
    return float(line.split()[1])


def test_many_watches_of_a_key_are_one_at_the_member() -> None:
    with contextlib.ExitStack() as stack:
        member = stack.enter_context(start_kvorum())
        proxy = stack.enter_context(start_proxy([member.address]))
        api = stack.enter_context(Api(proxy.address))
        streams = [stack.enter_context(api.watch()) for _ in range(10)]
        for stream in streams:
            for _ in range(100):
                stream.send(create(key=PREFIX))
        for stream in streams:
            stream.wait(lambda replies: len(replies) == 100)
        assert figure(member.address, "/metrics", "etcd_debugging_mvcc_watcher_total") == 1
        assert figure(proxy.address, "/proxy/metrics", "etcd_grpc_proxy_watchers_coalescing_total") == 999
        at = api(PutRequest(key=PREFIX)).header.revision
        for stream in streams:
            stream.wait(lambda replies: len(replies) == 200)
            replies = stream.replies
            assert {reply.watch_id for reply in replies[100:]} == set(range(100))
            assert {reply.events[0].kv.mod_revision for reply in replies[100:]} == {at}
        assert figure(proxy.address, "/proxy/metrics", "etcd_grpc_proxy_events_coalescing_total") == 999


def test_what_a_client_asks_is_answered_as_by_a_member(api: Api) -> None:
    key = PREFIX + b"asks"
    first = api(PutRequest(key=key, value=b"1")).header.revision
    with api.watch() as stream:
        stream.send(create(key=key, watch_id=7, start_revision=first, prev_kv=True))
        second = api(PutRequest(key=key, value=b"2")).header.revision
        stream.wait(lambda replies: len(events_of(replies, 7)) == 2)
        events = events_of(stream.replies, 7)
        assert [event.kv.mod_revision for event in events] == [first, second]
        assert events[1].prev_kv.value == b"1"
        stream.send(WatchRequest(progress_request=WatchProgressRequest()))
        progress = stream.wait(lambda replies: [one for one in replies if one.watch_id == -1])
        assert progress[0].header.revision >= second
        stream.send(WatchRequest(cancel_request=WatchCancelRequest(watch_id=7)))
        canceled = stream.wait(lambda replies: [one for one in replies if one.canceled])
        assert (canceled[0].watch_id, canceled[0].compact_revision, canceled[0].cancel_reason) == (7, 0, "")


def test_a_small_part_of_a_million_watches(proxy: Server) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        figures = runner.run(watch_all(proxy, clients=30, watches=40, timeout_s=120.0))
    assert figures["watches"] == 1200


def test_the_only_member_comes_back_and_watches_go_on() -> None:
    key = PREFIX + b"only"
    with (
        start_kvorum() as member,
        start_proxy([member.address]) as proxy,
        Api(proxy.address) as api,
        api.watch() as stream,
    ):
        stream.send(create(key=key))
        stream.wait(lambda replies: replies)
        at = [api(PutRequest(key=key)).header.revision]
        member.kill()
        stream.send(create(key=key, start_revision=at[0], watch_id=9))
        member.start()
        with Api(member.address) as direct:  # perhaps before the proxy is back
            at += [direct(PutRequest(key=key)).header.revision for _ in range(10)]
        for watch_id in (0, 9):
            replies = wait_for_revision(stream, watch_id, at[-1])
            assert [event.kv.mod_revision for event in events_of(replies, watch_id)] == at
        assert not any(reply.canceled for reply in stream.replies)


class Writer:
    """Puts one key after the other through a proxy, whatever happens, until it is closed."""

    def __init__(self, address: str) -> None:
        self.written = 0
        self._stopping = threading.Event()
        self._address = address
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self) -> None:
        with Api(self._address) as api:
            number = 0
            while not self._stopping.is_set():
                number += 1
                try:
                    api(PutRequest(key=PREFIX + b"%06d" % number, value=b"v"), timeout_s=10.0)
                except ApiError:
                    continue  # made or not: what the store says in the end counts
                self.written += 1

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with start_kvorum_cluster() as cluster:
        yield cluster


@pytest.mark.parametrize("how", ["kill", "suspend"])
def test_members_that_go_cost_no_watcher_a_revision(cluster: Cluster, how: str) -> None:
    """Each member in its turn is the one in use, or not; all of them go, one at a time, while there are writes."""
    with start_proxy(cluster.addresses) as proxy, Api(proxy.address) as api:
        begin = api(PutRequest(key=PREFIX + b"begin")).header.revision
        live = [api.watch() for _ in range(3)]
        late: list[WatchStream] = []
        writer = Writer(proxy.address)
        try:
            for stream in live:
                stream.send(create(key=PREFIX, range_end=END))
                stream.send(create(key=PREFIX, range_end=END, start_revision=begin, prev_kv=True))
                stream.wait(lambda replies: sum(reply.created for reply in replies) == 2)
            for member in cluster.members:
                wait_for_more(live[0], 20)
                if how == "kill":
                    member.kill()
                else:
                    member.suspend()
                late.append(api.watch())
                late[-1].send(create(key=PREFIX, range_end=END, start_revision=begin))
                wait_for_more(live[0], 20)
                if how == "kill":
                    member.start()
                else:
                    member.resume()
                cluster.wait_for_leader()
        finally:
            writer.close()
        try:
            end = api(PutRequest(key=PREFIX + b"end")).header.revision
            everything = _history(cluster.members[0], begin, end)
            assert len(everything) > writer.written
            for stream in (*live, *late):
                for watch_id in (0, 1) if stream in live else (0,):
                    replies = wait_for_revision(stream, watch_id, end)
                    created = next(one for one in replies if one.created and one.watch_id == watch_id)
                    got = [event.kv.mod_revision for event in events_of(replies, watch_id)]
                    start = created.header.revision + 1 if stream in live and not watch_id else begin
                    assert got == [revision for revision in everything if revision >= start]
        finally:
            for stream in (*live, *late):
                stream.close()


def test_WP11_WP12_a_cluster_without_a_leader_ends_the_streams_that_want_one_and_no_other(cluster: Cluster) -> None:
    key = PREFIX + b"leader"
    with (
        start_proxy(cluster.addresses) as proxy,
        Api(proxy.address) as api,
        api.watch([("hasleader", "true")]) as wanting,
        api.watch() as patient,
    ):
        for stream in (wanting, patient):
            stream.send(create(key=key))
            stream.wait(lambda replies: replies)
        for member in cluster.members[:2]:
            member.kill()
        assert wanting.ended(60.0) == errors.NO_LEADER
        assert patient.status is None
        for member in cluster.members[:2]:
            member.launch()
        for member in cluster.members[:2]:
            wait_until(member.is_ready, "a member to be back")
        wait_until(lambda: api.status(PutRequest(key=key), timeout_s=10.0) == OK, "a write to be made")
        patient.wait(lambda replies: events_of(replies), 60.0)
        revisions = [event.kv.mod_revision for event in events_of(patient.replies)]
        assert revisions == sorted(set(revisions))


def wait_for_more(stream: WatchStream, count: int) -> None:
    """So many more events of the first watch."""
    before = len(events_of(stream.replies))
    stream.wait(lambda replies: len(events_of(replies)) > before + count, 60.0)


def wait_for_revision(stream: WatchStream, watch_id: int, revision: int) -> list[WatchResponse]:
    """All replies, once an event of a revision has come."""

    def seen(replies: list[WatchResponse]) -> bool:
        events = events_of(replies[-20:], watch_id)
        return bool(events) and events[-1].kv.mod_revision == revision

    stream.wait(seen, 60.0)
    return list(stream.replies)


def _history(member: Server, begin: int, end: int) -> list[int]:
    """Every revision with a key of the prefix, as a member tells it."""
    with Api(member.address) as api, api.watch() as stream:
        stream.send(create(key=PREFIX, range_end=END, start_revision=begin))
        return [event.kv.mod_revision for event in events_of(wait_for_revision(stream, 0, end))]
