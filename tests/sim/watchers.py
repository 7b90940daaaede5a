"""Clients that watch: several ranges on one stream, from one revision on, whatever becomes of the members."""

from __future__ import annotations

from random import Random

from kvorum.pb.rpc_pb2 import (
    WatchCancelRequest,
    WatchCreateRequest,
    WatchProgressRequest,
    WatchRequest,
    WatchResponse,
)
from tests.linearizability.history import History, Received, Watch
from tests.sim.clients import END, KEYS, PREFIX, Client, Servers, delay_s, some_front
from tests.sim.front import SimulatedFront, Stream
from tests.sim.member import Generation

LOOK_S = 0.3
EVERY_WATCH = -1
"""The id in an answer that speaks of all watches of a stream."""


class Watched:
    """One thing that a client watches, over all streams; `watch` is what it has been sent since it began anew."""

    def __init__(self, random: Random, history: History) -> None:
        key, range_end = random.choice(((PREFIX, END), (PREFIX, b"\0"), (KEYS[0], b""), (KEYS[2], KEYS[5])))
        self._create = WatchCreateRequest(
            key=key,
            range_end=range_end,
            prev_kv=random.random() < 0.4,
            filters=random.choice(([], [], [], [WatchCreateRequest.NOPUT], [WatchCreateRequest.NODELETE])),
            progress_notify=random.random() < 0.5,
            start_revision=random.choice((0, 1, 1)),
        )
        self._history = history
        self.watch: Watch | None = None

    def create(self, watch_id: int) -> WatchCreateRequest:
        """What a stream is asked: to go on after what was seen."""
        create = WatchCreateRequest()
        create.CopyFrom(self._create)
        create.watch_id = watch_id
        if self.watch is not None:
            create.start_revision = self.watch.resume_revision()
        return create

    def on_created(self, revision: int) -> None:
        """It is owed everything from there on, if it was not told before from where."""
        if self.watch is None:
            self.begin(self._create.start_revision or revision + 1)

    def begin(self, start: int) -> None:
        """It is owed everything from there on."""
        create = self._create
        self.watch = Watch(
            create.key,
            create.range_end,
            start,
            prev_kv=create.prev_kv,
            no_puts=WatchCreateRequest.NOPUT in create.filters,
            no_deletes=WatchCreateRequest.NODELETE in create.filters,
        )
        self._history.watches.append(self.watch)

    def has_seen(self, revision: int) -> bool:
        """Whether it was given everything up to there."""
        return self.watch is not None and self.watch.resume_revision() > revision


class WatchClient(Client):
    """Keeps a stream open somewhere."""

    def __init__(self, servers: Servers, number: int) -> None:
        super().__init__(servers, number)
        self.watched = [Watched(self.random, servers.history) for _ in range(self.random.choice((1, 1, 2, 4)))]
        self.stream: _WatchStream | None = None

    def begin(self) -> None:
        """Opens a stream, now or as soon as a member takes it."""
        generation = self.generation()
        front = some_front(self.scheduler, generation)
        if generation is None or front is None:
            self.member = None
            self.scheduler.after(self.random.uniform(0.05, 0.3), self.begin)
            return
        self.stream = _WatchStream(self, generation, front)

    def lose(self) -> None:
        """The stream is of no use any more."""
        self.stream = None
        self.member = None
        self.scheduler.after(self.random.uniform(0.01, 0.3), self.begin)

    def ask_progress(self) -> None:
        """Asks how far everything was given."""
        if self.stream is not None:
            self.stream.ask_progress()

    def has_seen(self, revision: int) -> bool:
        """Whether all was given up to there."""
        return all(watched.has_seen(revision) for watched in self.watched)

    def must_have_seen(self, revision: int) -> None:
        """Lets the checker know."""
        for watched in self.watched:
            assert watched.watch is not None
            watched.watch.seen_to = revision


class _WatchStream:
    """One stream: left now and then for another one, or read slowly for a while; its watches are now and then canceled
    and created again."""

    def __init__(self, client: WatchClient, generation: Generation, front: SimulatedFront) -> None:
        self._client = client
        self._generation = generation
        self._front = front
        self._stream: Stream | None = None
        self._slow_until_s = 0.0
        self._last_id = 0
        self._by_id: dict[int, Watched] = {}
        self._created: set[int] = set()
        self._canceling: set[int] = set()
        front.worker.post(self._open)
        client.scheduler.after(LOOK_S, self._look)

    def _open(self) -> None:
        if self._client.stream is self:
            self._stream = self._front.open_stream("Watch", self)
            for watched in self._client.watched:
                self._create(watched)

    def _create(self, watched: Watched) -> None:
        self._last_id += 1
        self._by_id[self._last_id] = watched
        self._say(WatchRequest(create_request=watched.create(self._last_id)))

    def _say(self, request: WatchRequest) -> None:
        stream = self._stream
        if stream is not None:
            message = request.SerializeToString()
            self._front.worker.post(lambda: stream.arrive(message))

    def _leave(self) -> None:
        if self._stream is not None:
            self._front.worker.post(self._stream.cancel)
        self._client.lose()

    def _look(self) -> None:
        client = self._client
        if client.stream is not self:
            return
        random = client.random
        if not self._generation.alive or (client.servers.busy and random.random() < 0.05):
            self._leave()
            return
        if client.servers.busy and random.random() < 0.05:
            self._slow_until_s = client.scheduler.now_s + random.uniform(0.2, 3.0)
        if client.servers.busy and random.random() < 0.1:
            known = sorted(self._created - self._canceling)
            if known:
                self._cancel(random.choice(known))
        client.scheduler.after(LOOK_S, self._look)

    def _cancel(self, watch_id: int) -> None:
        self._canceling.add(watch_id)
        self._say(WatchRequest(cancel_request=WatchCancelRequest(watch_id=watch_id)))

    def ask_progress(self) -> None:
        """See WatchClient."""
        self._say(WatchRequest(progress_request=WatchProgressRequest()))

    def delay_s(self) -> float:
        """See StreamEnd."""
        scheduler = self._client.scheduler
        return max(delay_s(scheduler), self._slow_until_s - scheduler.now_s)

    def on_answer(self, message: bytes) -> None:
        """See StreamEnd."""
        client = self._client
        if client.stream is not self:
            return
        answer = WatchResponse.FromString(message)
        watch_id = answer.watch_id
        if answer.created:
            assert not answer.canceled, answer
            self._created.add(watch_id)
            self._by_id[watch_id].on_created(answer.header.revision)
        elif answer.canceled:
            self._on_canceled(watch_id, answer.compact_revision)
        else:
            received = Received(client.scheduler.now_s, answer.header.revision, tuple(answer.events))
            ids = self._created - self._canceling if watch_id == EVERY_WATCH else {watch_id}
            for one in ids:
                watch = self._by_id[one].watch
                assert watch is not None
                watch.received.append(received)

    def _on_canceled(self, watch_id: int, compact_revision: int) -> None:
        """By the client, or by a compaction: then its id stays taken until the client gives it back."""
        watched = self._by_id[watch_id]
        if watch_id not in self._created:
            return  # the two crossed
        self._created.discard(watch_id)
        if compact_revision:
            watched.begin(compact_revision)
            if watch_id not in self._canceling:
                self._cancel(watch_id)
        else:
            assert watch_id in self._canceling, f"watch {watch_id} was canceled, and nobody asked for it"
        self._create(watched)

    def on_end(self, _code: int, _text: str) -> None:
        """See StreamEnd."""
        if self._client.stream is self:
            self._client.lose()
