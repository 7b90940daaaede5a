"""One server or a cluster as one side of a comparison: the calls go round its members.

What is logged, and a linearizable read, must be answered alike by every member at any time. What a member answers from
its own state, as far as that has come, is asked once all members have caught up with each other.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf.message import Message

from kvorum.errors import Status
from kvorum.pb.rpc_pb2 import (
    HashKVRequest,
    LeaseLeasesRequest,
    LeaseLeasesResponse,
    LeaseTimeToLiveRequest,
    RangeRequest,
    TxnRequest,
)
from tests.calls import Api, KeepAliveStream, WatchStream


class Spread:
    """The calls of `Api`, each at the next of the members."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._apis = [Api(address) for address in addresses]
        self._turn = itertools.cycle(self._apis)

    def close(self) -> None:
        for api in self._apis:
            api.close()

    def outcome(self, request: Message) -> Any:
        """The reply, or the Status the call failed with."""
        if _asks_one_state(request):
            self.catch_up()
        if isinstance(request, HashKVRequest):
            return self._hash(request)
        outcome = next(self._turn).outcome(request)
        if isinstance(outcome, LeaseLeasesResponse) and len(self._apis) > 1:
            # by what is left of each, which only the leader knows
            leases = sorted(outcome.leases, key=lambda lease: lease.ID)
            del outcome.leases[:]
            outcome.leases.extend(leases)
        return outcome

    def stream(self, request: Message) -> Iterator[Any]:
        """The replies of a server-streaming call; raises ApiError."""
        if _asks_one_state(request):
            self.catch_up()
        return next(self._turn).stream(request)

    def watch(self) -> WatchStream:
        return next(self._turn).watch()

    def keep_alive(self) -> KeepAliveStream:
        return next(self._turn).keep_alive()

    def catch_up(self) -> None:
        """Every member has then applied what any has answered: a linearizable read waits for that."""
        if len(self._apis) > 1:
            for api in self._apis:
                api(RangeRequest(key=b"any", count_only=True))

    def _hash(self, request: HashKVRequest) -> Any:
        """The one hash of all members, which must be equal."""
        answers = [api.outcome(request) for api in self._apis]
        for answer in answers:
            if not isinstance(answer, Status):
                answer.header.Clear()
        assert all(answer == answers[0] for answer in answers), f"the members' hashes differ: {request!r} {answers}"
        return answers[0]


def _asks_one_state(request: Message) -> bool:
    """Whether the answer comes from the state of one member alone."""
    if isinstance(request, RangeRequest):
        return request.serializable
    if isinstance(request, TxnRequest):
        return all(
            operation.request_range.serializable for operation in (*request.success, *request.failure)
        )  # any other operation makes it a logged one, or a linearizable read
    return isinstance(request, HashKVRequest | LeaseLeasesRequest | LeaseTimeToLiveRequest)
