"""A locust user with a connection to the cluster: calls that are timed, reported and checked."""

import time
from collections.abc import Callable
from typing import NoReturn, Protocol, TypeVar

import grpc
from google.protobuf.message import Message
from locust import User, constant, constant_throughput
from locust.env import Environment
from locust.exception import RescheduleTask, StopUser

from kvorum.pb.rpc_pb2 import (
    DeleteRangeRequest,
    DeleteRangeResponse,
    LeaseGrantRequest,
    LeaseGrantResponse,
    LeaseRevokeRequest,
    LeaseRevokeResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    ResponseHeader,
    TxnRequest,
    TxnResponse,
)
from kvorum.ranges import end_of_prefix
from loadtest.checks import AckedWrites
from loadtest.users.run import CALL_TIMEOUT_S, CallError, Run, current


class _Reply(Protocol):
    header: ResponseHeader

    def ByteSize(self) -> int: ...


Reply = TypeVar("Reply", bound=_Reply)


def _wrote(reply: TxnResponse) -> bool:
    return any(one.HasField("response_put") or one.response_delete_range.deleted for one in reply.responses)


class Client:
    """Calls over one connection.

    A call that fails is reported as such and ends the user's task, a call after the end of the run ends the user.
    Linearizable replies must not be older than any reply given before, to whichever client of the run.
    """

    def __init__(self, run: Run, channel: grpc.Channel) -> None:
        self.run = run
        self.channel = channel
        self.refusal: grpc.StatusCode | None = None
        """What a call of this client may be refused with: counted apart, and no failure."""
        self._put: Callable[..., PutResponse] = channel.unary_unary(
            "/etcdserverpb.KV/Put", PutRequest.SerializeToString, PutResponse.FromString
        )
        self._range: Callable[..., RangeResponse] = channel.unary_unary(
            "/etcdserverpb.KV/Range", RangeRequest.SerializeToString, RangeResponse.FromString
        )
        self._delete: Callable[..., DeleteRangeResponse] = channel.unary_unary(
            "/etcdserverpb.KV/DeleteRange", DeleteRangeRequest.SerializeToString, DeleteRangeResponse.FromString
        )
        self._txn: Callable[..., TxnResponse] = channel.unary_unary(
            "/etcdserverpb.KV/Txn", TxnRequest.SerializeToString, TxnResponse.FromString
        )
        self._grant: Callable[..., LeaseGrantResponse] = channel.unary_unary(
            "/etcdserverpb.Lease/LeaseGrant", LeaseGrantRequest.SerializeToString, LeaseGrantResponse.FromString
        )
        self._revoke: Callable[..., LeaseRevokeResponse] = channel.unary_unary(
            "/etcdserverpb.Lease/LeaseRevoke", LeaseRevokeRequest.SerializeToString, LeaseRevokeResponse.FromString
        )

    def put(self, request: PutRequest, name: str = "Put", acked: AckedWrites | None = None) -> PutResponse:
        return self._call(name, self._put, request, lambda _: True, acked)

    def range(self, request: RangeRequest, name: str = "Range") -> RangeResponse:
        return self._call(name, self._range, request, None if request.serializable else lambda _: False)

    def delete(
        self, request: DeleteRangeRequest, name: str = "DeleteRange", acked: AckedWrites | None = None
    ) -> DeleteRangeResponse:
        return self._call(name, self._delete, request, lambda reply: reply.deleted > 0, acked)

    def txn(self, request: TxnRequest, name: str = "Txn", acked: AckedWrites | None = None) -> TxnResponse:
        return self._call(name, self._txn, request, _wrote, acked)

    def grant(self, ttl_s: int) -> LeaseGrantResponse:
        return self._call("LeaseGrant", self._grant, LeaseGrantRequest(TTL=ttl_s))

    def revoke(self, lease_id: int, acked: AckedWrites | None = None) -> LeaseRevokeResponse:
        """Of a lease that has a key."""
        return self._call("LeaseRevoke", self._revoke, LeaseRevokeRequest(ID=lease_id), lambda _: True, acked)

    def list(self, prefix: bytes, name: str = "Range (list)") -> RangeResponse:
        """All that begins with `prefix`, at one revision."""
        return self.range(RangeRequest(key=prefix, range_end=end_of_prefix(prefix)), name)

    def _call(
        self,
        name: str,
        method: Callable[..., Reply],
        request: Message,
        wrote: Callable[[Reply], bool] | None = None,
        acked: AckedWrites | None = None,
    ) -> Reply:
        """`wrote` tells whether a reply's revision is of the call's own making; None: its revision says nothing."""
        run = self.run
        if run.stopped.is_set():
            raise StopUser
        floor = run.floor.begin()
        run.in_flight += 1
        began = time.perf_counter()
        try:
            reply = method(request, timeout=CALL_TIMEOUT_S)
            seconds = time.perf_counter() - began
            if wrote is not None:
                by_this = wrote(reply)
                if by_this and acked is not None:
                    acked.add(reply.header.revision)
                run.report(name, run.floor.end(name, floor, reply.header.revision, wrote=by_this))
        except grpc.RpcError as error:
            self._failed(name, time.perf_counter() - began, CallError(error))
        finally:
            run.in_flight -= 1
        run.done("grpc", name, seconds, reply.ByteSize())
        return reply

    def _failed(self, name: str, seconds: float, error: CallError) -> NoReturn:
        if error.code is self.refusal:
            self.run.done("grpc", f"{name} (refused)", seconds)
        else:
            self.run.failed("grpc", name, seconds, error)
        raise RescheduleTask from error


class EtcdUser(User):
    """A user of the cluster with a connection; begins --user-rate tasks a second at most."""

    abstract = True

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.load = current()
        self.pace = pace(self.load.options.user_rate)
        self.client = self.connect()

    def connect(self) -> Client:
        return Client(self.load, self.load.channel())

    def wait_time(self) -> float:
        return self.pace(self)


def pace(rate: float) -> Callable[[User], float]:
    """How long to wait before the next task, for so many a second; 0: not at all."""
    pace: Callable[[User], float] = constant_throughput(rate) if rate > 0 else constant(0)
    return pace
