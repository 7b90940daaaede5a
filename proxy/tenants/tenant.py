"""One tenant: what it may call, what it uses, and how its calls go through its namespace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from google.protobuf.message import DecodeError

from kvorum.errors import ApiError, Code, Status, unmarshal_error
from kvorum.pb.election_pb2 import CampaignRequest, ProclaimRequest
from kvorum.pb.lock_pb2 import LockRequest
from kvorum.pb.rpc_pb2 import AlarmRequest, CompactionResponse
from proxy import paths
from proxy.namespaces.calls import StripReply
from proxy.namespaces.namespace import Namespace
from proxy.namespaces.passage import OUTWARDS, Later, Passage, Retry
from proxy.paths import ALARM
from proxy.tenants.namespaces_file import TenantEntry
from proxy.tenants.rate import TokenBucket
from proxy.tenants.shares import OwnShare, Share
from proxy.tenants.usage import Growth, Usage

OPEN: Final = frozenset({paths.HEALTH_CHECK, paths.HEALTH_WATCH, paths.AUTHENTICATE})
"""What everybody may call, also who is no tenant."""

ALLOWED: Final = frozenset(
    {
        *OUTWARDS,
        *OPEN,
        paths.WATCH,
        paths.LEASE_GRANT,
        paths.KEEP_ALIVE,
        paths.LEASE_REVOKE,  # of leases that hold no key of others
        paths.MEMBER_LIST,
        paths.STATUS,
        ALARM,  # to see them
        paths.AUTH_STATUS,
    }
) - {paths.ROLE_GET, paths.ROLE_GRANT_PERMISSION, paths.ROLE_REVOKE_PERMISSION}
"""What a tenant may call. The rest reads or changes what belongs to all: Compact, members, users and roles, the whole
store, defragmentation, the lists of all leases."""

MOST_WAITING_BYTES: Final = 16 << 20
WAITING_OVERHEAD_BYTES: Final = 1024
"""Of one tenant's calls that wait for a look at its usage; each counts with its message and the overhead. Beyond that
calls end by the figures at hand."""

SURELY_NOT_MADE: Final = frozenset(Code) - {
    *(Code.OK, Code.CANCELLED, Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.INTERNAL, Code.UNAVAILABLE)
}
"""Codes of writes that were refused; after the others a write may have been made."""


def _growth_of_lock(usage: Usage, request: LockRequest) -> Growth:
    return usage.growth_of_key(b"%s/%x" % (request.name, request.lease), 0)


def _growth_of_campaign(usage: Usage, request: CampaignRequest) -> Growth:
    return usage.growth_of_key(b"%s/%x" % (request.name, request.lease), len(request.value))


def _growth_of_proclaim(usage: Usage, request: ProclaimRequest) -> Growth:
    return usage.growth_of_key(request.leader.key, len(request.value))


_GROWTH: Final[dict[str, Callable[[Usage, Any], Growth]]] = {
    paths.PUT: Usage.growth_of_put,
    paths.TXN: Usage.growth_of_txn,
    paths.LOCK: _growth_of_lock,
    paths.CAMPAIGN: _growth_of_campaign,
    paths.PROCLAIM: _growth_of_proclaim,
}
"""What the calls that store something add, by path."""


class Tenant:
    """What one worker knows of a tenant. `now` is a clock in seconds that does not go back."""

    def __init__(self, entry: TenantEntry, now: Callable[[], float], share: Share | None = None) -> None:
        self._now = now
        self._share: Share = OwnShare() if share is None else share
        self.name: Final = entry.name
        self.namespace = Namespace(entry.namespace)
        self.limits = entry.limits
        self.usage: Usage | None = None
        """Kept where keys or bytes are limited."""
        self._bucket: TokenBucket | None = None
        self.watches = 0
        """Open now, in this worker."""
        self.streams: dict[object, Callable[[Status], None]] = {}
        """What goes on beyond its call's admission, and how it is ended when the tenant is not the same any more."""
        self.requests = 0
        self.refused: dict[str, int] = {"requests_per_second": 0, "watches": 0, "keys": 0, "bytes": 0}
        """Calls that a limit refused, by its name in the file."""
        self._waiting: list[Retry] = []
        self._waiting_bytes = 0
        self._look: bool | None = None  # what the look found, while the calls that waited for it are made again
        self.on_waiting: Callable[[Tenant], None] | None = None
        """Told when calls begin to wait for the usage: it has to be looked at, then `resume` called."""
        self.update(entry)

    def update(self, entry: TenantEntry) -> None:
        """The file says this of it now."""
        assert entry.name == self.name
        self.limits = entry.limits
        rate = entry.limits.requests_per_second
        if rate is None:
            self._bucket = None
        elif self._bucket is None:
            self._bucket = TokenBucket(rate, self._now())
        else:
            self._bucket.set_rate(rate)
        moved = entry.namespace != self.namespace.prefix
        if moved:
            self.namespace = Namespace(entry.namespace)
            self.end_streams(Status(Code.UNAVAILABLE, f'the namespace of tenant "{self.name}" has changed'))
        limited = entry.limits.keys is not None or entry.limits.bytes is not None
        if not limited:
            self.usage = None
        elif self.usage is None or moved:
            self.usage = Usage(len(entry.namespace))

    def enter(self, path: str, message: bytes) -> tuple[bytes, Passage | None]:
        """A call of this tenant: (the request for the server, what its replies go through, or None).

        Raises ApiError for what it may not do, and Later when its usage has to be looked at first.
        """
        if self._look is None:
            self.count_request(path)
        if path == ALARM:
            _check_alarm(message)
        outwards = OUTWARDS.get(path)
        if outwards is None:
            return message, None
        namespace, usage = self.namespace, self.usage
        measure = _GROWTH.get(path) if usage is not None else None
        if usage is None or measure is None:
            message, strip = outwards(namespace, message)
            return message, None if strip is None else Passage(namespace, strip)
        growth = Growth()

        def look(request: Any) -> None:
            nonlocal growth
            growth = measure(usage, request)
            self._check_growth(usage, growth, len(message))

        message, strip = outwards(namespace, message, look)
        usage.hold(growth)
        return message, CountedPassage(namespace, strip, usage, growth, self._now)

    def count_request(self, path: str) -> None:
        """One more call. Raises ApiError when it may not be made, or not now."""
        self.requests += 1
        if path not in ALLOWED:
            text = f'tenant "{self.name}" may not call {path}: it concerns the whole cluster'
            raise ApiError(Status(Code.PERMISSION_DENIED, text))
        self.take_token()

    def take_token(self) -> None:
        """Something costs as much as a call. Raises ApiError when that is too much now."""
        bucket = self._bucket
        if bucket is None:
            return
        share = self._share
        others = share.take_others()
        if others:
            bucket.spend(others)
        if not bucket.take(self._now()):
            raise self._over("requests_per_second", f"{bucket.rate:g}")
        share.add_request()

    def _over(self, limit: str, most: object) -> ApiError:
        self.refused[limit] += 1
        text = f'tenant "{self.name}" is over its limit: {limit} is {most}'
        return ApiError(Status(Code.RESOURCE_EXHAUSTED, text))

    # Watches.

    def open_watch(self) -> None:
        """One more watch. Raises ApiError when there are as many as there may be."""
        most = self.limits.watches
        if most is not None and self._share.watches >= most:
            raise self._over("watches", most)
        self.watches += 1
        self._share.add_watches(1)

    def close_watches(self, count: int) -> None:
        """So many have ended."""
        self.watches -= count
        self._share.add_watches(-count)

    def end_streams(self, status: Status) -> None:
        """What goes on for the tenant ends."""
        for end in list(self.streams.values()):
            end(status)

    # Keys and bytes.

    def _check_growth(self, usage: Usage, growth: Growth, size_bytes: int) -> None:
        is_final = self._look is not None or self._waiting_bytes + size_bytes > MOST_WAITING_BYTES
        if usage.revision is None or not (usage.is_followed or self._look):
            if is_final:
                text = f'what tenant "{self.name}" stores is not known at the moment'
                raise ApiError(Status(Code.UNAVAILABLE, text))
            raise Later(self._join)
        limit = usage.fits(growth, self.limits.keys, self.limits.bytes)
        if limit is None:
            return
        if is_final:
            raise self._over(limit, getattr(self.limits, limit))
        # What others deleted a moment ago may not be counted yet: a limit refuses nothing on old figures.
        raise Later(self._join)

    def _join(self, retry: Retry, size_bytes: int) -> None:
        self._waiting.append(retry)
        self._waiting_bytes += size_bytes + WAITING_OVERHEAD_BYTES
        if self.on_waiting is not None:
            self.on_waiting(self)

    def take_waiting(self) -> list[Retry]:
        """The calls that wait for a look at the usage that begins now."""
        waiting, self._waiting = self._waiting, []
        self._waiting_bytes = 0
        return waiting

    def resume(self, waiting: list[Retry], *, found: bool) -> None:
        """The usage has been looked at since these calls came: they go on, or end. `found`: the figures are what the
        cluster held when the look began, or newer."""
        self._look = found
        try:
            for retry in waiting:
                retry(None)
        finally:
            self._look = None

    def end_waiting(self, status: Status) -> None:
        """The tenant is gone, or the proxy stops."""
        for retry in self.take_waiting():
            retry(status)


