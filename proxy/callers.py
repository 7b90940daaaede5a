"""Who calls: what a request's metadata and connection say, looked at once for each connection."""

from __future__ import annotations

from functools import partial
from typing import Final

from kvorum.errors import ApiError, Code, Status
from kvorum.wire import grpc
from kvorum.wire.calls import Fields
from kvorum.wire.head import Head
from kvorum.wire.server_connection import ServerConnection
from proxy.namespaces.namespace import Namespace
from proxy.namespaces.passage import Later, Passage, enter
from proxy.tenants.tenant import OPEN, Tenant
from proxy.tenants.tenants import Tenants
from proxy.tenants.tokens import NOT_CHECKED, Tokens, named_user, plain_token
from proxy.upstream.upstream import encode

PASSED_ON: Final = ("token", "authorization", "hasleader", "client-api-version")
"""Metadata that means something to a member."""

_BLANKS: Final = " \t\v\f"
"""Around a value they mean nothing (gRPC over HTTP/2, "ASCII-Value"), and may not be sent on."""

MOST_CALLERS: Final = 4096

NO_TENANT: Final = Status(Code.PERMISSION_DENIED, "no namespace is served to this caller")


class Caller:
    """One kind of caller: calls of equal callers may share what goes upstream."""

    __slots__ = ("hasleader", "metadata", "namespace", "tenant", "token")

    def __init__(
        self, token: str, hasleader: bool, metadata: Fields, namespace: Namespace | None, tenant: Tenant | None
    ) -> None:
        self.token = token
        self.hasleader = hasleader
        self.metadata = metadata
        """For the upstream: token, hasleader, version."""
        self.namespace = namespace
        self.tenant = tenant

    @property
    def prefix(self) -> bytes:
        """Of the namespace; empty: none."""
        return b"" if self.namespace is None else self.namespace.prefix

    @property
    def plain(self) -> bool:
        """Whether the caller's calls need no look: `enter` would change nothing."""
        return self.namespace is None

    def enter(self, path: str, message: bytes) -> tuple[bytes, Passage | None]:
        """A call of this caller's: (the request for the server, what its replies go through, or None).

        Raises ApiError for one that may not be made, and Later when that is not known yet.
        """
        if self.tenant is not None:
            return self.tenant.enter(path, message)
        return (message, None) if self.namespace is None else enter(self.namespace, path, message)


class _Seen:
    """What a connection's last caller was known by."""

    __slots__ = ("authority", "caller", "generation", "metadata")

    def __init__(self, metadata: grpc.Metadata, authority: str, generation: int, caller: Caller) -> None:
        self.metadata = metadata
        self.authority = authority
        self.generation = generation
        self.caller = caller


class Callers:
    """Finds the caller of each request."""

    def __init__(self, prefix: bytes = b"", tenants: Tenants | None = None, tokens: Tokens | None = None) -> None:
        """`prefix`: the namespace of every caller; empty: none. With `tenants` each caller has its tenant's, and
        `tokens` knows whose its token is."""
        assert (tenants is None) == (tokens is None)
        self._namespace = Namespace(prefix) if prefix else None
        self._tenants = tenants
        self._tokens = tokens
        self._callers: dict[tuple[Fields, str, str | None], Caller] = {}
        self.generation = 0
        """Changes when the same request may have another caller than before."""

    def resolve(self, connection: ServerConnection, head: Head) -> Caller:
        """Who makes this call. Raises ApiError when nobody may make it, or when it is not known yet who it is."""
        try:
            return self.resolve_or_wait(connection, head)
        except Later as later:
            later.join(_leave, 0)
            raise ApiError(NOT_CHECKED) from None

    def resolve_or_wait(self, connection: ServerConnection, head: Head) -> Caller:
        """Who makes this call. Raises ApiError when nobody may make it, and Later when it is not known yet who it
        is."""
        seen = connection.context
        # One header block means one decoded head, so identity is enough here, and spares a hash (0.1 against 0.9 us).
        if (
            seen is not None
            and seen.metadata is head.metadata
            and seen.authority is head.authority
            and seen.generation == self.generation
        ):
            caller: Caller = seen.caller
            return caller
        caller = self._find(connection, head)
        if caller.tenant is not None or self._tenants is None:  # else it is for calls that everybody may make
            connection.context = _Seen(head.metadata, head.authority, self.generation, caller)
        return caller

    def forget(self) -> None:
        """Who is who may have changed."""
        self.generation += 1
        self._callers.clear()

    def _find(self, connection: ServerConnection, head: Head) -> Caller:
        metadata = head.metadata
        passed = {
            name: [str(value).strip(_BLANKS) for value in metadata[name]] for name in PASSED_ON if name in metadata
        }
        fields = encode(passed)
        token = next((passed[name][0] for name in PASSED_ON[:2] if name in passed), "")
        hasleader = "true" in passed.get("hasleader", ())
        if self._tenants is not None and head.path in OPEN:
            return Caller(token, hasleader, fields, None, None)
        key = (fields, head.authority, connection.peer_common_name)
        caller = self._callers.get(key)
        if caller is None:
            namespace, tenant = self._namespace, None
            if self._tenants is not None:
                tenant = self._tenant(connection, head, token, fields)
                namespace = tenant.namespace
            if len(self._callers) >= MOST_CALLERS:
                self._callers.clear()
            caller = self._callers[key] = Caller(token, hasleader, fields, namespace, tenant)
        return caller

    def _tenant(self, connection: ServerConnection, head: Head, token: str, fields: Fields) -> Tenant:
        tenants, tokens = self._tenants, self._tokens
        assert tenants is not None
        assert tokens is not None
        user = None
        if token and tenants.knows_users:
            plain = plain_token(token)
            user = tokens.user_of(plain)
            if user is None:
                named = named_user(plain)
                if named is None:
                    raise Later(partial(tokens.find, plain, tenants.users, fields))
                raise Later(partial(tokens.check, plain, named, fields))
        tenant = tenants.find(user, connection.peer_common_name, head.authority)
        if tenant is None:
            raise ApiError(NO_TENANT)
        return tenant


def _leave(_status: Status | None) -> None:
    """The call has ended before it was known whose it is."""
