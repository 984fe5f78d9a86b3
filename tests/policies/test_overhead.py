"""Every rule pays for its own arithmetic: the same seconds in every runtime, from one timing."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium
import numpy as np
import pytest

import simulator.envs.round_token  # registers the environments
from experiments.comparison.compare import compare
from experiments.comparison.compare_text import comparison_text, to_dict
from experiments.sweep.jobs import conditions_of, costs_of, fingerprints, jobs_of
from experiments.sweep.suites import Suite
from policies.base import Outcome, Policy, State, View
from policies.confidence.thresholds import HFConfidence
from policies.counts.tables import BatchTable
from policies.fixed import Fixed
from policies.ours.marginal import Payback
from policies.ours.shapes import ShapeWorth
from policies.overhead import (
    REPLY_ROUNDS,
    charged,
    is_known,
    measured_overhead,
    own_seconds_of,
    seconds_of,
    uncharged,
)
from policies.randomness import Rng
from policies.registry import REGISTRY, find_policy, parse_policy
from simulator.envs.play_serve import play_serve
from simulator.replay.hindsight import ceilings, clairvoyant
from simulator.replay.metrics import per_request
from simulator.replay.replay import replay, replay_interpreted
from simulator.replay.totals import count_steps, price_steps, tally
from simulator.serving.options import Server
from simulator.serving.server import serve
from tests.results import make_timing
from tests.specimens import random_trace
from traces import synthetic
from traces.costs.affine import Affine
from traces.costs.of_trace import prices_of_menu
from traces.costs.pricing import StepCosts, tabulate
from traces.shapes.shape import chain, parse_shape
from traces.workload.arrivals import demand
from traces.workload.workload import Workload

OWN = {name: (1e-3 * (k + 1), 2e-4 * (k + 1)) for k, name in enumerate(REGISTRY)}
MODEL = Affine(
    draft_fixed=1.3e-3, target_fixed=10.7e-3, draft_token=1.1e-4, target_token=3.3e-4,
    prefill_fixed=5e-3, row=2.1e-4, context_token=1.3e-6, signal=1.9e-4, control=4.1e-4, own=OWN,
)  # fmt: skip


def without(own_s: dict[str, tuple[float, float]] | None = None) -> Affine:
    """The same model, with other own seconds."""
    return dataclasses.replace(MODEL, own=own_s or {})


def test_a_charge_by_hand() -> None:
    """Nothing is accepted, three tokens: three rounds, each drafting what room is left of one."""
    trace = synthetic.constant(0.0, np.random.default_rng(0), requests=1, reply_tokens=3, depth=4)
    rule = HFConfidence(gamma_max=2, threshold=0.0)
    trace = dataclasses.replace(
        trace,
        top1_prob=np.full((3, 4), 0.9, dtype=np.float32),
        entropy=np.full((3, 4), 0.1, dtype=np.float32),
    )
    free, paid = (
        replay(rule, trace, tabulate(without(own))) for own in ({}, {rule.name: (1e-3, 2e-3)})
    )
    assert paid.drafted.tolist() == free.drafted.tolist() and len(paid.drafted) == 3
    drafted = int(paid.drafted.sum())
    extra = float(paid.elapsed_s.sum() - free.elapsed_s.sum())
    assert extra == pytest.approx(3 * 1e-3 + drafted * 2e-3, rel=1e-9) and drafted > 1


def test_charged_costs_are_charged_once() -> None:
    costs = tabulate(MODEL)
    once = charged(Payback(), costs)
    assert same_costs(charged(Payback(), once), once)
    assert once.verify_s[0, 0, 1] == costs.verify_s[0, 0, 1] + OWN["payback"][0]
    assert once.signal_s == costs.signal_s + OWN["payback"][1]
    bare = uncharged(costs)
    assert same_costs(charged(Payback(), bare, starts=True), bare)
    bare = bare._replace(start_s=None)
    assert same_costs(charged(Payback(), bare), bare)
    blind = charged(Fixed(3), bare)
    assert same_costs(blind, bare._replace(signal_s=0.0))  # who reads no signals pays for none
    assert charged(Fixed(3), bare, signals=True).signal_s == costs.signal_s


def same_costs(one: StepCosts, other: StepCosts) -> bool:
    pairs = zip(one[1:-1], other[1:-1], strict=True)
    return all(np.array_equal(a, b) for a, b in pairs) and one.own_s == other.own_s


class DearFixed(Fixed):
    """Says itself what it takes; no file knows it."""

    name = "dear"

    def control_s(self) -> tuple[float, float]:
        return 1e-3, 0.0


class Unknown(Fixed):
    """A user's rule."""

    name = "mine"


