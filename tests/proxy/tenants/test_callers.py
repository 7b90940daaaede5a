"""Who a request's caller is, by the namespaces file."""

from types import SimpleNamespace
from typing import Any

import pytest

from kvorum import errors
from kvorum.errors import ApiError, Status
from kvorum.pb.rpc_pb2 import AuthStatusResponse, AuthUserGetResponse
from proxy.callers import NO_TENANT, Caller, Callers
from proxy.namespaces.passage import Later
from proxy.paths import AUTH_STATUS, RANGE, USER_GET
from proxy.tenants.namespaces_file import parse_namespaces_file
from proxy.tenants.tenants import Tenants
from proxy.tenants.tokens import NOT_CHECKED, Tokens
from tests.proxy.fakes import FakeUpstream
from tests.proxy.tenants.test_tokens import token_of

FILE = """
tenants:
  - {name: by-user, namespace: user/, users: [alice]}
  - {name: by-name, namespace: name/, common_names: [cn]}
  - {name: by-authority, namespace: authority/, authorities: [Proxy.test, "other.test:1"]}
"""
DEFAULT = "  - {name: rest, namespace: rest/, default: true}\n"
JWT = token_of({"alg": "RS256"}, {"username": "alice"})


class Door:
    """Callers with a file, and connections to them."""

    def __init__(self, text: str = FILE) -> None:
        self.upstream = FakeUpstream()
        self.tokens = Tokens(self.upstream)
        self.tenants = Tenants(lambda: 0.0)
        self.callers = Callers(b"", self.tenants, self.tokens)
        self.apply(text)

    def apply(self, text: str) -> None:
        self.tenants.apply(parse_namespaces_file(text, "f"))
        self.callers.forget()

    def caller(
        self,
        *,
        name: str | None = None,
        authority: str = "h:1",
        path: str = RANGE,
        connection: Any = None,
        **metadata: str,
    ) -> Caller:
        if connection is None:
            connection = SimpleNamespace(context=None, peer_common_name=name)
        head: Any = SimpleNamespace(
            metadata={key: (value,) for key, value in metadata.items()}, authority=authority, path=path
        )
        return self.callers.resolve_or_wait(connection, head)

    def tenant(self, **given: Any) -> str:
        """The name of the tenant, or the text of the refusal."""
        try:
            tenant = self.caller(**given).tenant
        except ApiError as error:
            return error.status.message
        assert tenant is not None
        return tenant.name


def test_a_user_comes_before_a_certificate_and_that_before_an_authority() -> None:
    door = Door()
    door.tokens.learn("t", "alice")
    door.tokens.learn("u", "bob")
    assert door.tenant(token="t", name="cn", authority="proxy.test") == "by-user"
    assert door.tenant(authorization="Bearer t") == "by-user"
    assert door.tenant(token="u", name="cn", authority="proxy.test") == "by-name"
    assert door.tenant(name="someone", authority="PROXY.test:2379") == "by-authority"
    assert door.tenant(authority="other.test:1") == "by-authority"
    assert door.tenant(authority="other.test:2") == NO_TENANT.message
    assert door.tenant(token="u") == NO_TENANT.message


def test_blanks_around_metadata_are_no_part_of_it() -> None:
    connection: Any = SimpleNamespace(context=None, peer_common_name=None)
    head: Any = SimpleNamespace(
        metadata={"token": ("\v\fa b \t", "\xe9"), "authorization": (" ",), "hasleader": (" true",)},
        authority="h:1",
        path=RANGE,
    )
    caller = Callers().resolve(connection, head)
    assert (caller.token, caller.hasleader) == ("a b", True)
    assert caller.metadata == (
        (b"token", b"a b"),
        (b"token", b"\xc3\xa9"),
        (b"authorization", b""),
        (b"hasleader", b"true"),
    )


def test_the_default_is_for_everybody_else() -> None:
    door = Door(FILE + DEFAULT)
    door.tokens.learn("u", "bob")
    assert door.tenant(token="u") == "rest"
    assert door.tenant(name="cn") == "by-name"


def test_a_token_that_is_not_known_makes_nobody_the_default() -> None:
    door = Door(FILE + DEFAULT)
    outcome: list[Status | None] = []
    with pytest.raises(Later) as raised:
        door.caller(token="stranger")
    raised.value.join(outcome.append, 0)
    door.upstream.refuse(AUTH_STATUS, *errors.INVALID_AUTH_TOKEN)
    assert outcome == [errors.INVALID_AUTH_TOKEN]


def test_a_token_that_came_another_way_is_tried_with_the_file_s_users() -> None:
    door = Door()
    outcome: list[Status | None] = []
    with pytest.raises(Later) as raised:
        door.caller(token="simple.7")
    raised.value.join(outcome.append, 0)
    door.upstream.answer(AUTH_STATUS, AuthStatusResponse(enabled=True))
    door.upstream.refuse(USER_GET, *errors.PERMISSION_DENIED)  # root
    door.upstream.answer(USER_GET, AuthUserGetResponse())
    assert outcome == [None]
    assert door.tenant(token="simple.7") == "by-user"


def test_where_no_user_is_named_tokens_do_not_matter() -> None:
    door = Door("tenants:\n" + DEFAULT)
    assert door.tenant(token="anything") == "rest"


def test_a_json_web_token_waits_for_the_cluster_s_word() -> None:
    door = Door()
    outcome: list[Status | None] = []
    with pytest.raises(Later) as raised:
        door.caller(token=JWT)
    raised.value.join(outcome.append, 0)
    door.upstream.answer(AUTH_STATUS, AuthStatusResponse(enabled=True))
    door.upstream.answer(USER_GET, AuthUserGetResponse())
    assert outcome == [None]
    assert door.tenant(token=JWT) == "by-user"


def test_who_cannot_wait_is_told_to_come_again() -> None:
    door = Door()
    head: Any = SimpleNamespace(metadata={"token": (JWT,)}, authority="h:1", path=RANGE)
    connection: Any = SimpleNamespace(context=None, peer_common_name=None)
    with pytest.raises(ApiError) as raised:
        door.callers.resolve(connection, head)
    assert raised.value.status == NOT_CHECKED
    door.upstream.answer(AUTH_STATUS, AuthStatusResponse(enabled=True))
    door.upstream.answer(USER_GET, AuthUserGetResponse())
    assert door.callers.resolve(connection, head).tenant is not None


def test_what_everybody_may_call_gives_nobody_a_place() -> None:
    door = Door()
    connection = SimpleNamespace(context=None, peer_common_name=None)
    everybody = door.caller(path="/etcdserverpb.Auth/Authenticate", connection=connection)
    assert everybody.tenant is None
    assert connection.context is None
    with pytest.raises(ApiError):
        door.caller(connection=connection)


def test_a_reload_changes_who_a_connection_s_caller_is() -> None:
    door = Door(FILE + DEFAULT)
    connection = SimpleNamespace(context=None, peer_common_name=None)
    metadata: Any = {}
    head: Any = SimpleNamespace(metadata=metadata, authority="h:1", path=RANGE)
    first = door.callers.resolve(connection, head)  # type: ignore[arg-type]
    assert door.callers.resolve(connection, head) is first  # type: ignore[arg-type]
    door.apply(FILE + DEFAULT.replace("rest/", "elsewhere/"))
    second = door.callers.resolve(connection, head)  # type: ignore[arg-type]
    assert second.tenant is first.tenant
    assert (first.prefix, second.prefix) == (b"rest/", b"elsewhere/")
    door.apply(FILE)
    with pytest.raises(ApiError):
        door.callers.resolve(connection, head)  # type: ignore[arg-type]
