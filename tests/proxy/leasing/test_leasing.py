"""The leasing protocol between proxies, step by step and at random."""

from __future__ import annotations

import random
from typing import Any

import pytest

from kvorum import errors
from kvorum.errors import Code
from kvorum.pb.mvcc_pb2 import KeyValue
from kvorum.pb.rpc_pb2 import (
    Compare,
    DeleteRangeRequest,
    DeleteRangeResponse,
    LeaseGrantRequest,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    RequestOp,
    ResponseHeader,
    TxnRequest,
    TxnResponse,
)
from proxy.leasing import ownership as ownership_module
from proxy.leasing.guards import MAX_GUARDS, LeasingKeys, give_up, guarded, targets
from proxy.leasing.ownership import BLOCKED_S, Ownership
from proxy.leasing.session import MARGIN, TTL_S
from proxy.paths import DELETE_RANGE, PUT, RANGE, TXN
from tests.proxy.leasing.simulated import Clock, Cluster, Proxy, Upstream


class World:
    """A cluster, and proxies with sessions."""

    def __init__(self, proxies: int = 2, seed: int = 1, namespace: bytes = b"") -> None:
        self.clock = Clock()
        self.cluster = Cluster(self.clock)
        self.rng = random.Random(seed)
        self.proxies = [
            Proxy(self.cluster, Upstream(self.cluster, self.rng), namespace=namespace) for _ in range(proxies)
        ]
        for proxy in self.proxies:
            proxy.way.start()
        self.clock.run(lambda: all(proxy.way.ownership.lease for proxy in self.proxies), 30)

    def leasing_keys(self) -> list[bytes]:
        return [key for key in self.cluster.model.live() if b"leasing/" in key]


def get(proxy: Proxy, key: bytes, **options: Any) -> bytes | None:
    """The value of a key, or None."""
    code, reply = proxy.now(RANGE, RangeRequest(key=key), **options)
    assert code == 0
    found = RangeResponse.FromString(reply)
    assert found.count == len(found.kvs) and found.header.revision
    return found.kvs[0].value if found.kvs else None


def put(proxy: Proxy, key: bytes, value: bytes, **fields: Any) -> PutResponse:
    code, reply = proxy.now(PUT, PutRequest(key=key, value=value, **fields))
    assert code == 0
    return PutResponse.FromString(reply)


@pytest.fixture
def world() -> World:
    return World()


def test_the_second_read_is_answered_here(world: World) -> None:
    one, _ = world.proxies
    put(one, b"k", b"1")
    assert get(one, b"k") == b"1" and get(one, b"absent") is None
    calls = one.upstream.calls
    assert get(one, b"k") == b"1" and get(one, b"absent") is None
    assert one.upstream.calls == calls
    assert world.leasing_keys() == [b"leasing/absent", b"leasing/k"]
    assert one.way.figures() == {"kvorum_grpc_proxy_leasing_keys": 2, "kvorum_grpc_proxy_leasing_hits_total": 2}


def test_the_owner_writes_and_goes_on_owning(world: World) -> None:
    one, _ = world.proxies
    assert get(one, b"k") is None
    reply = put(one, b"k", b"1")
    assert reply.header.revision == world.cluster.model.revision
    put(one, b"k", b"2", prev_kv=True)
    calls = one.upstream.calls
    assert get(one, b"k") == b"2"
    code, raw = one.now(DELETE_RANGE, DeleteRangeRequest(key=b"k", prev_kv=True))
    deleted = DeleteRangeResponse.FromString(raw)
    assert (code, deleted.deleted, deleted.prev_kvs[0].value) == (0, 1, b"2")
    assert get(one, b"k") is None
    assert one.upstream.calls == calls + 1


def test_a_writer_elsewhere_asks_the_owner(world: World) -> None:
    one, other = world.proxies
    put(one, b"k", b"1")
    get(one, b"k")
    assert put(other, b"k", b"2", prev_kv=True).prev_kv.value == b"1"
    assert one.owns(b"k") is None
    assert get(one, b"k") == b"2"
    assert get(one, b"k") == b"2"
    assert world.leasing_keys() == []  # for a while nobody owns it
    world.clock.run_for(BLOCKED_S)
    get(one, b"k")
    assert one.owns(b"k") is not None


