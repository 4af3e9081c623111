from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.core.errors import ConfigError
from seqroute_ray.serving.breaker import Breaker, BreakerConfig, Permit

CONFIG = BreakerConfig(failures_to_open=3, cooldown_s=10, max_cooldown_s=35)


@dataclass
class Clock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


def begin(breaker: Breaker) -> Permit:
    permit = breaker.begin("m")
    assert permit is not None
    return permit


def opened(clock: Clock) -> Breaker:
    breaker = Breaker(CONFIG, clock)
    for _ in range(3):
        breaker.fail(begin(breaker))
    return breaker


def test_it_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker(CONFIG, Clock())
    for outcome in "ffsffsff":
        (breaker.fail if outcome == "f" else breaker.succeed)(begin(breaker))
    assert breaker.admits("m")
    breaker.fail(begin(breaker))
    assert not breaker.admits("m")
    assert breaker.begin("m") is None
    assert breaker.begin("other") is not None


def test_after_the_cooldown_one_call_is_a_probe_and_its_success_closes() -> None:
    clock = Clock()
    breaker = opened(clock)
    assert breaker.wait_s("m") == 10
    clock.now_s += 9.9
    assert breaker.begin("m") is None
    clock.now_s += 0.1
    assert breaker.admits("m")
    assert breaker.admits("m")  # asking takes nothing
    probe = begin(breaker)
    assert probe.is_probe
    assert breaker.begin("m") is None  # one at a time
    breaker.succeed(probe)
    assert not begin(breaker).is_probe
    breaker.fail(begin(breaker))
    assert breaker.admits("m")  # counted from 0 again


def test_a_failed_probe_doubles_the_cooldown_up_to_its_limit_and_success_forgets_it() -> None:
    clock = Clock()
    breaker = opened(clock)
    for cooldown_s in (10, 20, 35, 35):
        assert breaker.wait_s("m") == cooldown_s
        clock.now_s += cooldown_s
        breaker.fail(begin(breaker))
    clock.now_s += 35
    breaker.succeed(begin(breaker))
    for _ in range(3):
        breaker.fail(begin(breaker))
    assert breaker.wait_s("m") == 10


def test_calls_from_before_the_opening_change_nothing() -> None:
    clock = Clock()
    breaker = Breaker(CONFIG, clock)
    permits = [begin(breaker) for _ in range(8)]
    for permit in permits[:6]:
        breaker.fail(permit)
    assert breaker.wait_s("m") == 10
    breaker.succeed(permits[6])
    assert not breaker.admits("m")
    clock.now_s += 10
    probe = begin(breaker)
    breaker.fail(permits[7])
    breaker.succeed(probe)
    assert breaker.admits("m")


def test_a_probe_without_an_outcome_makes_room_for_another() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now_s += 10
    begin(breaker)
    clock.now_s += 9
    assert not breaker.admits("m")
    clock.now_s += 1
    assert begin(breaker).is_probe


def test_a_provider_that_asks_for_a_longer_wait_gets_it() -> None:
    clock = Clock()
    breaker = Breaker(CONFIG, clock)
    for _ in range(3):
        breaker.fail(begin(breaker), retry_after_s=60)
    assert breaker.wait_s("m") == 60
    clock.now_s += 60
    breaker.fail(begin(breaker), retry_after_s=1)
    assert breaker.wait_s("m") == 20


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.tuples(st.sampled_from("bsf"), st.floats(0, 50))))
def test_it_never_stays_shut_longer_than_the_largest_cooldown(steps: list[tuple[str, float]]) -> None:
    clock, permits = Clock(), []
    breaker = Breaker(CONFIG, clock)
    for step, wait_s in steps:
        clock.now_s += wait_s
        if step == "b" and (permit := breaker.begin("m")):
            permits.append(permit)
        elif permits and step != "b":
            (breaker.succeed if step == "s" else breaker.fail)(permits.pop(0))
        assert breaker.wait_s("m") <= 35
    clock.now_s += 35
    assert breaker.admits("m")


@pytest.mark.parametrize(
    "fields", [{"failures_to_open": 0}, {"cooldown_s": 0.0}, {"cooldown_s": 9.0, "max_cooldown_s": 8.0}]
)
def test_nonsense_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        BreakerConfig(**fields)  # type: ignore[arg-type]
