"""Whose token a caller sends.

A token says nothing for sure to whoever is not the cluster. It is known once the cluster has given it out through
this process, or, if it is a JSON web token, once the cluster has answered a call that was made with it and that only
the user it names may make: that the claims can be read proves nothing. Any other token was perhaps given out through
another worker or proxy. It is tried: who may not look at root has no role root, and of the users of the file may look
at one only, at himself. A token that the cluster does not take is refused as the cluster does.
"""

from __future__ import annotations

import base64
import binascii
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Final

import orjson
from google.protobuf.message import DecodeError

from kvorum import errors
from kvorum.errors import Code, Status
from kvorum.pb.rpc_pb2 import AuthStatusRequest, AuthStatusResponse, AuthUserGetRequest
from kvorum.wire.calls import Fields
from proxy.namespaces.passage import Retry
from proxy.paths import AUTH_STATUS, USER_GET
from proxy.upstream.way import UnaryCalls

MOST_TOKENS: Final = 65536
MOST_TRIED: Final = 256
"""Users that a token is tried with. With more of them in the file, tokens that came another way are refused as
expired ones are, and clients log in again."""

ROOT: Final = "root"
STRANGER: Final = ""
"""The user of a token that is none of the file's users'."""

MOST_CHECKS: Final = 256
"""Tokens that are being checked."""

MOST_WAITING_BYTES: Final = 16 << 20
WAITING_OVERHEAD_BYTES: Final = 1024
"""Of calls that wait for the checks; each counts with its message and the overhead."""

CHECK_TIMEOUT_S: Final = 5.0
MOST_TOKEN_CHARACTERS: Final = 8192


NOT_CHECKED: Final = Status(Code.UNAVAILABLE, "the token cannot be checked at the moment")


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

    def __init__(self, upstream: UnaryCalls) -> None:
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

    def forget_strangers(self) -> None:
        """The file may know more users now."""
        for token in [token for token, user in self._users.items() if user == STRANGER]:
            del self._users[token]

    def check(self, token: str, user: str, metadata: Fields, retry: Retry, size_bytes: int) -> None:
        """Ask the cluster whether the token is this user's; `retry` is called when that is known, or fails."""
        if self._is_first(token, retry, size_bytes):
            _Check(self, token, (user,), metadata).begin()

    def find(self, token: str, users: Iterable[str], metadata: Fields, retry: Retry, size_bytes: int) -> None:
        """Ask the cluster which of these users has the token, if any of them; `retry` as with `check`."""
        tried = (ROOT, *itertools.islice(users, MOST_TRIED + 1))
        if len(tried) > MOST_TRIED + 1:
            retry(errors.INVALID_AUTH_TOKEN)
        elif self._is_first(token, retry, size_bytes):
            _Check(self, token, tried, metadata).begin()

    def _is_first(self, token: str, retry: Retry, size_bytes: int) -> bool:
        """Whether the token has to be checked now. If not, `retry` is told by the check under way, or it is now."""
        waiting = self._checks.get(token)
        size_bytes += WAITING_OVERHEAD_BYTES
        if self._waiting_bytes + size_bytes > MOST_WAITING_BYTES or (
            waiting is None and len(self._checks) >= MOST_CHECKS
        ):
            retry(NOT_CHECKED)
            return False
        self._waiting_bytes += size_bytes
        if waiting is not None:
            waiting.append((retry, size_bytes))
            return False
        self._checks[token] = [(retry, size_bytes)]
        return True

    def ask(self, path: str, request: Any, done: Callable[[int, str, bytes], None], metadata: Fields) -> None:
        """A call with the token that is checked."""
        self._upstream.call(path, request.SerializeToString(), done, metadata, CHECK_TIMEOUT_S)

    def end_check(self, token: str, status: Status | None) -> None:
        """It is known whose the token is, or why not."""
        waiting = self._checks.pop(token)
        self._waiting_bytes -= sum([size_bytes for _, size_bytes in waiting])
        for retry, _ in waiting:
            retry(status)


class _Check:
    """Of one token: the users are tried in turn. Where the first of several is root, the token must not be able to see
    it: then it can see its own user alone."""

    def __init__(self, tokens: Tokens, token: str, users: tuple[str, ...], metadata: Fields) -> None:
        self._tokens = tokens
        self._token = token
        self._users = users
        self._metadata = metadata
        self._tried = 0

    def begin(self) -> None:
        self._tokens.ask(AUTH_STATUS, AuthStatusRequest(), self._on_status, self._metadata)

    def _on_status(self, code: int, _text: str, reply: bytes) -> None:
        # While authentication is off a member takes any token for none: then an answer would prove nothing. Before
        # 3.7 only root may ask this while it is on.
        if code == Code.PERMISSION_DENIED or (code == 0 and _is_enabled(reply)):
            self._try_next()
        else:
            self._end(errors.INVALID_AUTH_TOKEN if code in (0, Code.UNAUTHENTICATED) else NOT_CHECKED)

    def _try_next(self) -> None:
        request = AuthUserGetRequest(name=self._users[self._tried])
        self._tokens.ask(USER_GET, request, self._on_user, self._metadata)

    def _on_user(self, code: int, text: str, _reply: bytes) -> None:
        status, alone = Status(code, text), len(self._users) == 1
        if code == 0:
            if self._tried or alone:
                self._tokens.learn(self._token, self._users[self._tried])
                self._end(None)
            else:
                self._end(errors.INVALID_AUTH_TOKEN)  # it sees everybody
        elif code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
            self._end(NOT_CHECKED)
        elif status == errors.AUTH_OLD_REVISION:
            self._end(status)
        elif alone or status not in (errors.PERMISSION_DENIED, errors.USER_NOT_FOUND):
            self._end(errors.INVALID_AUTH_TOKEN)
        else:
            self._tried += 1
            if self._tried < len(self._users):
                self._try_next()
            else:
                self._tokens.learn(self._token, STRANGER)
                self._end(None)

    def _end(self, status: Status | None) -> None:
        self._tokens.end_check(self._token, status)


def _is_enabled(reply: bytes) -> bool:
    try:
        return AuthStatusResponse.FromString(reply).enabled
    except DecodeError:
        return False
