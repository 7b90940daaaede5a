"""Streams of a locust user, each read by a greenlet of its own: watches, and leases that are kept alive."""

import queue
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import gevent
import grpc
from google.protobuf.message import Message
from locust.exception import StopUser

from kvorum.pb.mvcc_pb2 import Event
from kvorum.pb.rpc_pb2 import (
    LeaseKeepAliveRequest,
    LeaseKeepAliveResponse,
    WatchCancelRequest,
    WatchCreateRequest,
    WatchProgressRequest,
    WatchRequest,
    WatchResponse,
)
from loadtest.checks import LeaseCheck, WatchCheck
from loadtest.messages import stamp_ns
from loadtest.users.run import CallError, FaultError, Run

_REOPEN_S = 0.2
_STREAM_ID = -1  # in a reply that is for all watches of a stream

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)


class _Stream(ABC, Generic[Request, Reply]):
    """A bidirectional call that is opened again when it ends, which is reported as a failure, until the run ends."""

    def __init__(self, run: Run, channel: grpc.Channel, path: str, replies: type[Reply]) -> None:
        if run.stopped.is_set():
            raise StopUser
        self.run = run
        self.name = path.rpartition("/")[2]
        self._method = channel.stream_stream(path, _serialized, replies.FromString)
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._call: Any = None
        self._closed = False
        run.at_end(self.close)
        gevent.spawn(self._read)

    def send(self, request: Request) -> None:
        self._requests.put(request)

    def close(self) -> None:
        self._closed = True
        if self._call is not None:
            self._call.cancel()

    @abstractmethod
    def on_open(self) -> None:
        """A new call has begun: says again what the last one was told."""

    @abstractmethod
    def on_reply(self, reply: Reply) -> None:
        """One of the server's messages."""

    def _read(self) -> None:
        while not self._closed:
            self._call = self._method(iter(self._requests.get, None))
            error: Exception = FaultError("the server ended the stream")
            try:
                for reply in self._call:
                    self.on_reply(reply)
            except grpc.RpcError as ended:
                error = CallError(ended)
            except Exception:
                self._call.cancel()
                self.run.failed("stream", self.name, 0.0, FaultError("the reader broke"))
                raise
            finally:
                self._requests.put(None)
            if not self._closed:
                self.run.failed("stream", self.name, 0.0, error)
                gevent.sleep(_REOPEN_S)
                self._requests = queue.SimpleQueue()
                self.on_open()


class Watch:
    """One watch of a stream; the check knows where it stands."""

    __slots__ = ("asked", "cancelled", "check", "name", "on_event", "request", "watch_id")

    def __init__(
        self, name: str, request: WatchCreateRequest, check: WatchCheck, on_event: Callable[[Event], None] | None
    ) -> None:
        self.name = name
        self.request = request
        self.check = check
        self.on_event = on_event
        self.watch_id: int | None = None
        self.asked = 0.0
        self.cancelled = False


