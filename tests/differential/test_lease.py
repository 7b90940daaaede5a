"""Rows L: leases."""

import time

import pytest

from kvorum import errors
from kvorum.errors import Code
from kvorum.pb.mvcc_pb2 import Event
from kvorum.pb.rpc_pb2 import (
    LeaseGrantRequest,
    LeaseKeepAliveRequest,
    LeaseLeasesRequest,
    LeaseRevokeRequest,
    LeaseTimeToLiveRequest,
    TxnRequest,
)
from tests.calls import OK, KeepAliveStream
from tests.differential.side import Side, events, put_op

UNKNOWN = 4711
MAX_TTL_S = 9_000_000_000


def renew(stream: KeepAliveStream, *leases: int) -> list[int]:
    """The TTLs that keep-alives of `leases`, sent at once, are answered with."""
    seen = len(stream.replies)
    for lease in leases:
        stream.send(LeaseKeepAliveRequest(ID=lease))
    replies = stream.wait(lambda replies: replies[seen:] if len(replies) >= seen + len(leases) else [])
    assert [reply.ID for reply in replies] == list(leases)
    assert all(reply.header.member_id and reply.header.revision for reply in replies)
    return [reply.TTL for reply in replies]


@pytest.mark.parametrize(("asked", "granted"), [(0, 2), (-5, 2), (1, 2), (2, 2), (3, 3), (MAX_TTL_S, MAX_TTL_S)])
def test_L1_L5_small_ttls_are_raised(api: Side, asked: int, granted: int) -> None:
    reply = api(LeaseGrantRequest(TTL=asked))
    assert (reply.TTL, reply.error) == (granted, "")
    api(LeaseRevokeRequest(ID=reply.ID))


def test_L2_a_ttl_too_large_wins_over_an_existing_id(api: Side) -> None:
    lease = api.grant()
    assert api.status(LeaseGrantRequest(TTL=MAX_TTL_S + 1)) == errors.LEASE_TTL_TOO_LARGE
    assert api.status(LeaseGrantRequest(TTL=MAX_TTL_S + 1, ID=lease)) == errors.LEASE_TTL_TOO_LARGE


def test_L3_id_0_lets_the_server_choose(api: Side) -> None:
    ids = {api.grant() for _ in range(20)}
    assert len(ids) == 20 and min(ids) > 0


@pytest.mark.parametrize("lease", [123_456, -77, (1 << 63) - 1])
def test_L4_a_chosen_id_is_taken_and_an_existing_one_refused(api: Side, lease: int) -> None:
    lease = api.lease_id(lease)
    assert api(LeaseGrantRequest(TTL=600, ID=lease)).ID == lease
    assert api.status(LeaseGrantRequest(TTL=600, ID=lease)) == errors.LEASE_EXIST
    api(LeaseRevokeRequest(ID=lease))
    assert api(LeaseGrantRequest(TTL=600, ID=lease)).ID == lease
    api(LeaseRevokeRequest(ID=lease))


def test_L7_L8_keep_alives_are_answered_in_order_and_unknown_ones_with_0(api: Side) -> None:
    one, two = api.grant(600), api.grant(700)
    with api.keep_alive() as stream:
        assert renew(stream, one, UNKNOWN, two, 0, one) == [600, 0, 700, 0, 600]


def test_L7_a_keep_alive_renews_to_the_full_ttl(api: Side) -> None:
    lease = api.grant(3)
    granted = time.monotonic()
    with api.keep_alive() as stream:
        while time.monotonic() < granted + 4:
            assert renew(stream, lease) == [3]
    assert api(LeaseTimeToLiveRequest(ID=lease)).TTL > 0


def test_L10_half_close_ends_the_stream_ok(api: Side) -> None:
    lease = api.grant()
    with api.keep_alive() as stream:
        renew(stream, lease)
        stream.half_close()
        assert stream.ended() == OK


