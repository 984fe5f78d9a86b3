"""Censored traces: flags, bounds, Kaplan-Meier and regimes by hand, and intervals that cover."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.censoring import censored_check
from experiments.censoring.censored_check import CoverageCase, cases, costs_for, coverage, modelled
from experiments.censoring.intervals import complete, left_open, span
from experiments.common.cost_sources import step_costs
from experiments.comparison.compare import compare
from experiments.comparison.compare_text import comparison_text, to_dict
from experiments.report.tables import comparison_view
from policies.counts.heuristic import HFHeuristic
from policies.fixed import Fixed, Never
from policies.registry import parse_policies, parse_policy
from simulator.replay.replay import replay
from tests.command import gammalab, refused
from tests.results import lively_trace, make_timing, make_trace
from traces.censoring import regimes
from traces.censoring.imputation import (
    BonusSpread,
    bonus_positions,
    imputations,
    impute,
    learn,
    spread_of,
)
from traces.censoring.known import bounds, censor, completed, flags_of
from traces.censoring.survival import by_run, survival
from traces.importers.flags import UNKNOWN, accept_lengths
from traces.schema import Trace, TraceError
from traces.shipped import GREEDY
from traces.store import content_hash, read_trace, write_trace
from traces.synthetic import bursty, constant

# Ten positions of one reply; a recorder of fixed length 2 plays rounds at 0 (accepts 2, bonus at
# 2), 3 (accepts 1, rejected at 4), 5 (accepts 2, bonus at 7), 8 (rejected) and 9, where the reply's
# limit leaves no room for a draft.
TRUTH = [1, 1, 0, 1, 0, 1, 1, 1, 0, 1]
SEEN = [1, 1, -1, 1, 0, 1, 1, -1, 0, -1]


def trace_of(*replies: Sequence[int], depth: int = 4) -> Trace:
    """Replies of flags, censored where -1 occurs; questions 1, 2, ..., one task."""
    flags = np.concatenate([np.asarray(reply, dtype=np.int8) for reply in replies])
    offsets = np.concatenate([[0], np.cumsum([len(reply) for reply in replies])]).astype(np.int64)
    accept_len, censored = accept_lengths(flags, offsets)
    cuts = list(itertools.pairwise(offsets.tolist()))
    return make_trace(
        [accept_len[a:b] for a, b in cuts],
        [f"{k}.1" for k in range(len(replies))],
        ["task"] * len(replies),
        depth=depth,
        censored=[censored[a:b].tolist() for a, b in cuts] if (flags < 0).any() else None,
    )


def recorded(trace: Trace, policy: str) -> Trace:
    """What that policy would have recorded of the trace."""
    return censor(trace, replay(parse_policy(policy), trace, costs_for(trace)))


def test_a_reply_by_hand() -> None:
    truth = trace_of(TRUTH)
    seen = recorded(truth, "fixed:gamma=2")
    assert flags_of(truth).tolist() == TRUTH and flags_of(seen).tolist() == SEEN
    assert seen.accept_len.tolist() == [2, 1, 0, 1, 0, 2, 1, 0, 0, 0]
    assert seen.censored is not None
    assert np.flatnonzero(seen.censored).tolist() == [0, 1, 2, 5, 6, 7, 9]
    stop, go_on = bounds(seen)
    assert stop.accept_len.tolist() == [2, 1, 0, 1, 0, 2, 1, 0, 0, 0]
    assert go_on.accept_len.tolist() == [4, 3, 2, 1, 0, 3, 2, 1, 0, 1]
    for bound, words in ((stop, "positions stop"), (go_on, "positions go on")):
        assert bound.meta.exactness == "imputed" and bound.censored is None
        assert words in bound.meta.source["completed"]["rule"]
    assert seen.meta.source["recorder"] == "fixed:gamma=2"
    assert not seen.has_signals


def test_a_recorder_replayed_on_its_own_trace_plays_its_rounds_whatever_is_unknown() -> None:
    trace = lively_trace()
    costs = costs_for(trace)
    for policy in parse_policies("gammatune,hf-heuristic,fixed:gamma=3,never,goodput"):
        log = replay(policy, trace, costs)
        seen = censor(trace, log)
        for one in (seen, *bounds(seen), impute(seen, 3)):
            again = replay(policy, one, costs)
            assert (again.accepted == log.accepted).all() and (again.drafted == log.drafted).all()


def test_rounds_of_another_trace_are_refused() -> None:
    log = replay(Fixed(2), trace_of(TRUTH), costs_for(trace_of(TRUTH)))
    with pytest.raises(TraceError, match="not played"):
        censor(trace_of([0] * 10), log)
    with pytest.raises(TraceError, match="unknown"):
        completed(trace_of(TRUTH), np.array(SEEN, dtype=np.int8), {})


def test_kaplan_meier_by_hand() -> None:
    """Six starts: runs 0, 1, 1 rejected, 2 censored, 1 censored, 3 at the end of its reply.

    d = 0: 6 at risk, 1 stops. d = 1: 5 reach it, but one is unknown there: 4 at risk, 2 stop.
    d = 2: 2 left, one unknown there: 1 at risk, none stops. S: 1, 5/6, 5/12, 5/12.
    Greenwood: S^2 (1/(6*5) + 2/(4*2)).
    """
    trace = trace_of([0, 1], [1, 0], [1, 0], [1, 1, -1], [1, -1], [1, 1, 1])
    found = survival(trace, starts=trace.offsets[:-1], depth=4)
    assert found.at_risk.tolist() == [6, 4, 1, 0]
    assert found.stopped.tolist() == [1, 2, 0, 0]
    assert found.survival[:4] == pytest.approx([1, 5 / 6, 5 / 12, 5 / 12])
    assert np.isnan(found.survival[4])
    assert found.error[:3] ** 2 == pytest.approx(
        [0, (5 / 6) ** 2 / 30, (5 / 12) ** 2 * (1 / 30 + 1 / 4)]
    )
    assert survival(trace).at_risk[0] == 12


def test_kaplan_meier_of_independent_coins_is_right_and_so_is_its_error() -> None:
    """Constant acceptance: the adaptive recorder's censoring then says nothing, S = alpha^d."""
    alpha, found = 0.7, []
    for seed in range(40):
        trace = constant(alpha, np.random.default_rng(seed), requests=20, reply_tokens=64)
        costs = costs_for(trace)
        log = replay(HFHeuristic(gamma0=4), trace, costs)
        starts = trace.offsets[log.request] + log.context_tokens - trace.prompt_tokens[log.request]
        found.append(survival(censor(trace, log), starts, 3))
    values = np.stack([one.survival for one in found])
    errors = np.stack([one.error for one in found])
    far = (values[:, 1:] - alpha ** np.arange(1, 4)) / errors[:, 1:]
    assert np.abs(far.mean(axis=0)).max() < 3 / np.sqrt(40)
    assert far.std(axis=0) == pytest.approx(1.0, abs=0.35)


