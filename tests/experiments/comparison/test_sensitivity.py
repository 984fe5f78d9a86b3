"""Who is first when a cost term is 10 % off: costs by hand, and winners that flip or do not."""

from __future__ import annotations

import dataclasses

import pytest

from experiments.common.cost_sources import step_costs
from experiments.comparison.certainty import belief_table, misled, ranking, sides
from experiments.comparison.sensitivity import (
    Belief,
    Case,
    Race,
    Sensitivity,
    perturbed,
    sensitivity,
    turned,
    wrong_beliefs,
)
from policies.base import Policy, View
from policies.fixed import Fixed, Never
from policies.randomness import Rng
from policies.registry import REGISTRY, parse_policy
from simulator.replay.hindsight import best_fixed
from simulator.replay.replay import replay
from tests.results import make_trace
from traces.costs.affine import Affine
from traces.costs.pricing import StepCosts, make_step_costs, tabulate
from traces.schema import Trace
from traces.shipped import GREEDY, TIMING
from traces.split import split_rows
from traces.store import read_trace
from traces.timing import read_timing

# Two replies of 6 tokens. Never drafting takes 12 target steps; gamma 3 takes 4 and 8 draft steps.
NEVER, FIXED = "never", "fixed:gamma=3"
TERMS = [("draft steps", 0.9), ("draft steps", 1.1), ("verify", 0.9), ("verify", 1.1)]


def two_replies() -> Trace:
    return make_trace([[3, 2, 1, 0, 2, 1], [6, 5, 4, 3, 2, 1]], ["1.1", "2.1"], ["t", "t"])


def flat(draft_s: float, verify_s: float = 1.0) -> StepCosts:
    """Every draft step and every target step costs the same."""
    return tabulate(Affine(draft_fixed=draft_s, target_fixed=verify_s), max_context=0, width=6)


def found_at(draft_s: float) -> Sensitivity:
    entrants: dict[str, Policy] = {NEVER: Never(), FIXED: Fixed(3)}
    verdicts = {NEVER: "slower", FIXED: "baseline"}
    return sensitivity(entrants, two_replies(), flat(draft_s), verdicts, reference=FIXED)


def test_every_term_is_scaled_alone() -> None:
    costs = make_step_costs([[0.0, 2.0, 3.0]], [[0.0, 10.0, 12.0]], prefill_s=[5.0], signal_s=0.5)
    found = {(t, f): c for t, f, c in perturbed(costs, 1.0) if f > 1}
    expected = {
        "draft steps": ([2.2, 3.3], [10, 12], 0.5),
        "verify": ([2, 3], [9 * 1.1 + 1, 11 * 1.1 + 1], 0.5),
        "growth of verify with width": ([2, 3], [10, 12.2], 0.5),
        "signals": ([2, 3], [10, 12], 0.55),
        "control": ([2, 3], [10.1, 12.1], 0.5),
    }
    assert list(found) == [(term, 1.1) for term in expected]
    for (term, _), scaled in found.items():
        draft_s, verify_s, signal_s = expected[term]
        assert scaled.draft_s[0, 0].tolist() == pytest.approx([0, *draft_s])
        assert scaled.verify_s[0, 0].tolist() == pytest.approx([0, *verify_s])
        assert scaled.signal_s == pytest.approx(signal_s)
        assert scaled.prefill_s.tolist() == [5.0]


def test_a_verdict_turns_only_to_the_other_side() -> None:
    seconds = {"fixed": 10.0, "up": 9.0, "down": 11.0, "near": 10.005}
    assert turned(seconds, dict.fromkeys(seconds, "tie"), "fixed") == ()
    assert turned(seconds, dict.fromkeys(seconds, "faster"), "fixed") == ("down",)
    assert turned(seconds, dict.fromkeys(seconds, "slower"), "fixed") == ("up",)


def test_terms_that_cost_nothing_are_left_out() -> None:
    assert [(term, factor) for term, factor, _ in perturbed(flat(1.0), 0.0)] == TERMS


def test_a_winner_that_flips_with_the_draft_price() -> None:
    """At 0.98: 4 + 8 * 0.98 = 11.84 against 12. Draft steps 10 % dearer: 12.624 against 12; target
    steps 10 % cheaper: 11.44 against 10.8.
    """
    found = found_at(0.98)
    assert found.first == FIXED and found.race == Race(NEVER, pytest.approx(12 / 11.84 - 1))
    assert [(case.term, case.factor) for case in found.cases] == TERMS
    leads = [case.race.lead for case in found.cases]
    expected = [12 / 11.056, 12 / 12.624, 10.8 / 11.44, 13.2 / 12.24]
    assert leads == pytest.approx([ratio - 1 for ratio in expected])
    assert [case.race.lost for case in found.cases] == [False, True, True, False]
    assert [case.turned for case in found.cases] == [(), (NEVER,), (NEVER,), ()]
    assert not found.settled
    assert ranking(found) == (
        "unsettled: with draft steps 10 % dearer, verify 10 % cheaper, never is first; "
        "fixed:gamma=3 is first in 2 of 4 perturbed cost models (each cost term 10 % cheaper, then "
        "dearer)"
    )
    assert sides(found, FIXED) == (
        "verdicts against fixed:gamma=3 that change their sign: never with draft steps 10 % "
        "dearer, verify 10 % cheaper"
    )


