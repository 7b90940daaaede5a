"""Follows what the cluster holds of the tenants whose keys or bytes are limited.

Each such namespace is read once, in pages at one revision, and watched from there on; all watches share one stream.
What is lost with an endpoint is taken up again where it stopped, and read anew when that was compacted meanwhile, or
when the cluster was restored to an earlier state: a watch of a revision that it has not reached again would be silent.

A *look* is what calls wait for that do not fit by the figures at hand: a linearizable read says which revision the
cluster has, and the look ends when everything up to it is counted. So no call is refused for what had been deleted
before it came, whichever proxy deleted it. Looks cost one read and one progress request each, and one serves all calls
that came before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from google.protobuf.message import DecodeError

from kvorum import errors
from kvorum.errors import Status
from kvorum.log import Logger
from kvorum.pb.rpc_pb2 import (
    AuthenticateRequest,
    AuthenticateResponse,
    RangeRequest,
    RangeResponse,
    WatchCancelRequest,
    WatchCreateRequest,
    WatchProgressRequest,
    WatchRequest,
    WatchResponse,
)
from kvorum.ranges import FROM_KEY
from kvorum.wire.calls import Fields, UnaryDone
from proxy.namespaces.passage import Retry
from proxy.paths import AUTHENTICATE, RANGE, WATCH
from proxy.tenants.namespaces_file import Reader
from proxy.tenants.tenant import Tenant
from proxy.tenants.usage import Usage
from proxy.upstream.replies import read_as
from proxy.upstream.way import CallLater, Calls, Stream, Timer

FIRST_PAGE_KEYS: Final = 16
MOST_PAGE_KEYS: Final = 4096
PAGE_BYTES: Final = 512 << 10
"""Pages grow while they are smaller than this, so that neither many keys nor large values make one huge."""

CALL_TIMEOUT_S: Final = 10.0
RETRY_S: Final = 0.5
TICK_S: Final = 1.0
PROGRESS_S: Final = 0.05
LOOK_PAUSE_S: Final = 0.02
LOOK_S: Final = 5.0
"""A look that takes longer ends with the figures at hand."""


class Tracking:
    """The usage of all limited tenants, in one worker."""

    def __init__(self, upstream: Calls, *, call_later: CallLater, now: Callable[[], float], logger: Logger) -> None:
        self._upstream = upstream
        self.call_later = call_later
        self.now = now
        self.logger = logger
        self._followers: dict[int, Follower] = {}
        self._by_tenant: dict[Tenant, Follower] = {}
        self._next_id = 1
        self._reader: Reader | None = None
        self._token: Fields | None = None
        self._unauthenticated: list[Callable[[], None]] = []
        self._stream: Stream | None = None
        self._timer: Timer | None = None
        self._reopening: Timer | None = None
        self._resuming: list[Follower] | None = None
        """Whose watches go on when the cluster has said which revision it has."""
        self._closed = False

    def follow(self, tenants: Iterable[Tenant], reader: Reader | None) -> None:
        """Follow the limited ones of these, and no others."""
        if reader != self._reader:
            self._reader, self._token = reader, None
        wanted = {tenant: tenant.usage for tenant in tenants if tenant.usage is not None}
        waiting: list[Retry] = []
        for tenant, follower in list(self._by_tenant.items()):
            if wanted.get(tenant) is not follower.usage:
                waiting += follower.stop()
                del self._by_tenant[tenant], self._followers[follower.watch_id]
        for tenant, usage in wanted.items():
            if tenant not in self._by_tenant:
                follower = Follower(self, tenant, usage, self._next_id)
                self._next_id += 1
                self._by_tenant[tenant] = self._followers[follower.watch_id] = follower
                tenant.on_waiting = self._on_waiting
                follower.read()
        if self._timer is None and self._followers:
            self._timer = self.call_later(TICK_S, self._tick)
        for retry in waiting:
            retry(None)

    def close(self) -> None:
        """The proxy stops."""
        self._closed = True
        for follower in self._by_tenant.values():
            for retry in follower.stop():
                retry(errors.STOPPED)
        self._by_tenant.clear()
        self._followers.clear()
        for timer in (self._timer, self._reopening):
            if timer is not None:
                timer.cancel()
        if self._stream is not None:
            self._stream.cancel()

    def move(self) -> None:
        """Another endpoint is in use: the stream must not stay at one that may stand still."""
        if self._stream is not None:
            self._stream.cancel()

    @property
    def ready(self) -> bool:
        """Whether the usage of every limited tenant is known."""
        return all(follower.usage.revision is not None for follower in self._by_tenant.values())

    # For the followers.

    def call(self, path: str, message: bytes, done: UnaryDone, *, repeated: bool = False) -> None:
        """A unary call as the reader; a token that is not taken is replaced once."""
        if self._reader is not None and self._token is None:
            self._authenticate(lambda: self.call(path, message, done, repeated=repeated))
            return

        def on_done(code: int, text: str, reply: bytes) -> None:
            if self._closed:
                return
            if self._reader is not None and _is_refused_token(code, text):
                if self._token is token:
                    self._token = None
                if not repeated:
                    self.call(path, message, done, repeated=True)
                    return
            done(code, text, reply)

        token = self._token
        self._upstream.call(path, message, on_done, token or (), CALL_TIMEOUT_S)

    def send(self, request: WatchRequest) -> None:
        """On the shared stream, which is opened when it is not there."""
        if self._closed or self._reopening is not None:
            return
        if self._stream is None:
            self._stream = self._upstream.open(WATCH, _Replies(self), self._token or ())
        self._stream.send(request.SerializeToString())

    def ask_progress(self) -> None:
        if self._stream is not None:
            self._stream.send(WatchRequest(progress_request=WatchProgressRequest()).SerializeToString())

    def start_again(self) -> None:
        """The stream serves nobody any more: another token, another member."""
        if self._stream is not None:
            stream, self._stream = self._stream, None
            stream.cancel()
        self._token = None
        self.on_stream_end()

    # What comes.

    def on_reply(self, message: bytes) -> None:
        try:
            response = WatchResponse.FromString(message)
        except DecodeError as error:
            self.logger.warn("a watch reply cannot be read", error=str(error))
            self.start_again()
            return
        if response.watch_id == -1 and not response.created and not response.canceled:
            for follower in self._followers.values():
                follower.on_progress(response.header.revision)
            return
        found = self._followers.get(response.watch_id)
        if found is not None:
            found.on_reply(response)
        elif response.watch_id == -1:
            # A create was refused, and the reply does not say whose.
            self.logger.warn("the usage of tenants cannot be watched", reason=response.cancel_reason)
            self.start_again()
        elif not response.canceled:
            self.send(WatchRequest(cancel_request=WatchCancelRequest(watch_id=response.watch_id)))

    def on_stream_end(self) -> None:
        """The stream is lost; another follows in a while."""
        self._stream = self._resuming = None
        for follower in self._followers.values():
            follower.usage.is_followed = False
        if not self._closed and self._reopening is None:
            self._reopening = self.call_later(RETRY_S, self._reopen)

    def _reopen(self) -> None:
        self._reopening = None
        known = [follower for follower in self._followers.values() if follower.usage.revision is not None]
        if known:
            self._resuming = known
            known[0].ask_revision(partial(self._resume, known))

    def _resume(self, followers: list[Follower], code: int, _text: str, reply: RangeResponse) -> None:
        """What the cluster's revision is now is known, or is to be asked again."""
        if self._resuming is not followers:
            return
        self._resuming = None
        if code:
            self.on_stream_end()
            return
        revision = reply.header.revision
        for follower in followers:
            follower.resume(revision)

    def _on_waiting(self, tenant: Tenant) -> None:
        follower = self._by_tenant.get(tenant)
        if follower is not None:
            follower.look()

    def _tick(self) -> None:
        self._timer = self.call_later(TICK_S, self._tick)
        now = self.now()
        behind = False
        for follower in self._followers.values():
            follower.usage.expire(now)
            behind = behind or follower.usage.waits_for is not None
        if behind:
            self.ask_progress()

    def _authenticate(self, then: Callable[[], None]) -> None:
        """Learn a token, and go on whether or not there is one: what comes of it says so."""
        self._unauthenticated.append(then)
        if len(self._unauthenticated) > 1:
            return
        reader = self._reader
        assert reader is not None

        def done(code: int, text: str, reply: AuthenticateResponse) -> None:
            if self._closed:
                return
            token = ""
            if code == 0:
                token = reply.token
            elif text != errors.AUTH_NOT_ENABLED.message:
                self.logger.warn("the reader of the namespaces file cannot log in", user=reader.user, error=text)
            if reader == self._reader:
                self._token = ((b"token", token.encode()),) if token else ()
            waiting, self._unauthenticated = self._unauthenticated, []
            for go_on in waiting:
                go_on()

        request = AuthenticateRequest(name=reader.user, password=reader.password)
        read = read_as(AuthenticateResponse, done)
        self._upstream.call(AUTHENTICATE, request.SerializeToString(), read, (), CALL_TIMEOUT_S)


