"""Who calls: what a request's metadata and connection say, looked at once for each connection."""

from __future__ import annotations

from typing import Any, Final

from kvorum.wire import grpc
from kvorum.wire.calls import Fields
from kvorum.wire.head import Head
from kvorum.wire.server_connection import ServerConnection
from proxy.namespaces.namespace import Namespace
from proxy.namespaces.passage import Passage, enter
from proxy.upstream.upstream import encode

PASSED_ON: Final = ("token", "authorization", "hasleader", "client-api-version")
"""Metadata that means something to a member."""

MOST_CALLERS: Final = 4096


class Caller:
    """One kind of caller: calls of equal callers may share what goes upstream."""

    __slots__ = ("hasleader", "metadata", "namespace", "tenant", "token")

    def __init__(
        self, token: str, hasleader: bool, metadata: Fields, namespace: Namespace | None, tenant: Any | None
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

    def __init__(self, prefix: bytes = b"") -> None:
        """`prefix`: the namespace of every caller; empty: none."""
        self._namespace = Namespace(prefix) if prefix else None
        self._callers: dict[tuple[Fields, str, str | None], Caller] = {}
        self.generation = 0
        """Changes when the same request may have another caller than before."""

    def resolve(self, connection: ServerConnection, head: Head) -> Caller:
        """Who makes this call. Raises ApiError when nobody may make it."""
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
        connection.context = _Seen(head.metadata, head.authority, self.generation, caller)
        return caller

    def _find(self, connection: ServerConnection, head: Head) -> Caller:
        metadata = head.metadata
        passed = {name: metadata[name] for name in PASSED_ON if name in metadata}
        fields = encode(passed)
        key = (fields, head.authority, connection.peer_common_name)
        caller = self._callers.get(key)
        if caller is None:
            if len(self._callers) >= MOST_CALLERS:
                self._callers.clear()
            token = next((str(passed[name][0]) for name in PASSED_ON[:2] if name in passed), "")
            hasleader = "true" in passed.get("hasleader", ())
            caller = self._callers[key] = Caller(token, hasleader, fields, self._namespace, None)
        return caller
