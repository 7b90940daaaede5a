"""A member's watch machinery with a proxy's in front of it, wired together in one process."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import Any

from kvorum.errors import Code
from kvorum.pb.rpc_pb2 import RangeRequest, ResponseHeader, StatusResponse, TxnRequest, TxnResponse
from kvorum.wire.calls import CallHandler, Fields, UnaryDone
from proxy.tenants.tenant import Tenant
from proxy.watch.service import WatchService
from tests.watch.assembly import CLUSTER_ID, MEMBER_ID, TERM, Client, Head, World

DENIED = (Code.PERMISSION_DENIED, "etcdserver: permission denied")


class Member(World):
    """A member whose `run` brings the proxy to rest, too."""

    outer: ProxyWorld

    def run(self) -> None:
        self.outer.settle()

    def run_alone(self) -> None:
        super().run()


class UpstreamEnd:
    """A stream between proxy and member; what is sent lies on the way until a step."""

    def __init__(self, client: Client, handler: CallHandler, fields: Fields) -> None:
        self.client = client
        self.handler: CallHandler | None = handler
        self.fields = fields
        self.sent: deque[bytes] = deque()
        self.requests = 0
        self.writable = True

    def send_framed(self, framed: bytes) -> None:
        assert self.writable
        at = 0
        while at < len(framed):
            _, size = struct.unpack_from(">BI", framed, at)
            self.sent.append(framed[at + 5 : at + 5 + size])
            at += 5 + size

    def cancel(self) -> None:
        self.end(Code.CANCELLED, "context canceled")

    def end(self, code: int, text: str) -> None:
        handler, self.handler = self.handler, None
        if handler is not None:
            if self.client.handler is not None and not self.client.handler.ended:
                self.client.handler.on_cancel(None)
            handler.on_end(code, text, {})

    def step_requests(self, most: int = 1 << 30) -> bool:
        """Requests reach the member."""
        moved = False
        while self.sent and self.handler is not None and most:
            message = self.sent.popleft()
            self.requests += 1
            assert self.client.handler is not None
            if self.client.reading:
                self.client.handler.on_message(message)
            else:
                self.client.held.append(message)
            most -= 1
            moved = True
        return moved

    def step_replies(self, most: int = 1 << 30) -> bool:
        """Replies reach the proxy."""
        moved = False
        while self.client.buffer and self.handler is not None and most:
            message = self.client.buffer[0]
            self.client.read(1)
            self.client.replies.clear()
            self.handler.on_message(message[5:])
            most -= 1
            moved = True
        if self.handler is not None and self.client.status is not None:
            self.end(*self.client.status)
        return moved


class Call:
    """A unary call on its way."""

    def __init__(self, path: str, message: bytes, done: UnaryDone, fields: Fields) -> None:
        self.path = path
        self.message = message
        self.done = done
        self.fields = fields


class FakeUpstream:
    """The way to the cluster: one of a world's fronts at a time."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.endpoint = 0
        self.up = True
        self.ends: list[UpstreamEnd] = []
        self.calls: deque[Call] = deque()
        self.listeners: list[Callable[[], None]] = []
        self.denied: set[bytes] = set()
        self.version = "3.7.0"
        self.status_code = 0
        self.most_ranges = 128
        self.checks = 0
        self.opened = 0
        self.refusing: deque[UpstreamEnd] = deque()

    def call(
        self,
        path: str,
        message: bytes,
        done: UnaryDone,
        metadata: Fields | None = None,
        timeout_s: float | None = None,
    ) -> None:
        assert metadata is not None
        self.calls.append(Call(path, message, done, metadata))

    def open(self, path: str, handler: CallHandler, metadata: Fields) -> UpstreamEnd:
        assert path == "/etcdserverpb.Watch/Watch"
        self.opened += 1
        client = Client(1 << 40)
        end = UpstreamEnd(client, handler, metadata)
        if self.up:
            client.handler = self.member.fronts[self.endpoint].service.open(client, Head())
            self.ends.append(end)
        else:
            self.refusing.append(end)
        return end

    # what the world does to it

    def step_calls(self) -> bool:
        moved = bool(self.calls or self.refusing)
        calls, self.calls = self.calls, deque()
        for call in calls:
            if not self.up:
                call.done(Code.UNAVAILABLE, "connection error: refused", b"")
            elif call.path.endswith("/Status"):
                status = StatusResponse(version=self.version, header=self._header())
                call.done(self.status_code, "", b"" if self.status_code else status.SerializeToString())
            else:
                self._txn(call)
        while self.refusing:
            self.refusing.popleft().end(Code.UNAVAILABLE, "connection error: refused")
        return moved

    def _txn(self, call: Call) -> None:
        request = TxnRequest.FromString(call.message)
        self.checks += 1
        ranges = [operation.request_range for operation in request.success]
        assert ranges and not request.failure and all(isinstance(one, RangeRequest) for one in ranges)
        assert all(one.serializable for one in ranges), "a check would wait for the leader"
        (never,) = request.compare
        assert (never.result, never.target, never.version) == (never.LESS, never.VERSION, 0)
        if len(ranges) > self.most_ranges:
            call.done(Code.INVALID_ARGUMENT, "etcdserver: too many operations in txn request", b"")
        elif {never.key, *[one.key for one in ranges]} & self.denied:
            call.done(*DENIED, b"")
        else:
            call.done(0, "", TxnResponse(header=self._header()).SerializeToString())

    def _header(self) -> ResponseHeader:
        revision = self.member.store.revision
        return ResponseHeader(cluster_id=CLUSTER_ID, member_id=MEMBER_ID, raft_term=TERM, revision=revision)

    def lose(self) -> None:
        """The connection is lost: all that is under way ends."""
        ends, self.ends = self.ends, []
        for end in ends:
            end.end(Code.UNAVAILABLE, "connection lost")
        calls, self.calls = self.calls, deque()
        for call in calls:
            call.done(Code.UNAVAILABLE, "connection lost", b"")

    def stall(self, stalled: bool) -> None:
        """Whether the streams to the member take nothing."""
        for end in list(self.ends):
            was, end.writable = end.writable, not stalled
            if not was and not stalled and end.handler is not None:
                end.handler.on_writable()

    def switch(self) -> None:
        """Another endpoint is in use; what was opened at the last one goes on there until it is given up."""
        self.endpoint = (self.endpoint + 1) % len(self.member.fronts)
        for listener in self.listeners:
            listener()


