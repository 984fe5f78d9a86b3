"""The round rule against hand-computed numbers, and around it: limits, signals, the cache."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from policies.base import Draft, Outcome, Policy, State, View
from policies.confidence.thresholds import LlamaPMin
from policies.counts.gammatune import GammaTunePlus
from policies.fixed import Fixed, Never
from policies.overhead import charged
from policies.randomness import Rng, uniform
from simulator.replay.replay import replay, replay_interpreted
from simulator.replay.theory import expected_emitted
from simulator.replay.totals import count_steps, price_steps
from tests.specimens import random_costs, random_trace
from traces import synthetic
from traces.costs.affine import Affine
from traces.costs.log_prices import price_log
from traces.costs.pricing import StepCosts, make_step_costs, tabulate
from traces.errors import InputError
from traces.schema import Trace, TraceMeta

ROOT = Path(__file__).resolve().parents[3]
BOTH = pytest.mark.parametrize("play", [replay, replay_interpreted])


class Notes(NamedTuple):
    """rounds [slots]: rounds so far; seen [6, 64]: what the hooks saw, by round."""

    rounds: Any
    seen: Any


@dataclasses.dataclass(frozen=True)
class Scripted(Policy):
    """Drafts the decimal digits of `script`, lowest first, one digit per round."""

    script: int = 0

    name = "scripted"

    def new_state(self, slots: int) -> State:
        return Notes(np.zeros(slots, dtype=np.int64), np.zeros((6, 64)))

    def admit(self, state: Notes, slot: int) -> None:
        state.rounds[slot] = 0

    def gamma(self, state: Notes, slot: int, view: View, rng: Rng) -> int:
        return (self.script // 10 ** int(state.rounds[slot])) % 10

    def learn(self, state: Notes, slot: int, view: View, outcome: Outcome) -> None:
        state.rounds[slot] += 1


@dataclasses.dataclass(frozen=True)
class Choosy(Policy):
    """Drops the token of this number."""

    dropped: int = 3

    name = "choosy"

    def gamma(self, state: State, slot: int, view: View, rng: Rng) -> int:
        return view.room

    def retain(self, state: State, slot: int, draft: Draft) -> bool:
        return draft.drafted != self.dropped


SEEN: list[tuple[View, Outcome, list[Draft]]] = []


@dataclasses.dataclass(frozen=True)
class Spy(Policy):
    """Writes down what the hooks were handed (interpreted only)."""

    cap: int = 3
    stop_at: int = 99

    name = "spy"

    def gamma(self, state: State, slot: int, view: View, rng: Rng) -> int:
        DRAFTS.clear()
        return self.cap

    def proceed(self, state: State, slot: int, draft: Draft) -> bool:
        DRAFTS.append(draft)
        return draft.drafted < self.stop_at

    def learn(self, state: State, slot: int, view: View, outcome: Outcome) -> None:
        SEEN.append((view, outcome, list(DRAFTS)))


DRAFTS: list[Draft] = []


@dataclasses.dataclass(frozen=True)
class Dice(Policy):
    """A random gamma: shows the key of the round."""

    name = "dice"

    def gamma(self, state: State, slot: int, view: View, rng: Rng) -> int:
        return int(5 * uniform(rng, 0))


def make_trace(accept_len: list[list[int]], prompts: list[int], **meta: Any) -> Trace:
    """A trace of these replies; signals 0.5, 0.51 ... by position and depth."""
    lengths = [len(reply) for reply in accept_len]
    described = {"depth": 4, "max_new_tokens": 100} | meta
    positions = sum(lengths)
    top1 = 0.5 + 0.01 * np.arange(positions)[:, None] + 0.1 * np.arange(described["depth"])
    return Trace(
        meta=TraceMeta("p", "t", "d", "", "none", "none", "synthetic", **described),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        prompt_tokens=np.asarray(prompts, dtype=np.int32),
        request_id=tuple(str(r) for r in range(len(lengths))),
        category=("c",) * len(lengths),
        accept_len=np.concatenate(accept_len).astype(np.int16),
        top1_prob=np.clip(top1, 0, 1).astype(np.float32),
        entropy=(2 - np.clip(top1, 0, 1)).astype(np.float32),
    )


def decimal_costs(signal_s: float = 0.0) -> StepCosts:
    """Two buckets of 8 tokens; every step's seconds can be read off a sum's decimal digits.

    A draft step costs 1, with lag 2: 2, lag 3: 3 ...; verifying n tokens costs 100 n; the second
    bucket adds 1000 to every verify; prefill 10000 and 20000.
    """
    draft = np.tile(np.arange(7.0), (2, 1))
    verify = 100.0 * draft + np.asarray([[0.0], [1000.0]])
    verify[:, 0] = 0.0
    prefill = [10000.0, 20000.0]
    return make_step_costs(draft, verify, bucket_tokens=8, prefill_s=prefill, signal_s=signal_s)


@pytest.mark.parametrize("play", [replay, replay_interpreted])
def test_believed_costs_are_shown_and_price_but_do_not_pay(play: Any) -> None:
    trace, costs = make_trace([[1, 0, 3, 2, 1]], [3]), decimal_costs()
    half = costs._replace(draft_s=costs.draft_s / 2, verify_s=costs.verify_s / 2, signal_s=0.5)
    assert play(Fixed(3), trace, costs, believed=half).same_rounds(play(Fixed(3), trace, costs))
    longer = half._replace(bucket_tokens=16)
    with pytest.raises(InputError, match="not laid out as the costs"):
        play(Fixed(3), trace, costs, believed=longer)


def test_what_a_hook_sees_of_believed_costs() -> None:
    trace, costs = make_trace([[1, 0, 3, 2, 1]], [3]), decimal_costs()
    half = costs._replace(draft_s=costs.draft_s / 2, verify_s=costs.verify_s / 2)
    SEEN.clear()
    replay_interpreted(Spy(3), trace, costs, believed=half)
    seen, told, _ = SEEN[0]
    assert (seen.draft_step_s, seen.verify_s[4]) == (0.5, 200.0)
    assert (told.elapsed_s, told.priced_s) == (403.0, 201.5)


@BOTH
def test_replay_by_hand(play: Any) -> None:
    # Request 0: prompt 5, six tokens, fixed gamma 2.
    #  at 0 (context 5, bucket 0): run 3 >= 2, accepts 2, emits 3; lag 1: 1 + 1 + 300 = 302
    #  at 3 (context 8, bucket 1): run 0, accepts 0, emits 1; lag 2: 2 + 1 + 1300 = 1303
    #  at 4 (context 9, bucket 1): run 2, accepts 2, only 2 left, emits 2; lag 1: 1302
    # Request 1: prompt 9, one token: accepts 1, emits 1; lag starts at 1: 1302, prefill 20000.
    trace = make_trace([[3, 2, 1, 0, 2, 1], [1]], [5, 9])
    log = play(Fixed(2), trace, decimal_costs())
    assert log.request.tolist() == [0, 0, 0, 1]
    assert log.context_tokens.tolist() == [5, 8, 9, 9]
    assert log.gamma.tolist() == log.drafted.tolist() == [2, 2, 2, 2]
    assert log.accepted.tolist() == [2, 0, 2, 1]
    assert log.emitted.tolist() == [3, 1, 2, 1]
    assert log.elapsed_s.tolist() == [302, 1303, 1302, 1302]
    assert log.prefill_s.tolist() == [10000, 20000]
    assert log.start_s.tolist() == [10000, 10302, 11605, 32907]
    assert log.slot.tolist() == [0] * 4 and log.batch_size.tolist() == [1] * 4
    assert log.meta["policy"] == "fixed:gamma=2" and log.meta["clock"] == "simulated"


@BOTH
def test_lag_by_hand(play: Any) -> None:
    # Everything is acceptable. gamma 0, 0, 2, 3, 0, 1, one bucket of 100s.
    #  0: lag 1, no draft -> 100;  0: lag 2 -> 100;  2: lag 3: 3 + 1 + 300 = 304, full -> lag 2
    #  3: lag 2: 2 + 1 + 1 + 400 = 404, full -> lag 2;  0: 100 -> lag 3;  1: 3 + 200 = 203
    trace = make_trace([list(range(12, 0, -1))], [0], max_new_tokens=100)
    costs = decimal_costs()._replace(bucket_tokens=1000)
    log = play(Scripted(103200), trace, costs)
    assert log.gamma.tolist() == [0, 0, 2, 3, 0, 1]
    assert log.emitted.tolist() == [1, 1, 3, 4, 1, 2]
    assert log.elapsed_s.tolist() == [100, 100, 304, 404, 100, 203]


@BOTH
def test_a_partial_acceptance_leaves_no_extra_lag(play: Any) -> None:
    costs = decimal_costs()._replace(bucket_tokens=1000)
    log = play(Fixed(2), make_trace([[1, 0, 0, 0]], [0]), costs)
    # accepts 1 of 2, then 0 of 2 twice: lag stays 1, every round is 1 + 1 + 300.
    assert log.emitted.tolist() == [2, 1, 1]
    assert log.elapsed_s.tolist() == [302, 302, 302]


@BOTH
def test_lag_beyond_the_table_costs_its_last_column(play: Any) -> None:
    costs = decimal_costs()._replace(bucket_tokens=1000)
    log = play(Scripted(100000000), make_trace([[0] * 9], [0]), costs)
    # Eight rounds without a draft: lag 9, the table ends at 6 tokens.
    assert log.elapsed_s.tolist() == [100] * 8 + [206]


@BOTH
def test_never_costs_the_sum_of_single_verifies(play: Any) -> None:
    trace = make_trace([[5, 4, 3, 2, 1]], [6])
    log = play(Never(), trace, decimal_costs())
    assert log.emitted.tolist() == [1] * 5
    assert log.elapsed_s.sum() == 2 * 100 + 3 * 1100  # contexts 6, 7 | 8, 9, 10
    assert log.start_s[0] == 10000.0


@BOTH
def test_signals_are_charged_once_per_drafted_token(play: Any) -> None:
    # top1 at position 0: 0.5, 0.6, 0.7, ...; at position 1: 0.51 ...
    trace = make_trace([[0, 0]], [0], max_new_tokens=100)
    costs = decimal_costs(signal_s=0.25)._replace(bucket_tokens=1000)
    stopping = GammaTunePlus(gamma0=4, tau=0.505)
    log = play(stopping, trace, costs)
    # Position 0: the first token is doubtful (0.5 < 0.505): one draft, 1 + 0.25 + 200.
    # Position 1: 0.51 passes; gamma = ceil(0.7 * 4 + 0.3 * 0) = 3: 3 + 0.75 + 400.
    assert log.drafted.tolist() == [1, 3]
    assert log.elapsed_s.tolist() == [201.25, 403.75]
    plain = play(Fixed(1), trace, costs)
    assert plain.elapsed_s.tolist() == [201, 201]


@BOTH
def test_a_dropped_token_is_drafted_and_not_verified(play: Any) -> None:
    # top1 at position 0: 0.5, 0.6 ...; at 1: 0.51, 0.61 ...
    trace = make_trace([[0, 2, 1, 0, 0]], [0], max_new_tokens=100)
    costs = decimal_costs(signal_s=0.25)._replace(bucket_tokens=1000)
    costs = costs._replace(start_s=np.full((1, 2), 0.5))
    log = play(LlamaPMin(gamma_max=4, p_min=0.505), trace, costs)
    # The first is dropped: a step, its signals and the draft's start, which no verify holds; a
    # plain step. Then four that are sure, two of them right, and one with room for four.
    assert log.drafted.tolist() == [1, 4, 4] and log.verified.tolist() == [0, 4, 4]
    assert log.accepted.tolist() == [0, 2, 0] and log.emitted.tolist() == [1, 3, 1]
    # Dropped, it was never fed: the next draft lags by the target's own token alone.
    assert log.elapsed_s.tolist() == [1 + 0.25 + 0.5 + 100, 4 + 1 + 500, 4 + 1 + 500]
    third = play(Choosy(3), trace, costs)  # keeps two, drops the third
    assert third.drafted.tolist() == [3, 3, 3] and third.verified.tolist() == [2, 2, 2]
    assert third.elapsed_s.tolist() == [3 + 0.75 + 300] * 3  # the start is in a verify of two
    paid = charged(Choosy(3), costs)
    assert price_log(third, paid).tolist() == third.elapsed_s.tolist()
    assert price_log(log, paid).tolist() == log.elapsed_s.tolist()


@BOTH
@pytest.mark.parametrize("world", range(8))
def test_drops_are_priced_alike_by_replay_log_and_counts(play: Any, world: int) -> None:
    generator = np.random.default_rng(world)
    trace, costs = random_trace(generator, 4, 6), random_costs(generator, 6)
    policy = LlamaPMin(gamma_max=5, p_min=0.5)
    log = play(policy, trace, costs)
    assert price_log(log, charged(policy, costs)).tobytes() == log.elapsed_s.tobytes()
    (counted,) = price_steps(count_steps(policy, trace, costs), [costs])
    assert counted == pytest.approx(log.elapsed_s.sum())
    assert (log.drafted - log.verified).max() == 1 and (log.verified == 0).any()


def test_hooks_see_the_round() -> None:
    SEEN.clear()
    trace = make_trace([[1, 0, 3, 2, 1]], [5])
    replay_interpreted(Spy(), trace, decimal_costs(signal_s=0.5))
    views = [view for view, _, _ in SEEN]
    assert [v.context_tokens for v in views] == [5, 7]
    assert all((v.batch_size, v.waiting, v.room, v.draft_step_s) == (1, 0, 4, 1.5) for v in views)
    assert views[0].verify_s.tolist() == [0, 100, 200, 300, 400, 500, 600]
    assert [o for _, o, _ in SEEN] == [
        Outcome(3, 3, 1, 2, False, 1 + 2 + 1.5 + 400, 1 + 2 + 1.5 + 400),
        Outcome(3, 3, 3, 3, True, 1 + 2 + 1.5 + 400, 1 + 2 + 1.5 + 400),
    ]
    # proceed is asked after every drafted token, the last one included.
    assert [len(drafts) for _, _, drafts in SEEN] == [3, 3]
    assert SEEN[1][2][1] == Draft(2, float(np.float32(0.62)), float(np.float32(1.38)))
    assert all(type(value) is float for _, _, ds in SEEN for d in ds for value in d[1:])


def test_proceed_false_goes_to_verification() -> None:
    SEEN.clear()
    log = replay_interpreted(Spy(cap=4, stop_at=2), make_trace([[3, 2, 1]], [0]), decimal_costs())
    assert log.gamma.tolist() == [4] and log.drafted.tolist() == [2]
    assert log.accepted.tolist() == [2] and log.emitted.tolist() == [3]


@pytest.mark.parametrize(
    ("meta", "prompt", "max_gamma", "rooms"),
    [
        ({"max_new_tokens": 100}, 5, None, [4, 4, 4, 4, 4]),
        ({"max_new_tokens": 6}, 5, None, [4, 4, 3, 2, 1]),  # 6 - i - 1
        ({"max_new_tokens": 5}, 5, None, [4, 3, 2, 1, 0]),
        ({"max_new_tokens": 100, "max_context": 9}, 5, None, [3, 2, 1, 0, 0]),  # 9 - (5 + i) - 1
        ({"max_new_tokens": 100}, 5, 2, [2, 2, 2, 2, 2]),
    ],
)
def test_room_is_what_a_server_knows(
    meta: dict[str, int], prompt: int, max_gamma: int | None, rooms: list[int]
) -> None:
    SEEN.clear()
    trace = make_trace([[0] * 5], [prompt], **meta)
    log = replay_interpreted(Spy(cap=9), trace, decimal_costs(), max_gamma=max_gamma)
    assert [view.room for view, _, _ in SEEN] == rooms
    assert log.gamma.tolist() == rooms


def test_views_do_not_tell_the_length_of_the_reply() -> None:
    seen = []
    for length in (3, 8):
        SEEN.clear()
        replay_interpreted(Spy(cap=1), make_trace([[0] * length], [5]), decimal_costs())
        seen.append([view[:5] for view, _, _ in SEEN[:3]])
    assert seen[0] == seen[1]


def test_randomness_is_keyed_by_seed_request_and_round() -> None:
    trace = make_trace([[0] * 40, [0] * 40], [3, 3])
    costs = decimal_costs()
    first, again = (replay(Dice(), trace, costs, seed=7) for _ in range(2))
    assert first.same_rounds(again)
    assert not first.same_rounds(replay(Dice(), trace, costs, seed=8))
    assert first.same_rounds(replay_interpreted(Dice(), trace, costs, seed=7))
    assert first.gamma[:40].tolist() != first.gamma[40:].tolist()
    assert set(first.gamma.tolist()) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_gamma": 5}, "max_gamma is 5; this trace can replay 0..4"),
        ({"max_gamma": -1}, "max_gamma is -1"),
        ({"costs": tabulate(Affine(), width=5)}, "width=6"),
        ({"costs": tabulate(Affine(), (2,))}, r"batch \[2\]"),
    ],
)
def test_inputs_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    trace = make_trace([[0]], [1])
    arguments = {"costs": decimal_costs()} | change
    for play in (replay, replay_interpreted):
        with pytest.raises(InputError, match=message):
            play(Fixed(1), trace, **arguments)


def test_a_trace_without_signals_is_refused_to_per_token_policies() -> None:
    trace = dataclasses.replace(make_trace([[0]], [1]), top1_prob=None, entropy=None)
    for play in (replay, replay_interpreted):
        with pytest.raises(InputError, match=r"'gammatune\+' reads the draft's signals"):
            play(GammaTunePlus(), trace, decimal_costs())
        assert len(play(Fixed(1), trace, decimal_costs())) == 1


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("gamma", [1, 4, 8])
def test_tokens_per_round_follow_the_closed_form(alpha: float, gamma: int) -> None:
    generator = np.random.default_rng([gamma, int(10 * alpha)])
    trace = synthetic.constant(alpha, generator, requests=2, reply_tokens=6000)
    log = replay(Fixed(gamma), trace, tabulate(Affine(), max_context=64, width=18))
    # Rounds that start where the reply's end cannot cut them; where they start is decided before.
    free = log.context_tokens - 32 + gamma + 1 <= 6000
    emitted = log.emitted[free]
    error = emitted.std() / np.sqrt(len(emitted))
    assert len(emitted) > 1000
    assert abs(emitted.mean() - expected_emitted(alpha, gamma)) <= 4 * error + 1e-12
