"""The Cluster service: checks what a change of members names, chooses the new member's id, and asks raft for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from google.protobuf.message import DecodeError

from kvorum import errors
from kvorum.errors import unmarshal_error
from kvorum.pb.internal_pb2 import MemberChange
from kvorum.pb.rpc_pb2 import (
    MemberAddRequest,
    MemberListRequest,
    MemberPromoteRequest,
    MemberRemoveRequest,
    MemberUpdateRequest,
)
from kvorum.urls import Url, parse_url
from node.front.calls import Sink
from node.front.member import Head, Member, UnaryHandler, guarded, too_large
from node.ids import added_member_id
from node.requests import LINEARIZABLE, Op


class BadUrls(Exception):
    """The peer URLs of a request cannot be a member's (M1)."""


def unary(member: Member, *, max_learners: int, unix_s: Callable[[], float]) -> dict[str, UnaryHandler]:
    """The unary methods of etcdserverpb.Cluster by path; an added member's id depends on the time `unix_s` (M3)."""

    def changes(message_type: Any, op: Op, change_of: Callable[[Any], MemberChange]) -> UnaryHandler:
        def handle(sink: Sink, token: int, _head: Head, message: bytes) -> None:
            try:
                change = change_of(message_type.FromString(message))
            except DecodeError as error:
                sink.fail(token, *unmarshal_error(error))
                return
            except BadUrls:
                sink.fail(token, *errors.MEMBER_BAD_URLS)
                return
            body = change.SerializeToString()
            if too_large(member.limits, body):
                sink.fail(token, *errors.REQUEST_TOO_LARGE)
            else:
                member.calls.change(sink, token, op, body)

        return handle

    def added(request: MemberAddRequest) -> MemberChange:
        urls = sorted(peer_urls(request.peerURLs), key=str)
        return MemberChange(
            ID=added_member_id(urls, int(unix_s())),
            peerURLs=map(str, urls),
            isLearner=request.isLearner,
            max_learners=max_learners,
        )

    def updated(request: MemberUpdateRequest) -> MemberChange:
        return MemberChange(ID=request.ID, peerURLs=map(str, peer_urls(request.peerURLs)))

    def named(request: Any) -> MemberChange:
        return MemberChange(ID=request.ID)

    def member_list(sink: Sink, token: int, _head: Head, message: bytes) -> None:
        try:
            request = MemberListRequest.FromString(message)
        except DecodeError as error:
            sink.fail(token, *unmarshal_error(error))
        else:
            member.calls.read(sink, token, Op.MEMBER_LIST, message, LINEARIZABLE if request.linearizable else 0)

    methods = {
        "MemberAdd": changes(MemberAddRequest, Op.MEMBER_ADD, added),
        "MemberRemove": changes(MemberRemoveRequest, Op.MEMBER_REMOVE, named),
        "MemberUpdate": changes(MemberUpdateRequest, Op.MEMBER_UPDATE, updated),
        "MemberPromote": changes(MemberPromoteRequest, Op.MEMBER_PROMOTE, named),
        "MemberList": member_list,
    }
    return {f"/etcdserverpb.Cluster/{name}": guarded(member, handler) for name, handler in methods.items()}


def peer_urls(texts: Iterable[str]) -> list[Url]:
    """The URLs in the order given. Raises BadUrls, also when there are none (M1, M21)."""
    try:
        urls = [parse_url(text) for text in texts]
    except ValueError as error:
        raise BadUrls from error
    if not urls:
        raise BadUrls
    return urls
