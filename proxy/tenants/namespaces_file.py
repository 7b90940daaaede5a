"""The namespaces file: which callers are which tenant, where a tenant's keys are, and how much it may use.

reader:                      # who the proxy is where it counts what tenants store; only with auth enabled
  user: counter
  password: secret
tenants:
  - name: alpha
    namespace: alpha/
    users: [alice, bob]
    common_names: [alpha-client]
    authorities: [alpha.example.com]
    limits: {requests_per_second: 500, watches: 1000, keys: 10000, bytes: 67108864}
  - name: rest
    namespace: rest/
    default: true
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import yaml

MOST_TENANTS: Final = 10_000
MOST_NAMESPACE_BYTES: Final = 1024


class NamespacesFileError(Exception):
    """The file cannot be used; the text names file, line and field."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tenant may use; None: as much as it likes."""

    requests_per_second: float | None = None
    watches: int | None = None
    """At one time."""
    keys: int | None = None
    bytes: int | None = None
    """Of names, as the tenant knows them, and of values."""


NO_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantEntry:
    """One tenant of the file."""

    name: str
    namespace: bytes
    users: tuple[str, ...] = ()
    common_names: tuple[str, ...] = ()
    authorities: tuple[str, ...] = ()
    """Lower case; without a port: for every port."""
    default: bool = False
    limits: Limits = NO_LIMITS


@dataclass(frozen=True, slots=True)
class Reader:
    """A user who may read all namespaces."""

    user: str
    password: str


@dataclass(frozen=True, slots=True)
class NamespacesFile:
    """What the file says; checked."""

    tenants: tuple[TenantEntry, ...]
    reader: Reader | None = None


