"""Calls through a namespace: a request's bytes to those for the server, a reply's bytes to those for the caller.

    outwards = UNARY[paths.PUT]
    message, strip = outwards(namespace, message)      # ApiError: it is no such message
    reply = strip(namespace, reply) if strip else reply

Each message is parsed once and written once. A reply that cannot hold a key is not looked at: `strip` is None.
"""

from collections.abc import Callable
from typing import Any, Final, Protocol

from google.protobuf.message import DecodeError, Message

from kvorum.errors import ApiError, unmarshal_error
from kvorum.pb.election_pb2 import (
    CampaignRequest,
    CampaignResponse,
    LeaderRequest,
    LeaderResponse,
    ProclaimRequest,
    ResignRequest,
)
from kvorum.pb.lock_pb2 import LockRequest, LockResponse, UnlockRequest
from kvorum.pb.rpc_pb2 import (
    AuthRoleGetRequest,
    AuthRoleGetResponse,
    AuthRoleGrantPermissionRequest,
    AuthRoleRevokePermissionRequest,
    DeleteRangeRequest,
    DeleteRangeResponse,
    LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    RangeStreamResponse,
    TxnRequest,
    TxnResponse,
)
from proxy import paths
from proxy.namespaces import auth, kv, lease, locks
from proxy.namespaces.namespace import Namespace

StripReply = Callable[[Namespace, bytes], bytes]
"""(namespace, reply) -> the reply for the caller. Raises DecodeError for what is no such message and ForeignKeyError
for one that holds a key of others."""

Look = Callable[[Any], None]
"""Is shown a request as it goes to the server, under whole names; may raise ApiError."""


class Outwards(Protocol):
    """How the calls of one method leave a namespace."""

    def __call__(
        self, namespace: Namespace, message: bytes, look: Look | None = None, /
    ) -> tuple[bytes, StripReply | None]:
        """A request to (the request for the server, what to do with its reply). Raises ApiError."""


def parse_request(message_type: Any, message: bytes) -> Any:
    """A request of that type, without fields that are not known: one could carry a key. Raises ApiError (G8)."""
    try:
        request = message_type.FromString(message)
    except DecodeError as error:
        raise ApiError(unmarshal_error(error)) from None
    request.DiscardUnknownFields()
    return request


def _stripped(message_type: type[Message], strip: Callable[[Namespace, Any], None]) -> StripReply:
    parse = message_type.FromString

    def strip_reply(namespace: Namespace, reply: bytes) -> bytes:
        message = parse(reply)
        message.DiscardUnknownFields()
        strip(namespace, message)
        return message.SerializeToString()

    return strip_reply


def _call(
    request_type: type[Message],
    prefix: Callable[[Namespace, Any], None],
    strip_reply: StripReply | None = None,
    shows: Callable[[Any], bool] = lambda _request: True,
) -> Outwards:
    """`shows(request)` says whether the reply may hold a key."""

    def outwards(namespace: Namespace, message: bytes, look: Look | None = None, /) -> tuple[bytes, StripReply | None]:
        request = parse_request(request_type, message)
        prefix(namespace, request)
        if look is not None:
            look(request)
        return request.SerializeToString(), strip_reply if strip_reply is not None and shows(request) else None

    return outwards


def _names_no_key(_namespace: Namespace, _request: Any) -> None:
    """The request of a call of which only the reply has keys."""


strip_range: Final = _stripped(RangeResponse, kv.strip_range)
strip_range_stream: Final = _stripped(RangeStreamResponse, kv.strip_range_stream)
strip_put: Final = _stripped(PutResponse, kv.strip_put)
strip_delete_range: Final = _stripped(DeleteRangeResponse, kv.strip_delete_range)
strip_txn: Final = _stripped(TxnResponse, kv.strip_txn)
_strip_leader: Final = _stripped(LeaderResponse, locks.strip_leader)

UNARY: Final[dict[str, Outwards]] = {
    paths.RANGE: _call(RangeRequest, kv.prefix_range, strip_range, lambda range_: not range_.count_only),
    paths.PUT: _call(PutRequest, kv.prefix_put, strip_put, lambda put: put.prev_kv),
    paths.DELETE_RANGE: _call(
        DeleteRangeRequest, kv.prefix_delete_range, strip_delete_range, lambda delete: delete.prev_kv
    ),
    paths.TXN: _call(TxnRequest, kv.prefix_txn, strip_txn, kv.shows_keys),
    paths.TIME_TO_LIVE: _call(
        LeaseTimeToLiveRequest,
        _names_no_key,
        _stripped(LeaseTimeToLiveResponse, lease.strip_time_to_live),
        lambda ask: ask.keys,
    ),
    paths.ROLE_GRANT_PERMISSION: _call(AuthRoleGrantPermissionRequest, auth.prefix_grant),
    paths.ROLE_REVOKE_PERMISSION: _call(AuthRoleRevokePermissionRequest, auth.prefix_revoke),
    paths.ROLE_GET: _call(AuthRoleGetRequest, _names_no_key, _stripped(AuthRoleGetResponse, auth.strip_role)),
    paths.LOCK: _call(LockRequest, locks.prefix_lock, _stripped(LockResponse, locks.strip_lock)),
    paths.UNLOCK: _call(UnlockRequest, locks.prefix_unlock),
    paths.CAMPAIGN: _call(CampaignRequest, locks.prefix_campaign, _stripped(CampaignResponse, locks.strip_campaign)),
    paths.PROCLAIM: _call(ProclaimRequest, locks.prefix_proclaim),
    paths.LEADER: _call(LeaderRequest, locks.prefix_leader, _strip_leader),
    paths.RESIGN: _call(ResignRequest, locks.prefix_resign),
}
"""The unary methods that carry keys, by path."""

SERVER_STREAMS: Final[dict[str, Outwards]] = {
    paths.RANGE_STREAM: _call(RangeRequest, kv.prefix_range, strip_range_stream),
    paths.OBSERVE: _call(LeaderRequest, locks.prefix_leader, _strip_leader),
}
"""The methods with one request and a stream of replies, each of which goes through what `Outwards` says."""