class ProxyClient(Client):
    """A client of the proxy."""

    connection = None

    def offer(self, framed: bytes, messages: int) -> bool:
        if not self.writable:
            return False
        self.send_framed(framed, messages)
        return True


class Caller:
    """Who calls."""

    def __init__(self, metadata: Fields, prefix: bytes, tenant: Tenant | None) -> None:
        self.metadata = metadata
        self.prefix = prefix
        self.tenant = tenant


class ProxyWorld:
    """A member and a proxy; to tests it looks as a member's world does."""

    def __init__(self, *, prefix: bytes = b"", **member: Any) -> None:
        self.member = Member(**member)
        self.member.outer = self
        self.upstream = FakeUpstream(self.member)
        self.soon: list[Callable[[], None]] = []
        self.prefix = prefix
        self.tenant: Tenant | None = None
        self.service = WatchService(
            self.upstream,
            lambda _, head: Caller(tuple(head.metadata.items()), self.prefix, self.tenant),
            call_soon=self.soon.append,
            call_later=self.member.call_later,
            now=lambda: self.member.now_s,
        )
        self.upstream.listeners.append(self.service.move)
        self.fronts = [self]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.member, name)

    def open(self, mark_bytes: int = 1 << 20, metadata: dict[str, Any] | None = None) -> ProxyClient:
        """A new Watch stream through the proxy."""
        client = ProxyClient(mark_bytes)
        client.handler = self.service.open(client, Head(metadata))  # type: ignore[assignment]  # same methods
        return client

    def step_soon(self) -> bool:
        soon, self.soon[:] = list(self.soon), []
        for callback in soon:
            callback()
        return bool(soon)

    def fire(self, seconds: float) -> None:
        """Time passes, and what is due is done; nothing else moves."""
        member = self.member
        member.now_s += seconds
        due = [timer for timer in member.timers if not timer.canceled and timer.at_s <= member.now_s]
        member.timers = [timer for timer in member.timers if timer not in due]
        for timer in sorted(due, key=lambda one: one.at_s):
            if not timer.canceled:
                timer.callback()

    def settle(self) -> None:
        """Until nothing moves any more, but for timers."""
        upstream = self.upstream
        for _ in range(10_000):
            moved = self.step_soon()
            moved |= upstream.step_calls()
            for end in list(upstream.ends):
                moved |= end.step_requests()
            self.member.run_alone()
            for end in list(upstream.ends):
                moved |= end.step_replies()
            if not moved and not self.soon:
                return
        raise AssertionError("it never comes to rest")

    def run(self) -> None:
        """Until nothing moves, and time enough for what the proxy does a moment later."""
        self.settle()
        self.member.pass_time(0.03)

    def pass_time(self, seconds: float) -> None:
        self.member.pass_time(seconds)

    @property
    def upstream_watches(self) -> int:
        """Watches at the member, as it sees them."""
        return sum(front.deliveries.watches for front in self.member.fronts)
