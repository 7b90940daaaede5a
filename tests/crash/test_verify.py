"""The judge of the crash tests finds what it is there for."""

from dataclasses import replace

from kvorum.pb.rpc_pb2 import PutRequest, PutResponse, RangeRequest
from loadtest.launcher import Kind, wait_until
from tests.calls import Api
from tests.crash.clients import PREFIX, Clients, Lives
from tests.crash.verify import problems
from tests.linearizability.history import Operation, Session
from tests.servers import start, start_reference_cluster


def seen_by_clients(*addresses: str) -> tuple[Clients, int]:
    """What clients saw in a short time without faults, and the last revision."""
    clients = Clients(addresses, 1, Lives(len(addresses), lasting=False), workers=2, watchers=3, probes=True)
    wait_until(lambda: clients.failed.is_set() or clients.acknowledged >= 100, "writes")
    return clients, clients.finish()


def test_a_run_without_faults_has_no_problems() -> None:
    with start_reference_cluster() as cluster:
        clients, last = seen_by_clients(*cluster.addresses)
        assert problems(clients, cluster.members, last) == []
        kinds = {type(operation.request).__name__ for operation in clients.operations}
        assert {"PutRequest", "TxnRequest", "RangeRequest", "DeleteRangeRequest"} <= kinds
        assert all(watch.received[-1].revision >= last for watch in clients.watches)


def test_what_is_lost_repeated_or_different_is_found() -> None:
    with start(Kind.REFERENCE) as server, start(Kind.REFERENCE) as other:
        clients, last = seen_by_clients(server.address)
        assert problems(clients, [server], last) == []

        with Api(other.address) as api:
            while api(RangeRequest(key=PREFIX)).header.revision < last:
                api(PutRequest(key=PREFIX + b"other"))
        different = "\n".join(problems(clients, [server, other], last))
        assert "the stores differ" in different and "the log of m1 is not what" in different

        acknowledged = next(one for one in clients.operations if isinstance(one.outcome, PutResponse))
        at = clients.operations.index(acknowledged)
        clients.operations[at] = replace(acknowledged, request=PutRequest(key=PREFIX + b"lost"))
        assert any("acknowledged, but revision" in problem for problem in problems(clients, [server], last))
        clients.operations[at] = acknowledged

        read = next(
            one for one in clients.operations if isinstance(one.request, RangeRequest) and not one.request.serializable
        )
        late_s = clients.operations[-1].ended_s + 1
        clients.operations.append(Operation(late_s, late_s, Session(1, 0), read.request, read.outcome))
        assert [problem.partition(":")[0] for problem in problems(clients, [server], last)] == ["stale"]
        clients.operations.pop()

        received = clients.watches[0].received
        whole = next(one for one in received if one.events)
        received.insert(received.index(whole), whole)
        assert any(problem.startswith("watch 0") for problem in problems(clients, [server], last))


def test_the_first_write_that_began_after_a_moment() -> None:
    with start(Kind.REFERENCE) as server:
        clients, _ = seen_by_clients(server.address)
    writes = [one for one in clients.operations if isinstance(one.outcome, PutResponse)]
    middle = writes[len(writes) // 2].began_s
    assert clients.served_after(middle) == min(one.ended_s for one in writes if one.began_s >= middle)
    assert clients.served_after(writes[-1].ended_s + 1) is None


def test_answers_of_different_lives_are_of_different_sessions() -> None:
    lives = Lives(2, lasting=False)
    first = lives.now(0)
    assert lives.session(0, first) == lives.session(0, first) != lives.session(1, lives.now(1))
    with lives.change(0):
        during = lives.now(0)
        assert lives.session(0, first) != lives.session(0, first)
        assert lives.session(0, during) != lives.session(0, during)
    after = lives.now(0)
    assert lives.session(0, during).generation < 0
    assert lives.session(0, after) == lives.session(0, after) != Session(0, first)


def test_lasting_lives_are_one() -> None:
    lives = Lives(1, lasting=True)
    with lives.change(0):
        assert lives.session(0, lives.now(0)) == lives.session(0, 0) == Session(0, 0)