@pytest.mark.parametrize("path", [DELETE_RANGE, TXN])
def test_writes_to_ranges_ask_the_owners_of_all_in_them(world: World, path: str) -> None:
    one, other = world.proxies
    for key in (b"a/1", b"a/2", b"b"):
        put(one, key, b"1")
        get(one, key)
    put(other, b"a/3", b"1")
    get(other, b"a/3")
    delete = DeleteRangeRequest(key=b"a/", range_end=b"a0")
    request: Any = delete if path == DELETE_RANGE else TxnRequest(success=[RequestOp(request_delete_range=delete)])
    code, raw = other.now(path, request)
    assert code == 0
    if path == DELETE_RANGE:
        assert DeleteRangeResponse.FromString(raw).deleted == 3
    else:
        answer = TxnResponse.FromString(raw)
        assert answer.succeeded and answer.responses[0].response_delete_range.deleted == 3
    for proxy in world.proxies:
        assert get(proxy, b"a/1") is get(proxy, b"a/3") is None
    assert one.owns(b"b") is not None


def test_a_transaction_asks_for_what_it_may_write_in_either_branch(world: World) -> None:
    one, other = world.proxies
    for key in (b"a", b"b", b"c"):
        put(one, key, b"1")
        get(one, key)
    put(other, b"own", b"1")
    get(other, b"own")
    inner = TxnRequest(success=[RequestOp(request_put=PutRequest(key=b"b", value=b"2"))])
    request = TxnRequest(
        compare=[Compare(key=b"c", target=Compare.VALUE, value=b"1")],
        success=[
            RequestOp(request_txn=inner),
            RequestOp(request_put=PutRequest(key=b"own", value=b"2")),
            RequestOp(request_range=RangeRequest(key=b"c")),
        ],
        failure=[RequestOp(request_put=PutRequest(key=b"a", value=b"2"))],
    )
    code, raw = other.now(TXN, request)
    answer = TxnResponse.FromString(raw)
    assert (code, answer.succeeded) == (0, True)
    assert answer.header.revision == world.cluster.model.revision
    assert answer.responses[2].response_range.kvs[0].value == b"1"
    assert one.owns(b"a") is one.owns(b"b") is None and one.owns(b"c") is not None
    assert other.owns(b"own") is not None
    assert get(other, b"own") == b"2" and get(one, b"b") == b"2" and get(one, b"a") == b"1"


def test_a_transaction_that_only_reads_is_passed_on(world: World) -> None:
    one, other = world.proxies
    put(one, b"k", b"1")
    get(one, b"k")
    request = TxnRequest(success=[RequestOp(request_range=RangeRequest(key=b"k"))])
    calls = other.upstream.calls
    assert other.now(TXN, request)[0] == 0
    assert other.upstream.calls == calls + 1 and one.owns(b"k") is not None


def test_a_key_with_a_lease_is_not_owned(world: World) -> None:
    one, other = world.proxies
    lease = 1000 + len(world.proxies) + 1
    one.now("/etcdserverpb.Lease/LeaseGrant", LeaseGrantRequest(TTL=20))
    put(one, b"k", b"1", lease=lease)
    assert get(one, b"k") == b"1" and one.owns(b"k") is None
    get(other, b"free")
    put(other, b"free", b"1", lease=lease)
    assert other.owns(b"free") is None
    world.clock.run_for(21.0)
    assert get(one, b"k") is get(other, b"free") is None


def test_other_reads_go_to_a_member(world: World) -> None:
    one, _ = world.proxies
    get(one, b"k")
    for request in (RangeRequest(key=b"k", serializable=True), RangeRequest(key=b"k", range_end=b"l")):
        calls = one.upstream.calls
        assert one.now(RANGE, request)[0] == 0
        assert one.upstream.calls == calls + 1


def test_callers_who_show_a_token_are_answered_by_members_and_keep_to_the_protocol(world: World) -> None:
    one, other = world.proxies
    token = ((b"token", b"t"),)
    get(one, b"k", metadata=token)
    assert world.leasing_keys() == []
    get(one, b"k")
    assert other.now(PUT, PutRequest(key=b"k", value=b"2"), metadata=token)[0] == 0
    assert one.owns(b"k") is None