class WatchStream(_Stream[WatchRequest, WatchResponse]):
    """Any number of watches. Reports how long each create takes and, from the values' stamps, each event."""

    def __init__(self, run: Run, channel: grpc.Channel) -> None:
        self._watches: dict[int, Watch] = {}
        self._creating: deque[Watch] = deque()  # created replies come in the order of the creates
        self._progress_asked: float | None = None
        super().__init__(run, channel, "/etcdserverpb.Watch/Watch", WatchResponse)

    def watch(
        self,
        name: str,
        key: bytes,
        range_end: bytes,
        check: WatchCheck,
        *,
        on_event: Callable[[Event], None] | None = None,
        prev_kv: bool = False,
        progress_notify: bool = False,
    ) -> Watch:
        """Watches a range from where its check stands; its events are reported under that name."""
        request = WatchCreateRequest(key=key, range_end=range_end, prev_kv=prev_kv, progress_notify=progress_notify)
        watch = Watch(name, request, check, on_event)
        self.run.expect(name, check)
        self._create(watch)
        return watch

    def cancel(self, watch: Watch) -> None:
        """Nothing more is expected of this watch."""
        watch.cancelled = True
        self.run.forget(watch.check)
        if watch.watch_id is not None:
            self.send(WatchRequest(cancel_request=WatchCancelRequest(watch_id=watch.watch_id)))

    def ask_progress(self) -> None:
        """The answer, which a server may withhold, is reported."""
        if self._progress_asked is None:
            self._progress_asked = time.perf_counter()
        self.send(WatchRequest(progress_request=WatchProgressRequest()))

    def on_open(self) -> None:
        living = [*self._watches.values(), *self._creating]
        self._watches.clear()
        self._creating.clear()
        self._progress_asked = None
        for watch in living:
            if not watch.cancelled:
                self._create(watch)

    def on_reply(self, reply: WatchResponse) -> None:
        if reply.created:
            self._created(reply)
        elif reply.watch_id == _STREAM_ID:
            if self._progress_asked is not None:
                self.run.done("grpc", "Watch progress", time.perf_counter() - self._progress_asked)
                self._progress_asked = None
            for each in self._watches.values():
                self.run.report(each.name, each.check.take(reply))
        elif (watch := self._watches.get(reply.watch_id)) is None:
            self.run.failed("stream", self.name, 0.0, FaultError("a reply for a watch that does not exist"))
        elif reply.canceled:
            del self._watches[reply.watch_id]
            if not watch.cancelled:
                self.run.failed("stream", self.name, 0.0, FaultError(f"watch canceled: {reply.cancel_reason}"))
        elif not watch.cancelled:
            self._events(watch, reply)

    def _create(self, watch: Watch) -> None:
        watch.watch_id = None
        watch.asked = time.perf_counter()
        watch.request.start_revision = watch.check.position + 1
        self._creating.append(watch)
        self.send(WatchRequest(create_request=watch.request))

    def _created(self, reply: WatchResponse) -> None:
        watch = self._creating.popleft()
        seconds = time.perf_counter() - watch.asked
        if reply.canceled:
            self.run.failed("grpc", "Watch create", seconds, FaultError(f"refused: {reply.cancel_reason}"))
            return
        watch.watch_id = reply.watch_id
        self._watches[reply.watch_id] = watch
        self.run.done("grpc", "Watch create", seconds)
        if watch.cancelled:
            self.send(WatchRequest(cancel_request=WatchCancelRequest(watch_id=reply.watch_id)))

    def _events(self, watch: Watch, reply: WatchResponse) -> None:
        now_ns = time.time_ns()
        self.run.report(watch.name, watch.check.take(reply))
        for event in reply.events:
            if event.type == Event.PUT:
                self.run.done("event", watch.name, (now_ns - stamp_ns(event.kv.value)) / 1e9, len(event.kv.value))
            if watch.on_event is not None:
                watch.on_event(event)


class KeepAliveStream(_Stream[LeaseKeepAliveRequest, LeaseKeepAliveResponse]):
    """Keeps leases alive. Reports how long each ask waits for its reply."""

    def __init__(self, run: Run, channel: grpc.Channel, check: LeaseCheck, granted_ttl_s: int) -> None:
        self._check = check
        self._granted_ttl_s = granted_ttl_s
        super().__init__(run, channel, "/etcdserverpb.Lease/LeaseKeepAlive", LeaseKeepAliveResponse)
        run.expect(self.name, check)

    def ask(self, lease_id: int) -> None:
        self._check.asked(lease_id, time.perf_counter())
        self.send(LeaseKeepAliveRequest(ID=lease_id))

    def on_open(self) -> None:
        self._check.broken()

    def on_reply(self, reply: LeaseKeepAliveResponse) -> None:
        asked, faults = self._check.answered(reply.ID, reply.TTL, self._granted_ttl_s)
        self.run.report(self.name, faults)
        if asked is not None:
            self.run.done("grpc", self.name, time.perf_counter() - asked)


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()