class CountedPassage(Passage):
    """The passage of a write that counts against a limit."""

    __slots__ = ("_growth", "_now", "_revision", "_usage")

    def __init__(
        self, namespace: Namespace, strip: StripReply | None, usage: Usage, growth: Growth, now: Callable[[], float]
    ) -> None:
        super().__init__(namespace, strip)
        self._usage = usage
        self._growth = growth
        self._now = now
        self._revision: int | None = None

    def reply(self, message: bytes) -> bytes:
        try:
            # All replies begin with their header, and that is all that this message type has.
            self._revision = CompactionResponse.FromString(message).header.revision
        except DecodeError:
            self._revision = None
        return super().reply(message)

    def end(self, code: int) -> None:
        if code in SURELY_NOT_MADE:
            self._usage.on_refused(self._growth)
        elif code == 0 and self._revision is not None:
            self._usage.on_acknowledged(self._growth, self._revision)
        else:
            self._usage.on_unknown(self._growth, self._now())


def _check_alarm(message: bytes) -> None:
    """To see alarms is allowed, to raise or disarm them is not."""
    try:
        request = AlarmRequest.FromString(message)
    except DecodeError as error:
        raise ApiError(unmarshal_error(error)) from None
    if request.action != AlarmRequest.GET:
        raise ApiError(Status(Code.PERMISSION_DENIED, "a tenant may not raise or disarm alarms"))