def parse_namespaces_file(text: str | bytes, path: str) -> NamespacesFile:
    """Read the file's text; `path` is for the errors. Raises NamespacesFileError."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark is not None else path
        raise NamespacesFileError(f"{where}: no valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise NamespacesFileError(f"{path}: no valid YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:  # of the parser, after some hundred levels
        raise NamespacesFileError(f"{path}: no valid YAML: nested too deeply") from None
    if root is None:
        raise NamespacesFileError(f"{path}: the file is empty")
    return _File(path).read(root)


def _text_of(node: yaml.Node) -> str:
    """A node as messages show it."""
    if isinstance(node, yaml.ScalarNode):
        return f'"{node.value}"' if len(node.value) <= 40 else f'"{node.value[:40]}…"'
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


class _File:
    """Reads the nodes of one file, and knows for errors where they stand."""

    def __init__(self, path: str) -> None:
        self._path = path

    def read(self, root: yaml.Node) -> NamespacesFile:
        fields = self._fields(root, "", required=("tenants",), optional=("reader",))
        reader = self._reader(fields["reader"]) if "reader" in fields else None
        nodes = self._items(fields["tenants"], "tenants")
        if not nodes:
            raise self._error(fields["tenants"], "tenants", "has no tenant")
        if len(nodes) > MOST_TENANTS:
            raise self._error(fields["tenants"], "tenants", f"has {len(nodes)} tenants; {MOST_TENANTS} are the most")
        tenants = [self._tenant(node, f"tenants[{index}]") for index, node in enumerate(nodes)]
        self._check_unique(nodes, tenants)
        self._check_overlap(nodes, tenants)
        return NamespacesFile(tuple(tenants), reader)

    def _reader(self, node: yaml.Node) -> Reader:
        fields = self._fields(node, "reader", required=("user", "password"))
        user = self._string(fields["user"], "reader.user")
        return Reader(user, self._string(fields["password"], "reader.password", empty=True))

    def _tenant(self, node: yaml.Node, where: str) -> TenantEntry:
        lists = ("users", "common_names", "authorities")
        fields = self._fields(node, where, required=("name", "namespace"), optional=(*lists, "default", "limits"))
        names = {
            name: tuple(
                self._string(item, f"{where}.{name}[{index}]")
                for index, item in enumerate(self._items(fields[name], f"{where}.{name}"))
            )
            for name in lists
            if name in fields
        }
        default = self._flag(fields["default"], f"{where}.default") if "default" in fields else False
        if not default and not any(names.values()):
            raise self._error(node, where, "nobody is this tenant: give users, common_names, authorities or default")
        return TenantEntry(
            name=self._string(fields["name"], f"{where}.name"),
            namespace=self._namespace(fields["namespace"], f"{where}.namespace"),
            users=names.get("users", ()),
            common_names=names.get("common_names", ()),
            authorities=tuple(authority.lower() for authority in names.get("authorities", ())),
            default=default,
            limits=self._limits(fields["limits"], f"{where}.limits") if "limits" in fields else NO_LIMITS,
        )

    def _limits(self, node: yaml.Node, where: str) -> Limits:
        fields = self._fields(node, where, optional=("requests_per_second", "watches", "keys", "bytes"))
        rate = None
        if "requests_per_second" in fields:
            rate = self._rate(fields["requests_per_second"], f"{where}.requests_per_second")
        counts = {
            name: self._count(fields[name], f"{where}.{name}")
            for name in ("watches", "keys", "bytes")
            if name in fields
        }
        return Limits(rate, counts.get("watches"), counts.get("keys"), counts.get("bytes"))

    # Checks over all tenants.

    def _check_unique(self, nodes: list[yaml.Node], tenants: list[TenantEntry]) -> None:
        kinds: tuple[tuple[str, Callable[[TenantEntry], tuple[object, ...]]], ...] = (
            ("name", lambda tenant: (tenant.name,)),
            ("users", lambda tenant: tenant.users),
            ("common_names", lambda tenant: tenant.common_names),
            ("authorities", lambda tenant: tenant.authorities),
            ("default", lambda tenant: (True,) if tenant.default else ()),
        )
        for field, values in kinds:
            first: dict[object, int] = {}
            for index, tenant in enumerate(tenants):
                for value in values(tenant):
                    other = first.setdefault(value, index)
                    if other != index or values(tenant).count(value) > 1:
                        shown = "the default" if field == "default" else f'"{value}"'
                        text = f"{shown} is already {self._who(tenants[other], other)}"
                        raise self._error(nodes[index], f"tenants[{index}].{field}", text)

    def _check_overlap(self, nodes: list[yaml.Node], tenants: list[TenantEntry]) -> None:
        order = sorted(range(len(tenants)), key=lambda index: tenants[index].namespace)
        for before, after in itertools.pairwise(order):
            # In byte order a prefix of any later namespace is one of its next.
            if tenants[after].namespace.startswith(tenants[before].namespace):
                later, earlier = max(before, after), min(before, after)
                text = (
                    f"{tenants[later].namespace!r} overlaps the namespace {tenants[earlier].namespace!r} "
                    f"of {self._who(tenants[earlier], earlier)}: none may be a prefix of another"
                )
                raise self._error(nodes[later], f"tenants[{later}].namespace", text)

    @staticmethod
    def _who(tenant: TenantEntry, index: int) -> str:
        return f'tenants[{index}] "{tenant.name}"'

    # Values.

    def _error(self, node: yaml.Node, field: str, text: str) -> NamespacesFileError:
        return NamespacesFileError(f"{self._path}:{node.start_mark.line + 1}: {field + ': ' if field else ''}{text}")

    def _fields(
        self, node: yaml.Node, where: str, *, required: tuple[str, ...] = (), optional: tuple[str, ...] = ()
    ) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            raise self._error(node, where, f"must be a mapping, not {_text_of(node)}")
        known = (*required, *optional)
        fields: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name not in known:
                shown = _text_of(key)
                raise self._error(key, where, f"unknown field {shown}; known are {', '.join(known)}")
            if name in fields:
                raise self._error(key, where, f'the field "{name}" is given twice')
            fields[name] = value
        for name in required:
            if name not in fields:
                raise self._error(node, where, f'the field "{name}" is missing')
        return fields

    def _items(self, node: yaml.Node, where: str) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode):
            raise self._error(node, where, f"must be a list, not {_text_of(node)}")
        return list(node.value)

    def _scalars(self, node: yaml.Node, tags: tuple[str, ...]) -> Iterator[Any]:
        """The value of a scalar of one of these YAML types; nothing for another."""
        if isinstance(node, yaml.ScalarNode) and node.tag.removeprefix("tag:yaml.org,2002:") in tags:
            loader = yaml.SafeLoader("")
            try:
                value = loader.construct_object(node)
                if isinstance(value, str):
                    value.encode()  # half of a surrogate pair is no character
                yield value
            except (yaml.YAMLError, ValueError):
                return
            finally:
                loader.dispose()

    def _string(self, node: yaml.Node, where: str, *, empty: bool = False) -> str:
        for value in self._scalars(node, ("str",)):
            if value or empty:
                return str(value)
            raise self._error(node, where, "must not be empty")
        raise self._error(node, where, f"must be a string, not {_text_of(node)}; quote it if it is meant as one")

    def _namespace(self, node: yaml.Node, where: str) -> bytes:
        for value in self._scalars(node, ("str", "binary")):
            namespace = value.encode() if isinstance(value, str) else bytes(value)
            if not namespace:
                raise self._error(node, where, "must not be empty")
            if len(namespace) > MOST_NAMESPACE_BYTES:
                raise self._error(node, where, f"has {len(namespace)} bytes; {MOST_NAMESPACE_BYTES} are the most")
            return namespace
        raise self._error(node, where, f"must be a string, not {_text_of(node)}; quote it if it is meant as one")

    def _flag(self, node: yaml.Node, where: str) -> bool:
        for value in self._scalars(node, ("bool",)):
            return bool(value)
        raise self._error(node, where, f"must be true or false, not {_text_of(node)}")

    def _count(self, node: yaml.Node, where: str) -> int:
        for value in self._scalars(node, ("int",)):
            if 0 <= value < 1 << 62:
                return int(value)
        raise self._error(node, where, f"must be a whole number, 0 or above, not {_text_of(node)}")

    def _rate(self, node: yaml.Node, where: str) -> float:
        for value in self._scalars(node, ("int", "float")):
            if 0 < value <= 1e9 and math.isfinite(value):
                return float(value)
        raise self._error(node, where, f"must be a number above 0, not {_text_of(node)}")
