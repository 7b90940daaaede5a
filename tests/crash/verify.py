"""What clients saw against what the members have in the end."""

import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kvorum.pb.mvcc_pb2 import Event
from kvorum.pb.rpc_pb2 import HashKVRequest, RangeRequest, WatchCreateRequest, WatchRequest
from loadtest.launcher import Server
from tests.calls import Api
from tests.crash.clients import END, PREFIX, Clients
from tests.linearizability.check import check
from tests.linearizability.history import Revision

SHOWN = 10
SHOWN_CHARACTERS = 1000
LOG_TIMEOUT_S = 60.0


def store_log(server: Server, first: int, last: int) -> list[Revision]:
    """The revisions from `first` to `last`, as a new watcher at that member gets them."""
    found: list[Event] = []
    create = WatchCreateRequest(key=PREFIX, range_end=END, start_revision=first)
    requests = [WatchRequest(create_request=create)]
    with (
        Api(server.address) as api,
        api.watch_unread(requests, wait_for_ready=True, timeout_s=LOG_TIMEOUT_S) as replies,
    ):
        for reply in replies:
            assert not reply.canceled, reply
            found += reply.events
            if found and found[-1].kv.mod_revision >= last:
                break
    return revisions(found, last)


def revisions(events: Iterable[Event], last: int) -> list[Revision]:
    """Events in their order, by revision."""
    of: dict[int, list[Event]] = {}
    for event in events:
        if event.kv.mod_revision <= last:
            of.setdefault(event.kv.mod_revision, []).append(event)
    return [Revision(number, tuple(found)) for number, found in of.items()]


def hash_at(server: Server, revision: int) -> tuple[int, int]:
    """(hash, compacted revision) of that member's store as of a revision which it has caught up with."""
    with Api(server.address) as api:
        api(RangeRequest(key=PREFIX), wait_for_ready=True)
        reply = api(HashKVRequest(revision=revision))
        return reply.hash, reply.compact_revision


def problems(clients: Clients, members: Sequence[Server], last: int) -> list[str]:
    """Every way in which members disagree, or clients saw what no correct store can have shown them.

    What is compacted no member has any more: the first watcher has had all of it, and must agree with what is left.
    """
    found = []
    history = clients.history()
    first_watcher = history.watches[0]
    history.revisions = revisions((event for received in first_watcher.received for event in received.events), last)
    hashes = [hash_at(member, last) for member in members]
    if len(set(hashes)) != 1:
        found.append(f"the stores differ at revision {last}: (hash, compacted) of each member are {hashes}")
    for member, (_, compacted) in zip(members, hashes, strict=True):
        expected = [revision for revision in history.revisions if revision.number > compacted]
        found += _differences(member.name, expected, store_log(member, max(1, compacted + 1), last))
    return found + check(history)


def _differences(name: str, expected: list[Revision], log: list[Revision]) -> list[str]:
    if log == expected:
        return []
    at: Any = next((one for one in zip(expected, log, strict=False) if one[0] != one[1]), "the end of the shorter")
    return [f"the log of {name} is not what the first watcher had: {len(log)} and {len(expected)} revisions, {at}"]


def verify(clients: Clients, members: Sequence[Server], last: int, folder: Path | None = None) -> None:
    """Raises with the first problems; all that was recorded is then in `folder`, as one pickle."""
    found = problems(clients, members, last)
    if found and folder is not None:
        (folder / "history.pickle").write_bytes(pickle.dumps((found, clients.history())))
    shown = [" ".join(problem.split())[:SHOWN_CHARACTERS] for problem in found[:SHOWN]]
    assert not found, "\n".join([f"{len(found)} problems", *shown])
