"""`gammalab fleet`: the answers where they are known, and the command on tiny settings."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from experiments.common.cost_sources import Priced
from experiments.common.frames import fields_of, rows_of, text_of
from experiments.common.statistics import interval
from experiments.serving.fleet.break_even import LOADS, break_even, crossing
from experiments.serving.fleet.capacity import KEPT, highest_rate
from experiments.serving.fleet.command import QUESTIONS
from experiments.serving.fleet.gamma_table import (
    CONCURRENCIES,
    best_table,
    choose,
    merged,
    table_policy,
)
from experiments.serving.fleet.question import Answer, FleetSetting, full_load, spread_line
from policies.base import Policy, View
from policies.counts.tables import BatchTable
from policies.fixed import Never
from policies.randomness import Rng
from simulator.serving.metrics import Objective
from simulator.serving.options import Server
from tests.command import Outcome, gammalab, read_json, refused
from tests.results import lively_trace, make_timing, make_trace
from tests.specimens import few_or_slow
from traces import synthetic
from traces.costs.affine import Affine
from traces.costs.model import CostModel
from traces.costs.roofline import Roofline
from traces.schema import Trace
from traces.store import write_trace
from traces.workload.arrivals import demand
from traces.workload.workload import Workload

Row = tuple[int, int, int]


def ask_of(
    model: CostModel,
    trace: Trace,
    *,
    slots: int = 2,
    requests: int = 40,
    objective: Objective = Objective(),  # noqa: B008 (frozen)
    policies: tuple[Policy, ...] = (),
    seeds: int = 1,
) -> FleetSetting:
    priced = Priced(model, {"timing": "by hand"}, 0)
    return FleetSetting(
        trace, priced, Server(slots=slots), objective, requests, range(seeds), policies
    )


def steady(alpha: float, depth: int = 4) -> Trace:
    """Every draft is accepted with chance alpha."""
    return synthetic.constant(
        alpha, np.random.default_rng(4), requests=20, reply_tokens=60, depth=depth
    )


def best(answer: Answer) -> list[int]:
    return list(answer.frame["best"])


def ratios(answer: Answer, policy: str, start: str) -> list[float]:
    (row,) = [row for row in rows_of(answer.frame) if row["policy"] == policy]
    return [row[name] for name in fields_of(answer.frame, start)]


# --- the parts, by hand


@pytest.mark.parametrize(
    ("line", "best"),
    [
        ([1.0, 1.5, 2.0, 1.8], 2),
        ([2.0, 1.5], 0),
        ([1.0, 1.992, 2.0], 1),  # 0.4 % slower: as good, and smaller
        ([1.0, 1.988, 2.0], 2),  # 0.6 %
        ([1.0], 0),
    ],
)
def test_choose(line: list[float], best: int) -> None:
    assert choose(line) == best


@pytest.mark.parametrize(
    ("sizes", "best", "rows"),
    [
        ([1, 2, 4, 8], [3, 3, 1, 0], [(1, 2, 3), (3, 4, 1), (5, 8, 0)]),
        ([1, 2, 4], [2, 2, 2], [(1, 4, 2)]),
        ([1], [0], [(1, 1, 0)]),
        ([1, 2, 4, 8], [4, 0, 4, 4], [(1, 1, 4), (2, 2, 0), (3, 8, 4)]),
    ],
)
def test_merged(sizes: list[int], best: list[int], rows: list[Row]) -> None:
    found = merged(sizes, best)
    assert found == rows
    covered = [batch for low, high, _ in found for batch in range(low, high + 1)]
    assert covered == list(range(1, sizes[-1] + 1))


def asked(policy: Policy, batch: int) -> int:
    view = View(0, batch, 0, 99, 1.0, np.zeros(4))
    return policy.gamma((), 0, view, Rng(0))


@pytest.mark.parametrize(
    "rows",
    [
        [(1, 2, 3), (3, 4, 1), (5, 8, 0)],
        [(1, 8, 2)],
        [(1, 8, 0)],
        [(1, 1, 8), (2, 2, 6), (3, 4, 3), (5, 8, 1), (9, 16, 0)],
    ],
)
def test_a_table_as_a_policy_says_what_its_rows_say(rows: list[Row]) -> None:
    policy = table_policy(rows)
    assert isinstance(policy, BatchTable)
    for low, high, gamma in rows:
        assert [asked(policy, batch) for batch in range(low, high + 1)] == [gamma] * (
            high - low + 1
        )
    assert asked(policy, rows[-1][1] + 1) == 0


@pytest.mark.parametrize(
    "rows", [[(1, 1, 4), (2, 4, 0), (5, 8, 2)], [(1, 4, 0), (5, 8, 2), (9, 16, 0)]]
)
def test_a_row_of_none_in_the_middle_stays_none(rows: list[Row]) -> None:
    policy = table_policy(rows)
    for low, high, gamma in rows:
        for batch in range(low, high + 1):
            assert asked(policy, batch) == gamma, batch


def test_crossing() -> None:
    loads = (0.5, 1.0, 2.0)
    assert crossing(loads, [1.2, 1.1, 0.9]) == "1.50"
    assert crossing(loads, [1.2, 0.8, 0.9]) == "0.75"
    assert crossing(loads, [1.3, 1.0, 0.5]) == "1.00"  # 1 itself still pays
    assert crossing(loads, [0.9, 1.1, 1.2]) == "< 0.5"
    assert crossing(loads, [1.2, 1.1, 1.0]) == "> 2"


# --- the table, where it is known


@pytest.mark.slow
def test_free_verification_drafts_as_deep_as_it_can() -> None:
    """A draft step costs a thousandth of a target step, and a verify the same however wide: one
    more token always pays, 0.9^4 of a token in the end.
    """
    ask = ask_of(Affine(draft_fixed=0.01, target_fixed=10), steady(0.9))
    answer = best_table(ask)
    assert list(answer.frame["users"]) == [1, 2] and best(answer) == [4, 4]
    assert answer.more["vllm"] == {"num_speculative_tokens_per_batch_size": [[1, 2, 4]]}
    assert answer.more["trtllm"] == {"draft_len_schedule": {2: 4}}
    speeds = fields_of(answer.frame, "g=")
    assert speeds == [f"g={gamma}" for gamma in range(5)]
    for row in rows_of(answer.frame):
        assert [row[name] for name in speeds] == sorted(row[name] for name in speeds)


def test_a_draft_as_dear_as_the_target_is_never_asked() -> None:
    ask = ask_of(Affine(draft_fixed=10, target_fixed=10), steady(0.9))
    answer = best_table(ask)
    assert best(answer) == [0, 0]
    assert answer.more["trtllm"] == {"draft_len_schedule": {2: 0}}
    # (1 + 0.9) / 2 of plain decoding's speed with one draft, whose seconds are the target's.
    assert list(answer.frame["g=1"]) == pytest.approx([1.9 / 2] * 2, rel=0.02)


ROOF = Roofline(
    target_bytes=10, target_flops=5, draft_bytes=0.01, draft_flops=0, bytes_per_s=1, flops_per_s=1
)
"""A target step takes 10 s of memory or 5 s per token of the batch, the longer: two tokens in all
are free, every further one costs half a step. Drafting is as good as free."""


def test_a_table_that_changes_with_the_batch() -> None:
    """One user: a second token is free, 1.9 tokens in 10 s; two tokens, 2.71 in 15 s, are worse.
    Two users: the batch alone fills the free room, 3.8 tokens in 20 s against 2 in 10 s.
    """
    answer = best_table(ask_of(ROOF, steady(0.9)))
    assert best(answer) == [1, 0]
    (rows,) = answer.more["vllm"].values()
    assert rows == [[1, 1, 1], [2, 2, 0]]
    assert answer.more["trtllm"] == {"draft_len_schedule": {1: 1, 2: 0}}
    # Beside its 60 tokens a reply costs its prompt: 32 tokens, the middle of the bucket, 5 s each.
    plain, (one, two) = 60 * 10.0, rows_of(answer.frame)
    assert one["g=1"] == pytest.approx((plain + 160) / (plain / 1.9 + 160), rel=0.02)
    assert one["g=2"] == pytest.approx((plain + 160) / (plain * 1.5 / 2.71 + 160), rel=0.02)
    assert two["g=1"] == pytest.approx((plain + 320) / (plain * 2 / 1.9 + 320), rel=0.02)
    (picture,) = answer.pictures
    assert picture.name == "table" and "from 1 with 1 user to 0 with 2" in picture.title
    assert table_policy([(1, 1, 1), (2, 2, 0)]) == BatchTable(1, 1, 0, 0, 0, 0, 0, 0)


def test_the_text_shows_the_numbers() -> None:
    answer = best_table(ask_of(ROOF, steady(0.9)))
    shown = text_of(QUESTIONS["table"].columns(answer.frame), [("", answer.frame)])
    (cells,) = (line.split() for line in shown.splitlines() if line.startswith("1 "))
    one = rows_of(answer.frame)[0]
    speeds = [one[f"g={gamma}"] for gamma in range(5)]
    assert cells[1] == f"{one['plain_tokens_per_s']:.0f}" and speeds[0] == 1.0
    assert cells[2:] == [*(f"{speed:.2f}" for speed in speeds), "1", f"{speeds[1]:.2f}"]
    vllm, trtllm = (
        json.loads(note[note.index("{") :]) for note in answer.notes if "config field" in note
    )
    assert vllm == answer.more["vllm"]
    assert trtllm == {"draft_len_schedule": {"1": 1, "2": 0}}


def test_concurrencies_go_up_to_the_slots() -> None:
    sizes = best_table(ask_of(ROOF, steady(0.9), slots=4)).frame["users"]
    assert list(sizes) == [n for n in CONCURRENCIES if n <= 4] == [1, 2, 4]


def test_a_table_covers_every_batch_there_can_be() -> None:
    found = best_table(ask_of(ROOF, steady(0.9), slots=3)).more
    assert found["vllm"]["num_speculative_tokens_per_batch_size"][-1][1] == 3


# --- the highest rate


def waits_s(arrival_s: Any, service_s: float) -> list[float]:
    """Lindley: W[q + 1] = max(0, W[q] + S - gap)."""
    found = [0.0]
    for gap_s in np.diff(arrival_s).tolist():
        found.append(max(0.0, found[-1] + service_s - gap_s))
    return found


STEP_S, COUNT = 0.05, 400
SINGLE = Affine(draft_fixed=0.001, target_fixed=STEP_S)
ONE_TOKEN = make_trace([[0]], ["r"], ["a"])


def exact_rate(ttft_s: float, seed: int) -> float:
    """The highest rate at which 99 % of the requests behind the first tenth keep the objective,
    from Lindley's recursion; waits grow with the rate, for the gaps are scaled.
    """
    low, high = 0.01 / STEP_S, 8.0 / STEP_S
    while high / low > 1 + 1e-9:
        rate = math.sqrt(low * high)
        workload = Workload(COUNT, "poisson", rate_per_s=rate)
        waits = waits_s(demand(workload, ("a",), seed).arrival_s, STEP_S)[COUNT // 10 :]
        good = np.mean([wait + STEP_S <= ttft_s for wait in waits]) >= KEPT
        low, high = (rate, high) if good else (low, rate)
    return low


def rate_of(objective: Objective, seed: int) -> float:
    ask = ask_of(SINGLE, ONE_TOKEN, slots=1, requests=COUNT)
    return highest_rate(ask, Never(), objective, ask.costs(), 1 / STEP_S, seed)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("steps", [1.5, 3.0, 8.0])
def test_the_highest_rate_of_a_single_server(steps: float, seed: int) -> None:
    exact, found = exact_rate(steps * STEP_S, seed), rate_of(Objective(ttft_s=steps * STEP_S), seed)
    assert found <= exact * (1 + 1e-6) and exact < found * 1.02 * (1 + 1e-6)


def test_a_longer_wait_allows_a_higher_rate() -> None:
    rates = [rate_of(Objective(ttft_s=steps * STEP_S), 0) for steps in (1.2, 2.0, 4.0, 16.0)]
    assert rates == sorted(rates) and rates[0] < 0.2 / STEP_S < rates[-1]


def test_what_cannot_be_kept_has_no_rate() -> None:
    assert rate_of(Objective(ttft_s=0.9 * STEP_S), 0) == 0.0


def test_the_capacity_of_plain_decoding() -> None:
    # Two slots, replies of 60 tokens, 10 s a step whatever the batch.
    ask = ask_of(Affine(target_fixed=10), steady(0.5))
    # All replies are equally long, so that two end every 600 s.
    assert full_load(ask, ask.costs()).requests_per_s == pytest.approx(2 / 600)


def test_break_even_where_drafting_never_pays_and_where_it_always_does() -> None:
    dear = break_even(ask_of(Affine(draft_fixed=10, target_fixed=10), steady(0.3)))
    cheap = break_even(ask_of(Affine(draft_fixed=0.01, target_fixed=10), steady(0.9)))
    for name in ("fixed:gamma=1", "fixed:gamma=3"):
        assert crossing(LOADS, ratios(dear, name, "load=")) == "< 0.2"
        assert crossing(LOADS, ratios(cheap, name, "load=")) == "> 2"
    assert ratios(dear, "never", "load=") == [1.0] * len(LOADS)
    assert dear.more["running"] == sorted(dear.more["running"])


# --- the command


class Inputs(NamedTuple):
    """Files of a trace and of a timing of batches 1 and 2."""

    trace: Path
    timing: Path

    def fleet(self, question: str, *more: object, **options: object) -> Outcome:
        """A question in this process, of two slots and few requests; options replace those given
        here.
        """
        given: dict[str, object] = {
            "trace": self.trace, "timing": self.timing, "server": "slots=2", "requests": 12,
            "seeds": 1,
        }  # fmt: skip
        if question != "table":  # which takes none
            given["policies"] = "fixed:gamma=2"
        pairs = [(f"--{name}", value) for name, value in (given | options).items()]
        return gammalab("fleet", question, *(part for pair in pairs for part in pair), *more)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder, timing = tmp_path_factory.mktemp("fleet"), make_timing()
    cells = [dataclasses.replace(cell, batch=b) for cell in timing.cells for b in (1, 2)]
    dataclasses.replace(timing, cells=tuple(cells)).write(folder / "timing.json")
    write_trace(lively_trace(), folder / "trace.parquet")
    return Inputs(folder / "trace.parquet", folder / "timing.json")


def test_the_table_command(inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(inputs.fleet("table", policies="payback"), "--policies", "fleet table")
    ran = inputs.fleet("table", out=out)
    assert ran.code == 0 and ran.err == ""
    assert ran.out.startswith("acceptance of tiny (trace.parquet), costs ")
    assert "2 slots, 12 requests or more, 1 seeds" in ran.out
    found = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    assert found == ["figures/table.png", "fleet.json", "fleet.txt"]
    assert (out / "figures/table.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "fleet.txt").read_text() == ran.out
    raw = read_json((out / "fleet.json").read_text())
    assert raw["kind"] == "fleet" and raw["question"] == "table" and raw["server"]["slots"] == 2
    answer = raw["answer"]
    assert [row["users"] for row in answer["rows"]] == [1, 2]
    best = [row["best"] for row in answer["rows"]]
    assert best == [choose([row[f"g={gamma}"] for gamma in range(5)]) for row in answer["rows"]]
    rows = answer["vllm"]["num_speculative_tokens_per_batch_size"]
    assert rows == [list(row) for row in merged([1, 2], best)]
    assert answer["trtllm"]["draft_len_schedule"] == {str(high): gamma for _, high, gamma in rows}

    before = {path: (out / path).read_bytes() for path in found}
    refused(inputs.fleet("table", out=out), "fleet.json", "--force")
    assert {path: (out / path).read_bytes() for path in found} == before
    assert inputs.fleet("table", "--force", out=out) == ran
    assert {path: (out / path).read_bytes() for path in found} == before


def test_slots_default_to_what_was_measured(inputs: Inputs) -> None:
    raw = read_json(inputs.fleet("table", "--json", server="").out)
    assert raw["server"]["slots"] == 2


@pytest.mark.parametrize(
    ("question", "shown"),
    [
        (
            "break-even",
            ["pays up", "decode under plain", "one seed: how far", "fixed:gamma=2", "requests/s"],
        ),
        pytest.param(
            "placement", ["drafting ahead", "no network", "fixed:gamma=2"], marks=pytest.mark.long
        ),
        pytest.param(
            "routing", ["least-outstanding", "TTFT p99", "fixed:gamma=2"], marks=pytest.mark.slow
        ),
        ("bursts", ["bursts: ", "objective: TPOT", "batch-table"]),
        ("capacity", ["keep TTFT <=", "drafts ahead", "fixed:gamma=5"]),
    ],
)
def test_every_other_question(
    inputs: Inputs, question: str, shown: list[str], tmp_path: Path
) -> None:
    """bursts and capacity serve fixed:gamma=2 themselves: see the test below."""
    policies = "fixed:gamma=4" if question in ("bursts", "capacity") else "fixed:gamma=2"
    out = tmp_path / "out"
    ran = inputs.fleet(question, out=out, policies=policies)
    assert ran.code == 0 and ran.err == ""
    for words in shown:
        assert words in ran.out, words
    assert "nan" not in ran.out.lower()
    raw = read_json((out / "fleet.json").read_text())
    assert raw["question"] == question and raw["answer"]
    pictures = sorted(path.name for path in out.glob("figures/*.png"))
    drawn = question not in ("placement", "routing")
    assert pictures == ([f"{question}.png"] if drawn else [])
    assert inputs.fleet(question, policies=policies).out == ran.out


def test_intervals_over_seeds_by_hand() -> None:
    """Student's t of one degree is 12.706; of 2 and 4 the standard error is 1."""
    two = interval([2.0, 4.0])
    assert (two.mean, two.low, two.high) == pytest.approx((3.0, -9.71, 15.71), abs=0.01)
    said = spread_line([two, interval([1.0, 1.0]), interval([1.0, 1.0])])
    assert said.endswith("+- 0.000 or less, none more than +- 12.706")


