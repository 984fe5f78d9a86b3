"""Sweeps: the same rows whoever runs them, nothing done twice, settings of one half alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.cli import main
from experiments.common.results import read_result
from experiments.sweep import jobs as sweep_jobs
from experiments.sweep.jobs import Condition, conditions_of, jobs_of, read_rows, sweep, tuned
from experiments.sweep.search_space import SPACES
from experiments.sweep.suites import PAPER_GAMMAS, SUITES, Suite
from experiments.sweep.tuning import candidates, value_at
from policies.base import Policy, field_values
from policies.fixed import Fixed
from policies.registry import REGISTRY, label, parse_policies, parse_policy, read_policies
from simulator.replay.hindsight import best_fixed, ceilings
from simulator.replay.replay import replay
from traces import synthetic
from traces.costs.affine import Affine
from traces.costs.pricing import tabulate
from traces.errors import InputError
from traces.store import write_trace

SUITE = Suite("a test", ("fixed", "gammatune", "hf-confidence", "goodput:gamma_max=4"), ("c=6",))
SUITE = dataclasses.replace(SUITE, trials=6)


@pytest.fixture
def conditions() -> list[Condition]:
    generator = np.random.default_rng(0)
    trace = synthetic.bursty(0.9, 0.4, generator, requests=12, reply_tokens=60, signals=True)
    return conditions_of({"bursty": trace}, ["c=6", "c=20"], [0], None)


def run(conditions: list[Condition], folder: Path, **how: Any) -> list[dict[str, Any]]:
    return sweep(conditions, jobs_of(SUITE, conditions), folder, **how)


def test_spaces_name_fields_of_policies_and_hold_their_defaults_kind() -> None:
    for name, space in SPACES.items():
        defaults = field_values(REGISTRY[name]())
        for field, points in space.items():
            kinds = {type(point) for point in points}
            assert kinds == {type(defaults[field])}, f"{name}:{field}"
            assert list(points) == sorted(points)
    searched = {name for name, cls in REGISTRY.items() if field_values(cls()) and "/" not in name}
    assert searched == set(SPACES)


def test_a_place_between_points_is_a_value_between_them() -> None:
    assert value_at((1.0, 2.0, 10.0), 1.5) == 6.0 and value_at((1, 2, 10), 1.5) == 6
    assert value_at((1, 2, 10), 2.0) == 10 and value_at((False, True), 0.7) is True


def seconds(policy: Policy) -> float:
    return abs(float(field_values(policy)["theta"]) - 0.37) if policy.name else 0.0


@pytest.mark.parametrize("search", ["grid", "random", "optuna"])
def test_searches_are_seeded_distinct_and_begin_with_the_default(search: str) -> None:
    base = parse_policy("tail-pruning")
    found = [list(candidates(base, search, 20, 3, seconds)) for _ in range(2)]
    assert found[0] == found[1] and found[0][0][0] == base
    labels = [label(policy) for policy, _ in found[0]]
    assert len(set(labels)) == len(labels) and 10 < len(labels) <= 20
    assert all(seconds(policy) == told for policy, told in found[0])
    thetas = [field_values(policy)["theta"] for policy, _ in found[0]]
    assert min(thetas) >= 0.1 and max(thetas) <= 0.8
    if search == "optuna":  # it was told the seconds
        assert min(told for _, told in found[0]) < 0.02


def test_an_unknown_search_is_named() -> None:
    with pytest.raises(InputError, match=r"--search 'gird' is unknown; known: grid, random"):
        list(candidates(Fixed(), "gird", 3, 0, lambda policy: 0.0))


def test_the_best_setting_is_that_of_the_training_half(
    conditions: list[Condition], tmp_path: Path
) -> None:
    rows = run(conditions, tmp_path)
    for condition in conditions:
        gamma, _ = best_fixed(condition.train, condition.costs, range(1, 17))
        chosen = {policy.name: policy for policy in tuned(rows, condition)}
        tried = [r for r in rows if r["policy"] == "fixed" and r["cost"] == condition.cost]
        least = min(tried, key=lambda row: row["train_s"])
        assert label(chosen["fixed"]) == least["label"]
        if len(tried) == 16:
            assert chosen["fixed"] == Fixed(gamma)
        assert chosen["goodput"] == parse_policy("goodput:gamma_max=4")
        one = next(r for r in rows if r["policy"] == "gammatune" and r["cost"] == condition.cost)
        for part, trace in (("train", condition.train), ("test", condition.test)):
            log = replay(parse_policy(one["label"]), trace, condition.costs)
            assert one[f"{part}_s"] == pytest.approx(float(log.elapsed_s.sum()), rel=1e-12)
            assert one[f"{part}_rounds"] == len(log) and one[f"{part}_tokens"] == trace.positions


def test_processes_give_the_rows_of_one(conditions: list[Condition], tmp_path: Path) -> None:
    here = run(conditions, tmp_path / "a")
    there = run(conditions, tmp_path / "b", workers=2)
    assert here == there
    files = [sorted(p.name for p in (tmp_path / x / "jobs").iterdir()) for x in "ab"]
    assert files[0] == files[1]
    for name in files[0]:  # the same bytes, too
        assert (tmp_path / "a/jobs" / name).read_bytes() == (
            tmp_path / "b/jobs" / name
        ).read_bytes()


def test_ray_gives_the_rows_of_one_process(conditions: list[Condition], tmp_path: Path) -> None:
    pytest.importorskip("ray")
    assert run(conditions, tmp_path / "a") == run(conditions, tmp_path / "b", ray="local")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "127.0.0.1:x"])
def test_a_ray_that_does_not_answer_is_named(
    address: str, conditions: list[Condition], tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    with pytest.raises(InputError, match=f"--ray {address}: nobody answers"):
        run(conditions, tmp_path, ray=address)


def test_an_interrupted_sweep_goes_on(
    conditions: list[Condition], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(conditions, tmp_path / "whole")
    played: list[str] = []
    work = sweep_jobs.work

    def stops(shared: Any, job: Any) -> Any:
        if len(played) == 3:
            raise KeyboardInterrupt
        played.append(job.policy.name)
        return work(shared, job)

    monkeypatch.setattr(sweep_jobs, "work", stops)
    with pytest.raises(KeyboardInterrupt):
        run(conditions, tmp_path / "b")
    assert len(list((tmp_path / "b/jobs").iterdir())) == 3
    played[:] = ["gone on"] * 10
    assert run(conditions, tmp_path / "b") == whole
    assert len(played) == 10 + len(jobs_of(SUITE, conditions)) - 3  # nothing was done again
    run(conditions, tmp_path / "b")
    assert len(played) == 10 + len(jobs_of(SUITE, conditions)) - 3


def test_a_damaged_job_is_named(conditions: list[Condition], tmp_path: Path) -> None:
    run(conditions, tmp_path)
    one = next((tmp_path / "jobs").iterdir())
    one.write_bytes(one.read_bytes()[:100])
    with pytest.raises(InputError, match=f"{one.name}.*delete it and sweep again"):
        run(conditions, tmp_path)


def test_position_is_the_best_fixed_length_and_bounds_bound() -> None:
    generator = np.random.default_rng(1)
    trace = synthetic.bursty(0.95, 0.3, generator, requests=8, reply_tokens=80, signals=True)
    costs = tabulate(Affine())
    found = {bound.name: bound for bound in ceilings(trace, costs)}
    gamma, log = best_fixed(trace, costs)
    assert found["position in the draft"].setting == f"gamma={gamma}"
    assert found["position in the draft"].decode_s == pytest.approx(float(log.elapsed_s.sum()))
    assert found["fixed length by request"].decode_s <= found["position in the draft"].decode_s
    for name, spec in (("top-1 probability", "hf-confidence:gamma_max=16,threshold=0.5"),
                       ("product of top-1", "tail-pruning:gamma_max=16,theta=0.3")):  # fmt: skip
        some = float(replay(parse_policy(spec), trace, costs).elapsed_s.sum())
        bound = found[f"threshold on {name}"]
        again = replay(parse_policy(bound.setting), trace, costs)
        assert bound.decode_s == pytest.approx(float(again.elapsed_s.sum()), rel=1e-12)
        assert bound.decode_s < 1.01 * some


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    generator = np.random.default_rng(2)
    trace = synthetic.bursty(0.9, 0.4, generator, requests=20, reply_tokens=40, signals=True)
    write_trace(trace, tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


def call(*argv: object) -> int:
    return main(["sweep", *map(str, argv)])


@pytest.mark.long
def test_the_command(trace_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("quick", "--trace", trace_file, "--cost", "c=5", "--out", tmp_path / "out")
    compared = tmp_path / "out/compare.json"
    compared.parent.mkdir()
    compared.write_text("of another command")
    assert call(*argv) == 0
    assert compared.read_text() == "of another command"
    compared.unlink()
    first = capsys.readouterr().out
    assert "payback" in first and "clairvoyant" in first and "by request" in first
    assert call(*argv, "--json") == 0
    best = json.loads(capsys.readouterr().out)["best"]["t-c5"]
    file = tmp_path / "out/tuned/t-c5.json"
    assert [label(policy) for policy in read_policies(file)] == best
    assert [label(policy) for policy in parse_policies(f"never,{file}")] == ["never", *best]
    assert (tmp_path / "out/rows.parquet").exists() and (tmp_path / "out/sweep.txt").exists()
    assert main(["report", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/leaderboard.html").exists()
    assert call(*argv, "--trials", 3) == 2
    assert "begun with another trials" in capsys.readouterr().err


def test_another_recording_judges(
    trace_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Settings by the whole of the one, every number by the whole of the other."""
    trace = sweeping_trace(trace_file)
    other = trace.select(list(range(0, trace.requests, 3)))
    write_trace(other, tmp_path / "other.parquet")
    argv = ("quick", "--trace", trace_file, "--cost", "c=5", "--out", tmp_path / "out")
    asked = ("--held-out", tmp_path / "other.parquet", "--policies", "fixed,gammatune")
    assert call(*argv, *asked) == 0
    assert f"tried on {trace.requests} replies, judged on {other.requests}" in " ".join(
        capsys.readouterr().out.split()
    )
    rows = read_rows(tmp_path / "out/rows.parquet")
    assert {(row["train_tokens"], row["test_tokens"]) for row in rows} == {
        (trace.positions, other.positions)
    }
    (part,) = read_result("leaderboard", tmp_path / "out/leaderboard.json")["comparisons"]
    tuned = next(row["name"] for row in part["rows"] if row["role"] == "tuned")
    (condition,) = conditions_of({"t": trace}, ["c=5"], [0], None, {"t": other})
    gamma, _ = best_fixed(trace, condition.costs)
    assert tuned == f"fixed:gamma={gamma}"
    never = next(row for row in part["rows"] if row["name"] == "never")
    spent = replay(parse_policy("never"), other, condition.costs).elapsed_s.sum()
    assert never["tokens_per_s"] == pytest.approx(other.positions / spent)
    assert call(*argv, "--policies", "fixed,gammatune") == 2  # the halves of t, into that folder
    assert "begun with another held_out" in capsys.readouterr().err
    assert call(*argv, *asked, *asked[:2], "--force") == 2
    assert "given 2 times, --trace 1 times" in capsys.readouterr().err
    cold = dataclasses.replace(other, meta=dataclasses.replace(other.meta, temperature=1.0))
    write_trace(cold, tmp_path / "cold.parquet")
    assert call(*argv, "--held-out", tmp_path / "cold.parquet", "--force") == 2
    assert "cold.parquet: its temperature is 1.0" in capsys.readouterr().err


