"""Wrong tokens by address and time. The gate that uses it is in test_admin.py."""

import pytest

from esl_pipeline.receiver.lockout import Lockout


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_s13_the_fifth_wrong_token_within_a_minute_locks_its_address_for_a_minute(clock: Clock) -> None:
    lockout = Lockout(clock=clock)
    for _ in range(5):
        assert lockout.wait("10.0.0.1") == 0
        lockout.wrong("10.0.0.1")
        clock.now += 15
    assert lockout.wait("10.0.0.1") == 45
    assert lockout.wait("10.0.0.2") == 0
    clock.now += 44.9
    assert lockout.wait("10.0.0.1") == pytest.approx(0.1)
    clock.now += 0.1
    assert lockout.wait("10.0.0.1") == 0


def test_wrong_tokens_further_apart_lock_nobody(clock: Clock) -> None:
    lockout = Lockout(clock=clock)
    for _ in range(50):
        lockout.wrong("10.0.0.1")
        assert lockout.wait("10.0.0.1") == 0
        clock.now += 15.1


def test_after_a_lockout_it_takes_five_again(clock: Clock) -> None:
    lockout = Lockout(clock=clock)
    for round_ in range(3):
        for _ in range(5):
            assert lockout.wait("10.0.0.1") == 0, round_
            lockout.wrong("10.0.0.1")
        assert lockout.wait("10.0.0.1") == 60
        clock.now += 60.1


def test_s13_the_memory_is_bounded_and_keeps_the_latest(clock: Clock) -> None:
    lockout = Lockout(clock=clock, addresses=100)
    for number in range(10_000):
        for _ in range(5):
            lockout.wrong(f"10.0.{number // 256}.{number % 256}")
    assert len(lockout._wrong) == 100
    assert lockout.wait("10.0.39.15") == 60
    assert lockout.wait("10.0.0.0") == 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("10.0.0.1", "10.0.0.2", False),
        ("x" * 100, "x" * 100_000, True),
    ],
)
def test_an_ipv6_sender_is_its_whole_network(clock: Clock, one: str, other: str, same: bool) -> None:
    lockout = Lockout(clock=clock)
    for _ in range(5):
        lockout.wrong(one)
    assert (lockout.wait(other) > 0) is same