@pytest.mark.parametrize(
    "question", few_or_slow([q for q in QUESTIONS if q != "table"], ["bursts"])
)
def test_a_policy_that_a_question_serves_anyway(inputs: Inputs, question: str) -> None:
    ran = inputs.fleet(question, policies="fixed:gamma=3")
    assert ran.code == 0 and "fixed:gamma=3" in ran.out


def test_a_table_that_is_a_fixed_length_is_served_beside_it(inputs: Inputs) -> None:
    """The table that `bursts` serves is called batch-table even where it is one length for all."""
    ran = inputs.fleet("bursts", policies="fixed:gamma=4")
    assert sum(line.startswith("batch-table") for line in ran.out.splitlines()) == 1


def test_placement_on_one_device_is_the_first_column(inputs: Inputs) -> None:
    answer = read_json(inputs.fleet("placement", "--json").out)["answer"]
    rows = {row.pop("policy"): list(row.values()) for row in answer["rows"]}
    assert len(answer["columns"]) == 6 and answer["columns"][1]["name"] == "one device"
    assert rows["never"] == [1.0] * 5  # who never drafts does not cross a network
    here, there, far, *_ = rows["fixed:gamma=3"]
    assert there == pytest.approx(here) and far < there


def test_capacity_keeps_the_objective_that_was_given(inputs: Inputs) -> None:
    raw = read_json(
        inputs.fleet("capacity", "--json", slo="ttft_s=40", policies="fixed:gamma=4").out
    )
    assert raw["answer"]["objective"] == {"ttft_s": 40, "tpot_s": None}
    assert [row["policy"] for row in raw["answer"]["rows"]] == [
        "never", *(f"fixed:gamma={gamma}" for gamma in (1, 2, 3, 5, 4))
    ]  # fmt: skip
    for row in raw["answer"]["rows"]:  # one seed
        assert row["seed=0"] == row["requests_per_s.mean"] and row["ahead.low"] is None


