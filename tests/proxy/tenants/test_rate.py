"""The bucket of requests per second."""

from hypothesis import given
from hypothesis import strategies as st

from proxy.tenants.rate import TokenBucket


def test_a_second_s_worth_may_come_at_once_and_then_one_at_a_time() -> None:
    bucket = TokenBucket(10, now=0.0)
    assert [bucket.take(0.0) for _ in range(11)] == [True] * 10 + [False]
    assert bucket.take(0.1)
    assert not bucket.take(0.1)


def test_a_rate_below_one_still_lets_a_request_through() -> None:
    bucket = TokenBucket(0.5, now=0.0)
    assert [bucket.take(at) for at in (0.0, 1.0, 1.9, 2.0)] == [True, False, False, True]


def test_a_new_rate_counts_from_now_on() -> None:
    bucket = TokenBucket(10, now=0.0)
    bucket.set_rate(2)
    assert [bucket.take(0.0) for _ in range(3)] == [True, True, False]
    bucket.set_rate(10)
    assert not bucket.take(0.0)
    assert bucket.take(0.1)


@given(st.floats(0.1, 1000), st.lists(st.floats(0, 0.5), max_size=200))
def test_never_more_than_the_rate_and_a_second_s_worth(rate: float, pauses: list[float]) -> None:
    bucket = TokenBucket(rate, now=0.0)
    now, taken = 0.0, 0
    for pause in pauses:
        now += pause
        taken += bucket.take(now)
        assert taken <= max(rate, 1.0) + rate * now + 1e-6
