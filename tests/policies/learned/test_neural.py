"""Networks as policies: exact arithmetic, runtimes that agree, and what deciding costs."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.validation.agreement import agree
from policies.base import reads_seconds, uses_signals
from policies.conformance import check_policy
from policies.fixed import Fixed
from policies.learned.neural import (
    Network,
    NeuralRound,
    NeuralToken,
    answers,
    neural_policy,
    quantise,
)
from policies.learned.observation import GRID
from policies.overhead import charged, measured_overhead
from policies.registry import (
    FAMILIES,
    REGISTRY,
    find_policy,
    label,
    parse_policies,
    parse_policy,
)
from simulator.replay.replay import replay, replay_interpreted
from simulator.replay.totals import count_steps, price_steps, tally
from simulator.serving.options import Server
from simulator.serving.server import serve
from tests.policies.learned.random_networks import KINDS, PER_ROUND, PER_TOKEN, random_network
from tests.specimens import random_costs, random_trace
from traces import synthetic
from traces.costs.affine import Affine
from traces.costs.pricing import StepCosts, tabulate
from traces.errors import InputError
from traces.schema import Trace
from traces.workload.arrivals import Demand, demand
from traces.workload.workload import Workload

MODEL = Affine(
    draft_fixed=1.3e-3, target_fixed=10.7e-3, draft_token=1.1e-4, target_token=3.3e-4,
    prefill_fixed=5e-3, row=2.1e-4, context_token=1.3e-6, signal=1.9e-4, control=4.1e-4,
)  # fmt: skip


def always(gamma: int) -> Network:
    """A per-round network that picks `gamma` whatever it sees."""
    k, a = PER_ROUND
    bias = np.zeros(a)
    bias[gamma] = 1.0
    return quantise(
        np.zeros((k, 2)), np.zeros(2), np.zeros((2, 2)), np.zeros(2), np.zeros((2, a)), bias
    )


def confident(threshold_odds: float) -> Network:
    """A per-token network that goes on while the newest token's log odds (of 9.21) exceed this, and
    always drafts a first one.
    """
    w1, b1 = np.zeros((PER_TOKEN[0], 2)), np.asarray([1.0, 1.0])
    w1[16, 0], w1[15, 1] = 1.0, -16.0  # 1 + log odds; 1 before the first token, then 0
    w3, b3 = np.asarray([[0.0, 1.0], [0.0, 32.0]]), np.asarray([1.0 + threshold_odds, 0.0])
    return quantise(w1, b1, np.eye(2), np.zeros(2), w3, b3)


def closed_loop(requests: int) -> Demand:
    workload = Workload(requests, "closed", users=1, think_s=0.0, think="fixed", order="recorded")
    return demand(workload, ("c",) * requests, 0)


# --- exact arithmetic


def exact_outputs(network: Network, shown: list[float]) -> list[Fraction]:
    """The definition in Network's docstring, in fractions."""
    x = [Fraction(value) for value in shown]
    for layer in range(3):
        weight, bias = network[2 * layer], network[2 * layer + 1]
        sums = [
            Fraction(float(bias[j]))
            + sum(value * Fraction(float(weight[i, j])) for i, value in enumerate(x))
            for j in range(len(bias))
        ]
        if layer == 2:
            return sums
        grid = [
            Fraction(math.floor(max(s, Fraction(0)) * 1024 + Fraction(1, 2)), 1024) for s in sums
        ]
        x = [min(value, Fraction(256)) for value in grid]
    raise AssertionError


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spread", [0.3, 4.0, 1000.0])
def test_outputs_are_exact(kind: tuple[int, int], spread: float) -> None:
    network = random_network(kind, 3, (9, 7), spread)
    state: Any = neural_policy(network).new_state(2)
    generator = np.random.default_rng(0)
    for _ in range(40):
        state.shown[1] = generator.integers(-1024, 1025, kind[0]) / GRID
        exact = exact_outputs(network, state.shown[1].tolist())
        assert [Fraction(x) / 1024 for x in answers(state, 1).tolist()] == exact


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_sums_does_not_matter(kind: tuple[int, int]) -> None:
    """At the bounds: 128 numbers a layer, weights of +-32."""
    network = random_network(kind, 5, (128, 128), 30.0)
    generator = np.random.default_rng(1)
    one, two = generator.permutation(128), generator.permutation(128)
    w1, b1, w2, b2, w3, b3 = network
    shuffled = quantise(w1[:, one], b1[one], w2[one][:, two], b2[two], w3[two], b3)
    states: list[Any] = [neural_policy(net).new_state(1) for net in (network, shuffled)]
    for _ in range(20):
        x = generator.integers(-1024, 1025, kind[0]) / GRID
        for state in states:
            state.shown[0] = x
        first, second = (answers(state, 0) for state in states)
        assert first.tobytes() == second.tobytes()
        layers = [math.fsum(x * w1[:, j]) + b1[j] for j in range(128)]
        hidden = np.clip(np.floor(np.maximum(layers, 0) * GRID + 0.5) / GRID, 0, 256)
        layers = [math.fsum(hidden * w2[:, j]) + b2[j] for j in range(128)]
        hidden = np.clip(np.floor(np.maximum(layers, 0) * GRID + 0.5) / GRID, 0, 256)
        outputs = [GRID * (math.fsum(hidden * w3[:, j]) + b3[j]) for j in range(kind[1])]
        assert first.tolist() == outputs


