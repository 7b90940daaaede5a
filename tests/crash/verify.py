"""What clients saw against what the members have in the end."""

import pickle
from collections.abc import Sequence
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


def store_log(server: Server, last: int) -> list[Revision]:
    """Every revision from the second on, up to `last`, as a new watcher at that member gets them."""
    events: dict[int, list[Event]] = {}
    create = WatchCreateRequest(key=PREFIX, range_end=END, start_revision=1)
    requests = [WatchRequest(create_request=create)]
    with (
        Api(server.address) as api,
        api.watch_unread(requests, wait_for_ready=True, timeout_s=LOG_TIMEOUT_S) as replies,
    ):
        for reply in replies:
            assert not reply.canceled, reply
            for event in reply.events:
                events.setdefault(event.kv.mod_revision, []).append(event)
            if events and max(events) >= last:
                break
    return [Revision(number, tuple(of)) for number, of in sorted(events.items()) if number <= last]


def hash_at(server: Server, revision: int) -> tuple[int, int]:
    """(hash, compacted revision) of that member's store as of a revision which it has caught up with."""
    with Api(server.address) as api:
        api(RangeRequest(key=PREFIX), wait_for_ready=True)
        reply = api(HashKVRequest(revision=revision))
        return reply.hash, reply.compact_revision


def problems(clients: Clients, members: Sequence[Server], last: int) -> list[str]:
    """Every way in which members disagree, or clients saw what no correct store can have shown them."""
    found = []
    history = clients.history()
    history.revisions = store_log(members[0], last)
    hashes = [hash_at(member, last) for member in members]
    if len(set(hashes)) != 1:
        found.append(f"the stores differ at revision {last}: (hash, compacted) of each member are {hashes}")
    for member in members[1:]:
        found += _differences(member.name, history.revisions, store_log(member, last))
    return found + check(history)


def _differences(name: str, expected: list[Revision], log: list[Revision]) -> list[str]:
    if log == expected:
        return []
    at: Any = next((one for one in zip(expected, log, strict=False) if one[0] != one[1]), "the end of the shorter")
    return [f"the log of {name} differs from the first member's: {len(log)} instead of {len(expected)} revisions, {at}"]


def verify(clients: Clients, members: Sequence[Server], last: int, folder: Path | None = None) -> None:
    """Raises with the first problems; all that was recorded is then in `folder`, as one pickle."""
    found = problems(clients, members, last)
    if found and folder is not None:
        (folder / "history.pickle").write_bytes(pickle.dumps((found, clients.history())))
    shown = [" ".join(problem.split())[:SHOWN_CHARACTERS] for problem in found[:SHOWN]]
    assert not found, "\n".join([f"{len(found)} problems", *shown])
