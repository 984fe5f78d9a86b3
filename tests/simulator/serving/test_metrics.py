"""What a run says about itself, by hand: latencies, throughput, goodput, waste, load, fairness; and
NaN where there is nothing to say.

The run: two slots, a draft step 1 s, a target step 10 s whatever it reads, prompts free, always two
drafts, so that every iteration takes 12 s.

     0-12  r0 accepts 2, emits 3    r1 emits 1     (r2 comes at 5)
    12-24  r0 emits 1 and ends      r1 emits 1
    24-36  r2 emits 1 and ends      r1 emits 1 and ends
    50-62  r3, alone since 50, accepts 1, emits 2 and ends
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.base import Policy
from policies.fixed import Fixed, Never
from simulator.serving.counters import FINEST_GAP_S, GAPS_PER_DOUBLING, gap_bin
from simulator.serving.metrics import (
    LatencySummary,
    Objective,
    ServingMetrics,
    gap_quantile,
    jain,
    serving_metrics,
    spread,
    tpot_s,
    ttft_s,
    within,
)
from simulator.serving.options import Server
from simulator.serving.result import ServingResult
from simulator.serving.server import serve
from simulator.serving.state import GAPS
from traces.costs.affine import Affine
from traces.costs.pricing import tabulate
from traces.schema import Trace, TraceMeta
from traces.workload.arrivals import Demand, demand
from traces.workload.workload import Workload

REPLIES = [[2, 1, 0, 0], [0, 0, 0], [0], [1, 0]]
ARRIVAL_S = [0.0, 0.0, 5.0, 50.0]
LATENCIES = ("ttft", "tpot", "end_to_end", "queueing")


def trace_of(replies: list[list[int]], prompt_tokens: int = 3) -> Trace:
    lengths = [len(reply) for reply in replies]
    return Trace(
        meta=TraceMeta(
            "p", "t", "d", "", "none", "none", "synthetic", depth=4, max_new_tokens=100
        ),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        prompt_tokens=np.full(len(lengths), prompt_tokens, dtype=np.int32),
        request_id=tuple(f"r{k}" for k in range(len(lengths))),
        category=("c",) * len(lengths),
        accept_len=np.concatenate([np.asarray(reply) for reply in replies]).astype(np.int16),
    )  # fmt: skip


def run(
    replies: list[list[int]] = REPLIES,
    arrival_s: list[float] = ARRIVAL_S,
    *,
    policy: Policy = Fixed(2),  # noqa: B008 (frozen)
    until_s: float = math.inf,
    **server: Any,
) -> ServingResult:
    """The run of the docstring, or one like it."""
    settings = Server(**({"slots": 2} | server))
    costs = tabulate(Affine(draft_fixed=1, target_fixed=10), range(1, settings.slots + 1), width=6)
    count = len(replies)
    wanted = Demand(
        np.arange(count, dtype=np.int32), np.asarray(arrival_s), np.zeros(count),
        np.zeros(count, dtype=np.int32), 0,
    )  # fmt: skip
    return serve(
        policy, trace_of(replies), wanted, costs, settings, until_s=until_s, compiled=False
    )


def of(values: list[float]) -> LatencySummary:
    """Mean and quantiles, linear between the values in their order."""

    def at(share: float) -> float:
        line = sorted(values)
        place = share * (len(line) - 1)
        low = min(int(place), len(line) - 2) if len(line) > 1 else 0
        high = min(low + 1, len(line) - 1)
        return line[low] + (place - low) * (line[high] - line[low])

    return LatencySummary(sum(values) / len(values), at(0.5), at(0.9), at(0.99))


def same(found: LatencySummary, values: list[float]) -> bool:
    return dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(of(values)))


# --- by hand


def test_the_hand_made_run_is_what_the_docstring_says() -> None:
    served = run()
    assert served.admitted_s.tolist() == [0, 0, 24, 50]
    assert served.first_s.tolist() == [12, 12, 36, 62]
    assert served.finish_s.tolist() == [24, 36, 36, 62]
    assert served.tokens.tolist() == [4, 3, 1, 2] and served.rounds.tolist() == [2, 3, 1, 1]


def test_latencies_by_hand() -> None:
    served = run()
    assert ttft_s(served).tolist() == [12, 12, 31, 12]
    assert tpot_s(served).tolist() == [12 / 3, 24 / 2, 0, 0]
    found = serving_metrics(served)
    assert (found.requests, found.finished, found.preemptions) == (4, 4, 0)
    assert same(found.ttft, [12, 12, 31, 12])
    assert same(found.tpot, [4, 12, 0])  # a reply of one token has none
    assert same(found.end_to_end, [24, 36, 31, 12])
    assert same(found.queueing, [0, 0, 19, 0])


def test_rates_waste_and_load_by_hand() -> None:
    found = serving_metrics(run())
    assert found.span_s == 62
    assert found.tokens_per_s == pytest.approx(10 / 62)
    assert found.requests_per_s == found.goodput_per_s == pytest.approx(4 / 62)
    assert found.goodput_share == 1
    assert found.tokens_per_round == pytest.approx(10 / 7)
    assert found.mean_drafted == 2 and found.acceptance == pytest.approx(3 / 14)
    assert found.wasted_drafts == found.wasted_verifies == pytest.approx(11 / 10)
    assert found.utilisation == pytest.approx(48 / 62)
    assert found.mean_running == pytest.approx((2 + 2 + 2 + 1) / 4)
    assert found.peak_blocks == found.mean_blocks == 0
    assert found.fairness == pytest.approx((6 + 12 + 31 + 6) ** 2 / (4 * (36 + 144 + 961 + 36)))


def test_waiting_obeys_littles_law() -> None:
    """Request 2 waits from 5 to 24, and the machine is busy all that time: 19 request-seconds."""
    served = run()
    waited_s = float((served.admitted_s - served.arrival_s).sum())
    assert waited_s == 19
    assert serving_metrics(served).mean_waiting == pytest.approx(waited_s / 48)


def test_waiting_in_whole_iterations_by_hand() -> None:
    # All at once: r2 and r3 wait 0-24, then r3 with r2 in the slot of r0 runs 24-36, r3 36-48:
    # r2 in at 24 (r0's slot), r1 and r2 end at 36, r3 in at 36.
    found = serving_metrics(run(arrival_s=[0, 0, 0, 0]))
    assert found.mean_waiting == pytest.approx((2 * 24 + 1 * 12) / 48)
    assert same(found.queueing, [0, 0, 24, 36])
    assert found.mean_running == pytest.approx((2 + 2 + 2 + 1) / 4) and found.utilisation == 1


@pytest.mark.parametrize(
    ("objective", "kept"),
    [
        (Objective(ttft_s=20), [0, 1, 3]),
        (Objective(ttft_s=12), [0, 1, 3]),  # as long as allowed is kept
        (Objective(ttft_s=11.9), []),
        (Objective(tpot_s=4), [0, 2, 3]),
        (Objective(ttft_s=20, tpot_s=11), [0, 3]),
        (Objective(), [0, 1, 2, 3]),
    ],
)
def test_goodput_by_hand(objective: Objective, kept: list[int]) -> None:
    served = run()
    assert np.flatnonzero(within(served, objective)).tolist() == kept
    found, free = serving_metrics(served, objective), serving_metrics(served)
    assert found.goodput_per_s == pytest.approx(len(kept) / 62)
    assert found.goodput_share == len(kept) / 4
    for name in vars(found):
        assert name.startswith("goodput") or getattr(found, name) == getattr(free, name)


def test_warmup_leaves_the_first_out_and_counts_them_in_totals() -> None:
    served = run()
    found, whole = (
        serving_metrics(served, Objective(ttft_s=20), warmup=0.5),
        serving_metrics(served),
    )
    assert (found.requests, found.finished) == (2, 2)
    assert found.span_s == 62 - 5
    assert found.tokens_per_s == pytest.approx(3 / 57)
    assert found.goodput_per_s == pytest.approx(1 / 57) and found.goodput_share == 0.5
    assert same(found.ttft, [31, 12]) and same(found.tpot, [0])
    assert same(found.end_to_end, [31, 12]) and same(found.queueing, [19, 0])
    assert found.fairness == pytest.approx(37**2 / (2 * (961 + 36)))
    for name in ("tokens_per_round", "mean_drafted", "acceptance", "wasted_drafts", "utilisation",
                 "mean_running", "mean_waiting", "gap_p99_s", "worst_gap_s"):  # fmt: skip
        assert getattr(found, name) == getattr(whole, name)
    assert serving_metrics(served, warmup=0.49).requests == 3  # 1.96 requests: one


def test_unfinished_requests_count_against_goodput() -> None:
    # Cut at 20: the iteration of 12-24 is played, r0 is done, r1 has 2 tokens, r2 waits.
    served = run(until_s=20)
    found = serving_metrics(served, Objective(ttft_s=20))
    assert (found.requests, found.finished, found.span_s) == (4, 1, 24)
    assert found.tokens_per_s == pytest.approx(4 / 24)
    assert found.goodput_per_s == pytest.approx(1 / 24) and found.goodput_share == 0.25
    assert same(found.ttft, [12]) and same(found.end_to_end, [24]) and same(found.tpot, [4])
    assert found.tokens_per_round == pytest.approx(6 / 4)  # r1's two tokens were made, too
    assert found.wasted_drafts == pytest.approx((8 - 2) / 6)
    assert found.utilisation == 1 and found.fairness == 1
    assert np.flatnonzero(within(served, Objective())).tolist() == [0]


def test_tpot_of_what_has_not_finished_is_unknown() -> None:
    assert np.isnan(tpot_s(run(until_s=20))).tolist() == [False, True, True, True]


def test_requests_of_a_closed_loop_that_were_never_sent_do_not_count() -> None:
    trace = trace_of([[0, 0]])
    wanted = demand(Workload(6, "closed", users=2), trace.category, 0)
    costs = tabulate(Affine(target_fixed=10), range(1, 3), width=6)
    served = serve(Never(), trace, wanted, costs, Server(slots=2), until_s=30, compiled=False)
    # 0-10, 10-20: the first two; 20-30: the next two have one token; the others were not sent.
    found = serving_metrics(served)
    assert (found.requests, found.finished, found.span_s) == (4, 2, 20)
    assert found.goodput_share == 0.5


def test_blocks_by_hand() -> None:
    # Blocks of 4 tokens; a row holds context + 3 tokens: 6 and 6 -> 4 blocks, 9 and 7 -> 5, 6 (r2)
    # and 8 -> 4, 6 -> 2, each for 12 s.
    served = run(blocks=10, block_tokens=4, max_gamma=2)
    found = serving_metrics(served)
    assert found.peak_blocks == 0.5
    assert found.mean_blocks == pytest.approx((4 + 5 + 4 + 2) / 4 / 10)
    # With 4 blocks r1 is sent back at 12, when r0 wants its third.
    tight = serving_metrics(run(blocks=4, block_tokens=4, max_gamma=2))
    assert tight.preemptions == 1 and tight.peak_blocks == 1 and tight.finished == 4


def test_two_replicas_by_hand() -> None:
    # r0 0-24 and r2 24-36 on one, r1 0-36 and r3 50-62 on the other.
    found = serving_metrics(run(slots=1, replicas=2))
    assert same(found.end_to_end, [24, 36, 31, 12])
    assert found.utilisation == pytest.approx((36 + 48) / (2 * 62))
    assert found.mean_running == 1  # of a replica that is busy


def test_waste_counts_what_was_drafted_ahead_and_not_verified() -> None:
    served = run()
    trimmed = dataclasses.replace(served, totals=served.totals | {"verified": 9})
    assert serving_metrics(trimmed).wasted_verifies == pytest.approx((9 - 3) / 10)
    assert serving_metrics(trimmed).wasted_drafts == pytest.approx((14 - 3) / 10)


def test_drafts_made_ahead_and_used_are_not_in_vain() -> None:
    """Everything accepted: 2 tokens drafted in each of four iterations, whose 10 s hide the 2 s of
    draft. They emit 1, 2, 2 and 1 tokens: 8 made, 6 accepted, 2 in vain; 1, 2, 2 and 2 verified.
    """
    served = run([[4, 4, 4, 3, 2, 1]], [0.0], apart=True, pipelined=True)
    assert served.rounds.tolist() == [4] and served.end_s == 40
    assert (served.totals["drafted"], served.totals["ahead"]) == (7, 8)
    assert serving_metrics(served).wasted_drafts == pytest.approx(2 / 6)
    assert serving_metrics(served).wasted_verifies == pytest.approx(1 / 6)


def test_drafts_made_ahead_in_vain_by_hand() -> None:
    # Nothing accepted: each of 2 rounds drafts 2 tokens, of which the first is verified in vain.
    served = run([[0, 0]], [0.0], apart=True, pipelined=True)
    assert serving_metrics(served).wasted_drafts == 2 * 2 / 2
    assert serving_metrics(served).wasted_verifies == 2 * 1 / 2


# --- gaps


def edge_s(place: int) -> float:
    """Upper edge of a bin."""
    return float(FINEST_GAP_S * 2 ** ((place + 1) / GAPS_PER_DOUBLING))


def test_gaps_by_hand() -> None:
    served = run()
    found = serving_metrics(served)
    assert served.gaps.sum() == 3 and found.worst_gap_s == 12  # r0 one, r1 two, all of 12 s
    assert found.gap_p50_s == found.gap_p99_s == edge_s(gap_bin(12.0))
    assert 12 <= found.gap_p99_s < 12 * 2 ** (1 / GAPS_PER_DOUBLING)


def test_gap_quantiles_by_hand() -> None:
    gaps = np.zeros(GAPS, dtype=np.int64)
    gaps[[0, 16, 40]] = [1, 2, 1]
    served = dataclasses.replace(run(), gaps=gaps)
    assert gap_quantile(served, 0.25) == edge_s(0)
    assert gap_quantile(served, 0.26) == gap_quantile(served, 0.75) == edge_s(16)
    assert edge_s(15) == 2e-6
    assert gap_quantile(served, 0.76) == gap_quantile(served, 1.0) == edge_s(40)


@given(st.lists(st.floats(2e-6, 1e3), min_size=1, max_size=40), st.sampled_from([0.5, 0.9, 0.99]))
def test_gap_quantiles_are_the_values_rounded_up(values: list[float], share: float) -> None:
    gaps = np.bincount([gap_bin(v) for v in values], minlength=GAPS)
    exact = float(np.quantile(values, share, method="inverted_cdf"))
    found = gap_quantile(dataclasses.replace(SERVED, gaps=gaps), share)
    slack = 1 + 1e-12  # a value on an edge
    assert exact <= found * slack and found <= exact * 2 ** (1 / GAPS_PER_DOUBLING) * slack


SERVED = run()


# --- fairness and spreads


def test_jain() -> None:
    assert jain(np.full(7, 3.0)) == pytest.approx(1)
    assert jain(np.asarray([0, 0, 5.0, 0])) == 1 / 4
    assert jain(np.asarray([1.0, 3.0])) == 16 / 20
    assert math.isnan(jain(np.zeros(3))) and math.isnan(jain(np.zeros(0)))


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20), st.floats(1e-3, 1e3))
def test_jain_is_between_its_ends_and_knows_no_unit(values: list[float], unit: float) -> None:
    found = jain(np.asarray(values))
    assert 1 / len(values) <= found * (1 + 1e-9) and found <= 1 + 1e-9
    assert jain(unit * np.asarray(values)) == pytest.approx(found)


def test_spread_by_hand() -> None:
    found = spread(np.asarray([4.0, 1.0, 3.0, 2.0]))
    assert dataclasses.astuple(found) == pytest.approx((2.5, 2.5, 3.7, 3.97))
    assert dataclasses.astuple(spread(np.asarray([7.0]))) == (7, 7, 7, 7)
    assert np.isnan(dataclasses.astuple(spread(np.zeros(0)))).all()


# --- nothing there


def nothing() -> ServingMetrics:
    """A run that was cut off before it began."""
    return serving_metrics(run(until_s=0.0))


def test_nothing_is_nan_and_not_an_exception() -> None:
    found = nothing()
    assert (found.requests, found.finished, found.span_s) == (4, 0, 0)
    for name in LATENCIES:
        assert np.isnan(dataclasses.astuple(getattr(found, name))).all()
    for name in ("tokens_per_s", "requests_per_s", "goodput_per_s", "gap_p50_s", "gap_p99_s",
                 "tokens_per_round", "mean_drafted", "acceptance", "wasted_drafts",
                 "wasted_verifies", "utilisation", "mean_running", "mean_waiting",
                 "fairness"):  # fmt: skip
        assert math.isnan(getattr(found, name)), name
    assert found.goodput_share == 0  # four came, none was served


def test_the_longest_of_no_gaps_is_unknown() -> None:
    assert math.isnan(nothing().worst_gap_s)


def test_without_drafts_acceptance_is_unknown_and_waste_is_none() -> None:
    found = serving_metrics(run(policy=Never()))
    assert math.isnan(found.acceptance)
    assert found.wasted_drafts == found.wasted_verifies == found.mean_drafted == 0
    assert found.tokens_per_round == 1


def test_one_token_replies_have_no_gaps_and_no_tpot() -> None:
    found = serving_metrics(run([[0], [0]], [0.0, 0.0]), Objective(tpot_s=0.0))
    assert np.isnan(dataclasses.astuple(found.tpot)).all() and math.isnan(found.gap_p99_s)
    assert found.goodput_share == 1  # nothing to be late with
