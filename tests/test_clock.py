"""The overhead of a run: wall time without the time counted as work."""

from collections.abc import Callable

import pytest

from hylo.core.timer import Clock


@pytest.fixture
def sleep(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], float]:
    """Advances a fake clock instead of waiting."""
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def advance(seconds: float) -> float:
        now[0] += seconds
        return now[0]

    return advance


def test_work_is_no_overhead(sleep: Callable[[float], float]):
    clock = Clock()
    sleep(1)
    with clock.working():
        sleep(20)
    sleep(2)
    with clock.working():
        sleep(30)
    assert clock.overhead() == 3


def test_work_that_fails_is_overhead(sleep: Callable[[float], float]):
    clock = Clock()

    def fail() -> None:
        with clock.working():
            sleep(5)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert clock.overhead() == 5
