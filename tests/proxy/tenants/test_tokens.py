"""Whose a token is."""

import base64

import orjson
import pytest

from kvorum import errors
from kvorum.errors import Code, Status
from kvorum.pb.rpc_pb2 import AuthStatusResponse, AuthUserGetRequest, AuthUserGetResponse
from proxy.paths import AUTH_STATUS, USER_GET
from proxy.tenants import tokens as tokens_module
from proxy.tenants.tokens import NOT_CHECKED, STRANGER, WAITING_OVERHEAD_BYTES, Tokens, named_user, plain_token
from tests.proxy.fakes import FakeUpstream

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


class Finding(Checking):
    """A token that is no web token, and a file with two users."""

    def __init__(self, users: tuple[str, ...] = ("alice", "bob")) -> None:
        super().__init__()
        self.tokens.find("t", users, METADATA, self.outcomes.append, 0)

    def tried(self, answer: Status | None) -> str:
        """Whom the cluster is asked for next, and answers so."""
        if answer is None:
            message = self.upstream.answer(USER_GET, AuthUserGetResponse())
        else:
            message = self.upstream.refuse(USER_GET, *answer)
        return AuthUserGetRequest.FromString(message).name


def test_the_one_user_that_a_token_may_see_is_its_own() -> None:
    finding = Finding()
    finding.is_on()
    assert finding.tried(errors.PERMISSION_DENIED) == "root"
    assert finding.tried(errors.PERMISSION_DENIED) == "alice"
    assert finding.tried(None) == "bob"
    assert finding.outcomes == [None]
    assert finding.tokens.user_of("t") == "bob"


def test_who_may_see_everybody_is_nobody_s_tenant_by_that() -> None:
    finding = Finding()
    finding.is_on()
    assert finding.tried(None) == "root"
    assert finding.outcomes == [errors.INVALID_AUTH_TOKEN]
    assert finding.tokens.user_of("t") is None
    assert not finding.upstream.calls


def test_a_token_of_none_of_them_is_a_stranger_s_until_the_file_is_read_again() -> None:
    finding = Finding()
    finding.is_on()
    for answer in (errors.PERMISSION_DENIED, errors.USER_NOT_FOUND, errors.PERMISSION_DENIED):
        finding.tried(answer)
    assert finding.outcomes == [None]
    assert finding.tokens.user_of("t") == STRANGER
    finding.tokens.learn("u", "alice")
    finding.tokens.forget_strangers()
    assert [finding.tokens.user_of(token) for token in "tu"] == [None, "alice"]


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (errors.INVALID_AUTH_TOKEN, errors.INVALID_AUTH_TOKEN),
        (errors.AUTH_OLD_REVISION, errors.AUTH_OLD_REVISION),
        (errors.STOPPED, NOT_CHECKED),
    ],
)
def test_a_token_that_cannot_be_tried_is_not_tried_further(answer: Status, outcome: Status) -> None:
    finding = Finding()
    finding.is_on()
    assert finding.tried(errors.PERMISSION_DENIED) == "root"
    finding.tried(answer)
    assert finding.outcomes == [outcome]
    assert finding.tokens.user_of("t") is None
    assert not finding.upstream.calls


def test_so_many_users_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_module, "MOST_TRIED", 2)
    assert Finding().upstream.waits(AUTH_STATUS) == 1
    finding = Finding(("alice", "bob", "carol"))
    assert finding.outcomes == [errors.INVALID_AUTH_TOKEN]
    assert not finding.upstream.calls