def test_quantise_rounds_clips_and_refuses() -> None:
    k, a = PER_ROUND
    parts = [np.zeros((k, 2)), np.zeros(2), np.zeros((2, 2)), np.zeros(2), np.zeros((2, a))]
    bias = np.zeros(a)
    bias[:5] = [0.5 / 1024, 0.49 / 1024, -0.5 / 1024, 99.0, -99.0]
    network = quantise(*parts, bias)
    assert network.b3[:5].tolist() == [1 / 1024, 0.0, 0.0, 32.0, -32.0]
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="b3 holds NaN"):
            quantise(*parts, np.full(a, bad))
    with pytest.raises(ValueError, match=r"w3 has 3 rows, the layer before it 2"):
        quantise(*parts[:4], np.zeros((3, a)), bias)
    with pytest.raises(ValueError, match="layers hold 1 to 128"):
        quantise(np.zeros((k, 129)), np.zeros(129), np.zeros((129, 2)), np.zeros(2), parts[4], bias)
    with pytest.raises(ValueError, match="16 rows"):
        neural_policy(quantise(np.zeros((16, 2)), *parts[1:], bias))
    with pytest.raises(ValueError, match="not on the grid"):
        neural_policy(network._replace(b3=network.b3 + 1e-5))


# --- the contract, and runtimes that agree


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hidden", [(1, 1), (3, 3), (8, 6), (1, 3)])
def test_the_contract(kind: tuple[int, int], hidden: tuple[int, int]) -> None:
    for seed in range(3):
        check_policy(neural_policy(random_network(kind, seed, hidden)))


def test_what_they_look_at() -> None:
    one, two = (neural_policy(random_network(kind, 0)) for kind in KINDS)
    assert isinstance(one, NeuralRound) and isinstance(two, NeuralToken)
    assert not uses_signals(one) and uses_signals(two)
    assert reads_seconds(one) and reads_seconds(two)


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_is_interpreted(kind: tuple[int, int]) -> None:
    decided, stopped = set(), 0
    for seed in range(12):
        generator = np.random.default_rng(seed)
        depth = int(generator.integers(1, 20))
        trace, costs = random_trace(generator, 4, depth), random_costs(generator, depth)
        hidden = (int(generator.integers(1, 40)), int(generator.integers(1, 40)))
        policy = neural_policy(random_network(kind, seed, hidden), round_s=2e-5)
        log = replay(policy, trace, costs, seed=seed)
        assert log.same_rounds(replay_interpreted(policy, trace, costs, seed=seed))
        decided |= set(log.drafted.tolist())
        stopped += int((log.drafted < log.gamma).sum())
    assert len(decided) > 4 and (stopped > 0) == (kind == PER_TOKEN)