def test_leasing_keys_have_none_of_their_own(world: World) -> None:
    one, _ = world.proxies
    get(one, b"k")
    get(one, b"leasing/k")
    assert world.leasing_keys() == [b"leasing/k"]


def test_an_error_of_the_write_is_the_member_s(world: World) -> None:
    one, _ = world.proxies
    get(one, b"k")
    code, _ = one.now(PUT, PutRequest(key=b"k", ignore_value=True))
    assert code == errors.KEY_NOT_FOUND.code
    assert one.owns(b"k") is not None  # nothing has changed
    assert get(one, b"k") is None


def test_a_write_that_may_have_been_done_ends_ownership(world: World) -> None:
    one, _ = world.proxies
    get(one, b"k")
    one.upstream.faults = 1.0
    assert one.now(PUT, PutRequest(key=b"k", value=b"1"))[0] == Code.UNAVAILABLE
    assert one.owns(b"k") is None
    one.upstream.faults = 0.0
    assert put(world.proxies[1], b"k", b"2")


def test_reads_do_not_fail_with_the_acquisition(world: World) -> None:
    one, _ = world.proxies
    failing = iter((0.0,))  # the first call alone is lost

    class Once:
        def random(self) -> float:
            return next(failing, 1.0)

        def uniform(self, low: float, high: float) -> float:
            return low

    one.upstream.faults = 0.5
    one.upstream._rng = Once()  # type: ignore[assignment]  # all of it that is used
    one.upstream.slow = -1.0
    answers: list[int] = []
    failing = iter((1.0, 0.0))
    one.ask(RANGE, RangeRequest(key=b"k"), lambda code, _reply: answers.append(code))
    world.clock.run(lambda: bool(answers), 10)
    assert answers == [0]


def test_while_a_write_is_under_way_reads_ask_a_member(world: World) -> None:
    one, _ = world.proxies
    get(one, b"k")
    done: list[int] = []
    one.ask(PUT, PutRequest(key=b"k", value=b"1"), lambda code, _reply: done.append(code))
    assert one.owns(b"k") is None
    world.clock.run(lambda: bool(done), 5)
    assert one.owns(b"k") is not None and get(one, b"k") == b"1"


def test_ownership_ends_before_the_lease_does(world: World) -> None:
    one, other = world.proxies
    get(one, b"k")
    one.upstream.slow = 1.0  # its words arrive no more, in time
    one.upstream.delay_s = lambda: 1000.0  # type: ignore[method-assign]
    began = world.clock.now
    put_at: list[float] = []
    other.ask(PUT, PutRequest(key=b"k", value=b"2"), lambda *_: put_at.append(world.clock.now))
    owned_until = began
    while not put_at:
        world.clock.run_for(0.1)
        if one.owns(b"k") is not None:
            assert not put_at
            owned_until = world.clock.now
    assert began < owned_until < began + TTL_S * MARGIN + 1
    assert put_at[0] > owned_until


def test_when_the_streams_are_cut_a_new_session_begins(world: World) -> None:
    one, other = world.proxies
    get(one, b"k")
    lease = one.way.ownership.lease
    one.upstream.cut()
    assert one.owns(b"k") is None and not one.way.ownership.lease
    put(other, b"k", b"2")
    world.clock.run(lambda: bool(one.way.ownership.lease), 30)
    assert one.way.ownership.lease != lease
    assert get(one, b"k") == b"2" and one.owns(b"k") is not None


def test_a_stopping_proxy_gives_up_what_it_owns(world: World) -> None:
    one, other = world.proxies
    get(one, b"k")
    one.way.stop()
    world.clock.run_for(1.0)
    assert world.leasing_keys() == []
    put(other, b"k", b"1")


