"""Two servers in lockstep: each step goes to both, and what they answer must be equal.

Revisions are part of nearly every answer, so both stores live through the same calls from their first one on, over all
examples: no call goes to one alone but reads. An example begins with a reset that itself is a few calls to both: all
leases revoked, all keys deleted, everything compacted. Steps name revisions relative to the current and the compacted
one, so an example means the same whatever came before it, and shrinks and replays. After a difference the two may no
longer agree on anything: the next example then begins on two new servers.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message

from kvorum.errors import ApiError, Status
from kvorum.pb.rpc_pb2 import (
    CompactionRequest,
    DeleteRangeRequest,
    HashKVRequest,
    HashKVResponse,
    LeaseKeepAliveRequest,
    LeaseKeepAliveResponse,
    LeaseLeasesRequest,
    LeaseRevokeRequest,
    LeaseTimeToLiveResponse,
    PutRequest,
    RangeRequest,
    RangeResponse,
    RequestOp,
    TxnRequest,
    WatchCancelRequest,
    WatchCreateRequest,
    WatchProgressRequest,
    WatchRequest,
)
from loadtest.launcher import Kind
from tests.calls import KeepAliveStream, WatchStream
from tests.differential import exceptions
from tests.differential.spread import Spread
from tests.differential.steps import STREAMS, Ask, Cancel, KeepAlive, Progress, Step, Watch
from tests.differential.watching import Watcher, watchers
from tests.servers import SUBJECT

NOPUT, NODELETE = WatchCreateRequest.NOPUT, WatchCreateRequest.NODELETE
BARRIER_VALUE = b"barrier"


class Difference(AssertionError):
    """The two servers answered one step differently."""


@dataclass
class Watching:
    """One watch stream open at both servers, and the creates sent on it."""

    subject: WatchStream
    reference: WatchStream
    creates: list[WatchCreateRequest] = field(default_factory=list)
    hidden: list[int] = field(default_factory=list)  # X6: per create, the revision whose events are left out
    canceled: set[int] = field(default_factory=set)  # creates that the client canceled

    def watchers(self) -> tuple[list[Watcher], list[Watcher]]:
        return self.of_subject(), watchers(self.reference.replies, progress_is_a_promise=False)  # X14

    def of_subject(self) -> list[Watcher]:
        return watchers(self.subject.replies, progress_is_a_promise=SUBJECT is Kind.KVORUM)

    def wait(self, condition: Callable[[list[Watcher]], bool]) -> None:
        """Until `condition` holds at both."""
        self.subject.wait(lambda _: condition(self.of_subject()))
        self.reference.wait(lambda replies: condition(watchers(replies, progress_is_a_promise=False)))

    def live(self) -> list[int]:
        """The creates whose watchers run, as the subject tells."""
        found = self.of_subject()
        return [at for at, watcher in enumerate(found) if not watcher.refused and watcher.canceled is None]


class Pair:
    """The two servers and what the steps so far have made of them."""

    def __init__(self, subject: Sequence[str], reference: Sequence[str]) -> None:
        """Each side by the client addresses of its members."""
        self.subject = Spread(subject)
        self.reference = Spread(reference)
        self._has_several_members = len(subject) > 1
        self.now = 1
        self.compacted = -1
        self.compactions: set[int] = set()
        self.lazily_compacted = False
        self._watching: list[Watching | None] = [None] * STREAMS
        self._keep_alive: tuple[KeepAliveStream, KeepAliveStream] | None = None

    def close(self) -> None:
        self.subject.close()
        self.reference.close()

    def reset(self) -> None:
        """Back to a store without keys and leases, with nothing but the last revision left."""
        for lease in self.both(LeaseLeasesRequest()).leases:
            self.both(LeaseRevokeRequest(ID=lease.ID))
        self.both(PutRequest(key=b"reset"))
        self.both(DeleteRangeRequest(key=b"\0", range_end=b"\0"))
        self.both(CompactionRequest(revision=self.now, physical=True))

    def run(self, steps: list[Step]) -> None:
        """One example."""
        self.reset()
        try:
            for step in steps:
                self.step(step)
            self.barrier(leave_keys=False)
            for stream in filter(None, self._watching):
                self._compare_watchers(stream)
            self._hash(HashKVRequest())
        finally:
            self._close_streams()

    def step(self, step: Step) -> None:
        base = {"now": self.now, "compacted": max(self.compacted, 0)}
        match step:
            case Ask(kind=kind) if kind is HashKVRequest:
                self._hash(step.resolve(base))
            case Ask(kind=kind) if kind is CompactionRequest:
                self.barrier(leave_keys=True)
                self.both(step.resolve(base | {"now": self.now}))
            case Ask():
                self.both(step.resolve(base))
            case KeepAlive():
                self._renew(step.lease)
            case Watch():
                self._create(self._stream(step.stream), step.create.resolve(base))
            case Cancel():
                self._cancel(self._stream(step.stream), step.watch_id)
            case Progress():
                request = WatchRequest(progress_request=WatchProgressRequest())
                stream = self._stream(step.stream)
                stream.subject.send(request)  # X12, X13, X14: sent to the subject alone, whose promise is checked

    def both(self, request: Message) -> Any:
        """The one outcome of both servers, which may be a Status."""
        ours, theirs = self.subject.outcome(request), self.reference.outcome(request)
        self._follow(request, theirs)
        if isinstance(request, RangeRequest) and SUBJECT is Kind.KVORUM:
            self._range_stream(request, theirs)
        if isinstance(request, TxnRequest) and (ours, theirs) == exceptions.LEASE_BEFORE_KEY:
            return ours
        for outcome in (ours, theirs):
            if not isinstance(outcome, Status):
                _normalise(request, outcome)
        if isinstance(ours, LeaseTimeToLiveResponse) and isinstance(theirs, LeaseTimeToLiveResponse):
            if abs(ours.TTL - theirs.TTL) > 1:
                raise Difference(f"{request!r}\nsubject:   TTL {ours.TTL}\nreference: TTL {theirs.TTL}")
            ours.TTL = theirs.TTL  # a clock of its own runs at each server
        _compare(request, ours, theirs)
        return theirs

    def _follow(self, request: Message, outcome: Any) -> None:
        """Keeps track of the current and the compacted revision."""
        if isinstance(outcome, Status):
            return
        self.now = max(self.now, outcome.header.revision)
        if isinstance(request, CompactionRequest):
            self.compacted = request.revision
            self.compactions.add(request.revision)
            # only the member that is asked waits until the rows are gone
            self.lazily_compacted = not request.physical or self._has_several_members

    def _range_stream(self, request: RangeRequest, reply: RangeResponse | Status) -> None:
        """X3: the subject's RangeStream, joined, must be the reference's Range."""
        filters = ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision")
        if request.sort_order or request.sort_target or any(getattr(request, name) for name in filters):
            return
        joined: RangeResponse | Status = RangeResponse()
        try:
            for part in self.subject.stream(request):
                assert isinstance(joined, RangeResponse)
                joined.MergeFrom(part.range_response)
        except ApiError as error:
            joined = error.status
        expected = reply
        if isinstance(joined, RangeResponse) and isinstance(reply, RangeResponse):
            expected = RangeResponse()
            expected.CopyFrom(reply)
            _normalise(request, expected)
            _normalise(request, joined)
        _compare(request, joined, expected)

    def _hash(self, request: HashKVRequest) -> None:
        revision = request.revision or self.now
        if revision in self.compactions:
            return  # X4, X5, Q1: the hash stored at that compaction, for the newest ones also below the last
        if self.lazily_compacted and revision > 0:
            count = self.reference.outcome(
                RangeRequest(key=b"\0", range_end=b"\0", revision=request.revision, count_only=True)
            )
            if isinstance(count, RangeResponse) and not count.count:
                return  # H5
        self.both(request)

    def _renew(self, lease: int) -> None:
        if self._keep_alive is None:
            self._keep_alive = self.subject.keep_alive(), self.reference.keep_alive()
        self.subject.catch_up()
        self.reference.catch_up()
        answers: list[LeaseKeepAliveResponse] = []
        for stream in self._keep_alive:
            seen = len(stream.replies)
            stream.send(LeaseKeepAliveRequest(ID=lease))
            answers.append(stream.wait(lambda replies, seen=seen: replies[seen:])[0])  # type: ignore[misc]
        request = LeaseKeepAliveRequest(ID=lease)
        for answer in answers:
            _normalise(request, answer)
        _compare(request, *answers)

    def _stream(self, number: int) -> Watching:
        stream = self._watching[number]
        if stream is None:
            stream = self._watching[number] = Watching(self.subject.watch(), self.reference.watch())
        self.subject.catch_up()
        self.reference.catch_up()
        return stream

    def _create(self, stream: Watching, create: WatchCreateRequest) -> None:
        create.start_revision = max(create.start_revision, 0)  # X9
        index = len(stream.creates)
        stream.creates.append(create)
        stream.hidden.append(self.compacted if create.start_revision == self.compacted else 0)  # X6
        request = WatchRequest(create_request=create)
        stream.subject.send(request)
        stream.reference.send(request)
        stream.wait(lambda found: len(found) > index)
        ours, theirs = (found[index] for found in stream.watchers())
        _compare(create, ours.created, theirs.created)
        if not ours.refused and 0 < create.start_revision < self.compacted:
            stream.wait(lambda found: found[index].canceled is not None)
            # Q4: frees the id for later creates; whether that is answered is left open
            cancel = WatchRequest(cancel_request=WatchCancelRequest(watch_id=ours.created.watch_id))
            stream.subject.send(cancel)
            stream.reference.send(cancel)

    def _cancel(self, stream: Watching, watch_id: int) -> None:
        request = WatchRequest(cancel_request=WatchCancelRequest(watch_id=watch_id))
        stream.subject.send(request)
        stream.reference.send(request)
        before = stream.of_subject()
        index = next((at for at in stream.live() if before[at].created.watch_id == watch_id), None)
        if index is not None:
            stream.wait(lambda found: found[index].canceled is not None)
            stream.canceled.add(index)

    def barrier(self, *, leave_keys: bool) -> None:
        """Waits until every live watcher at both servers has had all its events, and compares none.

        A put, a delete and (with `leave_keys`) again a put of each watched key: the last of them that a watcher's
        filters let through is the last event it can have.
        """
        streams = [stream for stream in self._watching if stream is not None and stream.live()]
        keys = sorted({stream.creates[at].key or b"\0" for stream in streams for at in stream.live()})
        if not keys:
            return
        put = [RequestOp(request_put=PutRequest(key=key, value=BARRIER_VALUE)) for key in keys]
        delete = [RequestOp(request_delete_range=DeleteRangeRequest(key=key)) for key in keys]
        self.both(TxnRequest(success=put))
        put_at = self.now
        self.both(TxnRequest(success=delete))
        delete_at = self.now
        if leave_keys:
            self.both(TxnRequest(success=put))
            put_at = self.now
        for stream in streams:
            for index in stream.live():
                create = stream.creates[index]
                last = max(
                    0 if NOPUT in create.filters else put_at,
                    0 if NODELETE in create.filters else delete_at,
                )
                if create.start_revision <= last:
                    stream.wait(lambda found, index=index, last=last: found[index].revision >= last)  # type: ignore[misc]

    def _compare_watchers(self, stream: Watching) -> None:
        for index, (ours, theirs) in enumerate(zip(*stream.watchers(), strict=True)):
            create, hidden = stream.creates[index], stream.hidden[index]
            mine = [event for event in ours.events if event.kv.mod_revision != hidden or not hidden]
            other = [event for event in theirs.events if event.kv.mod_revision != hidden or not hidden]
            if index in stream.canceled:  # W17: what was queued at the cancel may come or not
                shared = min(len(mine), len(other))
                mine, other = mine[:shared], other[:shared]
            if mine != other:
                raise Difference(f"events of {create!r}\nsubject:\n{mine}\nreference:\n{other}")
            if (ours.canceled is None) != (theirs.canceled is None):
                raise Difference(f"cancel of {create!r}\nsubject: {ours.canceled}\nreference: {theirs.canceled}")
            if ours.canceled is not None and theirs.canceled is not None:
                _compare(create, ours.canceled, theirs.canceled)

    def _close_streams(self) -> None:
        for stream in filter(None, self._watching):
            stream.subject.close()
            stream.reference.close()
        for keep_alive in self._keep_alive or ():
            keep_alive.close()
        self._watching = [None] * STREAMS
        self._keep_alive = None


def _normalise(request: Message, reply: Any) -> None:
    """Clears in place what belongs to one server or is an exception."""
    for name in ("cluster_id", "member_id", "raft_term"):
        reply.header.ClearField(name)
    if isinstance(request, RangeRequest):
        exceptions.normalise_range(request, reply)
    elif isinstance(request, TxnRequest):
        exceptions.normalise_txn(request, reply)
    elif isinstance(reply, HashKVResponse):
        exceptions.normalise_hash(reply)
    elif isinstance(reply, LeaseTimeToLiveResponse):
        keys = sorted(reply.keys)
        del reply.keys[:]
        reply.keys.extend(keys)  # L16: a set


def _compare(request: Message, ours: Any, theirs: Any) -> None:
    if ours != theirs:
        raise Difference(f"{type(request).__name__} {request!r}\nsubject:   {ours!r}\nreference: {theirs!r}")


Start = Callable[[], AbstractContextManager[Sequence[str]]]
"""Starts one side and gives the client addresses of its members."""


class Pairs:
    """Gives the pair in use, or a new one on new servers when an example has broken the last."""

    def __init__(self, start_subject: Start, start_reference: Start) -> None:
        self._starts = start_subject, start_reference
        self._stack = contextlib.ExitStack()
        self._pair: Pair | None = None

    @contextlib.contextmanager
    def example(self) -> Iterator[Pair]:
        if self._pair is None:
            subject, reference = (self._stack.enter_context(start()) for start in self._starts)
            self._pair = Pair(subject, reference)
            self._stack.callback(self._pair.close)
        try:
            yield self._pair
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._pair = None
        self._stack.close()
        self._stack = contextlib.ExitStack()
