"""What workers see of each other's use."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvorum.errors import ApiError, Code
from proxy.paths import RANGE
from proxy.tenants.namespaces_file import Limits, TenantEntry
from proxy.tenants.shares import ROWS, Shares
from proxy.tenants.tenant import Tenant


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[list[Shares]]:
    opened = [Shares(str(tmp_path / "tenants"), index, 3) for index in range(3)]
    yield opened
    for shares in opened:
        shares.close()


def test_a_worker_s_requests_are_taken_once_by_each_other(workers: list[Shares]) -> None:
    one, two, three = [shares.row("alpha") for shares in workers]
    one.add_request()
    one.add_request()
    three.add_request()
    assert [row.take_others() for row in (one, two, three)] == [1, 3, 2]
    assert [row.take_others() for row in (one, two, three)] == [0, 0, 0]


def test_watches_are_those_of_all(workers: list[Shares]) -> None:
    rows = [shares.row("alpha") for shares in workers]
    for row, count in zip(rows, (5, 7, -2), strict=True):
        row.add_watches(count)
    assert [row.watches for row in rows] == [10, 10, 10]


def test_tenants_have_rows_of_their_own(workers: list[Shares]) -> None:
    names = [f"tenant-{number}" for number in range(2000)]
    for number, name in enumerate(names):
        workers[number % 3].row(name).add_watches(number + 1)
    assert [workers[0].row(name).watches for name in names] == list(range(1, 2001))
    assert len(names) < ROWS


def test_the_watches_of_a_worker_that_died_are_gone(workers: list[Shares], tmp_path: Path) -> None:
    one, two, _ = [shares.row("alpha") for shares in workers]
    one.add_watches(3)
    two.add_watches(4)
    two.add_request()
    again = Shares(str(tmp_path / "tenants"), 1, 3)
    try:
        assert one.watches == 3
        assert one.take_others() == 1
        again.row("alpha").add_watches(1)
        assert one.watches == 4
    finally:
        again.close()


def test_limits_hold_for_all_workers_together(workers: list[Shares]) -> None:
    entry = TenantEntry(name="a", namespace=b"a/", default=True, limits=Limits(requests_per_second=10, watches=4))
    now = 0.0
    tenants = [Tenant(entry, lambda: now, shares.row("a")) for shares in workers]

    def admitted(calls: int) -> int:
        count = 0
        for number in range(calls):
            try:
                tenants[number % 3].enter(RANGE, b"")
            except ApiError as error:
                assert error.status.code == Code.RESOURCE_EXHAUSTED
            else:
                count += 1
        return count

    assert admitted(60) == 10
    now = 0.5
    assert admitted(60) == 5
    now = 10.0
    for number in range(4):
        tenants[number % 3].open_watch()
    for tenant in tenants:
        with pytest.raises(ApiError) as raised:
            tenant.open_watch()
        assert raised.value.status.message == 'tenant "a" is over its limit: watches is 4'
    tenants[0].close_watches(2)
    tenants[1].open_watch()