def test_a_winner_that_stays() -> None:
    found = found_at(0.1)
    assert found.settled and found.first == FIXED
    assert ranking(found).startswith("settled: fixed:gamma=3 stays first in all 4 perturbed")
    assert sides(found, FIXED) == "no verdict against fixed:gamma=3 changes its sign there"


def test_a_thousandth_is_level_and_no_flip() -> None:
    assert Race("x", -0.0009).level and not Race("x", -0.0009).lost
    assert Race("x", -0.0011).lost and not Race("x", -0.0011).level
    assert not Race("x", 0.0011).level
    level = Case("verify", 0.9, Race("x", -0.0009), ())
    clear = Case("verify", 1.1, Race("x", 0.2), ())
    found = Sensitivity("us", Race("x", 0.1), (level, clear))
    assert found.settled
    assert ranking(found) == (
        "settled: us stays first or level (within 0.1 %) in all 2 perturbed cost models (each cost "
        "term 10 % cheaper, then dearer); level: x with verify 10 % cheaper"
    )
    assert ranking(Sensitivity("us", Race("x", 0.0), (level, level))).endswith("level: x in each")


def test_rules_that_read_seconds_and_a_slower_machine() -> None:
    """Shy drafts below 1 s a step: at 0.98 s as measured, not on the machine whose timing says
    0.98 / 0.8 s. Three tokens: 4 + 8 * 0.98 = 11.84 s, none: 12 s.
    """
    entrants = {NEVER: Never(), "shy": Shy()}
    found = sensitivity(entrants, two_replies(), flat(0.98), {}, reference=NEVER)
    speed = (1.0, *[pytest.approx(12 / 11.84)] * 4)
    assert found.beliefs == (Belief("shy", (0.8, 1.0, 1.3, 1.5, 2.0), speed),)
    assert found.beliefs[0].moves
    assert misled(found, NEVER) == (
        "on a machine 0.8 to 2 times as slow as its timing the speed over never moves for shy "
        "(1.000 to 1.014)"
    )
    assert [line.split() for line in belief_table(found).splitlines()[1:]] == [
        ["over", "its", "timing's", "0.8", "1", "1.3", "1.5", "2"],
        ["--", "rules", "that", "read", "seconds"],
        ["shy", "1.000", "1.014", "1.014", "1.014", "1.014"],
    ]


@pytest.mark.long
def test_no_rule_of_the_shelf_is_misled_by_the_machines_pace() -> None:
    """pytest -n 0 -s prints the table: shipped greedy trace and timing, held-out half."""
    trace, timing = read_trace(GREEDY), read_timing(TIMING)
    costs = step_costs(timing, trace)
    train, test = (trace.select(rows) for rows in split_rows(trace, seed=0))
    tuned = Fixed(best_fixed(train, costs)[0])
    reference_s = float(replay(tuned, test, costs).elapsed_s.sum())
    entrants = {name: parse_policy(name) for name in REGISTRY}
    beliefs = tuple(wrong_beliefs(entrants, test, costs, reference_s, seed=0))
    found = Sensitivity("", Race("", 0.0), (), beliefs)
    print(f"\n{belief_table(found)}")
    assert {"payback", "cascade", "hedge", "ucb"} < {belief.policy for belief in beliefs}
    assert not any(belief.moves for belief in beliefs)
    assert misled(found, FIXED) == (
        "on a machine 0.8 to 2 times as slow as its timing no rule that reads seconds changes its "
        "speed over fixed:gamma=3 by more than 0.5 percentage points"
    )


@dataclasses.dataclass(frozen=True)
class Shy(Policy):
    """Drafts three tokens while a draft step is cheap."""

    limit_s: float = 1.0

    name = "shy"
    rule = "3 below the limit, else 0"
    source = "this test"

    def gamma(self, state: object, slot: int, view: View, rng: Rng) -> int:
        return 3 if view.draft_step_s < self.limit_s else 0


def test_a_policy_that_looks_at_costs_decides_anew() -> None:
    """With draft steps at 1.078 s it no longer drafts, so it takes the 12 s of never drafting."""
    entrants = {NEVER: Never(), "shy": Shy()}
    found = sensitivity(entrants, two_replies(), flat(0.98), {}, reference=NEVER)
    dearer = found.cases[1]
    assert (dearer.term, dearer.factor) == ("draft steps", 1.1)
    assert found.first == "shy" and dearer.race == Race(NEVER, 0.0)
