"""Whose a token is."""

import base64

import orjson
import pytest

from kvorum import errors
from kvorum.errors import Code, Status
from kvorum.pb.rpc_pb2 import AuthStatusResponse, AuthUserGetRequest, AuthUserGetResponse
from proxy.tenants import tokens as tokens_module
from proxy.tenants.tokens import (
    AUTH_STATUS,
    NOT_CHECKED,
    USER_GET,
    WAITING_OVERHEAD_BYTES,
    Tokens,
    named_user,
    plain_token,
)
from tests.proxy.tenants.fakes import FakeUpstream

METADATA = ((b"token", b"t"),)


def token_of(header: object, claims: object) -> str:
    parts = [base64.urlsafe_b64encode(orjson.dumps(part)).rstrip(b"=").decode() for part in (header, claims)]
    return ".".join([*parts, "signature"])


def test_A14_the_user_that_a_json_web_token_names() -> None:
    assert named_user(token_of({"alg": "RS256"}, {"username": "alice", "exp": 1})) == "alice"


@pytest.mark.parametrize(
    "token",
    [
        "",
        "simpletoken.17",
        "..",
        "a.b.c",
        "\xff.\xff.\xff",
        token_of([], {"username": "alice"}),
        token_of({}, {"username": "alice"}),
        token_of({"alg": "RS256"}, ["alice"]),
        token_of({"alg": "RS256"}, {"username": 7}),
        token_of({"alg": "RS256"}, {"username": ""}),
        token_of({"alg": "RS256"}, {"username": "a" * 9000}),
    ],
)
def test_what_names_nobody(token: str) -> None:
    assert named_user(token) is None


def test_A15_a_bearer_token_is_the_token() -> None:
    assert plain_token("Bearer abc") == "abc"
    assert plain_token("abc") == "abc"


def test_what_the_cluster_gave_out_is_known_and_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_module, "MOST_TOKENS", 2)
    tokens = Tokens(FakeUpstream())
    tokens.learn("a", "alice")
    tokens.learn("b", "bob")
    assert tokens.user_of("a") == "alice"
    tokens.learn("c", "carol")
    assert [tokens.user_of(token) for token in "abc"] == ["alice", None, "carol"]


class Checking:
    def __init__(self) -> None:
        self.upstream = FakeUpstream()
        self.tokens = Tokens(self.upstream)
        self.outcomes: list[Status | None] = []

    def check(self, token: str = "t") -> None:
        self.tokens.check(token, "alice", METADATA, self.outcomes.append, 0)

    def is_on(self) -> None:
        self.upstream.answer(AUTH_STATUS, AuthStatusResponse(enabled=True))


def test_a_token_is_checked_once_for_all_who_wait() -> None:
    checking = Checking()
    checking.check()
    checking.check()
    checking.is_on()
    assert [call[3] for call in checking.upstream.calls] == [METADATA]
    asked = AuthUserGetRequest.FromString(checking.upstream.answer(USER_GET, AuthUserGetResponse()))
    assert asked.name == "alice"
    assert checking.outcomes == [None, None]
    assert checking.tokens.user_of("t") == "alice"


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (errors.INVALID_AUTH_TOKEN, errors.INVALID_AUTH_TOKEN),
        (errors.PERMISSION_DENIED, errors.INVALID_AUTH_TOKEN),  # another user's
        (errors.USER_NOT_FOUND, errors.INVALID_AUTH_TOKEN),
        (errors.AUTH_OLD_REVISION, errors.AUTH_OLD_REVISION),
        (errors.STOPPED, NOT_CHECKED),
        (Status(Code.DEADLINE_EXCEEDED, "context deadline exceeded"), NOT_CHECKED),
    ],
)
def test_a_token_that_the_cluster_does_not_take(answer: Status, outcome: Status) -> None:
    checking = Checking()
    checking.check()
    checking.is_on()
    checking.upstream.refuse(USER_GET, *answer)
    assert checking.outcomes == [outcome]
    assert checking.tokens.user_of("t") is None


def test_A18_while_authentication_is_off_no_token_proves_anything() -> None:
    checking = Checking()
    checking.check()
    checking.upstream.answer(AUTH_STATUS, AuthStatusResponse(enabled=False))
    assert checking.outcomes == [errors.INVALID_AUTH_TOKEN]
    assert not checking.upstream.calls


def test_A5_members_that_tell_only_root_have_it_on() -> None:
    checking = Checking()
    checking.check()
    checking.upstream.refuse(AUTH_STATUS, *errors.PERMISSION_DENIED)
    checking.upstream.answer(USER_GET, AuthUserGetResponse())
    assert checking.outcomes == [None]


def test_a_cluster_that_cannot_be_asked() -> None:
    checking = Checking()
    checking.check()
    checking.upstream.refuse(AUTH_STATUS, 14, "away")
    assert checking.outcomes == [NOT_CHECKED]


def test_checks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_module, "MOST_CHECKS", 2)
    monkeypatch.setattr(tokens_module, "MOST_WAITING_BYTES", 3 * WAITING_OVERHEAD_BYTES)
    checking = Checking()
    for token in ("a", "b", "c"):
        checking.check(token)
    assert checking.outcomes == [NOT_CHECKED]
    checking.check("a")
    checking.check("a")
    assert checking.outcomes == [NOT_CHECKED, NOT_CHECKED]