class Follower:
    """Follows one tenant."""

    def __init__(self, tracking: Tracking, tenant: Tenant, usage: Usage, watch_id: int) -> None:
        self._tracking = tracking
        self._tenant = tenant
        self._range = tenant.namespace.interval(FROM_KEY, FROM_KEY)
        self.usage = usage
        self.watch_id = watch_id
        self._stopped = False
        self._looking: list[Retry] | None = None  # the calls that wait for this look
        self._pausing = False
        self._target: int | None = None

    def stop(self) -> list[Retry]:
        """The tenant is not followed any more; the calls that waited for it."""
        self._stopped = True
        if self.usage.is_followed:
            self._tracking.send(WatchRequest(cancel_request=WatchCancelRequest(watch_id=self.watch_id)))
        waiting = [*(self._looking or ()), *self._tenant.take_waiting()]
        self._looking = None
        return waiting

    # Reading.

    def read(self) -> None:
        """Read the namespace from its beginning, then watch it."""
        if not self._stopped:
            self.usage.begin_reading()
            self._ask_page(self._range[0], 0, FIRST_PAGE_KEYS)

    def _ask_page(self, key: bytes, revision: int, most_keys: int) -> None:
        def done(code: int, text: str, page: RangeResponse) -> None:
            if self._stopped:
                return
            if code:
                self._fail(text)
            else:
                self._on_page(page, revision, most_keys)

        request = RangeRequest(key=key, range_end=self._range[1], limit=most_keys, revision=revision)
        self._tracking.call(RANGE, request.SerializeToString(), read_as(RangeResponse, done))

    def _on_page(self, page: RangeResponse, revision: int, most_keys: int) -> None:
        self.usage.on_page(page.kvs)
        revision = revision or page.header.revision
        if page.more and page.kvs:
            size = page.ByteSize()
            if size < PAGE_BYTES:
                most_keys = min(most_keys * 2, MOST_PAGE_KEYS)
            elif size > 4 * PAGE_BYTES:
                most_keys = max(most_keys // 2, 1)
            self._ask_page(page.kvs[-1].key + b"\0", revision, most_keys)
        else:
            self.usage.end_reading(revision)
            self.watch()
            self._check_look()

    def _fail(self, text: str) -> None:
        tracking = self._tracking
        tracking.logger.warn("what a tenant stores is not known", tenant=self._tenant.name, error=text)
        self.usage.lose()
        tracking.call_later(RETRY_S, self.read)

    # Watching.

    def watch(self) -> None:
        """Ask for what comes after what is known."""
        if self._stopped or self.usage.revision is None:
            return
        create = WatchCreateRequest(
            key=self._range[0],
            range_end=self._range[1],
            start_revision=self.usage.revision + 1,
            watch_id=self.watch_id,
            fragment=True,
        )
        self._tracking.send(WatchRequest(create_request=create))

    def ask_revision(self, done: Callable[[int, str, RangeResponse], None]) -> None:
        """Ask which revision the cluster has, at the least."""
        request = RangeRequest(key=self._range[0], range_end=self._range[1], count_only=True, limit=1)
        self._tracking.call(RANGE, request.SerializeToString(), read_as(RangeResponse, done))

    def resume(self, revision: int) -> None:
        """Go on after the stream was lost; the cluster has this revision, or had it a moment ago."""
        if self._stopped or self.usage.revision is None:
            return
        if revision < self.usage.revision:
            self._tracking.logger.warn("the cluster has gone back to an earlier state", tenant=self._tenant.name)
            self.usage.forget()
            self.read()
        else:
            self.watch()

    def on_reply(self, response: WatchResponse) -> None:
        if response.canceled:
            self.usage.is_followed = False
            if response.compact_revision:
                self.usage.lose()
                self.read()
            else:
                reason = response.cancel_reason
                self._tracking.logger.warn(
                    "the usage of a tenant cannot be watched", tenant=self._tenant.name, reason=reason
                )
                self._tracking.start_again()
            return
        if response.created:
            self.usage.is_followed = True
        events = response.events
        if events:
            # Of a reply from history the header is ahead of the events; of a fragment the revision is not whole.
            revision = 0 if response.fragment else events[-1].kv.mod_revision
            self.usage.on_events(events, revision)
            self._check_look()
        elif not response.created:
            self.on_progress(response.header.revision)

    def on_progress(self, revision: int) -> None:
        """Everything up to `revision` has come, if the watch was there when that was said."""
        if self.usage.is_followed:
            self.usage.on_progress(revision)
            self._check_look()

    # Looks.

    def look(self) -> None:
        """Calls wait: look, unless that goes on already; then they are the next."""
        if self._looking is not None or self._pausing or self._stopped:
            return
        looking = self._tenant.take_waiting()
        if not looking:
            return
        self._looking = looking
        self._target = None
        tracking = self._tracking

        def done(code: int, _text: str, reply: RangeResponse) -> None:
            if self._looking is not looking:
                return
            if code:
                self._end_look(found=False)
                return
            self._target = reply.header.revision
            self._go_on()

        def give_up() -> None:
            if self._looking is looking:
                self._end_look(found=False)

        tracking.call_later(LOOK_S, give_up)
        self.ask_revision(done)

    def _check_look(self) -> None:
        if self._looking is not None and self._target is not None and (self.usage.revision or 0) >= self._target:
            self._end_look(found=True)

    def _go_on(self) -> None:
        """Until everything up to the target has come, ask for it."""
        looking = self._looking
        self._check_look()
        if self._looking is not None and self._looking is looking:
            self._tracking.ask_progress()
            self._tracking.call_later(PROGRESS_S, lambda: self._go_on() if self._looking is looking else None)

    def _end_look(self, *, found: bool) -> None:
        looking, self._looking = self._looking, None
        self._pausing = True  # so that a tenant that keeps trying costs few looks
        self._tracking.call_later(LOOK_PAUSE_S, self._end_pause)
        if looking:
            self._tenant.resume(looking, found=found)

    def _end_pause(self) -> None:
        self._pausing = False
        self.look()


class _Replies:
    """The stream's side."""

    def __init__(self, tracking: Tracking) -> None:
        self._tracking: Tracking | None = tracking

    def on_message(self, message: bytes) -> None:
        if self._tracking is not None:
            self._tracking.on_reply(message)

    def on_end(self, code: int, text: str, trailers: object) -> None:
        tracking, self._tracking = self._tracking, None
        if tracking is not None:
            tracking.on_stream_end()

    def on_writable(self) -> None:
        """What is sent is little."""


def _is_refused_token(code: int, text: str) -> bool:
    return Status(code, text) in (errors.INVALID_AUTH_TOKEN, errors.AUTH_OLD_REVISION)