def test_acceptance_by_run_by_hand() -> None:
    """Runs before the positions of SEEN: 0 1 2 0 1 0 1 2 0 0."""
    found = by_run(trace_of(SEEN), longest=2)
    assert found.accepted.tolist() == [3, 2, 0]
    assert found.rejected.tolist() == [1, 1, 0]
    assert found.unknown.tolist() == [1, 0, 2]
    assert found.rate[:2] == pytest.approx([3 / 4, 2 / 3]) and np.isnan(found.rate[2])
    assert found.error[1] == pytest.approx(np.sqrt(2 / 27))
    assert found.uncovered == 2
    assert by_run(trace_of(SEEN), task="another").unknown.sum() == 0


def test_bonus_positions_by_hand() -> None:
    flags, offsets = np.array(TRUTH, dtype=np.int8), np.array([0, 10])
    assert np.flatnonzero(bonus_positions(flags, offsets, 2)).tolist() == [2, 7]
    # Following from 1: accepts 1, bonus 1; drafts 2 at 2, rejected there; drafts (2 + 0 + 1) / 2
    # up = 2 at 3, accepts 1; 2 at 5, accepts 2, bonus 7; 3 at 8, rejected; 2 at 9.
    assert np.flatnonzero(bonus_positions(flags, offsets, 1, True)).tolist() == [1, 7]


