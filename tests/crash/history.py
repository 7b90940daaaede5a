"""What clients saw while a member was killed again and again, and whether a correct store could have shown it.

A pure check: histories in, violations out. Times are those of one clock, in seconds.
"""

import bisect
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Write(NamedTuple):
    """One attempt: the pairs it would set, and the revision it was acknowledged with (None: the outcome is unknown).

    Values are unique over all attempts, so an attempt is recognised by what it left.
    """

    pairs: Mapping[bytes, bytes]
    began_s: float
    ended_s: float
    revision: int | None


class Read(NamedTuple):
    """One answered read of one key: the header's revision, and (value, mod_revision) or None when absent."""

    connection: int
    key: bytes
    began_s: float
    ended_s: float
    revision: int
    found: tuple[bytes, int] | None
    linearizable: bool


class Event(NamedTuple):
    """One put as a watcher or the final history shows it."""

    revision: int
    key: bytes
    value: bytes


def check(
    history: Sequence[Event],
    writes: Sequence[Write],
    reads: Sequence[Read],
    watched: Sequence[Sequence[Event]],
) -> list[str]:
    """Every way in which the clients' records contradict `history`, the store's whole log after the last recovery."""
    return [
        *_check_revisions(history),
        *_check_writes(history, writes),
        *_check_reads(history, writes, reads),
        *_check_watchers(history, watched),
    ]


def _check_revisions(history: Sequence[Event]) -> list[str]:
    found = sorted({event.revision for event in history})
    if not found:
        return ["the history is empty"]
    expected = list(range(found[0], found[0] + len(found)))
    problems = (
        [] if found == expected else [f"revisions have gaps: {sorted(set(range(found[0], found[-1])) - set(found))}"]
    )
    if [event.revision for event in history] != sorted(event.revision for event in history):
        problems.append("the history is out of order")
    return problems


def _check_writes(history: Sequence[Event], writes: Sequence[Write]) -> list[str]:
    problems = []
    by_revision: dict[int, dict[bytes, bytes]] = {}
    for event in history:
        by_revision.setdefault(event.revision, {})[event.key] = event.value
    attempts = {value: write for write in writes for value in write.pairs.values()}
    revisions: dict[int, int] = {}  # attempt to its revision
    for revision, pairs in by_revision.items():
        attempt = attempts.get(next(iter(pairs.values())))
        if attempt is None or dict(attempt.pairs) != pairs:
            problems.append(f"revision {revision} holds {pairs}, which nobody wrote as one")
        elif id(attempt) in revisions:
            problems.append(f"{attempt} was applied twice: {revisions[id(attempt)]} and {revision}")
        else:
            revisions[id(attempt)] = revision
    problems += [
        f"acknowledged but not there: {write}, found at {revisions.get(id(write))}"
        for write in writes
        if write.revision is not None and revisions.get(id(write)) != write.revision
    ]
    # in real time: what was acknowledged before another began has the lower revision
    latest = 0
    ends = sorted((write.ended_s, write.revision) for write in writes if write.revision is not None)
    at = 0
    for write in sorted(writes, key=lambda write: write.began_s):
        while at < len(ends) and ends[at][0] < write.began_s:
            latest = max(latest, ends[at][1] or 0)
            at += 1
        applied = revisions.get(id(write))
        if applied is not None and applied <= latest:
            problems.append(f"{write} at {applied} began after {latest} was acknowledged")
    return problems


def _check_reads(history: Sequence[Event], writes: Sequence[Write], reads: Sequence[Read]) -> list[str]:
    problems = []
    versions: dict[bytes, list[Event]] = {}
    for event in history:
        versions.setdefault(event.key, []).append(event)
    last = history[-1].revision if history else 0
    seen: dict[int, int] = {}
    ends = sorted((write.ended_s, write.revision) for write in writes if write.revision is not None)
    ends += [(read.ended_s, read.revision) for read in reads if read.linearizable]
    ends.sort()
    at = latest = 0
    for read in sorted(reads, key=lambda read: read.began_s):
        while at < len(ends) and ends[at][0] < read.began_s:
            latest = max(latest, ends[at][1])
            at += 1
        if read.linearizable and read.revision < latest:
            problems.append(f"stale: {read} began after {latest} was known")
        if read.revision < seen.get(read.connection, 0):
            problems.append(f"back in time on connection {read.connection}: {read} after {seen[read.connection]}")
        seen[read.connection] = max(seen.get(read.connection, 0), read.revision)
        if read.revision > last:
            problems.append(f"{read} saw a revision that was lost")
            continue
        of_key = versions.get(read.key, [])
        at_or_below = bisect.bisect_right(of_key, read.revision, key=lambda event: event.revision)
        expected = (of_key[at_or_below - 1].value, of_key[at_or_below - 1].revision) if at_or_below else None
        if read.found != expected:
            problems.append(f"{read} should have found {expected}")
    return problems


def _check_watchers(history: Sequence[Event], watched: Sequence[Sequence[Event]]) -> list[str]:
    problems = []
    for number, events in enumerate(watched):
        if list(events) == list(history):
            continue
        at = next(
            (i for i, (a, b) in enumerate(zip(events, history, strict=False)) if a != b), min(len(events), len(history))
        )
        problems.append(
            f"watcher {number} differs at event {at}: {events[at : at + 2]} instead of {history[at : at + 2]}"
        )
    return problems