def test_whose_seconds_are_known() -> None:
    costs = tabulate(MODEL)
    assert seconds_of(DearFixed(3), costs.own_s) == (1e-3, 0.0)
    assert seconds_of(DearFixed(3), uncharged(costs).own_s) == (0.0, 0.0)
    assert seconds_of(Unknown(3), costs.own_s) == (0.0, 0.0)
    known = [is_known(p, costs.own_s) for p in (DearFixed(3), Unknown(3), Fixed(3))]
    assert known == [True, False, True] and not is_known(Fixed(3), {})
    own_s = {"gammatune": (5e-6, 0.0), "arbiter/gammatune": (9e-6, 0.0), "payback": (4e-5, 2e-5)}
    wrapped = find_policy("arbiter/payback")()
    assert seconds_of(wrapped, own_s) == pytest.approx((4.4e-5, 2e-5))
    assert seconds_of(find_policy("arbiter/hf-roc")(), own_s) == (0.0, 0.0)
    assert seconds_of(wrapped, {"payback": (4e-5, 2e-5)}) == (0.0, 0.0)


SPECS = ("never", "fixed:gamma=3", "gammatune", "payback", "hf-confidence", "arbiter/gammatune")


@pytest.mark.parametrize("spec", SPECS)
def test_all_runtimes_charge_the_same(spec: str) -> None:
    """Replay, its plain Python, the sums and the environments, bit for bit."""
    policy, trace, costs = parse_policy(spec), random_trace(np.random.default_rng(4), 4, 6), MODEL
    table = tabulate(costs, max_context=512, width=trace.meta.depth + 2)
    log = replay(policy, trace, table)
    assert log.same_rounds(replay_interpreted(policy, trace, table))
    assert (tally(policy, trace, table).decode_s == per_request(log).decode_s).all()
    free = replay(policy, trace, uncharged(table))
    assert float(log.elapsed_s.sum()) > float(free.elapsed_s.sum())
    reads_signals = spec in ("payback", "hf-confidence")
    name = f"gammalab/{'Token' if reads_signals else 'Round'}-v0"
    env = gymnasium.make(name, trace=trace, timing=costs)
    longest = int((trace.prompt_tokens + trace.reply_tokens).max())
    same = tabulate(costs, max_context=longest + 32, width=trace.meta.depth + 2)
    rounds = simulator.envs.round_token.play(env, policy, range(trace.requests))
    assert [o.elapsed_s for _, o in rounds] == replay(policy, trace, same).elapsed_s.tolist()
    env.unwrapped.charge(None)  # type: ignore[attr-defined]
    _, info = env.reset(options={"requests": [0]})
    bucket = info["view"].context_tokens // same.bucket_tokens
    assert info["view"].verify_s[1] == same.verify_s[0, bucket, 1]


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("spec", SPECS)
def test_a_server_of_one_slot_charges_as_a_replay_does(spec: str, compiled: bool) -> None:
    policy, trace = parse_policy(spec), random_trace(np.random.default_rng(4), 4, 6)
    costs = tabulate(MODEL, max_context=512, width=trace.meta.depth + 2)
    workload = Workload(trace.requests, "closed", users=1, think_s=0.0, order="recorded")
    asked = demand(workload, trace.category, 0)
    served = serve(policy, trace, asked, costs, Server(slots=1), log=True, compiled=compiled)
    log = replay(policy, trace, costs)
    assert served.round_log is not None
    assert served.round_log.elapsed_s.tolist() == log.elapsed_s.tolist()


def test_serve_v0_charges_as_a_server_does() -> None:
    trace = random_trace(np.random.default_rng(4), 6, 6)
    rule = BatchTable()
    env = gymnasium.make(
        "gammalab/Serve-v0", trace=trace, timing=MODEL, server=Server(slots=3),
        workload="closed:users=3", requests=6,
    )  # fmt: skip
    base: Any = env.unwrapped
    played = play_serve(env, rule, seed=1)
    longest = int((trace.prompt_tokens + trace.reply_tokens).max())
    ends = [
        serve(
            rule, trace, base.demand,
            tabulate(
                model, range(1, 4), max_context=longest + 64, width=trace.meta.depth + 2,
                bucket_tokens=64,
            ),
            Server(slots=3), seed=base.episode_seed,
        ).end_s
        for model in (MODEL, without())
    ]  # fmt: skip
    assert played.end_s == ends[0] > ends[1]


def test_a_batch_of_three_pays_three_times() -> None:
    costs = tabulate(MODEL, range(1, 4), max_context=64, width=6)
    paid = charged(Fixed(2), costs)
    added = paid.verify_s[:, 0, 1] - costs.verify_s[:, 0, 1]
    assert np.allclose(added, OWN["fixed"][0] * np.arange(1, 4), rtol=1e-9)
    assert (charged(Fixed(2), uncharged(costs)).verify_s == costs.verify_s).all()


def test_ceilings_pay_nothing_and_counted_steps_pay() -> None:
    trace = random_trace(np.random.default_rng(4), 4, 6)
    costs, free = tabulate(MODEL), tabulate(without())
    assert ceilings(trace, costs) == ceilings(trace, free)
    assert clairvoyant(trace, costs).same_rounds(clairvoyant(trace, free))
    steps = count_steps(Fixed(3), trace, free)
    expected = [float(tally(Fixed(3), trace, c).decode_s.sum()) for c in (costs, free)]
    assert price_steps(steps, [costs, free]) == pytest.approx(expected, rel=1e-12)
    assert expected[0] > expected[1]


