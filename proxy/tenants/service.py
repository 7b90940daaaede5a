"""The tenants of one worker: the file, its reloading, and the calls that need more than a rewriting."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Final

from google.protobuf.message import DecodeError

from kvorum import errors
from kvorum.errors import ApiError, unmarshal_error
from kvorum.log import Logger
from kvorum.pb.rpc_pb2 import (
    AuthenticateRequest,
    AuthenticateResponse,
    LeaseRevokeRequest,
    LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
)
from kvorum.wire.head import Head
from kvorum.wire.routes import StreamOpen, UnaryHandler
from kvorum.wire.server_connection import ServerConnection
from proxy.callers import Callers
from proxy.calls import again, answer
from proxy.namespaces.lease import has_foreign_keys
from proxy.namespaces.passage import Later
from proxy.paths import AUTHENTICATE, TIME_TO_LIVE
from proxy.tenants.namespaces_file import NamespacesFile, NamespacesFileError, parse_namespaces_file
from proxy.tenants.tenants import Tenants
from proxy.tenants.tokens import Tokens
from proxy.tenants.tracking import Tracking
from proxy.upstream.replies import read_as
from proxy.upstream.upstream import Upstream

MOST_FILE_BYTES: Final = 16 << 20


def read_namespaces_file(path: str, *, knows_certificates: bool) -> NamespacesFile:
    """`knows_certificates`: clients must show certificates, so that these can say who they are. Raises
    NamespacesFileError, whose text names the file and what is wrong with it."""
    try:
        with Path(path).open("rb") as opened:
            text = opened.read(MOST_FILE_BYTES + 1)
    except OSError as error:
        raise NamespacesFileError(f"{path}: {error.strerror}") from None
    if len(text) > MOST_FILE_BYTES:
        raise NamespacesFileError(f"{path}: larger than {MOST_FILE_BYTES} bytes")
    file = parse_namespaces_file(text, path)
    for index, tenant in enumerate(file.tenants):
        if tenant.common_names and not knows_certificates:
            raise NamespacesFileError(f"{path}: tenants[{index}].common_names: needs --trusted-ca-file")
    return file


class TenantService:
    """Serves Authenticate, and watches over LeaseRevoke; `reload` reads the file again."""

    def __init__(
        self,
        path: str,
        file: NamespacesFile,
        tenants: Tenants,
        tokens: Tokens,
        callers: Callers,
        upstream: Upstream,
        tracking: Tracking,
        logger: Logger,
        *,
        knows_certificates: bool,
        is_first_worker: bool,
    ) -> None:
        self._path = path
        self._knows_certificates = knows_certificates
        self._tenants = tenants
        self._tokens = tokens
        self._callers = callers
        self._upstream = upstream
        self._tracking = tracking
        self._logger = logger
        self._is_first_worker = is_first_worker
        self._apply(file)

    def unary(self) -> dict[str, UnaryHandler]:
        """Handlers by path."""
        return {AUTHENTICATE: self._authenticate}

    def streams(self) -> dict[str, StreamOpen]:
        """The service has no stream of its own."""
        return {}

    def reload(self) -> None:
        """Read the file again; one that cannot be used changes nothing."""
        try:
            file = read_namespaces_file(self._path, knows_certificates=self._knows_certificates)
        except NamespacesFileError as error:
            self._logger.error("the namespaces file was not reloaded; the one before it stays", error=str(error))
            return
        self._apply(file)
        self._logger.info("reloaded the namespaces file", path=self._path, tenants=len(file.tenants))

    def stop(self) -> None:
        """The proxy stops."""
        for tenant in self._tenants.all:
            tenant.end_waiting(errors.STOPPED)
        self._tracking.close()

    def figures(self) -> dict[str, Any]:
        """What is published of each tenant. What the cluster holds is told by one worker: all of them know it."""
        tenants = list(self._tenants.all)
        figures: dict[str, Any] = {
            "kvorum_grpc_proxy_tenant_requests_total": [[[tenant.name], tenant.requests] for tenant in tenants],
            "kvorum_grpc_proxy_tenant_refused_total": [
                [[tenant.name, limit], count] for tenant in tenants for limit, count in tenant.refused.items()
            ],
            "kvorum_grpc_proxy_tenant_watches": [[[tenant.name], tenant.watches] for tenant in tenants],
        }
        if self._is_first_worker:
            known = [(tenant.name, tenant.usage) for tenant in tenants if tenant.usage is not None]
            figures["kvorum_grpc_proxy_tenant_keys"] = [[[name], usage.keys] for name, usage in known]
            figures["kvorum_grpc_proxy_tenant_bytes"] = [[[name], usage.bytes] for name, usage in known]
        return figures

    def guard_revoke(self, revoke: UnaryHandler) -> UnaryHandler:
        """LeaseRevoke for tenants: a lease goes with all its keys, so it must hold none of somebody else's."""

        def handle(connection: ServerConnection, stream_id: int, head: Head, message: bytes) -> None:
            try:
                caller = self._callers.resolve_or_wait(connection, head)
                tenant, namespace = caller.tenant, caller.namespace
                assert tenant is not None
                assert namespace is not None
                tenant.take_token()  # for the look at its keys; the call itself is counted as any other
                lease_id = LeaseRevokeRequest.FromString(message).ID
            except ApiError as error:
                connection.fail(stream_id, *error.status)
                return
            except Later as later:
                later.join(again(handle, connection, stream_id, head, message), len(message))
                return
            except DecodeError as error:
                connection.fail(stream_id, *unmarshal_error(error))
                return

            def done(code: int, text: str, reply: LeaseTimeToLiveResponse) -> None:
                if code:
                    connection.fail(stream_id, code, text)
                elif has_foreign_keys(namespace, reply):
                    connection.fail(stream_id, *errors.PERMISSION_DENIED)
                elif stream_id in connection.streams:
                    revoke(connection, stream_id, head, message)

            ask = LeaseTimeToLiveRequest(ID=lease_id, keys=True).SerializeToString()
            read = read_as(LeaseTimeToLiveResponse, done)
            self._upstream.call(TIME_TO_LIVE, ask, read, caller.metadata, head.timeout_s)

        return handle

    def _authenticate(self, connection: ServerConnection, stream_id: int, head: Head, message: bytes) -> None:
        try:
            user = AuthenticateRequest.FromString(message).name
            tenant = self._tenants.of_user(user)
            if tenant is not None:
                tenant.count_request(AUTHENTICATE)
        except DecodeError as error:
            connection.fail(stream_id, *unmarshal_error(error))
        except ApiError as error:
            connection.fail(stream_id, *error.status)
        else:
            done = read_as(AuthenticateResponse, partial(self._on_authenticated, user, connection, stream_id))
            self._upstream.call(AUTHENTICATE, message, done, (), head.timeout_s)

    def _on_authenticated(
        self, user: str, connection: ServerConnection, stream_id: int, code: int, text: str, reply: AuthenticateResponse
    ) -> None:
        if code == 0:
            self._tokens.learn(reply.token, user)
        answer(connection, stream_id, code, text, reply.SerializeToString())

    def _apply(self, file: NamespacesFile) -> None:
        self._tenants.apply(file)
        self._tokens.forget_strangers()
        self._callers.forget()
        self._tracking.follow(self._tenants.all, file.reader)