def test_the_paper(trace_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("paper", "--trace", trace_file, "--cost", "c=5", "--out", tmp_path / "out") == 0
    lines = capsys.readouterr().out.splitlines()
    at = next(k for k, line in enumerate(lines) if line.split()[:2] == ["3", line.split()[1]])
    trace = conditions_of({"t": sweeping_trace(trace_file)}, ["c=5"], [0], None)[0]
    fixed, tune = (
        float(replay(parse_policy(spec), trace.test, trace.costs).elapsed_s.sum())
        for spec in ("fixed:gamma=3", "gammatune:gamma0=3")
    )
    assert lines[at].split()[2] == f"{fixed / tune:.3f}"  # one task: its ratio is the mean
    assert (
        len([line for line in lines if line.split()[:1] in [[str(g)] for g in PAPER_GAMMAS]]) == 12
    )
    assert any(line.startswith("published") and "1.15 +- 0.05" in line for line in lines)
    means = {line.split()[0]: line.split()[1] for line in lines if line.startswith("gammatune")}
    assert list(means) == [
        "gammatune", "gammatune:clip_expansion=false", "gammatune+",
        "gammatune+:clip_expansion=false", "gammatune+:early_stop=1", "gammatune+:early_stop=2",
    ]  # fmt: skip
    ratios = [
        seconds_of(f"fixed:gamma={g}", trace)
        / seconds_of(f"gammatune+:early_stop=1,gamma0={g}", trace)
        for g in PAPER_GAMMAS
    ]
    assert means["gammatune+:early_stop=1"] == f"{np.mean(ratios):.3f}"
    assert len(set(means.values())) > 2  # the variants are not all one


def seconds_of(spec: str, condition: Condition) -> float:
    return float(replay(parse_policy(spec), condition.test, condition.costs).elapsed_s.sum())


def sweeping_trace(path: Path) -> Any:
    from traces.store import read_trace

    return read_trace(path)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("leaderbord",), "unknown suite 'leaderbord'"),
        (("quick", "--cost", "d=4"), "cost 'd=4' is unknown"),
        (("quick", "--cost", "c=0"), "cost 'c=0': the ratio must be a number above 0"),
        (("quick", "--cost", "measured"), "--timing is missing"),
        (("quick", "--cost", "c=4", "--search", "x"), "--search 'x' is unknown"),
    ],
)
def test_bad_input_is_one_line(
    argv: tuple[str, ...],
    told: str,
    trace_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(*argv, "--trace", trace_file, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err.strip()
    assert told in error.splitlines()[-1] and error.splitlines()[-1].startswith("gammalab: ")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "not JSON"),
        ("[]", "not a policy file"),
        ('{"kind": "policies", "version": 9}', "version 9"),
        ('{"kind": "policies", "version": 1, "policies": []}', "at least one policy"),
        ('{"kind": "policies", "version": 1, "policies": [3]}', r"policies\[0\] must be"),
        (
            '{"kind": "policies", "version": 1, "policies": [{"policy": "fixd"}]}',
            r"policies\[0\]: unknown policy 'fixd'; did you mean 'fixed'",
        ),
        (
            '{"kind": "policies", "version": 1, "policies": [{"policy": "svip", '
            '"fields": {"threshold": NaN}}]}',
            "'svip': field threshold must be float",
        ),
        (
            '{"kind": "policies", "version": 1, "policies": [{"policy": "fixed", '
            '"fields": {"gamma": true}}]}',
            "'fixed': field gamma must be int, 0 to 1,000, not True",
        ),
    ],
)
def test_a_bad_policy_file_is_refused(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(InputError, match=told) as error:
        parse_policies(str(path))
    assert str(path) in str(error.value)


def test_every_suite_parses() -> None:
    for suite in SUITES.values():
        assert [parse_policy(spec) for spec in suite.policies]
