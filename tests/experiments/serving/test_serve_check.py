"""The check against the real engine: speeds and errors by hand."""

from __future__ import annotations

from experiments.serving import serve as serving
from experiments.serving.serve_check import Speed, speed_of, text_of
from policies.fixed import Never
from tests.experiments.serving.small_runs import by_hand
from traces.roundlog import RoundLog


def test_speed_of_a_log_by_hand() -> None:
    log = by_hand()[0].round_log
    assert isinstance(log, RoundLog)
    # 10 tokens in the 4 iterations of 12 s, whose rows began together.
    assert speed_of(log) == Speed(10 / 48, 12.0, 4)


def test_errors_of_a_prediction_by_hand() -> None:
    rows = [
        (1, "never", Speed(11.0, 0.1, 50), [Speed(v, 0.08, 50) for v in (9.0, 10.0, 10.5)]),
        (2, "never", Speed(19.0, 0.1, 50), [Speed(20.0, 0.1, 60)]),
    ]
    lines = text_of(rows, 7, 3).splitlines()
    assert lines[0].startswith("7 held-out replies, medians of 3 repeats")
    (one, two) = (line.split() for line in lines if line.startswith("never"))
    assert one[1:6] == ["11", "10", "9..10", "+10.0%", "100.000"] and one[7] == "+25.0%"
    assert two[4] == "-5.0%" and two[7:] == ["+0.0%", "50", "60"]
    assert "batch 1: absolute error median 10.0%, largest 10.0%; machine +10.0%" in lines
    assert lines[-1] == "all: median 7.5%"


def test_never_is_the_baseline() -> None:
    """The first of the default policies, which all ratios refer to, is plain decoding."""
    assert serving.DEFAULT_POLICIES.split(",")[0] == Never.name