@pytest.mark.parametrize("kind", KINDS)
def test_one_slot_is_a_replay(kind: tuple[int, int]) -> None:
    trace = synthetic.bursty(
        0.9, 0.4, np.random.default_rng(3), switch=0.2, requests=3, reply_tokens=20, depth=8,
        signals=True, prompt_tokens=25,
    )  # fmt: skip
    costs = tabulate(MODEL, bucket_tokens=32)
    alone = tabulate(MODEL, bucket_tokens=32)
    token_s = 1.1e-5 if kind == PER_TOKEN else 0.0
    for seed in range(4):
        policy = neural_policy(random_network(kind, seed), round_s=1.7e-5, token_s=token_s)
        served = serve(
            policy, trace, closed_loop(3), costs, Server(slots=1), seed=5, log=True, compiled=False
        )
        assert served.round_log is not None
        assert served.round_log.same_rounds(replay_interpreted(policy, trace, alone, seed=5))


def test_a_network_that_always_picks_three_is_fixed() -> None:
    generator = np.random.default_rng(2)
    trace, costs = random_trace(generator, 5, 6), random_costs(generator, 6)
    assert replay(neural_policy(always(3)), trace, costs).same_rounds(
        replay(Fixed(3), trace, costs)
    )


def test_ties_go_to_the_smallest_and_to_stopping() -> None:
    k, a = PER_ROUND
    tied = np.zeros(a)
    tied[[4, 9]] = 1.0
    zeros = [np.zeros((k, 2)), np.zeros(2), np.zeros((2, 2)), np.zeros(2)]
    trace, costs = random_trace(np.random.default_rng(0), 2, 12), tabulate(MODEL)
    log = replay(neural_policy(quantise(*zeros, np.zeros((2, a)), tied)), trace, costs)
    assert log.gamma.max() == 4
    stop = quantise(np.zeros((PER_TOKEN[0], 2)), *zeros[1:], np.zeros((2, 2)), np.zeros(2))
    assert replay(neural_policy(stop), trace, costs).drafted.max() == 0


def test_a_threshold_on_confidence_by_hand() -> None:
    """Drafting ends behind the first token whose log odds are at or below the threshold."""
    generator = np.random.default_rng(8)
    trace, costs = random_trace(generator, 6, 7), random_costs(generator, 7)
    threshold = 32 / 1024
    log = replay(neural_policy(confident(threshold), gamma_max=4), trace, costs)
    assert trace.top1_prob is not None
    inside = np.clip(trace.top1_prob.astype(np.float64), 1e-4, 1 - 1e-4)
    odds = np.floor(np.log(inside / (1 - inside)) / 9.210240366975849 * 1024 + 0.5) / 1024
    at, stops = 0, 0
    for gamma, drafted, emitted in zip(log.gamma, log.drafted, log.emitted, strict=True):
        expected = 0
        while expected < gamma:
            expected += 1
            if odds[at, expected - 1] <= threshold:
                break
        assert gamma <= 4 and drafted == expected
        stops += int(drafted < gamma)
        at += int(emitted)
    assert stops > 10 and log.drafted.max() == 4 and at == trace.positions


# --- the object


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_travels_with_its_policy(kind: tuple[int, int]) -> None:
    policy = neural_policy(random_network(kind, 1), round_s=1e-5)
    for copied in (pickle.loads(pickle.dumps(policy)), copy.deepcopy(policy), copy.copy(policy)):
        assert copied == policy and label(copied) == label(policy)
        for one, two in zip(copied.new_state(2), policy.new_state(2), strict=True):
            assert one.tobytes() == two.tobytes()
    for bare in (type(policy)(), dataclasses.replace(policy, round_s=0.0)):
        with pytest.raises(ValueError, match="has no network; make it with neural_policy"):
            bare.new_state(1)


