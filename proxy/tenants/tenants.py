"""All tenants of a worker: which of them a caller is."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kvorum.errors import Code, Status
from proxy.tenants.namespaces_file import NamespacesFile, Reader
from proxy.tenants.shares import Shares
from proxy.tenants.tenant import Tenant


class Tenants:
    """The tenants of the namespaces file, and what they have used so far."""

    def __init__(self, now: Callable[[], float], shares: Shares | None = None) -> None:
        """`shares`: what other workers use; None for a worker that is alone."""
        self._now = now
        self._shares = shares
        self._by_name: dict[str, Tenant] = {}
        self._by_user: dict[str, Tenant] = {}
        self._by_common_name: dict[str, Tenant] = {}
        self._by_authority: dict[str, Tenant] = {}
        self._default: Tenant | None = None
        self.reader: Reader | None = None

    def apply(self, file: NamespacesFile) -> None:
        """From now on the file says this. Tenants whose name it still has go on with what they have used."""
        before = self._by_name
        self._by_name, self._by_user, self._by_common_name, self._by_authority = {}, {}, {}, {}
        self._default = None
        self.reader = file.reader
        for entry in file.tenants:
            tenant = before.get(entry.name)
            if tenant is None:
                tenant = Tenant(entry, self._now, None if self._shares is None else self._shares.row(entry.name))
            else:
                tenant.update(entry)
            self._by_name[entry.name] = tenant
            self._by_user.update(dict.fromkeys(entry.users, tenant))
            self._by_common_name.update(dict.fromkeys(entry.common_names, tenant))
            self._by_authority.update(dict.fromkeys(entry.authorities, tenant))
            if entry.default:
                self._default = tenant
        for name, tenant in before.items():
            if name not in self._by_name:
                status = Status(Code.PERMISSION_DENIED, f'tenant "{name}" is not served any more')
                tenant.end_waiting(status)
                tenant.end_streams(status)

    @property
    def all(self) -> Iterable[Tenant]:
        return self._by_name.values()

    @property
    def knows_users(self) -> bool:
        """Whether it matters whose token a caller sends."""
        return bool(self._by_user)

    @property
    def users(self) -> Iterable[str]:
        """Those that the file names."""
        return self._by_user.keys()

    def of_user(self, user: str) -> Tenant | None:
        """Whose the user is, by the file; the default is not meant."""
        return self._by_user.get(user)

    def find(self, user: str | None, common_name: str | None, authority: str) -> Tenant | None:
        """Who calls: by the user, else by the certificate's common name, else by the authority, else the default."""
        tenant = None
        if user is not None:
            tenant = self._by_user.get(user)
        if tenant is None and common_name is not None:
            tenant = self._by_common_name.get(common_name)
        if tenant is None and self._by_authority:
            asked = authority.lower()
            tenant = self._by_authority.get(asked)
            if tenant is None:
                host, colon, port = asked.rpartition(":")
                if colon and port.isdigit():
                    tenant = self._by_authority.get(host)
        return tenant if tenant is not None else self._default