replies = st.lists(
    st.lists(st.sampled_from([0, 1, 1]), min_size=1, max_size=14), min_size=1, max_size=5
)
recorders = st.sampled_from(
    ["never", "fixed:gamma=1", "fixed:gamma=2", "fixed:gamma=4", "gammatune",
     "hf-heuristic:gamma0=2", "ucb"]
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(replies, recorders)
def test_what_is_known_is_true_and_the_bounds_hold_the_rest(
    flags: list[list[int]], recorder: str
) -> None:
    truth = trace_of(*flags, depth=6)
    seen = recorded(truth, recorder)
    known = flags_of(seen) != UNKNOWN
    assert (flags_of(seen)[known] == flags_of(truth)[known]).all()
    assert accept_lengths(flags_of(seen), seen.offsets)[0].tolist() == seen.accept_len.tolist()
    stop, go_on = bounds(seen)
    assert (stop.accept_len <= truth.accept_len).all()
    assert (truth.accept_len <= go_on.accept_len).all()
    assert (stop.accept_len == seen.accept_len).all()


@settings(deadline=None, max_examples=15)
@given(replies, recorders, st.integers(0, 2**31))
def test_an_imputation_touches_no_known_flag_and_is_its_seed_alone(
    flags: list[list[int]], recorder: str, seed: int
) -> None:
    seen = recorded(trace_of(*flags, depth=6), recorder)
    known = flags_of(seen) != UNKNOWN
    first, again = impute(seen, seed), impute(seen, seed)
    assert content_hash(first) == content_hash(again)
    assert (flags_of(first)[known] == flags_of(seen)[known]).all()
    source = first.meta.source["completed"]
    assert first.meta.exactness == "imputed"
    assert source["seed"] == seed and source["unknown"] == int((~known).sum())


def test_same_seed_same_bytes_other_seed_other_draws(tmp_path: Path) -> None:
    seen = recorded(lively_trace(), "fixed:gamma=1")
    made = [impute(seen, 7), impute(seen, 7), impute(seen, 8)]
    for number, trace in enumerate(made):
        write_trace(trace, tmp_path / f"{number}.parquet")
    first, again, other = ((tmp_path / f"{k}.parquet").read_bytes() for k in range(3))
    assert first == again != other
    assert content_hash(read_trace(tmp_path / "0.parquet")) == content_hash(made[0])
    draws = imputations(seen, 3, 7)
    assert len({content_hash(draw) for draw in draws}) == 3
    assert [draw.meta.source["completed"]["draw"] for draw in draws] == [0, 1, 2]


def test_spread_of_misses_by_hand() -> None:
    """Two recorders, two tasks. Where misses are as large as chance makes them, nothing is left."""
    noise = np.full((2, 2), 9.0)
    assert spread_of(np.full((2, 2), 3.0) * [1, -1], noise) == BonusSpread(0.0, 0.0)
    # 12^2 - 9 = 135 of 81: opposite tasks, nothing in common.
    found = spread_of(np.array([[12.0, -12.0]] * 2), noise)
    assert found == pytest.approx((np.sqrt(135 / 81), 0.0))
    # The same sign: a sum of 24, 24^2 - 18 - 2 * 135 = 288 of 18^2 in common.
    found = spread_of(np.full((2, 2), 12.0), noise)
    assert found == pytest.approx((np.sqrt(135 / 81), np.sqrt(288 / 324)))


def laid_out(flags: Sequence[Sequence[int]]) -> regimes.Replies:
    offsets = np.concatenate([[0], np.cumsum([len(f) for f in flags])]).astype(np.int64)
    flat = np.concatenate([np.asarray(f, dtype=np.int8) for f in flags])
    return regimes.lay_out(flat[None], offsets, ["a"] * len(flags))


def enumerated(flags: Sequence[int], model: regimes.Regimes) -> tuple[float, np.ndarray]:
    """Likelihood of a reply and the chance of acceptance at each token, over all paths."""
    start, step, total = model.start[0, 0], model.step[0, 0], 0.0
    accepted = np.zeros(len(flags))
    for path in itertools.product(range(2 * regimes.HALF), repeat=len(flags)):
        shown = [int(state >= regimes.HALF) for state in path]
        if any(f >= 0 and f != s for f, s in zip(flags, shown, strict=True)):
            continue
        chance = start[path[0]] * np.prod([step[a, b] for a, b in itertools.pairwise(path)])
        total += chance
        accepted += chance * np.array(shown)
    return total, accepted / total


def some_regimes() -> regimes.Regimes:
    generator = np.random.default_rng(0)
    states = 2 * regimes.HALF
    step = generator.dirichlet(np.full(states, 0.2), (1, 1, states))
    return regimes.Regimes(generator.dirichlet(np.ones(states), (1, 1)), step)


def draws(flags: Sequence[Sequence[int]], model: regimes.Regimes, level: float) -> np.ndarray:
    """[4000, tokens] as many draws of the same replies, laid out beside each other."""
    replies = laid_out([*flags] * 4000)
    tilt = np.full((1, len(flags) * 4000), level)
    drawn = replies.flat(regimes.draw(replies, model, tilt, np.random.default_rng(0)))
    return drawn[0].reshape(4000, -1)


def test_regimes_against_enumeration_of_all_paths() -> None:
    flags, model = [[1, -1, 0], [-1, 1, 1, -1], [0]], some_regimes()
    replies = laid_out(flags)
    found = replies.flat(regimes.chances(replies, model))[0]
    expected = [enumerated(reply, model) for reply in flags]
    assert found == pytest.approx(np.concatenate([chance for _, chance in expected]))
    likelihood = regimes.log_likelihood(replies, model)
    assert likelihood == pytest.approx([sum(np.log(total) for total, _ in expected)])
    drawn = draws(flags, model, 0.0)
    assert drawn.mean(axis=0) == pytest.approx(found, abs=4 * 0.5 / np.sqrt(4000))


def test_a_shift_of_log_odds_is_one() -> None:
    model = some_regimes()
    (_, chance, _) = enumerated([1, -1, 0], model)[1]
    drawn = draws([[1, -1, 0]], model, 1.0)[:, 1]
    odds = chance / (1 - chance) * np.e
    assert np.mean(drawn) == pytest.approx(odds / (1 + odds), abs=4 * 0.5 / np.sqrt(4000))


def test_fitting_never_makes_the_known_flags_less_likely() -> None:
    seen = recorded(bursty(0.95, 0.3, np.random.default_rng(1)), "gammatune")
    replies = regimes.lay_out(flags_of(seen)[None], seen.offsets, seen.category)
    model, ones = regimes.first_guess(1), np.ones((1, seen.requests))
    likelihoods = []
    for _ in range(12):
        model = regimes.fit(replies, ones, model, 1)
        likelihoods.append(float(regimes.log_likelihood(replies, model)[0]))
    assert (np.diff(likelihoods) > -0.5).all()  # the pseudo-counts have their say as well
    assert likelihoods[-1] > likelihoods[0] + 20
    twice = regimes.fit(replies, np.concatenate([ones, 2 * ones]), regimes.first_guess(1), 3)
    assert (twice.pick(0).step == regimes.fit(replies, ones, regimes.first_guess(1), 3).step).all()


def test_imputations_undo_informative_censoring_in_bursty_text() -> None:
    """Unknown positions are easier than the average; a recorder's own average would miss that."""
    truth = bursty(0.95, 0.2, np.random.default_rng(5), requests=80, reply_tokens=100)
    seen = recorded(truth, "fixed:gamma=2")
    unknown = flags_of(seen) == UNKNOWN
    right = flags_of(truth)[unknown].mean()
    drawn = [flags_of(one)[unknown].mean() for one in imputations(seen, 8, 0)]
    assert flags_of(truth)[~unknown].mean() < right - 0.1
    assert abs(np.mean(drawn) - right) < 0.02


def test_kaplan_meier_is_fooled_by_an_adaptive_recorder_and_the_imputations_are_not() -> None:
    exact = read_trace(GREEDY)
    seen = recorded(exact, "gammatune")
    truth = survival(exact, depth=8).survival
    naive = survival(seen, depth=8).survival
    drawn = np.mean([survival(t, depth=8).survival for t in imputations(seen, 4, 0)], axis=0)
    assert naive[8] > truth[8] + 0.08
    assert np.abs(drawn - truth).max() < 0.02


def test_span_by_hand() -> None:
    """Three draws 1, 2, 4: mean 7/3, deviation sqrt(7/3), t(2) = 4.3027 times sqrt(4/3)."""
    found = span(1.0, 5.0, np.array([1.0, 2.0, 4.0]))
    reach = 4.302653 * np.sqrt(7 / 3) * np.sqrt(4 / 3)
    assert found.value == 2.0
    assert (found.low, found.high) == pytest.approx((7 / 3 - reach, 7 / 3 + reach))
    assert (found.stop, found.go_on) == (1.0, 5.0)
    assert found.half_width == pytest.approx(reach / 2)


COVERED = ("gammatune", "fixed:gamma=2", "fixed:gamma=5", "goodput")


def tried(fill: censored_check.Fill, resamples: int = 6) -> dict[str, float]:
    """Share of truths inside the 95 % interval, of tokens/s and of the ratio that decides."""
    trace = read_trace(GREEDY)
    one = functools.partial(
        cases, trace, "fixed:gamma=3", requests=40, policies=COVERED, fill=fill, draws=12
    )
    found = [case for index in range(resamples) for case in one(index)]
    numbers = {case.number: [c for c in found if c.number == case.number] for case in found}
    return {name: coverage(group)[-1].covered for name, group in numbers.items()}


def optimistic(trace: Trace, draws: int, seed: int) -> Sequence[Trace]:
    """An imputation that goes wrong: all unknown positions are accepted, but for one in 20."""
    flags, made = flags_of(trace), []
    for number in range(draws):
        coin = np.random.default_rng([seed, number]).random(len(flags)) < 0.95
        made.append(completed(trace, np.where(flags < 0, coin, flags).astype(np.int8), {}))
    return (*bounds(trace), *made)


@pytest.mark.slow
def test_intervals_cover_the_truth_and_those_of_a_biased_imputation_do_not() -> None:
    held, missed = tried(modelled), tried(optimistic)
    assert set(held) == {censored_check.SPEED, censored_check.RATIO}
    assert min(held.values()) >= 0.85
    assert missed[censored_check.SPEED] <= 0.5
    assert missed[censored_check.RATIO] <= 0.75  # much of a bias is in both and cancels


def test_coverage_by_hand() -> None:
    rows = [
        CoverageCase("a", 10.0, 9.0, 10.0, 11.0, 8.0, 12.0),
        CoverageCase("a", 20.0, 9.0, 10.0, 11.0, 25.0, 12.0),
        CoverageCase("b", 10.0, 10.0, 10.0, 10.0, 10.0, 10.0),
    ]
    first, exact, unsure = coverage(rows)
    assert (first.covered, first.below, first.above, first.within) == (0.5, 0.0, 0.5, 1.0)
    assert first.bias == pytest.approx(-0.25) and exact.half_width == 0
    assert unsure.policy == "open" and unsure.covered == 0.5


def test_what_is_left_open_by_hand() -> None:
    """One reply, a recorder of length 2: never drafting and that recorder are known exactly."""
    seen = recorded(trace_of(TRUTH, TRUTH), "fixed:gamma=2")
    costs = costs_for(seen)
    schedules = {
        name: functools.partial(replay, policy, costs=costs)
        for name, policy in {"never": Never(), "two": Fixed(2), "four": Fixed(4)}.items()
    }
    found = left_open(complete(seen, draws=6), schedules, reference="two", resamples=60)
    assert (found.unknown, found.positions, found.draws) == (6, 20, 6)
    two, four = found.row("two"), found.row("four")
    assert two.tokens_per_round[:3] == pytest.approx((2.0, 2.0, 2.0))
    assert two.verdict == "tie" and two.vs_fixed.low == two.vs_fixed.high == 1.0
    # All stop: rounds at 0, 3, 5, 8, 9. All go on: 0 (4 accepted), 5 (3 accepted), 9.
    assert four.tokens_per_round.stop == 2.0
    assert four.tokens_per_round.go_on == pytest.approx(10 / 3)
    plain = left_open(
        complete(seen, draws=6), schedules, reference="two", plain_s_per_token=2 * 0.0223
    )
    assert plain.row("never").speedup.value == pytest.approx(2.0)
    assert found.row("never").speedup.value == pytest.approx(1.0)


def test_compare_prints_intervals_on_a_censored_trace_and_points_on_an_exact_one() -> None:
    exact = lively_trace(questions=16)
    timing = make_timing(verify_s=6.0)
    seen = recorded(exact, "fixed:gamma=2")
    policies = parse_policies("gammatune,ucb")
    points, open_ = (
        compare(t, step_costs(timing, t), policies, resamples=40) for t in (exact, seen)
    )
    assert points.censoring is None and "imputation" not in comparison_text(points, "t")
    assert to_dict(points)["censoring"] is None
    assert open_.exactness == "censored" and open_.censoring is not None
    text = comparison_text(open_, "t")
    assert max(map(len, text.splitlines())) <= 100
    for word in ("what censoring", "leaves open", "extremes", "gammatune", "clairvoyant"):
        assert word in text
    unknown = flags_of(seen.select(list(open_.test_rows))) == UNKNOWN
    assert open_.censoring.unknown == unknown.sum() > 0
    entry = to_dict(open_)
    json.dumps(entry, allow_nan=False)
    row = next(r for r in entry["censoring"]["rows"] if r["name"] == "gammatune")
    assert row["tokens_per_s"]["low"] < row["tokens_per_s"]["value"] < row["tokens_per_s"]["high"]
    about = {
        "trace": "t",
        "timing_meta": {"pair": "tiny"},
        "trace_meta": {"pair": "tiny", "depth": 4},
    }
    view = comparison_view(entry | about, [])
    short, whole = view["tables"]
    shown = next(r for g in whole["groups"] for r in g["rows"] if r[0] == "gammatune")
    speed = shown[short["header"].index("tokens/s")]
    assert "imputation" in view["basis"] and "-" in speed and len(speed) > 1


def test_the_truth_lies_in_what_compare_leaves_open() -> None:
    exact = lively_trace(questions=30)
    timing = make_timing(verify_s=6.0)
    policies = parse_policies("gammatune,fixed:gamma=4")
    seen = recorded(exact, "fixed:gamma=2")
    open_, points = (
        compare(t, step_costs(timing, t), policies, resamples=40) for t in (seen, exact)
    )
    assert open_.censoring is not None
    for policy in ("gammatune", "fixed:gamma=4", "never"):
        found, truth = open_.censoring.row(policy).tokens_per_s, points.row(policy).tokens_per_s
        assert found.low - 1e-9 <= truth <= found.high + 1e-9


def test_commands(tmp_path: Path) -> None:
    exact, seen = tmp_path / "exact.parquet", tmp_path / "seen.parquet"
    write_trace(lively_trace(), exact)
    write_trace(recorded(lively_trace(), "fixed:gamma=2"), seen)
    costs = ["--round-ms", "10", "--draft-ms", "1", "--draws", "4"]
    asked = ["studies", "censored", "--trace", seen, *costs, "--policies"]
    printed = gammalab(*asked, "gammatune,fixed:gamma=4").out
    assert "fixed:gamma=4" in printed and "accepted of" in printed
    assert json.loads(gammalab(*asked, "gammatune", "--json").out)["reference"] == "fixed:gamma=3"
    refused(gammalab("studies", "censored", "--trace", exact, *costs), "not censored")
    assert "verdicts over" in gammalab(*asked, "gammatune,fixed:gamma=4", "--seeds", "2").out
    refused(gammalab(*asked[:-2], "2"), "at least 3")
    hidden = ["studies", "coverage", "--trace", exact, "--recorder", "fixed:gamma=2"]
    printed = gammalab(*hidden, "--resamples", "2", "--requests", "8").out
    assert "recorder fixed:gamma=2" in printed and "ratio to fixed:gamma=5" in printed
    printed = gammalab(
        *hidden, "--resamples", "1", "--others", "--requests", "8", "--reference", "fixed:gamma=3"
    ).out
    assert "ratio to fixed:gamma=3" in printed and "tokens/s" not in printed


def test_what_is_not_censored_is_its_own_completion() -> None:
    trace = trace_of(TRUTH, [1, 0, 1])
    assert (impute(trace, 1).accept_len == trace.accept_len).all()
    assert all((bound.accept_len == trace.accept_len).all() for bound in bounds(trace))
    assert learn(trace).spread.task >= 0


def test_a_dropped_token_tells_a_recorder_nothing() -> None:
    """Drafted, but not verified: what the target would have said stays unknown."""
    trace = bursty(0.9, 0.4, np.random.default_rng(1), requests=9, reply_tokens=40, signals=True)
    rule = parse_policy("llama-p-min:p_min=0.8,gamma_max=3")
    log = replay(rule, trace, costs_for(trace, 1.0, 0.1))
    assert (log.verified < log.drafted).any() and (log.verified > 0).any()
    seen = censor(trace, log)
    known = flags_of(seen) != UNKNOWN
    starts = trace.offsets[log.request] + log.context_tokens - trace.prompt_tokens[log.request]
    nothing = starts[log.verified == 0]
    assert not known[nothing].any() and known[starts[log.verified > 0]].all()
