"""The supervisor's rules: when a generation is ready, fails, ends, and when the next one begins."""

import pytest

from kvorum.lifeline import Word
from node.generation import FIRST_WORD_LIMIT_S, READY_BACK_OFF_S, UNREADY_MAX, Generation, Restarts, State

NAMES = ("apply", "raft", "watch", "front0")


def ready_generation(now_s: float = 0.0) -> Generation:
    generation = Generation(NAMES, now_s, 10.0)
    for name in NAMES:
        generation.heard(name, Word.READY, "", now_s)
    return generation


def test_it_is_ready_when_all_are() -> None:
    generation = Generation(NAMES, 0.0, 10.0)
    for name in NAMES:
        assert generation.state is State.STARTING
        generation.heard(name, Word.READY, "", 0.5)
    assert generation.state is State.READY


def test_silence_of_one_child_fails_it() -> None:
    generation = ready_generation()
    for name in NAMES[1:]:
        generation.heard(name, Word.BEAT, "", 5.0)
    assert generation.next_check_s() == 10.0
    generation.check(9.9)
    assert generation.state is State.READY
    generation.check(10.0)
    assert (generation.state, generation.failed_child, generation.reason) == (State.FAILED, "apply", "silent for 10 s")


def test_a_first_word_may_take_longer() -> None:
    generation = Generation(("apply", "raft"), 0.0, 2.0)
    generation.heard("raft", Word.BEAT, "", 1.0)
    assert generation.next_check_s() == 3.0
    while (now_s := generation.next_check_s()) is not None and now_s < FIRST_WORD_LIMIT_S:
        generation.heard("raft", Word.BEAT, "", now_s)
    assert generation.state is State.STARTING
    generation.check(FIRST_WORD_LIMIT_S)
    assert (generation.failed_child, generation.reason) == ("apply", f"silent for {FIRST_WORD_LIMIT_S:g} s")


def test_a_long_operation_may_be_silent() -> None:
    generation = ready_generation()
    generation.heard("raft", Word.LONG_BEGIN, "open the log", 1.0)
    for name in NAMES:
        if name != "raft":
            generation.heard(name, Word.BEAT, "", 100.0)
    generation.check(100.0)
    assert generation.state is State.READY
    assert generation.next_check_s() == 110.0
    generation.heard("raft", Word.LONG_END, "", 101.0)
    assert generation.next_check_s() == 110.0
    generation.check(111.0)
    assert generation.failed_child == "apply"


def test_with_all_in_long_operations_nothing_is_due() -> None:
    generation = ready_generation()
    for name in NAMES:
        generation.heard(name, Word.LONG_BEGIN, "x", 1.0)
    assert generation.next_check_s() is None


@pytest.mark.parametrize(
    ("last_error", "status", "reason"),
    [
        ("", -9, "killed by signal 9"),
        ("", 1, "exited with 1"),
        ("", 0, "exited with 0"),
        ("", None, "is gone"),
        ("KeyError: 'x'", 1, "KeyError: 'x' (exited with 1)"),
    ],
)
def test_the_end_of_one_child_fails_it(last_error: str, status: int | None, reason: str) -> None:
    generation = ready_generation()
    if last_error:
        generation.heard("watch", Word.FAILED, last_error, 1.0)
        assert generation.state is State.READY
    generation.ended("watch", status)
    assert (generation.state, generation.failed_child, generation.reason) == (State.FAILED, "watch", reason)


def test_the_first_reason_counts() -> None:
    generation = ready_generation()
    generation.ended("raft", 1)
    generation.ended("apply", -9)
    generation.check(1000.0)
    assert generation.failed_child == "raft"


def test_finished_is_not_failed() -> None:
    generation = ready_generation()
    generation.heard("raft", Word.FINISHED, "removed from the cluster", 1.0)
    generation.ended("raft", 0)
    assert (generation.state, generation.reason) == (State.FINISHED, "removed from the cluster")


def test_a_wish_for_another_generation_is_no_failure() -> None:
    generation = ready_generation()
    generation.heard("raft", Word.RESTART, "a snapshot is to be installed", 1.0)
    generation.ended("raft", 0)
    assert (generation.state, generation.reason) == (State.RESTARTING, "a snapshot is to be installed")


def test_a_wish_after_a_failure_comes_too_late() -> None:
    generation = ready_generation()
    generation.ended("apply", -9)
    generation.heard("raft", Word.RESTART, "a snapshot is to be installed", 1.0)
    assert (generation.state, generation.failed_child) == (State.FAILED, "apply")


def test_a_word_that_is_not_a_childs_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        ready_generation().heard("raft", Word.STOP, "", 1.0)


def test_generations_that_never_get_ready_end_the_member() -> None:
    restarts = Restarts()
    waits = [restarts.after_failure(was_ready=False, lived_s=0.1) for _ in range(UNREADY_MAX)]
    assert waits == [0.0, 0.1, None]


def test_one_ready_generation_in_between_starts_the_count_again() -> None:
    restarts = Restarts()
    for _ in range(10):
        assert restarts.after_failure(was_ready=False, lived_s=0.1) is not None
        assert restarts.after_failure(was_ready=False, lived_s=0.1) is not None
        assert restarts.after_failure(was_ready=True, lived_s=0.1) is not None


def test_generations_that_were_asked_for_never_end_the_member() -> None:
    restarts = Restarts()
    waits = [restarts.after_request(lived_s=0.1) for _ in range(8)]
    assert waits == [0.0, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]
    assert restarts.after_request(lived_s=60.0) == 0.0


def test_one_that_was_asked_for_starts_the_count_of_failures_again() -> None:
    restarts = Restarts()
    for _ in range(10):
        assert restarts.after_failure(was_ready=False, lived_s=0.1) is not None
        assert restarts.after_failure(was_ready=False, lived_s=0.1) is not None
        restarts.after_request(lived_s=0.1)


def test_the_wait_grows_a_little_and_starts_again_after_a_long_life() -> None:
    restarts = Restarts()
    waits = [restarts.after_failure(was_ready=True, lived_s=1.0) for _ in range(8)]
    assert waits == [0.0, 0.1, *[READY_BACK_OFF_S] * 6]
    assert restarts.after_failure(was_ready=True, lived_s=60.0) == 0.0
    assert restarts.after_failure(was_ready=True, lived_s=1.0) == 0.0
