"""Whose token a caller sends.

A token says nothing for sure to whoever is not the cluster. It is known once the cluster has given it out through
this process, or, if it is a JSON web token, once the cluster has answered a call that was made with it and that only
the user it names may make: that the claims can be read proves nothing. A token that is not known is refused as the
cluster refuses one that has expired, so that clients log in again; then it is known.
"""

from __future__ import annotations

import base64
import binascii
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, Protocol

import orjson
from google.protobuf.message import DecodeError

from kvorum import errors
from kvorum.errors import Code, Status
from kvorum.pb.rpc_pb2 import AuthStatusRequest, AuthStatusResponse, AuthUserGetRequest
from kvorum.wire.calls import Fields, UnaryDone
from proxy.namespaces.passage import Retry

MOST_TOKENS: Final = 65536
MOST_CHECKS: Final = 256
"""Tokens that are being checked."""

MOST_WAITING_BYTES: Final = 16 << 20
WAITING_OVERHEAD_BYTES: Final = 1024
"""Of calls that wait for the checks; each counts with its message and the overhead."""

CHECK_TIMEOUT_S: Final = 5.0
MOST_TOKEN_CHARACTERS: Final = 8192

AUTH_STATUS: Final = "/etcdserverpb.Auth/AuthStatus"
USER_GET: Final = "/etcdserverpb.Auth/UserGet"

NOT_CHECKED: Final = Status(Code.UNAVAILABLE, "the token cannot be checked at the moment")


class Upstream(Protocol):
    def call(
        self,
        path: str,
        message: bytes,
        done: UnaryDone,
        metadata: Fields | None = None,
        timeout_s: float | None = None,
        /,
    ) -> object: ...


def plain_token(value: str) -> str:
    """The token in the value of `token` or `authorization` (A15)."""
    return value.removeprefix("Bearer ")


def named_user(token: str) -> str | None:
    """The user that a JSON web token names (A14); None for any other token. Nothing is verified."""
    parts = token.split(".")
    if len(parts) != 3 or len(token) > MOST_TOKEN_CHARACTERS:
        return None
    try:
        header, claims = (orjson.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))) for part in parts[:2])
    except (binascii.Error, ValueError):
        return None
    if not (isinstance(header, dict) and "alg" in header and isinstance(claims, dict)):
        return None
    user = claims.get("username")
    return user if isinstance(user, str) and user else None


class Tokens:
    """The tokens that are known, and those that are being checked."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._users: OrderedDict[str, str] = OrderedDict()
        self._checks: dict[str, list[tuple[Retry, int]]] = {}
        self._waiting_bytes = 0

    def learn(self, token: str, user: str) -> None:
        """The cluster gave the user this token."""
        self._users[token] = user
        self._users.move_to_end(token)
        if len(self._users) > MOST_TOKENS:
            self._users.popitem(last=False)

    def user_of(self, token: str) -> str | None:
        user = self._users.get(token)
        if user is not None:
            self._users.move_to_end(token)
        return user

    def check(self, token: str, user: str, metadata: Fields, retry: Retry, size_bytes: int) -> None:
        """Ask the cluster whether the token is this user's; `retry` is called when that is known, or fails."""
        waiting = self._checks.get(token)
        size_bytes += WAITING_OVERHEAD_BYTES
        if self._waiting_bytes + size_bytes > MOST_WAITING_BYTES or (
            waiting is None and len(self._checks) >= MOST_CHECKS
        ):
            retry(NOT_CHECKED)
            return
        self._waiting_bytes += size_bytes
        if waiting is not None:
            waiting.append((retry, size_bytes))
            return
        self._checks[token] = [(retry, size_bytes)]

        def on_user(code: int, text: str, _reply: bytes) -> None:
            if code == 0:
                self.learn(token, user)
                self._end_check(token, None)
            elif code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
                self._end_check(token, NOT_CHECKED)
            elif Status(code, text) == errors.AUTH_OLD_REVISION:
                self._end_check(token, errors.AUTH_OLD_REVISION)
            else:
                self._end_check(token, errors.INVALID_AUTH_TOKEN)

        def on_status(code: int, _text: str, reply: bytes) -> None:
            # While authentication is off a member takes any token for none: then an answer would prove nothing. Before
            # 3.7 only root may ask this while it is on.
            if code == Code.PERMISSION_DENIED or (code == 0 and _is_enabled(reply)):
                request = AuthUserGetRequest(name=user)
                self._call(USER_GET, request, on_user, metadata)
            else:
                self._end_check(token, errors.INVALID_AUTH_TOKEN if code in (0, Code.UNAUTHENTICATED) else NOT_CHECKED)

        self._call(AUTH_STATUS, AuthStatusRequest(), on_status, metadata)

    def _call(self, path: str, request: Any, done: Callable[[int, str, bytes], None], metadata: Fields) -> None:
        self._upstream.call(path, request.SerializeToString(), done, metadata, CHECK_TIMEOUT_S)

    def _end_check(self, token: str, status: Status | None) -> None:
        waiting = self._checks.pop(token)
        self._waiting_bytes -= sum([size_bytes for _, size_bytes in waiting])
        for retry, _ in waiting:
            retry(status)


def _is_enabled(reply: bytes) -> bool:
    try:
        return AuthStatusResponse.FromString(reply).enabled
    except DecodeError:
        return False
