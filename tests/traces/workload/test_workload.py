"""Workloads: arrivals against their closed forms, mixes, common random numbers, files, errors."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from traces.errors import InputError
from traces.workload.arrivals import Demand, demand
from traces.workload.files import parse_workload, read_workload, write_workload
from traces.workload.workload import Workload, mean_rate_per_s, title

CATEGORIES = ("chat", "chat", "chat", "code", "math", "math")
SAMPLES = {
    "poisson": Workload(50, "poisson", rate_per_s=4.0),
    "gamma": Workload(50, "gamma", rate_per_s=4.0, cv=2.5),
    "bursts": Workload(50, "bursts", on_rate_per_s=8.0, off_rate_per_s=1.0, on_s=10.0, off_s=30.0),
    "silence": Workload(50, "bursts", on_rate_per_s=8.0, on_s=0.5, off_s=2.0),
    "recorded": Workload(3, "recorded", arrival_s=(0.0, 1.5, 1.5), order="recorded"),
    "closed": Workload(50, "closed", users=8, think_s=0.5, think="fixed"),
    "mix": Workload(
        50,
        "poisson",
        rate_per_s=1.0,
        weights=(("chat", 3.0), ("math", 1.0)),
        priorities=(("code", 2), ("math", -1)),
    ),
}
EVERY = pytest.mark.parametrize("workload", SAMPLES.values(), ids=SAMPLES.keys())
SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])


def draw(workload: Workload, seed: int = 0) -> Demand:
    return demand(workload, CATEGORIES, seed)


def same_bytes(one: Demand, two: Demand) -> bool:
    return all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(one, two, strict=True)
    )


# --- arrivals


@SEEDS
@pytest.mark.parametrize(
    ("process", "cv"), [("poisson", 1.0), ("gamma", 0.3), ("gamma", 1.0), ("gamma", 2.0)]
)
def test_gaps_have_the_mean_and_variance_of_their_law(process: str, cv: float, seed: int) -> None:
    count, rate_per_s = 200_000, 4.0
    arrival_s = draw(Workload(count, process, rate_per_s=rate_per_s, cv=cv), seed).arrival_s
    gap_s = np.diff(arrival_s, prepend=0.0)
    sigma_s = cv / rate_per_s
    assert abs(gap_s.mean() - 1 / rate_per_s) < 5 * sigma_s / math.sqrt(count)
    # A gamma law has excess kurtosis 6 cv^2, so the sample variance has this standard error.
    error = sigma_s**2 * math.sqrt((2 + 6 * cv**2) / count)
    assert abs(gap_s.var() - sigma_s**2) < 5 * error


@SEEDS
def test_poisson_gaps_are_exponential_and_independent(seed: int) -> None:
    count = 100_000
    gap_s = np.diff(draw(Workload(count, "poisson", rate_per_s=1.0), seed).arrival_s)
    for t in (0.1, 1.0, 3.0):
        p = math.exp(-t)
        assert abs((gap_s > t).mean() - p) < 5 * math.sqrt(p * (1 - p) / count)
    lag = np.corrcoef(gap_s[1:], gap_s[:-1])[0, 1]
    assert abs(lag) < 5 / math.sqrt(count)


def test_gamma_with_cv_1_is_the_poisson_process() -> None:
    poisson = draw(Workload(100, "poisson", rate_per_s=3.0))
    assert same_bytes(poisson, draw(Workload(100, "gamma", rate_per_s=3.0, cv=1.0)))


@pytest.mark.parametrize("off_rate_per_s", [0.0, 1.0])
def test_counts_of_bursts_have_the_mean_and_dispersion_of_their_law(off_rate_per_s: float) -> None:
    """Counts in a window of a stationary Markov-modulated Poisson process, Fischer and
    Meier-Hellstern, The Markov-modulated Poisson process cookbook (Performance Evaluation, 1993).
    """
    on_rate_per_s, on_s, off_s, window_s, replicas = 8.0, 2.0, 6.0, 10.0, 3000
    workload = Workload(
        400,
        "bursts",
        on_rate_per_s=on_rate_per_s,
        off_rate_per_s=off_rate_per_s,
        on_s=on_s,
        off_s=off_s,
    )
    counts = np.empty(replicas)
    for seed in range(replicas):
        arrival_s = draw(workload, seed).arrival_s
        assert arrival_s[-1] > window_s
        counts[seed] = np.searchsorted(arrival_s, window_s)
    leave_on, leave_off = 1 / on_s, 1 / off_s
    both = leave_on + leave_off
    mean = window_s * (on_rate_per_s * leave_off + off_rate_per_s * leave_on) / both
    assert mean == pytest.approx(window_s * mean_rate_per_s(workload))
    spread = on_rate_per_s - off_rate_per_s
    excess = 2 * leave_on * leave_off * spread**2
    excess /= both**2 * (on_rate_per_s * leave_off + off_rate_per_s * leave_on)
    seen = both * window_s
    variance = mean * (1 + excess * (1 - (1 - math.exp(-seen)) / seen))
    assert variance / mean > 5  # a Poisson process has 1
    assert abs(counts.mean() - mean) < 5 * math.sqrt(variance / replicas)
    fourth = ((counts - counts.mean()) ** 4).mean()
    error = math.sqrt((fourth - counts.var() ** 2) / replicas)
    assert abs(counts.var() - variance) < 5 * error


@SEEDS
def test_bursts_keep_their_rate_in_the_long_run(seed: int) -> None:
    workload = Workload(
        200_000, "bursts", on_rate_per_s=8.0, off_rate_per_s=1.0, on_s=1.0, off_s=3.0
    )
    arrival_s = draw(workload, seed).arrival_s
    assert mean_rate_per_s(workload) == 2.75
    seconds = int(arrival_s[-1])
    counts = np.histogram(arrival_s, bins=seconds // 100, range=(0, seconds // 100 * 100))[0]
    error = counts.std() / math.sqrt(len(counts))
    assert abs(counts.mean() - 275) < 5 * error
    assert counts.var() / counts.mean() > 2


def test_bursts_of_equal_rates_are_the_poisson_process() -> None:
    bursts = Workload(
        500, "bursts", on_rate_per_s=4.0, off_rate_per_s=4.0, on_s=0.1, off_s=0.3, order="recorded"
    )
    poisson = Workload(500, "poisson", rate_per_s=4.0, order="recorded")
    np.testing.assert_allclose(draw(bursts).arrival_s, draw(poisson).arrival_s, rtol=1e-12)


def test_nobody_comes_while_bursts_are_off() -> None:
    """Rate 1000 on for about 1 s, 0 off for about 1000 s: gaps are either tiny or huge."""
    workload = Workload(20_000, "bursts", on_rate_per_s=1000.0, on_s=1.0, off_s=1000.0)
    gap_s = np.diff(draw(workload).arrival_s)
    assert (gap_s >= 0).all()
    assert 5 < (gap_s > 1).sum() < 60  # one per cycle, about 20
    assert np.median(gap_s) < 0.002


@pytest.mark.parametrize("process", ["poisson", "gamma"])
def test_another_rate_scales_the_same_arrivals(process: str) -> None:
    cv = 3.0 if process == "gamma" else 1.0
    unit = draw(Workload(200, process, rate_per_s=1.0, cv=cv))
    for rate_per_s in (0.25, 3.0, 7.1):
        fast = draw(Workload(200, process, rate_per_s=rate_per_s, cv=cv))
        assert (fast.arrival_s == unit.arrival_s / rate_per_s).all()
        assert fast.row.tolist() == unit.row.tolist()


def test_bursts_twice_as_fast_are_the_same_arrivals_in_half_the_time() -> None:
    slow = Workload(200, "bursts", on_rate_per_s=4.0, off_rate_per_s=0.5, on_s=2.0, off_s=6.0)
    fast = Workload(200, "bursts", on_rate_per_s=8.0, off_rate_per_s=1.0, on_s=1.0, off_s=3.0)
    assert (draw(slow).arrival_s == 2 * draw(fast).arrival_s).all()


@pytest.mark.parametrize("name", ["poisson", "gamma", "bursts", "silence"])
def test_more_requests_continue_the_same_arrivals(name: str) -> None:
    more = draw(dataclasses.replace(SAMPLES[name], requests=5000))
    few = draw(SAMPLES[name])
    assert (more.arrival_s[:50] == few.arrival_s).all()
    assert (more.row[:50] == few.row).all()


def test_recorded_timestamps_and_order_by_hand() -> None:
    workload = Workload(8, "recorded", arrival_s=(0, 1, 1, 2, 3, 5, 8, 13), order="recorded")
    drawn = draw(workload)
    assert drawn.row.tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    assert drawn.arrival_s.tolist() == [0.0, 1.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0]
    assert drawn.think_s.tolist() == [0.0] * 8 and drawn.users == 0
    assert mean_rate_per_s(workload) == 7 / 13


def test_a_closed_loop_by_hand() -> None:
    drawn = draw(Workload(5, "closed", users=2, think_s=0.5, think="fixed"))
    assert drawn.arrival_s.tolist() == [0.0, 0.0, math.inf, math.inf, math.inf]
    assert drawn.think_s.tolist() == [0.0, 0.0, 0.5, 0.5, 0.5]
    assert drawn.users == 2
    crowd = draw(Workload(3, "closed", users=9, think_s=0.5))
    assert crowd.arrival_s.tolist() == [0.0] * 3 and crowd.think_s.tolist() == [0.0] * 3
    assert crowd.users == 9


@SEEDS
def test_think_times_are_exponential_and_follow_the_request(seed: int) -> None:
    count = 100_000
    pauses = draw(Workload(count, "closed", users=8, think_s=0.5), seed).think_s
    assert (pauses[:8] == 0).all() and (pauses[8:] > 0).all()
    assert abs(pauses[8:].mean() - 0.5) < 5 * 0.5 / math.sqrt(count)
    assert abs(pauses[8:].var() - 0.25) < 5 * 0.25 * math.sqrt(8 / count)
    more = draw(Workload(count, "closed", users=50, think_s=1.0), seed).think_s
    assert (more[50:] == 2 * pauses[50:]).all()


# --- mix


def test_gaps_mix_and_think_times_have_streams_of_their_own_by_position() -> None:
    gaps, mix, think, _ = (np.random.default_rng(c) for c in np.random.SeedSequence(7).spawn(4))
    open_loop = draw(Workload(40, "poisson", rate_per_s=1.0), 7)
    closed = draw(Workload(40, "closed", users=1, think_s=1.0), 7)
    assert (open_loop.arrival_s == np.cumsum(gaps.standard_exponential(40))).all()
    assert open_loop.row.tolist() == (mix.random(40) * 6).astype(int).tolist()
    assert (closed.think_s[1:] == think.standard_exponential(40)[1:]).all()


def test_the_mix_does_not_depend_on_the_process() -> None:
    drawn = [draw(SAMPLES[name]) for name in ("poisson", "gamma", "bursts", "silence", "closed")]
    for other in drawn[1:]:
        assert other.row.tolist() == drawn[0].row.tolist()
    assert len(set(drawn[0].row.tolist())) == 6


def test_the_arrivals_do_not_depend_on_the_mix() -> None:
    plain = draw(Workload(50, "poisson", rate_per_s=1.0))
    mixed = draw(SAMPLES["mix"])
    assert mixed.arrival_s.tobytes() == plain.arrival_s.tobytes()
    assert mixed.row.tolist() != plain.row.tolist()


@SEEDS
@pytest.mark.parametrize(
    ("weights", "chances"),
    [
        ((), (1 / 6,) * 6),
        ((("chat", 3.0), ("math", 1.0)), (0.25, 0.25, 0.25, 0.0, 0.125, 0.125)),
        ((("math", 0.0), ("code", 1e-300)), (0.0, 0.0, 0.0, 1.0, 0.0, 0.0)),
    ],
)
def test_rows_have_the_chances_of_their_weights(
    weights: tuple[tuple[str, float], ...], chances: tuple[float, ...], seed: int
) -> None:
    count = 60_000
    rows = draw(Workload(count, "poisson", rate_per_s=1.0, weights=weights), seed).row
    seen = np.bincount(rows, minlength=6) / count
    for found, p in zip(seen, chances, strict=True):
        assert abs(found - p) <= 5 * math.sqrt(p * (1 - p) / count)


def test_priorities_follow_the_category_of_the_row() -> None:
    drawn = draw(SAMPLES["mix"])
    by_category = {"chat": 0, "code": 2, "math": -1}
    expected = [by_category[CATEGORIES[row]] for row in drawn.row]
    assert drawn.priority.tolist() == expected and -1 in expected and 0 in expected


@EVERY
def test_types_order_and_the_same_seed(workload: Workload) -> None:
    one, two, other = draw(workload, 1), draw(workload, 1), draw(workload, 2)
    assert [array.dtype.name for array in one[:4]] == ["int32", "float64", "float64", "int32"]
    assert all(array.shape == (workload.requests,) for array in one[:4])
    assert not np.diff(one.arrival_s[np.isfinite(one.arrival_s)]).min(initial=0.0) < 0
    assert same_bytes(one, two)
    assert same_bytes(one, other) == (workload.order == "recorded")


# --- files, notation, titles


@EVERY
def test_a_file_gives_the_workload_back(workload: Workload, tmp_path: Path) -> None:
    path = tmp_path / "workload.json"
    write_workload(workload, path)
    again = read_workload(path)
    assert again == workload and same_bytes(draw(again), draw(workload))
    assert parse_workload(str(path), 1) == workload
    with pytest.raises(InputError, match="exists"):
        write_workload(workload, path)
    write_workload(SAMPLES["poisson"], path, overwrite=True)
    assert read_workload(path) == SAMPLES["poisson"]


def test_a_file_holds_only_what_is_not_default(tmp_path: Path) -> None:
    write_workload(SAMPLES["mix"], tmp_path / "w.json")
    assert json.loads((tmp_path / "w.json").read_text()) == {
        "kind": "workload",
        "version": 1,
        "requests": 50,
        "process": "poisson",
        "rate_per_s": 1.0,
        "weights": {"chat": 3.0, "math": 1.0},
        "priorities": {"code": 2, "math": -1},
    }


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("poisson:rate=4", {"rate_per_s": 4.0}),
        (" poisson:rate_per_s=4, order=recorded ", {"rate_per_s": 4.0, "order": "recorded"}),
        ("gamma:rate=4,cv=2", {"rate_per_s": 4.0, "cv": 2.0}),
        (
            "bursts:on=8,off=1,on_s=10,off_s=30",
            {"on_rate_per_s": 8.0, "off_rate_per_s": 1.0, "on_s": 10.0, "off_s": 30.0},
        ),
        ("closed:users=8,think_s=0.5", {"users": 8, "think_s": 0.5}),
        ("closed:users=8,think=fixed", {"users": 8, "think": "fixed"}),
    ],
)
def test_the_short_notation(text: str, fields: dict[str, Any]) -> None:
    process = text.strip().partition(":")[0]
    assert parse_workload(text, 7) == Workload(7, process, **fields)


@pytest.mark.parametrize(
    ("name", "words", "rate_per_s"),
    [
        ("poisson", "poisson 4/s", 4.0),
        ("gamma", "gamma 4/s, cv 2.5", 4.0),
        ("bursts", "bursts 8/s for 10 s, 1/s for 30 s", 2.75),
        ("silence", "bursts 8/s for 0.5 s, 0/s for 2 s", 1.6),
        ("recorded", "recorded 1.33/s", 2 / 1.5),
        ("closed", "closed, 8 users, think 0.5 s fixed", math.nan),
    ],
)
def test_titles_and_mean_rates(name: str, words: str, rate_per_s: float) -> None:
    assert title(SAMPLES[name]) == words
    assert mean_rate_per_s(SAMPLES[name]) == pytest.approx(rate_per_s, nan_ok=True)


def test_titles_and_mean_rates_at_the_edge() -> None:
    assert title(Workload(9, "closed", users=1)) == "closed, 1 user"
    assert title(Workload(9, "closed", users=8)) == "closed, 8 users"
    at_once = Workload(2, "recorded", arrival_s=(1.0, 1.0))
    assert title(at_once) == "recorded" and math.isnan(mean_rate_per_s(at_once))


# --- errors


def complaint(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert text and len(text.splitlines()) == 1
    return text


BURSTS = {"process": "bursts", "on_rate_per_s": 8.0, "on_s": 1.0, "off_s": 1.0}
CLOSED = {"process": "closed", "users": 8}
RECORDED = {"process": "recorded", "requests": 3}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"requests": 0}, "requests must"),
        ({"requests": True}, "requests must"),
        ({"requests": 2.0}, "requests must"),
        ({"process": "poison"}, "process 'poison' is not known; known: poisson, gamma, bursts"),
        ({"process": None}, "process None"),
        ({"rate_per_s": 0.0}, "rate_per_s must"),
        ({"rate_per_s": -1.0}, "rate_per_s must"),
        ({"rate_per_s": math.nan}, "rate_per_s must"),
        ({"rate_per_s": math.inf}, "rate_per_s must"),
        ({"rate_per_s": 10**400}, "rate_per_s must"),
        ({"rate_per_s": True}, "rate_per_s must"),
        ({"rate_per_s": "4\n5"}, "rate_per_s must"),
        ({"cv": 2.0}, "cv does not belong to process 'poisson'"),
        ({"cv": True}, "cv does not belong"),
        ({"users": 3}, "users does not belong"),
        ({"think": "fixed"}, "think does not belong"),
        ({"think_s": 1.0}, "think_s does not belong"),
        ({"on_s": 1.0}, "on_s does not belong"),
        ({"arrival_s": (1.0,)}, "arrival_s does not belong"),
        ({"process": "gamma", "cv": 0.0}, "cv must"),
        ({"process": "gamma", "cv": -1.0}, "cv must"),
        ({**BURSTS, "rate_per_s": 4.0}, "rate_per_s does not belong to process 'bursts'"),
        ({**BURSTS, "on_rate_per_s": 0.0}, "on_rate_per_s must"),
        ({**BURSTS, "off_rate_per_s": -1.0}, "off_rate_per_s must"),
        ({**BURSTS, "on_s": 0.0}, "on_s must"),
        ({**BURSTS, "off_s": math.inf}, "off_s must"),
        ({**BURSTS, "on_s": 1e-6}, "on_s and off_s are so short"),
        ({**RECORDED, "arrival_s": (1.0, 2.0)}, "arrival_s must be a tuple of 3"),
        ({**RECORDED, "arrival_s": [1.0, 2.0, 3.0]}, "arrival_s must be a tuple"),
        ({**RECORDED, "arrival_s": (0.0, 2.0, 1.0)}, "arrival_s[2] is 1 s, before the 2 s"),
        ({**RECORDED, "arrival_s": (-1.0, 2.0, 3.0)}, "arrival_s[0] must"),
        ({**RECORDED, "arrival_s": (0.0, math.nan, 1.0)}, "arrival_s[1] must"),
        ({**RECORDED, "arrival_s": (0.0, 1.0, "2")}, "arrival_s[2] must"),
        ({"process": "closed"}, "users must"),
        ({**CLOSED, "users": 2.0}, "users must"),
        ({**CLOSED, "think_s": -0.1}, "think_s must"),
        ({**CLOSED, "think": "never"}, "think 'never' is not known; known: exponential, fixed"),
        ({"order": "sorted"}, "order 'sorted' is not known; known: drawn, recorded"),
        ({"weights": {"chat": 1.0}}, "weights must be a tuple"),
        ({"weights": (("chat",),)}, "weights must be a tuple"),
        ({"weights": (("chat", -1.0),)}, "weights['chat'] must"),
        ({"weights": (("chat", True),)}, "weights['chat'] must"),
        ({"weights": (("chat", 0.0), ("code", 0))}, "weights are all 0"),
        ({"weights": (("chat", 1.0), ("chat", 2.0))}, "weights names category 'chat' twice"),
        ({"weights": (("chat", 1.0),), "order": "recorded"}, "weights need order 'drawn'"),
        ({"priorities": (("chat", 1.5),)}, "priorities['chat'] must"),
        ({"priorities": (("chat", 2**31),)}, "priorities['chat'] must"),
        ({"priorities": (("a\nb", 1), ("a\nb", 1))}, "priorities names category"),
        ({"priorities": ((1, 1),)}, "priorities must be a tuple"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], named: str) -> None:
    base: dict[str, Any] = {"requests": 10, "process": "poisson"}
    if fields.get("process") not in ("bursts", "closed", "recorded"):
        base["rate_per_s"] = 4.0
    with pytest.raises(InputError) as error:
        Workload(**{**base, **fields})
    assert complaint(error).startswith(named)


@pytest.mark.parametrize("name", ["weights", "priorities"])
def test_a_category_that_the_trace_lacks_is_named(name: str) -> None:
    pairs: Any = {name: (("chat", 1), ("poetry", 1))}
    workload = Workload(5, "poisson", rate_per_s=1.0, **pairs)
    with pytest.raises(InputError) as error:
        draw(workload)
    found = complaint(error)
    assert found.startswith(f"{name} names category 'poetry'")
    assert found.endswith("it has 'chat', 'code', 'math'")


def test_an_empty_trace_and_a_negative_seed_are_refused() -> None:
    for categories, seed, named in (((), 0, "categories"), (CATEGORIES, -1, "seed")):
        with pytest.raises(InputError) as error:
            demand(SAMPLES["poisson"], categories, seed)
        assert complaint(error).startswith(named)


HEAD = '{"kind": "workload", "version": 1, "requests": 3, "process": "poisson", "rate_per_s": 4'


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (HEAD, "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "not a workload"),
        (HEAD.replace('"workload"', '"timing"') + "}", "not a workload"),
        (HEAD.replace("1", "2", 1) + "}", "version 2"),
        (HEAD.replace("1", "true", 1) + "}", "version True"),
        (HEAD + ', "rat": 4}', "field 'rat' is unknown; known: requests, process, rate_per_s"),
        (HEAD.replace('"requests": 3, ', "") + "}", "'requests' is missing"),
        (HEAD.replace('"process": "poisson", ', "") + "}", "'process' is missing"),
        (HEAD.replace("4", "false") + "}", "rate_per_s must"),
        (HEAD.replace("4", '"4"') + "}", "rate_per_s must"),
        (HEAD.replace("4", "NaN") + "}", "rate_per_s must"),
        (HEAD.replace("4", "[4]") + "}", "rate_per_s must"),
        (HEAD.replace("3", "3.0") + "}", "requests must"),
        (HEAD.replace('"poisson"', '["poisson"]') + "}", "process ['poisson']"),
        (HEAD + ', "users": false}', "users does not belong"),
        (HEAD + ', "arrival_s": 3}', "'arrival_s' must be a list"),
        (HEAD + ', "weights": [["chat", 1]]}', "'weights' must be an object"),
        (HEAD + ', "weights": {"chat": "1"}}', "weights['chat'] must"),
        (HEAD + ', "priorities": 1}', "'priorities' must be an object"),
        (HEAD + ', "priorities": {"chat": true}}', "priorities['chat'] must"),
    ],
)
def test_a_bad_file_is_named_with_its_field(text: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "w.json"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_workload(path)
    found = complaint(error)
    assert found.startswith(str(path)) and named in found


def test_a_missing_and_a_binary_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for name, named in (("missing.json", "no such workload file"), ("binary.json", "not UTF-8")):
        with pytest.raises(InputError) as error:
            parse_workload(str(tmp_path / name), 3)
        assert named in complaint(error) and name in str(error.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "process '' is not known; known: poisson"),
        ("poison:rate=4", "process 'poison' is not known; known: poisson, gamma"),
        ("poisson", "rate_per_s must"),
        ("poisson:4", "'4' is not known; process 'poisson' takes rate=, order="),
        ("poisson:cv=4", "'cv=4' is not known"),
        ("gamma:rat=4", "'rat=4' is not known; process 'gamma' takes rate=, cv=, order="),
        ("bursts:on=8,of=1", "takes on=, off=, on_s=, off_s=, order="),
        ("poisson:rate=x", "'rate=x': rate_per_s must be a number"),
        ("poisson:rate=inf", "rate_per_s must"),
        ("poisson:rate=4,rate_per_s=5", "'rate_per_s=5' gives rate_per_s a second time"),
        ("closed:users=8.5", "'users=8.5': users must be a whole number"),
        ("closed:users=8,think=hard", "think 'hard' is not known"),
        ("recorded:arrival_s=1", "arrival_s does not fit here"),
    ],
)
def test_a_wrong_piece_of_the_notation_is_named(text: str, named: str) -> None:
    with pytest.raises(InputError) as error:
        parse_workload(text, 10)
    found = complaint(error)
    assert found.startswith(f"workload {text!r}: ") and named in found


def test_the_count_of_the_short_notation_is_checked() -> None:
    with pytest.raises(InputError, match="requests must"):
        parse_workload("poisson:rate=4", 0)
