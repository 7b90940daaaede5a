"""The v3 API over grpcio, with the messages of kvorum.pb: a call is chosen by the type of its request."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from kvorum.errors import ApiError, Code, Status
from kvorum.pb import election_pb2, health_pb2, lock_pb2, rpc_pb2
from kvorum.pb.rpc_pb2 import LeaseKeepAliveRequest, LeaseKeepAliveResponse, WatchRequest, WatchResponse

CALL_TIMEOUT_S = 30.0
WAIT_S = 15.0
Metadata = Sequence[tuple[str, str]]
Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)
T = TypeVar("T")
Methods = dict[type[Message], tuple[str, type[Message]]]


def _methods() -> tuple[Methods, Methods]:
    """(unary, server-streaming): the request's class to (path, the reply's class)."""
    unary: Methods = {}
    streaming: Methods = {}
    for module in (rpc_pb2, lock_pb2, election_pb2, health_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                request, reply = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
                if not method.client_streaming:
                    kind = streaming if method.server_streaming else unary
                    kind[request] = (f"/{service.full_name}/{method.name}", reply)
    return unary, streaming


_UNARY, _STREAMING = _methods()
OK = Status(Code.OK, "")


def status_of(error: grpc.RpcError) -> Status:
    """The code and message that a call ended with."""
    return Status(Code(error.code().value[0]), error.details() or "")


class Stream(Generic[Request, Reply]):
    """A bidirectional call: `send` requests, `wait` on the list of all replies so far, `close` to cancel it."""

    def __init__(self, method: Callable[..., Any], metadata: Metadata = ()) -> None:
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self.replies: list[Reply] = []
        self.status: Status | None = None
        self._call = method(iter(self._requests.get, None), metadata=tuple(metadata))
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        status = OK
        try:
            for reply in self._call:
                with self._changed:
                    self.replies.append(reply)
                    self._changed.notify_all()
        except grpc.RpcError as error:
            status = status_of(error)
        with self._changed:
            self.status = status
            self._changed.notify_all()

    def send(self, request: Request) -> None:
        self._requests.put(request)

    def half_close(self) -> None:
        """Ends the requests; the replies go on."""
        self._requests.put(None)

    def wait(self, found: Callable[[list[Reply]], T], timeout_s: float = WAIT_S) -> T:
        """The first true result of `found(replies)`; raises when the stream ends or the time is over before that."""
        with self._changed:
            deadline = time.monotonic() + timeout_s
            while not (result := found(self.replies)):
                if self.status is not None:
                    raise AssertionError(f"the stream ended with {self.status}; replies: {self.replies}")
                if not self._changed.wait(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                    raise AssertionError(f"not seen within {timeout_s} s; replies: {self.replies}")
            return result

    def ended(self, timeout_s: float = WAIT_S) -> Status:
        """The status the stream ends with."""
        self._reader.join(timeout_s)
        assert self.status is not None, f"still open after {timeout_s} s; replies: {self.replies}"
        return self.status

    def close(self) -> None:
        self._requests.put(None)
        self._call.cancel()
        self._reader.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


WatchStream = Stream[WatchRequest, WatchResponse]
KeepAliveStream = Stream[LeaseKeepAliveRequest, LeaseKeepAliveResponse]


class Api:
    """One connection to one server. `api(request)` makes the call of that request."""

    def __init__(self, address: str, *, metadata: Metadata = (), authority: str | None = None) -> None:
        self.address = address
        self.metadata = tuple(metadata)
        self._calls: dict[type[Message], Any] = {}
        self._channel = grpc.insecure_channel(
            address,
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.use_local_subchannel_pool", 1),  # a connection of its own
                ("grpc.enable_retries", 0),
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.min_reconnect_backoff_ms", 5000),  # the deadline of one attempt, despite its name
                ("grpc.max_reconnect_backoff_ms", 200),
                *([("grpc.default_authority", authority)] if authority is not None else []),
            ],
        )

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __call__(
        self,
        request: Message,
        *,
        metadata: Metadata = (),
        timeout_s: float = CALL_TIMEOUT_S,
        wait_for_ready: bool = False,
    ) -> Any:
        """The reply to a unary call; raises ApiError. `wait_for_ready` awaits a lost connection."""
        kind = type(request)
        call = self._calls.get(kind)
        if call is None:
            path, reply = _UNARY[kind]
            call = self._calls[kind] = self._channel.unary_unary(path, _serialize, reply.FromString)
        try:
            metadata = (*self.metadata, *metadata)
            return call(request, timeout=timeout_s, metadata=metadata, wait_for_ready=wait_for_ready)
        except grpc.RpcError as error:
            raise ApiError(status_of(error)) from None

    def outcome(self, request: Message, **options: Any) -> Any:
        """The reply, or the Status the call failed with."""
        try:
            return self(request, **options)
        except ApiError as error:
            return error.status

    def status(self, request: Message, **options: Any) -> Status:
        """The status alone."""
        outcome = self.outcome(request, **options)
        return outcome if isinstance(outcome, Status) else OK

    def stream(self, request: Message, *, timeout_s: float = CALL_TIMEOUT_S) -> Iterator[Any]:
        """The replies of a server-streaming call; raises ApiError."""
        path, reply = _STREAMING[type(request)]
        call = self._channel.unary_stream(path, _serialize, reply.FromString)
        try:
            yield from call(request, timeout=timeout_s, metadata=self.metadata)
        except grpc.RpcError as error:
            raise ApiError(status_of(error)) from None

    def watch(self, metadata: Metadata = ()) -> WatchStream:
        """An open Watch stream."""
        path = "/etcdserverpb.Watch/Watch"
        return Stream(self._channel.stream_stream(path, _serialize, WatchResponse.FromString), metadata)

    @contextlib.contextmanager
    def watch_unread(
        self, requests: Sequence[WatchRequest], *, wait_for_ready: bool = False, timeout_s: float | None = None
    ) -> Iterator[Iterator[WatchResponse]]:
        """A Watch stream whose replies nobody reads from the socket before the caller asks for the next."""
        path = "/etcdserverpb.Watch/Watch"
        pending: queue.SimpleQueue[WatchRequest | None] = queue.SimpleQueue()
        for request in requests:
            pending.put(request)
        method = self._channel.stream_stream(path, _serialize, WatchResponse.FromString)
        call = method(iter(pending.get, None), wait_for_ready=wait_for_ready, timeout=timeout_s)
        try:
            yield call
        finally:
            pending.put(None)
            call.cancel()

    def keep_alive(self, metadata: Metadata = ()) -> KeepAliveStream:
        """An open LeaseKeepAlive stream."""
        path = "/etcdserverpb.Lease/LeaseKeepAlive"
        return Stream(self._channel.stream_stream(path, _serialize, LeaseKeepAliveResponse.FromString), metadata)

    def raw(self, path: str, body: bytes, *, metadata: Metadata = (), **options: Any) -> tuple[Status, bytes]:
        """A unary call with any path and body: its status and the reply's bytes (empty when it failed)."""
        try:
            call = self._channel.unary_unary(path)
            return OK, call(body, timeout=CALL_TIMEOUT_S, metadata=(*self.metadata, *metadata), **options)
        except grpc.RpcError as error:
            return status_of(error), b""


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
