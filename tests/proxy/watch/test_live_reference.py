"""Watches through the proxy in front of the reference's member: one with users, and too old for progress requests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvorum.pb.auth_pb2 import Permission
from kvorum.pb.rpc_pb2 import (
    AuthEnableRequest,
    AuthenticateRequest,
    AuthRoleAddRequest,
    AuthRoleGrantPermissionRequest,
    AuthUserAddRequest,
    AuthUserGrantRoleRequest,
    PutRequest,
    WatchProgressRequest,
    WatchRequest,
    WatchResponse,
)
from loadtest.launcher import Kind, Server
from tests.calls import Api
from tests.proxy.watch.test_live import create, events_of
from tests.servers import start_proxy, start_reference

PASSWORD = "p"


@pytest.fixture(scope="module")
def member() -> Iterator[Server]:
    """A member with a user who may read the keys from `open/` on, before `open0`."""
    with start_reference() as server, Api(server.address) as api:
        for name in ("root", "alice"):
            api(AuthUserAddRequest(name=name, password=PASSWORD))
            api(AuthRoleAddRequest(name=name))
            api(AuthUserGrantRoleRequest(user=name, role=name))
        allowed = Permission(permType=Permission.READ, key=b"open/", range_end=b"open0")
        api(AuthRoleGrantPermissionRequest(name="alice", perm=allowed))
        api(AuthEnableRequest())
        yield server


@pytest.fixture(scope="module")
def proxy(member: Server) -> Iterator[Server]:
    with start_proxy([member.address], kind=Kind.KVORUM) as server:
        yield server


@pytest.fixture
def root(member: Server) -> Iterator[Api]:
    with Api(member.address) as api:
        token = api(AuthenticateRequest(name="root", password=PASSWORD)).token
        with Api(member.address, metadata=[("token", token)]) as with_token:
            yield with_token


def token_of(proxy: Server, name: str) -> list[tuple[str, str]]:
    with Api(proxy.address) as api:
        return [("token", api(AuthenticateRequest(name=name, password=PASSWORD)).token)]


def replies_to(api: Api, metadata: list[tuple[str, str]], *creates: WatchRequest) -> list[WatchResponse]:
    with api.watch(metadata) as stream:
        for request in creates:
            stream.send(request)
        stream.wait(lambda replies: len(replies) >= len(creates))
        return list(stream.replies)


def test_W25_W26_who_may_watch_what(proxy: Server) -> None:
    with Api(proxy.address) as api:
        allowed, denied, wider = replies_to(
            api,
            token_of(proxy, "alice"),
            create(key=b"open/", range_end=b"open0"),
            create(key=b"secret"),
            create(key=b"open/", range_end=b"\0"),
        )
        assert allowed.created and not allowed.canceled and allowed.header.member_id
        for reply in (denied, wider):
            assert (reply.created, reply.canceled, reply.watch_id) == (True, True, -1)
            assert reply.cancel_reason == "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
        (nobody,) = replies_to(api, [], create(key=b"open/a"))
        assert nobody.cancel_reason == "rpc error: code = InvalidArgument desc = etcdserver: user name is empty"
        assert nobody.header.member_id, "which the Go client looks at"
        (unknown,) = replies_to(api, [("token", "forged.1")], create(key=b"open/a"))
        assert unknown.cancel_reason == "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token"


def test_callers_with_different_tokens_share_nothing(proxy: Server, root: Api) -> None:
    alice, other = token_of(proxy, "alice"), token_of(proxy, "root")
    with Api(proxy.address) as api, api.watch(alice) as hers, api.watch(other) as roots:
        for stream in (hers, roots):
            stream.send(create(key=b"open/shared"))
            stream.wait(lambda replies: replies)
        at = root(PutRequest(key=b"open/shared")).header.revision
        for stream in (hers, roots):
            stream.wait(lambda replies: events_of(replies))
            assert [event.kv.mod_revision for event in events_of(stream.replies)] == [at]


def test_a_member_that_is_too_old_for_progress_requests_is_asked_for_none(proxy: Server, root: Api) -> None:
    """X14: its answer might come before events of its revision."""
    metadata = token_of(proxy, "root")
    past = root(PutRequest(key=b"old/a")).header.revision
    root(PutRequest(key=b"old/other"))
    with Api(proxy.address) as api, api.watch(metadata) as live, api.watch(metadata) as late:
        live.send(create(key=b"old/a"))
        live.wait(lambda replies: replies)
        late.send(create(key=b"old/a", start_revision=past))
        late.send(WatchRequest(progress_request=WatchProgressRequest()))
        late.wait(lambda replies: events_of(replies))
        at = [root(PutRequest(key=b"old/a")).header.revision for _ in range(3)]
        live.wait(lambda replies: len(events_of(replies)) == 3)
        late.wait(lambda replies: len(events_of(replies)) == 4)
        assert [event.kv.mod_revision for event in events_of(live.replies)] == at
        assert [event.kv.mod_revision for event in events_of(late.replies)] == [past, *at]
        assert all(reply.watch_id != -1 for reply in late.replies)
