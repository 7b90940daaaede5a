"""Tenants by user, in front of the reference with authentication on: whose a token is, is learnt from the cluster."""

import base64
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from kvorum import errors
from kvorum.errors import Code
from kvorum.pb.auth_pb2 import Permission
from kvorum.pb.rpc_pb2 import (
    AuthEnableRequest,
    AuthenticateRequest,
    AuthRoleAddRequest,
    AuthRoleGrantPermissionRequest,
    AuthUserAddRequest,
    AuthUserGrantRoleRequest,
    DeleteRangeRequest,
    PutRequest,
    RangeRequest,
)
from loadtest.launcher import Server
from tests.calls import Api
from tests.servers import start_proxy, start_reference

FILE = """
reader: {user: counter, password: secret}
tenants:
  - {name: alpha, namespace: alpha/, users: [alice], limits: {keys: 2}}
  - {name: beta, namespace: beta/, users: [bob]}
"""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A private and a public key for tokens."""
    directory = tmp_path_factory.mktemp("keys")
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private, public = directory / "private.pem", directory / "public.pem"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.fixture(scope="module", params=["simple", "jwt"])
def auth(request: pytest.FixtureRequest) -> str:
    """The kind of tokens."""
    kind: str = request.param
    return kind


@pytest.fixture(scope="module")
def cluster(auth: str, keys: tuple[Path, Path]) -> Iterator[Server]:
    """The reference with users: alice and bob may do everything, so that only the proxy keeps them apart."""
    option = auth if auth == "simple" else f"jwt,pub-key={keys[1]},priv-key={keys[0]},sign-method=RS256,ttl=10m"
    with start_reference({"auth-token": option}) as server:
        with Api(server.address) as root:
            root(AuthRoleAddRequest(name="all"))
            root(
                AuthRoleGrantPermissionRequest(
                    name="all", perm=Permission(permType="READWRITE", key=b"\0", range_end=b"\0")
                )
            )
            for user, role in (("root", "root"), ("alice", "all"), ("bob", "all"), ("eve", "all"), ("counter", "all")):
                root(AuthUserAddRequest(name=user, password="secret"))
                root(AuthUserGrantRoleRequest(user=user, role=role))
            root(AuthEnableRequest())
        yield server


@pytest.fixture(scope="module")
def users_proxy(cluster: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tmp_path_factory.mktemp("users") / "tenants.yaml"
    path.write_text(FILE)
    with start_proxy([cluster.address], {"namespaces-file": str(path)}) as proxy:
        yield proxy


def login(address: str, user: str) -> str:
    with Api(address) as api:
        return str(api(AuthenticateRequest(name=user, password="secret")).token)


def connect(address: str, token: str) -> Api:
    return Api(address, metadata=(("token", token),))


def forged(algorithm: str) -> str:
    """A token that names alice, and is signed by somebody else, or not at all."""
    claims = {"username": "alice", "revision": 1 << 30, "exp": 1 << 33}
    parts = [base64.urlsafe_b64encode(orjson.dumps(part)).rstrip(b"=") for part in ({"alg": algorithm}, claims)]
    signature = b""
    if algorithm != "none":
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        signature = key.sign(b".".join(parts), padding.PKCS1v15(), hashes.SHA256())
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


def test_a_user_s_keys_are_its_tenant_s(users_proxy: Server, cluster: Server) -> None:
    with (
        connect(users_proxy.address, login(users_proxy.address, "alice")) as alice,
        connect(users_proxy.address, login(users_proxy.address, "bob")) as bob,
        connect(cluster.address, login(cluster.address, "root")) as root,
    ):
        alice(PutRequest(key=b"a"))
        assert bob(RangeRequest(key=b"\0", range_end=b"\0")).count == 0
        assert root(RangeRequest(key=b"alpha/a")).count == 1
        alice(PutRequest(key=b"b"))
        status = alice.status(PutRequest(key=b"c"))
        assert (status.code, status.message) == (Code.RESOURCE_EXHAUSTED, 'tenant "alpha" is over its limit: keys is 2')
        alice(DeleteRangeRequest(key=b"\0", range_end=b"\0"))


def test_a_user_of_no_tenant_and_a_caller_without_a_token_are_refused(users_proxy: Server) -> None:
    with (
        connect(users_proxy.address, login(users_proxy.address, "eve")) as eve,
        Api(users_proxy.address) as nobody,
    ):
        for api in (eve, nobody):
            assert api.status(RangeRequest(key=b"a")).message == "no namespace is served to this caller"


def test_a_wrong_password_is_the_server_s_to_refuse(users_proxy: Server) -> None:
    with Api(users_proxy.address) as api:
        assert api.status(AuthenticateRequest(name="alice", password="wrong")) == errors.AUTH_FAILED


def test_tokens_that_the_proxy_did_not_hand_out(users_proxy: Server, cluster: Server) -> None:
    # A web token names its user, and the cluster vouches for it; a simple one is tried.
    with connect(users_proxy.address, login(cluster.address, "bob")) as bob:
        assert bob(RangeRequest(key=b"\0", range_end=b"\0")).count == 0
    for token in (forged("RS256"), forged("none"), "no token", "a.b.c", ".."):
        with connect(users_proxy.address, token) as somebody:
            assert somebody.status(RangeRequest(key=b"a")) == errors.INVALID_AUTH_TOKEN
            assert somebody.status(PutRequest(key=b"a")) == errors.INVALID_AUTH_TOKEN