def test_names_and_labels() -> None:
    one, two = (neural_policy(random_network(PER_TOKEN, seed)) for seed in (1, 2))
    assert label(one) == f"neural-token:digest={one.digest}" != label(two)
    assert 0 < one.digest < 2**48 and len(label(one)) <= 40
    everything = {cls for group in FAMILIES.values() for cls in group}
    assert not {NeuralRound, NeuralToken} & everything and "neural-round" not in REGISTRY
    fails: list[Any] = [find_policy, parse_policy, parse_policies]
    for ask in fails:
        with pytest.raises(InputError, match="comes from its file"):
            ask("neural-round")
    for spec in ("neural-token:digest=5", label(one), "arbiter/neural-round"):
        with pytest.raises(InputError, match="comes from its file"):
            parse_policy(spec)


def test_numbers_out_of_range() -> None:
    network = random_network(PER_TOKEN, 1)
    for settings in ({"gamma_max": 0}, {"round_s": -1.0}, {"token_s": math.inf}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            neural_policy(network, **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="decides nothing per token"):
        neural_policy(always(3), token_s=1e-6)


def test_importing_policies_loads_no_safetensors() -> None:
    modules = "policies.registry, policies.learned.networks"
    code = f"import sys, {modules}; print('safetensors' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "False"


# --- what deciding costs


def test_charged_costs_by_hand() -> None:
    costs = random_costs(np.random.default_rng(0), 4)
    assert (charged(Fixed(3), costs).verify_s == costs.verify_s).all()
    token = neural_policy(random_network(PER_TOKEN, 4), round_s=2e-5, token_s=1e-5)
    paid = charged(token, costs)
    assert (paid.verify_s[..., 1:] == costs.verify_s[..., 1:] + 2e-5).all()
    assert (paid.verify_s[..., 0] == 0.0).all() and (paid.draft_s == costs.draft_s).all()
    assert paid.signal_s == costs.signal_s + 1e-5
    three = charged(token, costs._replace(batch_sizes=np.asarray([3])))
    assert np.allclose(three.verify_s[..., 1:], costs.verify_s[..., 1:] + 6e-5, rtol=1e-12)
    assert np.allclose(three.draft_s[..., 1:], costs.draft_s[..., 1:] + 2e-5, rtol=1e-12)


def test_a_replay_pays_for_its_decisions() -> None:
    trace, costs = random_trace(np.random.default_rng(4), 4, 6), tabulate(MODEL)
    free, paying = (neural_policy(always(3), round_s=r) for r in (0.0, 5e-5))
    one, two = (replay(policy, trace, costs) for policy in (free, paying))
    assert (one.drafted == two.drafted).all()
    assert np.allclose(two.elapsed_s - one.elapsed_s, 5e-5, rtol=1e-6)
    sums = tally(paying, trace, costs)
    first = [two.elapsed_s[two.request == r].sum() for r in range(trace.requests)]
    assert np.allclose(sums.decode_s, first, rtol=1e-12)


def test_a_token_pays_for_its_decision() -> None:
    """At one threshold on confidence costs change no decision."""
    trace, costs = random_trace(np.random.default_rng(4), 4, 6), tabulate(MODEL)
    network = confident(0.0)
    free, paying = (neural_policy(network, token_s=t) for t in (0.0, 5e-5))
    one, two = (replay(policy, trace, costs) for policy in (free, paying))
    assert (one.drafted == two.drafted).all() and one.drafted.max() > 2
    assert np.allclose(two.elapsed_s - one.elapsed_s, 5e-5 * one.drafted, atol=1e-12)


@dataclasses.dataclass(frozen=True)
class DearFixed(Fixed):
    """Fixed, but each round costs a millisecond of thought."""

    def control_s(self) -> tuple[float, float]:
        return 1e-3, 0.0


def test_counted_steps_pay_too() -> None:
    trace, costs = random_trace(np.random.default_rng(4), 4, 6), tabulate(MODEL)
    steps = count_steps(DearFixed(3), trace, costs)
    expected = tally(DearFixed(3), trace, costs).decode_s.sum()
    assert price_steps(steps, [costs])[0] == pytest.approx(expected, rel=1e-12)


def test_rows_of_a_batch_decide_one_after_the_other() -> None:
    costs = tabulate(MODEL, range(1, 4), max_context=64, width=6, bucket_tokens=16)
    policy = neural_policy(random_network(PER_TOKEN, 4), round_s=2e-5, token_s=1e-5)
    paid = charged(policy, costs)
    for b in (1, 2, 3):
        added = paid.verify_s[b - 1, :, 1:] - costs.verify_s[b - 1, :, 1:]
        assert np.allclose(added, b * 2e-5, rtol=1e-9)
        step = paid.draft_s[b - 1, :, 1:] + paid.signal_s
        assert np.allclose(step - costs.draft_s[b - 1, :, 1:] - costs.signal_s, b * 1e-5, rtol=1e-8)
    assert (paid.verify_s[:, :, 0] == 0.0).all() and (paid.draft_s[:, :, 0] == 0.0).all()


def test_a_server_pays_for_every_row() -> None:
    """Two users, replies of equal length, always three drafted: every iteration has two rows."""
    trace = synthetic.constant(1.0, np.random.default_rng(0), requests=2, reply_tokens=16, depth=4)
    workload = Workload(2, "closed", users=2, think_s=0.0, think="fixed", order="recorded")
    wanted = demand(workload, ("c",) * 2, 0)
    costs: StepCosts = tabulate(MODEL, range(1, 3), max_context=512, width=6)
    ends = []
    for round_s in (0.0, 1e-3):
        policy = neural_policy(always(3), round_s=round_s)
        served = serve(policy, trace, wanted, costs, Server(slots=2), log=True, compiled=False)
        assert served.round_log is not None
        assert (served.round_log.batch_size == 2).all()
        ends.append((served.end_s, len(served.round_log) // 2))
    assert ends[1][0] - ends[0][0] == pytest.approx(2e-3 * ends[0][1], rel=1e-9)


def test_own_seconds() -> None:
    for kind in KINDS:
        round_s, token_s = measured_overhead(neural_policy(random_network(kind, 4)), rounds=50)
        assert 1e-6 < round_s < 1e-2
        assert (token_s == 0.0) if kind == PER_ROUND else (1e-6 < token_s < 1e-2)


# --- the real engine


@pytest.fixture(scope="module")
def shipped() -> tuple[Any, Trace, list[Any], StepCosts]:
    """The embedded pair, a few of its recorded requests, and its costs."""
    from real_backend.load_pair import load_pair
    from real_backend.pair_spec import resolve_pair
    from real_backend.prompts import EMBEDDED_PROMPTS, read_questions, requests_of_trace
    from traces.costs.table import Table
    from traces.shipped import GREEDY, TIMING
    from traces.split import spread_rows
    from traces.store import read_trace
    from traces.timing import read_timing

    pair = load_pair(resolve_pair("embedded", None, None), device="cpu", dtype="float32")
    trace = read_trace(GREEDY)
    rows = spread_rows(trace, 3)
    requests = requests_of_trace(read_questions(EMBEDDED_PROMPTS), trace, pair)
    timing = read_timing(TIMING)
    costs = tabulate(Table(timing), max_context=1024)
    return pair, trace.select(rows), [requests[row] for row in rows], costs


@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_takes_the_replays_decisions(
    shipped: tuple[Any, Trace, list[Any], StepCosts], kind: tuple[int, int]
) -> None:
    from real_backend.decoding.engine import Engine

    pair, trace, requests, costs = shipped
    token_s = 1e-3 if kind == PER_TOKEN else 0.0
    policy = neural_policy(random_network(kind, 11), round_s=1e-2, token_s=token_s)
    run = Engine(pair, costs).decode(policy, requests, clock="model")
    predicted = replay(policy, trace, costs)
    verdict = agree(run.log, predicted)
    assert verdict.differing == 0 and verdict.rounds == len(run.log) > 10
    assert len(set(predicted.drafted.tolist())) > 2
