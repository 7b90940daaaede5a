"""Logs on a simulated disk, and entries for them."""

from node.raft.wal.log import WriteAheadLog
from node.raft.wal.record import Entry
from tests.raft.simulated_disk import SimulatedDirectory, SimulatedDisk

SMALL = 4096
METADATA = b"member 1 of cluster 2"


def entry(index: int, term: int = 1, size: int = 100) -> Entry:
    return term, index, index % 3, (b"%d/%d " % (term, index) * size)[:size]


def create(disk: SimulatedDisk, *, segment_bytes: int = SMALL, cache_bytes: int = 1 << 20) -> WriteAheadLog:
    return WriteAheadLog.create(
        SimulatedDirectory(disk), METADATA, segment_bytes=segment_bytes, cache_bytes=cache_bytes
    )


def reopen(disk: SimulatedDisk, *, cache_bytes: int = 1 << 20) -> WriteAheadLog:
    return WriteAheadLog.open(SimulatedDirectory(disk), segment_bytes=SMALL, cache_bytes=cache_bytes)


def everything(log: WriteAheadLog) -> list[Entry]:
    entries: list[Entry] = []
    low = log.first_index
    while low <= log.last_index:
        entries += log.read(low, log.last_index + 1, 1 << 30)
        low = log.first_index + len(entries)
    return entries


def content(disk: SimulatedDisk, place: int = -1) -> bytearray:
    return disk.entries[sorted(name for name in disk.entries if name.endswith(".wal"))[place]].content
