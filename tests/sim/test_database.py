"""The simulated database does what the real one does, and a crash takes from it what a crash may take."""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.apply.mvcc.database import Cursor, Database, Position
from tests.sim.database import DatabaseFiles, SimulatedDatabase

ROWS = st.sampled_from([b"a", b"ab", b"b", b"c\0", b"c\0\xff", b"d", b"z"])
WRITES = st.dictionaries(ROWS, st.sampled_from([None, b"", b"1", b"22"]), max_size=4)
STEPS = st.lists(
    st.tuples(st.just("pend"), WRITES)
    | st.tuples(st.just("apart"), WRITES)
    | st.tuples(st.sampled_from(["commit", "flush", "open readers", "reopen"]), st.just({})),
    max_size=15,
)


def everything(database: Database, start: bytes, end: bytes) -> list[object]:
    """All that can be read of a range."""
    seeker = database.seeker()
    seeker.seek(start)
    sought = []
    while seeker.valid():
        sought.append((seeker.key(), seeker.value()))
        seeker.next()
    seeker.seek(end)
    if seeker.valid():
        seeker.prev()
        sought.append((seeker.key(), seeker.value()) if seeker.valid() else (b"", b""))
    seeker.seek_for_prev(end)
    sought.append((seeker.key(), seeker.value()) if seeker.valid() else (b"", b""))
    rows = [start, end, b"ab", b"none"]
    return [
        list(database.scan(start, end)),
        list(database.scan_values(start, end)),
        list(database.scan_back(start, end)),
        list(database.committed(start, end)),
        list(database.keys(start, end)),
        sought,
        [database.get(row) for row in rows],
        database.get_many(rows),
        database.position,
    ]


@settings(max_examples=40, deadline=None)
@given(steps=STEPS, start=ROWS, end=ROWS)
def test_it_reads_as_the_real_one(steps: list[tuple[str, dict[bytes, bytes | None]]], start: bytes, end: bytes) -> None:
    with tempfile.TemporaryDirectory(prefix="kvorum-sim-") as directory:
        path = str(Path(directory) / "db")
        real, files = Database(path), DatabaseFiles()
        simulated: Database = SimulatedDatabase(files)
        readers = []
        for number, (step, rows) in enumerate(steps):
            position = Position(Cursor(number, 1, 2), number, 7)
            for database in (real, simulated):
                if step == "pend":
                    database.pending |= rows
                elif step == "apart":
                    database.write_apart(rows.items())
                elif step == "commit":
                    database.commit(position)
                elif step == "flush":
                    assert database.flush() == database.position.cursor
            if step == "open readers":
                readers.append([(one.committed(b"a", b"z"), one.scan(b"a", b"z")) for one in (real, simulated)])
            elif step == "reopen" and not readers:
                real.close()
                simulated.close()
                real, simulated = Database(path), SimulatedDatabase(files)
            assert everything(real, start, end) == everything(simulated, start, end)
        for (committed, scanned), (model_committed, model_scanned) in readers:
            assert list(committed) == list(model_committed)
            assert list(scanned) == list(model_scanned)
        del readers
        real.close()


def test_a_crash_leaves_first_writes_but_no_later_without_an_earlier_one() -> None:
    files = DatabaseFiles()
    database = SimulatedDatabase(files)
    database.write_apart([(b"a", b"0")])
    database.flush()
    for number in range(1, 4):
        database.write_apart([(b"a", b"%d" % number), (b"b%d" % number, b"")])
    left = set()
    for seed in range(40):
        after = SimulatedDatabase(files.crash(Random(seed)))
        left.add(tuple(after.scan(b"a", b"z")))
    written = [(b"b1", b""), (b"b2", b""), (b"b3", b"")]
    assert left == {((b"a", b"%d" % number), *written[:number]) for number in range(4)}


def test_nothing_is_read_or_written_after_it_was_closed() -> None:
    database = SimulatedDatabase(DatabaseFiles())
    database.close()
    with pytest.raises(AssertionError):
        database.write_apart([(b"a", b"")])
    with pytest.raises(AssertionError):
        list(database.scan(b"a", b"b"))
