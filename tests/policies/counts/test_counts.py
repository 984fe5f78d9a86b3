"""Rules on accepted counts: streaks, averages, tiers, tables and gates, each by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from policies.base import Outcome, Policy, View
from policies.conformance import check_policy
from policies.counts.averages import CensoredEma, RateBuckets, RateEma, RateServo
from policies.counts.heuristic import Streak
from policies.counts.tables import BatchTable, DisableGate
from policies.counts.tiers import SGLangTiers, next_tier, set_of_batch
from policies.randomness import Rng
from simulator.replay.replay import replay, replay_interpreted
from traces import synthetic
from traces.costs.affine import Affine
from traces.costs.pricing import tabulate

RNG = Rng(1)
CLASSES = (
    Streak, RateEma, CensoredEma, RateBuckets, RateServo, SGLangTiers, BatchTable, DisableGate,
)  # fmt: skip
FULL = 99  # the target would accept everything


def view(room: int = 30, batch_size: int = 1) -> View:
    return View(100, batch_size, 0, room, 1.0, np.asarray([0.0] + [6.0] * 40))


def settle(policy: Policy, state: Any, gamma: int, accepted: int, *, ended: bool = False) -> None:
    """One round of gamma drafts in slot 0 is over."""
    emitted = accepted if ended else accepted + 1
    policy.learn(
        state, 0, view(), Outcome(gamma, gamma, accepted, emitted, emitted <= accepted, 1.0, 1.0)
    )


def play(policy: Policy, state: Any, accepts: list[int], batch_size: int = 1) -> list[int]:
    """Gamma of each round when the target would accept `accepts` tokens; one last gamma after."""
    now, shown = view(batch_size=batch_size), []
    for accept in accepts:
        gamma = policy.gamma(state, 0, now, RNG)
        accepted = min(gamma, accept)
        policy.learn(state, 0, now, Outcome(gamma, gamma, accepted, accepted + 1, False, 1.0, 1.0))
        shown.append(gamma)
    return [*shown, policy.gamma(state, 0, now, RNG)]


@pytest.mark.parametrize("cls", CLASSES)
def test_conforms(cls: type[Policy]) -> None:
    check_policy(cls())


@pytest.mark.parametrize("cls", CLASSES)
def test_runtimes_agree(cls: type[Policy]) -> None:
    generator = np.random.default_rng(5)
    costs = tabulate(Affine(context_token=1e-6, target_token=3e-4, signal=1e-4, control=2e-4))
    size: dict[str, Any] = {"requests": 3, "reply_tokens": 90, "signals": True}
    for trace in (
        synthetic.constant(0.8, generator, **size),
        synthetic.bursty(0.95, 0.3, generator, **size),
        synthetic.constant(0.1, generator, **size),
    ):
        assert replay(cls(), trace, costs).same_rounds(replay_interpreted(cls(), trace, costs))


def test_streak_by_hand() -> None:
    policy = Streak(gamma0=3, streak=2, gamma_max=4)
    state = policy.new_state(1)
    # Two successes: 4. Two more: 4 is the limit. A failure and a success break each other's row.
    # Two failures: 3. Two more: 2.
    accepts = [FULL, FULL, FULL, FULL, 0, FULL, 0, 0, 0, 0]
    assert play(policy, state, accepts) == [3, 3, 4, 4, 4, 4, 4, 4, 3, 3, 2]
    assert play(policy, state, [0, 0, 0, 0]) == [2, 2, 1, 1, 1]
    policy.admit(state, 0)
    assert play(policy, state, []) == [3]


def test_streak_bias_and_cut_rounds() -> None:
    lenient, strict = Streak(streak=1, bias=1), Streak(streak=1)
    assert play(lenient, lenient.new_state(1), [2]) == [3, 4]  # 2 >= 3 - 1
    assert play(lenient, lenient.new_state(1), [1]) == [3, 2]
    assert play(strict, strict.new_state(1), [2]) == [3, 2]
    state = strict.new_state(1)
    settle(strict, state, 1, 1)  # room for one token, accepted: the full draft
    assert int(state.gamma[0]) == 4
    settle(strict, state, 0, 0)
    assert int(state.gamma[0]) == 4
    off = Streak(streak=0)
    assert play(off, off.new_state(1), [0, 0]) == [3, 3, 3]


def test_rate_ema_by_hand() -> None:
    policy = RateEma(base=6, decay=0.5)
    state = policy.new_state(1)
    # Rates 0.75 and 0.875: up. 0.4375: between. 0.21875, 0.11, 0.05, ...: down to the floor of 4.
    accepts = [FULL, FULL, 0, 0, 0, 0, 0, 0]
    assert play(policy, state, accepts) == [6, 7, 8, 8, 7, 6, 5, 4, 4]
    policy.admit(state, 0)
    assert play(policy, state, [FULL] * 9) == [6, 7, 8, 9, 10, 11, 12, 12, 12, 12]  # 2 * base
    default = RateEma()
    state = default.new_state(1)
    settle(default, state, 16, 4)
    assert float(state.rate[0]) == pytest.approx(0.9 * 0.5 + 0.1 * 0.25)


def test_censored_ema_by_hand() -> None:
    policy = CensoredEma()
    state = policy.new_state(1)
    # 2 of 2: 2 + 1 = 3. 1 of 3: 0.75 * 3 + 0.25 * 1 = 2.5, rounded up to 3. 0 of 3: 1.875 -> 2.
    # 0 of 2: 1.40625 -> 1.
    assert play(policy, state, [2, 1, 0, 0]) == [2, 3, 3, 2, 1]
    assert float(state.ema[0]) == 1.40625
    # On to 1.0547, 0.7910, 0.5933, 0.4449: rounded to 0, but gamma_min is 1.
    assert play(policy, state, [0, 0, 0, 0])[-1] == 1
    assert float(state.ema[0]) < 0.5
    policy.admit(state, 0)
    settle(policy, state, 3, 1, ended=True)
    assert float(state.ema[0]) == 2.0  # nothing was rejected


def test_censored_ema_average_runs_past_the_cap() -> None:
    policy = CensoredEma(gamma_max=3)
    state = policy.new_state(1)
    assert play(policy, state, [FULL] * 4) == [2, 3, 3, 3, 3]
    assert float(state.ema[0]) == 6.0
    assert play(policy, state, [0, 0, 0]) == [3, 3, 3, 3]  # 4.5, 3.375, 2.53125


def test_rate_buckets_by_hand() -> None:
    policy = RateBuckets(weight=0.5)
    state = policy.new_state(2)
    # 0.6 -> 10 tokens; 0.8 -> 15; 0.4 -> 5; 0.2 -> 1; 0.6 -> 10.
    assert play(policy, state, [FULL, 0, 0, FULL]) == [10, 15, 5, 1, 10]
    settle(policy, state, 10, 2, ended=True)
    assert float(state.rate[0]) == pytest.approx(0.6)
    policy.admit(state, 0)
    assert float(state.rate[0]) == pytest.approx(0.6)  # one rate for the engine
    for rate, gamma in ((0.7, 10), (0.5, 5), (0.3, 1)):  # "over 70 percent"
        state.rate[0] = rate
        assert policy.gamma(state, 1, view(), RNG) == gamma


def test_rate_servo_by_hand() -> None:
    policy = RateServo(
        gamma0=4, threshold=0.5, margin=0.25, window=3, fewest=2, gamma_min=3, gamma_max=5
    )
    state = policy.new_state(1)
    # One round is too few. 1, 1: mean 1, up to 5. 1, 1, 0: 0.67, between. 1, 0, 0: 0.33, between.
    # 0, 0, 0: down to 4, to 3, and no further.
    assert play(policy, state, [FULL, FULL, 0, 0, 0, 0, 0]) == [4, 4, 5, 5, 5, 4, 3, 3]
    policy.admit(state, 0)
    assert play(policy, state, [3, 3]) == [4, 4, 5]  # 0.75 is at the margin
    policy.admit(state, 0)
    assert play(policy, state, [1, 1]) == [4, 4, 3]  # 0.25 too


def test_rate_servo_starts_and_stays_inside_its_bounds() -> None:
    for configured, start in ((1, 2), (8, 8), (20, 10)):
        policy = RateServo(gamma0=configured)
        state = policy.new_state(1)
        assert play(policy, state, [FULL]) == [start, start]
        policy.admit(state, 0)
        assert int(state.gamma[0]) == start
    assert play(RateServo(), RateServo().new_state(1), [FULL] * 6)[-1] == 10
    assert play(RateServo(), RateServo().new_state(1), [0] * 20)[-1] == 2


def test_tiers_by_hand() -> None:
    policy = SGLangTiers()
    state = policy.new_state(1)
    # Average 2 at first. 3 of 3 for 15 batches: 3 - 0.8^15 = 2.965 > 2.5, so 5; not > 4.5.
    # 5 of 5: 5 - 2.035 * 0.8^5 = 4.333 after 5 batches, 5 - 2.035 * 0.8^10 = 4.781 > 4.5 after 10.
    assert play(policy, state, [FULL] * 25) == [3] * 15 + [5] * 10 + [7]
    assert float(state.ema[0]) == pytest.approx(5 - (2 + 0.8**15) * 0.8**10)
    # Nothing accepted: 4.781 * 0.8^5 = 1.567 <= 4.25 and <= 2.25, down two steps to 3, not <= 0.25;
    # 0.513: stays; 0.168: down to 1, the shortest.
    assert play(policy, state, [0] * 20) == [7] * 5 + [3] * 10 + [1] * 6


def tier_after(tier: int, at: int, ema: float, down: float = 0.0, up: float = 0.0) -> int:
    """The length that follows when set `tier` is at index `at` with this average."""
    state = SGLangTiers().new_state(1)
    state.at[tier], state.ema[tier] = at, ema
    return int(state.steps[tier, next_tier(state, tier, down, up)])


def test_tier_thresholds() -> None:
    assert tier_after(1, 1, 0.5) == 0  # 0 1 3: before length 0 the threshold is 0.5
    assert tier_after(1, 1, 0.51) == 3  # not down, and 0.51 > 1 - 0.5
    assert tier_after(1, 0, 0.0) == 1  # from 0 always one up
    assert tier_after(3, 0, 9.0) == 0  # 0 alone: nowhere to go
    assert tier_after(0, 2, 2.5) == 3  # 1 3 5 7: 2.5 <= 3 - 0.5
    assert tier_after(0, 2, 2.5, down=-0.25) == 5
    assert tier_after(0, 2, 2.25, down=-0.25) == 3
    assert tier_after(0, 1, 2.6) == 5 and tier_after(0, 1, 2.6, up=0.2) == 3
    assert tier_after(0, 0, 9.0) == 7


def test_tiers_count_batches_in_their_own_set() -> None:
    assert [set_of_batch(b) for b in (1, 7, 8, 31, 32, 63, 64, 500)] == [0, 0, 1, 1, 2, 2, 3, 3]
    policy = SGLangTiers(warmup=0, interval=1)
    state = policy.new_state(8)
    assert state.at.tolist() == [1, 2, 1, 0]  # 3 of 1 3 5 7; 3 of 0 1 3; the middle of 0 1; 0
    assert state.ema.tolist() == [2.0, 2.0, 0.0, 0.0]
    accepts = [FULL, 0] * 4
    assert play(policy, state, accepts[:7], batch_size=8) == [3] * 8
    assert float(state.ema[1]) == 2.0  # one row is missing
    play(policy, state, accepts[7:], batch_size=8)
    assert float(state.ema[1]) == pytest.approx(0.8 * 2 + 0.2 * 1.5)
    assert state.batches.tolist() == [0, 1, 0, 0]
    # Batches of 32: nothing accepted, average 0 <= 0.5, so length 0; the next batch drafts nothing,
    # leaves the average alone, and 1 is tried again.
    assert play(policy, state, [0] * 64, batch_size=32) == [1] * 32 + [0] * 32 + [1]
    assert play(policy, state, [0] * 64, batch_size=64) == [0] * 65


def test_tiers_start_and_ended_replies() -> None:
    policy = SGLangTiers(start=4)
    state = policy.new_state(1)
    assert state.at.tolist() == [2, 1, 1, 0]  # 4 is in no set: their middles
    settle(policy, state, 5, 2, ended=True)
    assert float(state.ema[0]) == 4.0 and int(state.batches[0]) == 1
    settle(policy, state, 5, 2)
    assert float(state.ema[0]) == pytest.approx(0.8 * 4 + 0.2 * 2)


def test_batch_table_by_hand() -> None:
    def lengths(policy: BatchTable, sizes: list[int]) -> list[int]:
        return [policy.gamma(None, 0, view(batch_size=b), RNG) for b in sizes]

    sizes = [1, 4, 5, 8, 9, 32, 33, 1000]
    assert lengths(BatchTable(), sizes) == [4, 4, 2, 2, 1, 1, 0, 0]
    longer = BatchTable(bound3=9, gamma3=3, bound4=33, gamma4=1)
    assert lengths(longer, sizes) == [4, 4, 2, 2, 3, 1, 1, 0]
    # vLLM goes on with the last row that is there.
    assert lengths(BatchTable(gamma_above=-1), sizes) == [4, 4, 2, 2, 1, 1, 1, 1]
    assert lengths(dataclasses.replace(longer, gamma_above=-1), sizes)[-1] == 1
    assert lengths(BatchTable(bound3=0, gamma_above=-1), sizes) == [4, 4, 2, 2, 2, 2, 2, 2]
    assert lengths(BatchTable(bound2=0, bound3=0, gamma_above=-1), sizes) == [4] * 8


def test_disable_gate_by_hand() -> None:
    policy = DisableGate(gamma_tokens=2, window=4, threshold=0.5)
    state = policy.new_state(1)
    # Rates 1, 1, 0.5, 0: mean 0.625. Then 1, 0.5, 0, 0: 0.375, off.
    assert play(policy, state, [2, 2, 1, 0, 0]) == [2, 2, 2, 2, 2, 0]
    assert play(policy, state, [FULL] * 9) == [0] * 10
    policy.admit(state, 0)
    assert play(policy, state, []) == [0]  # for good, and for everybody
    state = policy.new_state(1)
    assert play(policy, state, [0, 0, 0]) == [2, 2, 2, 2]  # the window is not full
    state = policy.new_state(1)
    assert play(policy, state, [0, 0, 2, 2]) == [2, 2, 2, 2, 2]  # 0.5 is not below 0.5


def test_disable_gate_skips_rounds_without_a_verdict() -> None:
    policy = DisableGate(gamma_tokens=2, window=1, threshold=0.5)
    state = policy.new_state(1)
    settle(policy, state, 0, 0)
    settle(policy, state, 4, 1, ended=True)
    assert play(policy, state, []) == [2]
    settle(policy, state, 4, 1)
    assert play(policy, state, []) == [0]