def test_unknown_questions_name_the_known_ones(inputs: Inputs, tmp_path: Path) -> None:
    refused(inputs.fleet("tables", out=tmp_path / "out"), "'tables'", *QUESTIONS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"server": "slots=0"}, ["slots is 0"]),
        ({"server": "slot=2"}, ["--server", "'slot=2'"]),
        ({"slo": "ttft=2"}, ["--slo", "'ttft=2'"]),
        ({"policies": "nevr"}, ["nevr"]),
        ({"requests": 0}, ["--requests"]),
        ({"seed": -1}, ["seed"]),
        ({"trace": "no.parquet"}, ["no.parquet"]),
        ({"timing": "no.json"}, ["no.json"]),
        ({"timing": "roofline:b200:llama-3.1-8b+llama-3.2-1b"}, ["b200", "a100"]),
        ({"server": "slots=2,blocks=2,block_tokens=4"}, ["2 blocks of 4 tokens"]),
    ],
)
def test_bad_input_is_one_line(
    inputs: Inputs, options: dict[str, object], words: list[str], tmp_path: Path
) -> None:
    refused(inputs.fleet("table", **{"out": tmp_path / "out"} | options), *words)
    assert not (tmp_path / "out").exists()


def test_signals_that_are_not_there_are_one_line(inputs: Inputs, tmp_path: Path) -> None:
    write_trace(make_trace([[1, 0, 1]] * 2, ["1", "2"], ["a"] * 2), tmp_path / "bare.parquet")
    ran = inputs.fleet("break-even", trace=tmp_path / "bare.parquet", policies="tail-pruning")
    refused(ran, "tail-pruning", "signals")


def test_gammas_go_up_to_the_depth_of_the_trace() -> None:
    frame = best_table(ask_of(ROOF, steady(0.9, depth=2))).frame
    assert fields_of(frame, "g=") == ["g=0", "g=1", "g=2"]
