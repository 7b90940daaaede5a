"""What the tests of raft share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.raft.driver_group import Group
from tests.raft.simulated_disk import SimulatedDisk


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    made = Group(tmp_path)
    yield made
    made.close()


@pytest.fixture
def disk() -> Iterator[SimulatedDisk]:
    disk = SimulatedDisk()
    yield disk
    assert not disk.open_files
