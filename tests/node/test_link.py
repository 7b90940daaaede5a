"""The rules of the streams between processes, and their sockets."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.frames import HEADER_BYTES, MAX_FRONTS, Kind, Process, pack, unpack
from node.link import Inlet, Outlet
from node.link_zmq import Links, address


def test_an_outlet_without_credit_is_closed_and_one_frame_may_overdraw() -> None:
    outlet = Outlet()
    assert not outlet.open()
    outlet.grant(10)
    assert outlet.open()
    assert outlet.advance(1000) == 0  # a frame larger than the window passes, or it never could
    assert not outlet.open()
    outlet.grant(1001)
    assert outlet.open()
    assert outlet.advance(1) == 1000


def test_sending_without_credit_and_taking_credit_back_are_broken_invariants() -> None:
    outlet = Outlet(5)
    outlet.advance(5)
    with pytest.raises(AssertionError):
        outlet.advance(1)
    with pytest.raises(AssertionError):
        outlet.grant(4)


@pytest.mark.parametrize("start", [0, 5, 20], ids=["repeated", "overlapping", "lost"])
def test_an_inlet_notices_a_jump(start: int) -> None:
    inlet = Inlet()
    inlet.accept(0, 10)
    with pytest.raises(AssertionError, match="jumped from 10"):
        inlet.accept(start, start + 1)


@given(
    window=st.integers(1, 1000),
    sizes=st.lists(st.integers(0, 300), max_size=60),
    schedule=st.lists(st.booleans(), max_size=200),
)
def test_whatever_the_schedule_the_window_bounds_what_is_between_and_everything_arrives(
    window: int, sizes: list[int], schedule: list[bool]
) -> None:
    outlet, inlet = Outlet(), Inlet(window)
    granted = inlet.grant()
    assert granted == window
    outlet.grant(window)
    to_send, between, arrived = list(sizes), [], []
    steps = iter(schedule + [True, False] * (len(sizes) + 1))
    for send in steps:
        if send and to_send and outlet.open():
            size = to_send.pop(0)
            between.append((outlet.advance(size), size))
        elif not send and between:
            start, size = between.pop(0)
            inlet.accept(start, start + size)
            inlet.consume(size)
            arrived.append(size)
            more = inlet.grant()
            if more is not None:
                outlet.grant(more)
        assert sum(size for _, size in between) <= window + max(sizes, default=0)
    assert arrived == sizes


@given(st.binary(max_size=100), st.integers(0, 1 << 60))
def test_a_frame_reads_back(payload: bytes, start: int) -> None:
    frame = unpack(pack(Process.RAFT, Kind.ENTRIES, start, payload))
    assert frame[:4] == (Process.RAFT, Kind.ENTRIES, start, start + len(payload))
    assert frame.data[HEADER_BYTES:] == payload


def test_a_socket_path_fits_for_every_process() -> None:
    run_dir = "/run/user/1000000000/kvorum-" + "x" * 8
    assert all(
        len(address(run_dir, p, c)) - len("ipc://") <= 107 for p in range(16 + MAX_FRONTS) for c in (True, False)
    )


@pytest.fixture
def pair() -> Iterator[tuple[Links, Links]]:
    with tempfile.TemporaryDirectory() as run_dir:
        raft = Links(run_dir, Process.RAFT, [Process.APPLY])
        apply = Links(run_dir, Process.APPLY, [Process.RAFT])
        yield raft, apply
        raft.close()
        apply.close()


def wait_data(links: Links, frames: int) -> list[bytes]:
    got: list[bytes] = []
    while len(got) < frames:
        assert links.data.poll(5000), "a frame did not arrive"
        got += [frame.data[HEADER_BYTES:] for frame in links.receive()]
    return got


def test_frames_arrive_in_order_and_credit_comes_back(pair: tuple[Links, Links]) -> None:
    raft, apply = pair
    outlet = raft.outlet(Process.APPLY, Kind.ENTRIES)
    assert not outlet.open()
    apply.open(Process.RAFT, Kind.ENTRIES)
    assert raft.control.poll(5000)
    assert raft.receive_control() == []  # credit is taken in, not returned
    window = outlet.granted
    body = b"x" * (window // 4)
    for _ in range(4):
        raft.send(Process.APPLY, Kind.ENTRIES, body)
    assert not outlet.open()
    assert wait_data(apply, 4) == [body] * 4
    apply.consume(Process.RAFT, Kind.ENTRIES, 3 * len(body))
    assert raft.control.poll(5000)
    raft.receive_control()
    assert outlet.granted == window + 3 * len(body)


def test_control_frames_have_a_socket_of_their_own(pair: tuple[Links, Links]) -> None:
    raft, apply = pair
    apply.send(Process.RAFT, Kind.PROPOSALS, b"data")
    apply.send_control(Process.RAFT, Kind.FLUSHED, b"control")
    assert raft.control.poll(5000)
    (frame,) = raft.receive_control()
    assert (frame.sender, frame.kind, frame.data[HEADER_BYTES:]) == (Process.APPLY, Kind.FLUSHED, b"control")
    assert wait_data(raft, 1) == [b"data"]


def test_a_send_never_blocks_though_nobody_reads(pair: tuple[Links, Links]) -> None:
    _, apply = pair
    for _ in range(5000):
        apply.send(Process.RAFT, Kind.PROPOSALS, b"x" * 1000)