def test_L11_the_header_of_a_keep_alive_has_the_current_revision(api: Side) -> None:
    lease = api.grant()
    at = api.put("a").header.revision
    with api.keep_alive() as stream:
        renew(stream, lease)
        assert at <= stream.replies[0].header.revision <= api.revision


@pytest.mark.parametrize("lease", [UNKNOWN, 0])
def test_L14_time_to_live_of_an_unknown_id(api: Side, lease: int) -> None:
    reply = api(LeaseTimeToLiveRequest(ID=lease, keys=True))
    assert (reply.ID, reply.TTL, reply.grantedTTL, list(reply.keys)) == (lease, -1, 0, [])


def test_L15_L16_time_to_live(api: Side) -> None:
    lease = api.grant(500)
    api.put("a", lease=lease)
    api.put("b", lease=lease)
    reply = api(LeaseTimeToLiveRequest(ID=lease))
    assert (reply.ID, reply.grantedTTL, list(reply.keys)) == (lease, 500, [])
    assert reply.TTL in range(490, 500)  # cut off, so below the whole from the first moment on
    keys = api(LeaseTimeToLiveRequest(ID=lease, keys=True)).keys
    assert sorted(keys) == [api.key("a"), api.key("b")]


def test_L18_leases_come_in_order_of_remaining_time(fresh: Side) -> None:
    for lease, ttl_s in ((1, 900), (2, 300), (3, 600)):
        fresh.grant(ttl_s, lease)
    assert [lease.ID for lease in fresh(LeaseLeasesRequest()).leases] == [2, 3, 1]


def test_L20_revoke_deletes_the_keys_in_one_revision(api: Side) -> None:
    lease = api.grant()
    at = api.put("a", lease=lease).header.revision
    assert api(LeaseRevokeRequest(ID=api.grant())).header.revision == at
    assert api(LeaseRevokeRequest(ID=lease)).header.revision == at + 1
    assert api.get("a").count == 0


@pytest.mark.parametrize("lease", [UNKNOWN, 0])
def test_L21_revoke_of_an_unknown_id(api: Side, lease: int) -> None:
    assert api.status(LeaseRevokeRequest(ID=lease)) == errors.LEASE_NOT_FOUND
    assert errors.LEASE_NOT_FOUND.code == Code.NOT_FOUND


def test_L22_WE12_leases_expire_not_early_and_each_at_a_revision_of_its_own(api: Side) -> None:
    before = time.monotonic()
    one, two = api.grant(2), api.grant(2)
    for name, lease in (("a", one), ("b", two), ("c", one)):
        api.put(name, lease=lease)
    with api.watch() as stream:
        api.create(stream)
        first = events(stream, 1)
        assert time.monotonic() - before >= 2
        found = events(stream, 3)
    assert {event.type for event in first + found} == {Event.DELETE}
    at = {api.names([event.kv]): event.kv.mod_revision for event in found}
    assert at["a"] == at["c"] != at["b"]
    assert [api(LeaseTimeToLiveRequest(ID=lease)).TTL for lease in (one, two)] == [-1, -1]


def test_L26_after_a_restart_a_lease_has_its_full_time(fresh: Side) -> None:
    lease = fresh.grant(100)
    fresh.put("a", lease=lease)
    fresh.server.restart()
    with Side(fresh.kind, fresh.server) as again:
        reply = again(LeaseTimeToLiveRequest(ID=lease, keys=True))
    assert reply.TTL >= 95 and reply.grantedTTL == 100
    assert list(reply.keys) == [fresh.key("a")]


def test_L29_one_key_twice_in_a_branch_is_a_duplicate(api: Side) -> None:
    lease = api.grant()
    ops = [put_op(api.key("a"), lease=lease), put_op(api.key("a"))]
    assert api.status(TxnRequest(success=ops)) == errors.DUPLICATE_KEY


def test_L30_a_put_with_a_revoked_lease(api: Side) -> None:
    lease = api.grant()
    api(LeaseRevokeRequest(ID=lease))
    assert api.status(TxnRequest(success=[put_op(api.key("a"), lease=lease)])) == errors.LEASE_NOT_FOUND