def test_a_revoke_that_overtakes_the_answer_to_the_acquisition(world: World) -> None:
    one, other = world.proxies
    put(one, b"k", b"1")
    answers: list[bytes] = []
    delays = iter((0.001, 5.0))  # there, and back
    plain = one.upstream.delay_s
    one.upstream.delay_s = lambda: next(delays, None) or plain()  # type: ignore[method-assign]
    one.ask(RANGE, RangeRequest(key=b"k"), lambda _code, reply: answers.append(reply))
    world.clock.run_for(0.5)
    assert world.leasing_keys() == [b"leasing/k"]
    put(other, b"k", b"2")
    world.clock.run(lambda: bool(answers), 10)
    assert RangeResponse.FromString(answers[0]).kvs[0].value == b"1"  # it began before the write
    assert one.owns(b"k") is None


def test_an_owner_from_the_reference_that_is_dead_is_waited_for(world: World) -> None:
    one, _ = world.proxies
    world.cluster.execute("/etcdserverpb.Lease/LeaseGrant", LeaseGrantRequest(TTL=60).SerializeToString())
    foreign = max(world.cluster.leases)
    world.cluster.execute(PUT, PutRequest(key=b"leasing/k", lease=foreign).SerializeToString())
    began = world.clock.now
    assert one.now(PUT, PutRequest(key=b"k", value=b"1"), limit_s=70)[0] == 0
    assert 58 < world.clock.now - began < 62


def test_who_waits_too_long_is_told(world: World) -> None:
    one, _ = world.proxies
    world.cluster.execute(PUT, PutRequest(key=b"leasing/k").SerializeToString())  # nobody's
    answers: list[tuple[int, str]] = []
    message = PutRequest(key=b"k").SerializeToString()
    one.way.call(PUT, message, lambda code, text, _reply: answers.append((code, text)), (), 3.0)
    world.clock.run(lambda: bool(answers), 5)
    assert answers[0] in (tuple(errors.TIMEOUT), tuple(errors.DEADLINE_EXCEEDED))
    assert one.way.waiting == {} and one.way.waiting_writes == 0