def test_compare_has_an_uncharged_column_and_names_who_is_not_known() -> None:
    trace = random_trace(np.random.default_rng(4), 24, 12)
    rules: list[Policy] = [parse_policy("gammatune"), Unknown(2)]
    costs = tabulate(MODEL, max_context=512, width=trace.meta.depth + 2)
    one, two = (compare(trace, c, rules, resamples=50) for c in (costs, uncharged(costs)))
    assert one.tuned_gamma == two.tuned_gamma
    for row in one.rows:
        if row.role == "hindsight":
            continue  # another length may be the best one
        assert row.uncharged == pytest.approx(two.row(row.name).vs_fixed.value, rel=1e-9)
        assert row.uncharged == two.row(row.name).uncharged
    assert one.row("gammatune").uncharged > one.row("gammatune").vs_fixed.value
    assert one.unpriced == ("mine:gamma=2",) and two.unpriced == ()
    text = comparison_text(one, "x")
    assert "not charged: mine:gamma=2\n" in text and "free" in text
    assert to_dict(one)["rows"][0]["uncharged"] == one.rows[0].uncharged


def test_cost_ratio_worlds_are_in_seconds_of_the_timing() -> None:
    """Ratios of uncharged speeds are those of any unit; a charge weighs what it weighs there."""
    trace = random_trace(np.random.default_rng(4), 12, 8)
    timing = dataclasses.replace(make_timing(verify_s=0.02), own_s={"gammatune": (5e-3, 0.0)})
    priced, bare = costs_of("c=8", timing, trace), costs_of("c=8", None, trace)
    assert priced.verify_s[0, 0, 1] == 0.02 and priced.draft_s[0, 0, 1] == 0.02 / 8
    assert priced.own_s == timing.own_s and bare.own_s == {}
    rules = [parse_policy(spec) for spec in ("never", "fixed:gamma=3", "gammatune")]

    def seconds(costs: StepCosts) -> Any:
        return np.asarray([tally(rule, trace, costs).decode_s.sum() for rule in rules])

    free = seconds(uncharged(priced))
    assert free / free[0] == pytest.approx(seconds(bare) / seconds(bare)[0], rel=1e-12)
    rounds = int(tally(rules[2], trace, priced).rounds.sum())
    assert seconds(priced)[2] - free[2] == pytest.approx(5e-3 * rounds, rel=1e-9)
    timings = (timing, make_timing(verify_s=0.02))
    conditions = [conditions_of({"x": trace}, ["c=8"], [0], each) for each in timings]
    jobs = jobs_of(Suite("about", ("gammatune",), ()), conditions[0])
    assert fingerprints(conditions[0], jobs) != fingerprints(conditions[1], jobs)


@dataclasses.dataclass(frozen=True)
class Slow(Fixed):
    """Busy in every hook."""

    name = "slow"

    def gamma(self, state: State, slot: int, view: View, rng: Rng) -> int:
        return int(sum(range(20_000)) * 0) + self.gamma_tokens

    def learn(self, state: State, slot: int, view: View, outcome: Outcome) -> None:
        sum(range(20_000))


def test_own_seconds_tell_rules_apart() -> None:
    rules = [Fixed(3), Slow(3), HFConfidence(), ShapeWorth()]
    fixed, slow, looking, choosing = own_seconds_of(rules, rounds=10)
    assert slow[0] > 10 * fixed[0] > 0 and fixed[1] == slow[1] == 0.0 < looking[1]
    assert fixed[2] == looking[2] == 0.0 < choosing[2]


def test_a_choice_among_trees_is_charged_by_entry() -> None:
    shapes = [chain(2), parse_shape("3x1"), chain(1)]
    costs = tabulate(without(), max_context=64, width=10)
    own_s = {"shape-worth": (1e-3, 0.0), "shape-worth/entry": (5e-4, 0.0)}
    alone, menu = costs._replace(own_s=own_s), prices_of_menu(costs._replace(own_s=own_s), shapes)
    policy = ShapeWorth()
    assert charged(policy, alone).verify_s[0, 0, 1] - costs.verify_s[0, 0, 1] == (
        pytest.approx(1e-3)
    )
    paid, free = charged(policy, menu).verify_s, prices_of_menu(costs, shapes).verify_s
    assert (paid - free)[:, :, 1:] == pytest.approx(2.5e-3)
    assert charged(Fixed(2), menu).verify_s == pytest.approx(free)


def test_replies_end_while_a_rule_is_timed() -> None:
    """What grows with a reply is timed in replies of REPLY_ROUNDS, not in one without an end."""
    admitted: list[int] = []

    class Counting(Fixed):
        def admit(self, state: Any, slot: int) -> None:
            admitted.append(slot)

    measured_overhead(Counting(2), rounds=2 * REPLY_ROUNDS)
    assert len(admitted) == 3  # 80 rounds, 20 of them to warm up
