"""How long it will take, by a clock that is set by hand."""

from __future__ import annotations

import itertools

import pytest

from real_backend import progress as progress_module
from real_backend.progress import Forecast, progress, readable


def test_the_rest_takes_as_long_as_the_steps_so_far() -> None:
    """Ten steps: the first after 60 s, which waits for compilers; 0.4 s for each of the next."""
    now = iter([60.0, 60.4, 60.8, 61.2])
    forecast = Forecast(10, lambda: next(now))
    assert [forecast.step() for _ in range(3)] == [None] * 3  # not a second yet
    assert forecast.step() == pytest.approx(0.4 * 6)


@pytest.mark.parametrize(
    ("total", "told"),
    [(20, ""), (100, "gammalab: work: about 3 min left, by its first steps here\n")],
)
def test_only_long_work_says_so_and_once(
    total: int, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two seconds a step; ten steps were there before: 16 s and 176 s are left after the second."""
    now = itertools.count(0.0, 2.0)
    monkeypatch.setattr(
        progress_module, "Forecast", lambda steps: Forecast(steps, lambda: next(now))
    )
    with progress(total, "work", 10) as step:
        for _ in range(total - 10):
            step()
    assert capsys.readouterr().err == told


def test_seconds_are_readable() -> None:
    assert [readable(s) for s in (25.4, 200.0, 9000.0)] == ["25 s", "3 min", "2.5 h"]