def test_only_so_many_writes_wait(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.leasing.way.MAX_WAITING", 1)
    one, _ = world.proxies
    world.cluster.execute(PUT, PutRequest(key=b"leasing/k").SerializeToString())
    one.ask(PUT, PutRequest(key=b"k"), lambda *_: None)
    world.clock.run(lambda: one.way.waiting_writes == 1, 5)
    assert one.now(PUT, PutRequest(key=b"k"))[0] == errors.REQUEST_TOO_MANY_REQUESTS.code


def test_only_so_many_keys_are_owned(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership_module, "MAX_OWNED", 2)
    one, _ = world.proxies
    for key in (b"a", b"b", b"a", b"c"):
        get(one, key)
    assert [one.owns(key) is not None for key in (b"a", b"b", b"c")] == [True, False, True]
    world.clock.run_for(1.0)
    assert world.leasing_keys() == [b"leasing/a", b"leasing/c"]


def test_in_a_namespace_leasing_keys_are_in_it_too() -> None:
    world = World(namespace=b"ns/")
    one, other = world.proxies
    put(one, b"ns/k", b"1")
    get(one, b"ns/k")
    assert world.leasing_keys() == [b"ns/leasing/k"]
    assert other.now(DELETE_RANGE, DeleteRangeRequest(key=b"ns/", range_end=b"ns0"))[0] == 0
    assert one.owns(b"ns/k") is None


def test_where_leasing_keys_are() -> None:
    plain, inside = LeasingKeys(b"", b"p/"), LeasingKeys(b"ns/", b"p/")
    assert plain.of(b"k") == b"p/k" and inside.of(b"ns/k") == b"ns/p/k"
    assert plain.key(b"p/k") == b"k" and inside.key(b"ns/p/k") == b"ns/k"
    assert plain.of_range(b"a", b"b") == (b"p/a", b"p/b")
    assert plain.of_range(b"a", b"\0") == (b"p/a", b"p0")
    assert inside.of_range(b"ns/a", b"ns0") == (b"ns/p/a", b"ns/p0")


def test_a_transaction_of_many_keys_guards_their_whole_range() -> None:
    leasing = LeasingKeys(b"", b"p/")
    puts = [RequestOp(request_put=PutRequest(key=b"k%03d" % number)) for number in range(MAX_GUARDS + 20)]
    operation = RequestOp(request_txn=TxnRequest(success=puts))
    keys, ranges = targets(operation, leasing)
    assert (keys, ranges) == ([], [(b"k000", b"k119\0")])
    request = guarded(operation, [], ranges, leasing, [])
    assert len(request.compare) == len(request.failure) == 1


def test_a_deletion_that_comes_late_leaves_the_key_of_a_later_ownership(world: World) -> None:
    one, _ = world.proxies
    get(one, b"k")
    (first,) = world.cluster.model.within(b"leasing/k", b"")
    deletion = give_up([(b"leasing/k", first.create_revision)]).SerializeToString()
    assert TxnResponse.FromString(world.cluster.execute(TXN, deletion)).succeeded
    world.clock.run_for(1.0)
    get(one, b"k")
    assert not TxnResponse.FromString(world.cluster.execute(TXN, deletion)).succeeded
    assert world.leasing_keys() == [b"leasing/k"] and one.owns(b"k") is not None


def state(value: bytes) -> KeyValue:
    return KeyValue(key=b"k", value=value)


def owning() -> Ownership:
    ownership = Ownership()
    ownership.lease, ownership.valid_until = 7, 10.0
    assert ownership.begin_acquire(b"k", 0.0)
    assert ownership.acquired(b"k", 7, ResponseHeader(revision=5), state(b"0")) is None
    return ownership


def test_nothing_is_owned_longer_than_the_lease_surely_lives() -> None:
    ownership = owning()
    assert ownership.read(b"k", 9.9) is not None
    assert ownership.read(b"k", 10.0) is None
    assert not ownership.begin_acquire(b"l", 10.0)
    ownership.end_all()
    assert not ownership.begin_acquire(b"l", 0.0)


def test_answers_to_writes_may_come_in_any_order() -> None:
    ownership = owning()
    ownership.begin_write([b"k"])
    ownership.begin_write([b"k"])
    ownership.wrote(b"k", 5, ResponseHeader(revision=7), state(b"2"))
    ownership.end_write([(b"k", 5)])
    assert ownership.read(b"k", 0.0) is None  # the other is still under way
    ownership.wrote(b"k", 5, ResponseHeader(revision=6), state(b"1"))
    ownership.end_write([(b"k", 5)])
    kept = ownership.read(b"k", 0.0)
    assert kept is not None and RangeResponse.FromString(kept).kvs[0].value == b"2"


def test_the_end_of_an_earlier_ownership_leaves_a_later_one() -> None:
    ownership = owning()
    assert not ownership.end(b"k", 5)
    assert ownership.read(b"k", 0.0) is not None
    assert ownership.end(b"k", 6)
    assert ownership.ended_after(b"k", 5) and not ownership.ended_after(b"k", 6)


def test_ends_of_ownership_that_are_forgotten_count_for_all_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership_module, "MAX_REMEMBERED", 1)
    ownership = owning()
    ownership.end(b"k", 6)
    ownership.end(b"l", 7)  # of k nothing is known any more
    assert ownership.begin_acquire(b"k", 0.0)
    ownership.acquired(b"k", 7, ResponseHeader(revision=6), state(b"late"))
    assert ownership.read(b"k", 0.0) is None
    assert ownership.begin_acquire(b"k", 0.0)
    ownership.acquired(b"k", 7, ResponseHeader(revision=8), state(b"new"))
    assert ownership.read(b"k", 0.0) is not None


def test_while_a_range_is_written_nothing_is_acquired() -> None:
    ownership = owning()
    assert ownership.begin_range_write(b"a", b"z") == [(b"k", 5)]
    assert not ownership.begin_acquire(b"k", 0.0)
    ownership.end_range_write()
    assert ownership.begin_acquire(b"k", 0.0)


KEYS = (b"a", b"a/1", b"a/2", b"b")


class History:
    """Judges every answer: a read shows a state that the key has had since before it was asked for."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.known = dict.fromkeys(KEYS, 0)
        """The revision of the last change of each key that somebody has been told of."""

    def states(self, key: bytes, first: int) -> list[KeyValue | None]:
        """The states of a key from that of a revision on."""
        versions = [version for version in self.world.cluster.model.versions if version.key == key]
        before = [version.kv for version in versions if version.main <= first]
        return [before[-1] if before else None, *[version.kv for version in versions if version.main > first]]

    def judge(self, key: bytes, known: int, kv: KeyValue | None) -> None:
        assert kv in self.states(key, known), (key, known, kv)
        if kv is not None:
            self.known[key] = max(self.known[key], kv.mod_revision)


@pytest.mark.parametrize("seed", range(25))
def test_random_calls_through_three_proxies_are_linearizable(seed: int) -> None:
    world = World(3, seed)
    rng, history = world.rng, History(world)
    answered = 0

    def nothing_owned_is_old() -> None:
        live = world.cluster.model.live()
        for proxy in world.proxies:
            for key in KEYS:
                kept = proxy.owns(key)
                if kept is not None:
                    found = RangeResponse.FromString(kept)
                    assert (found.kvs[0] if found.kvs else None) == live.get(key), key

    world.clock.after_each = nothing_owned_is_old

    def client(number: int, left: int) -> None:
        nonlocal answered
        if not left:
            answered += 1
            return
        proxy, key = rng.choice(world.proxies), rng.choice(KEYS)
        known = dict(history.known)
        value = b"%d.%d" % (number, left)
        written: list[bytes] = []
        request: Any
        match rng.choice(("get", "get", "get", "get", "put", "put", "delete", "range", "txn")):
            case "get":
                path, request = RANGE, RangeRequest(key=key)
            case "put":
                path, request = PUT, PutRequest(key=key, value=value)
                written = [key]
            case "delete":
                path, request = DELETE_RANGE, DeleteRangeRequest(key=key)
                written = [key]
            case "range":
                path = DELETE_RANGE
                request = DeleteRangeRequest(key=b"a/", range_end=b"a0")
                written = [b"a/1", b"a/2"]
            case _:
                other = rng.choice(KEYS)
                guard = Compare(key=other, target=Compare.VERSION, result=Compare.GREATER, version=0)
                read = RequestOp(request_range=RangeRequest(key=other))
                change = RequestOp(request_put=PutRequest(key=key, value=value))
                path = TXN
                request = TxnRequest(compare=[guard], success=[change], failure=[read])

        def then(code: int, reply: bytes) -> None:
            if code == 0 and path == RANGE:
                found = RangeResponse.FromString(reply)
                history.judge(key, known[key], found.kvs[0] if found.kvs else None)
            elif code == 0 and path == TXN:
                answer = TxnResponse.FromString(reply)
                if answer.succeeded:
                    history.known[key] = max(history.known[key], answer.header.revision)
                else:
                    found = answer.responses[0].response_range
                    assert not found.kvs
                    history.judge(other, known[other], None)
            elif code == 0:
                header = (PutResponse if path == PUT else DeleteRangeResponse).FromString(reply).header
                for one in written:
                    history.known[one] = max(history.known[one], header.revision)
            else:
                assert code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)
            world.clock.later(rng.expovariate(10.0), lambda: client(number, left - 1))

        proxy.ask(path, request, then)

    for number in range(4):
        client(number, 40)

    def disturb() -> None:
        if answered == 4:
            return
        world.clock.later(rng.uniform(0.5, 5.0), disturb)
        proxy = rng.choice(world.proxies)
        match rng.randrange(4):
            case 0:
                proxy.upstream.cut()
            case 1:
                proxy.upstream.faults = 0.2
            case 2:
                proxy.upstream.slow = 0.1
            case _:
                for one in world.proxies:
                    one.upstream.faults = one.upstream.slow = 0.0

    if seed % 5:
        disturb()
    world.clock.run(lambda: answered == 4, 5000.0)
    for proxy in world.proxies:
        proxy.upstream.faults = proxy.upstream.slow = 0.0
    world.clock.run_for(3 * TTL_S)
    for key in KEYS:  # whatever has happened, each can be written everywhere
        for proxy in world.proxies:
            put(proxy, key, b"last")
    assert all(not proxy.way.waiting and not proxy.way.waiting_writes for proxy in world.proxies)
    assert sum(proxy.way.ownership.hits for proxy in world.proxies) > 0
