"""`gammalab serve`: the table, the files, the timeline, intervals and roofline costs."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from experiments.common.cost_sources import read_costs, roofline, sizes
from experiments.common.statistics import Interval, interval
from experiments.serving import serve as serving
from experiments.serving.serve import REQUEST_COLUMNS, settings
from experiments.serving.timeline import WAITS, events
from simulator.serving.metrics import Objective
from simulator.serving.options import Server
from tests.command import Outcome, gammalab, read_json, refused
from tests.experiments.serving.small_runs import (
    POLICIES,
    REQUESTS,
    SEEDS,
    Inputs,
    by_hand,
    save_bare,
)
from tests.results import make_timing
from traces.roundlog import read_roundlog
from traces.schema import Trace
from traces.store import read_trace
from traces.workload.arrivals import demand
from traces.workload.files import write_workload
from traces.workload.workload import Workload

Event = dict[str, Any]


class Done(NamedTuple):
    """A finished command with its folder."""

    outcome: Outcome
    out: Path
    inputs: Inputs

    @property
    def trace(self) -> Trace:
        return read_trace(self.inputs.trace)

    def log(self, policy: str, seed: int) -> Any:
        """A request log as columns."""
        path = self.out / "requests" / f"{POLICIES[policy]}-s{seed}.parquet"
        table = pq.read_table(path)
        return {name: table.column(name).to_numpy() for name in table.column_names}

    def timeline(self, policy: str) -> list[Event]:
        path = self.out / "timelines" / f"{POLICIES[policy]}.json"
        found: list[Event] = read_json(path.read_text())["traceEvents"]
        return found


@pytest.fixture(scope="module")
def done(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The run that most tests look at."""
    out = tmp_path_factory.mktemp("done") / "out"
    return Done(inputs.serve("--timeline", out=out, slo="ttft_s=60"), out, inputs)


# --- what comes out


def test_the_table(done: Done) -> None:
    code, out, err = done.outcome
    assert code == 0 and err == ""
    lines = out.splitlines()
    assert lines[0].startswith("20 requests, poisson 0.006/s, drawn from 24 replies of tiny")
    assert lines[1] == "costs: timing.json (a CPU)"
    assert lines[2] == "server: slots 2" and lines[3] == "objective: ttft 60.0 s"
    assert "mean requests that decode, and wait, while the machine works" in out
    rows = {line.split()[0]: line.split() for line in lines if line.split()[:1]}
    assert rows["never"][2:4] == ["1.000", "1.00-1.00"]
    raw = read_json((done.out / "serve.json").read_text())
    for row in raw["rows"]:
        cells, mean = rows[row["policy"]], row["tokens_ratio"]["mean"]
        assert cells[2] == f"{mean:.3f}"
        kept = np.mean([run["goodput_share"] for run in row["runs"]])
        assert cells[5] == f"{100 * kept:.0f}%"


def test_the_table_fits_a_terminal(done: Done, tmp_path: Path) -> None:
    """As experiments.common.text_table has it: 100 columns."""
    timing = make_timing(draft_s=1e-3, verify_s=1e-2)
    cells = [dataclasses.replace(cell, batch=b) for cell in timing.cells for b in (1, 2)]
    dataclasses.replace(timing, cells=tuple(cells)).write(tmp_path / "t.json")
    ran = done.inputs.serve(timing=tmp_path / "t.json", workload="poisson:rate=0.1")
    assert max(len(line) for line in ran.out.splitlines()) <= 100


def test_the_files(done: Done) -> None:
    found = sorted(str(p.relative_to(done.out)) for p in done.out.rglob("*") if p.is_file())
    assert found == sorted(
        ["serve.json", "serve.txt", "figures/series.png"]
        + [f"requests/{name}-s{seed}.parquet" for name in POLICIES.values() for seed in SEEDS]
        + [f"series/{name}-s{seed}.parquet" for name in POLICIES.values() for seed in SEEDS]
        + [f"rounds/{name}.parquet" for name in POLICIES.values()]
        + [f"timelines/{name}.json" for name in POLICIES.values()]
    )
    assert (done.out / "serve.txt").read_text() == done.outcome.out
    raw = read_json((done.out / "serve.json").read_text())
    assert raw["kind"] == "serve" and raw["server"]["slots"] == 2
    assert raw["workload"]["rate_per_s"] == 0.006 and raw["objective"]["ttft_s"] == 60
    assert raw["objective"]["tpot_s"] is None and raw["trace"] == "trace.parquet"
    assert [row["policy"] for row in raw["rows"]] == list(POLICIES)
    assert all(len(row["runs"]) == len(SEEDS) for row in raw["rows"])


def test_request_logs(done: Done) -> None:
    trace = done.trace
    for policy, seed in ((policy, seed) for policy in POLICIES for seed in SEEDS):
        log = done.log(policy, seed)
        assert set(log) == {*REQUEST_COLUMNS, "request_id", "category"}
        assert {len(column) for column in log.values()} == {REQUESTS}
        row = log["row"]
        assert log["tokens"].tolist() == trace.reply_tokens[row].tolist()
        assert log["request_id"].tolist() == [trace.request_id[k] for k in row]
        assert log["category"].tolist() == [trace.category[k] for k in row]
        assert (log["prefill_s"] == 5).all() and (log["finish_s"] > log["first_s"]).all()
        assert (log["drafted"] > 0).all() == (policy != "never")
        path = done.out / "requests" / f"{POLICIES[policy]}-s{seed}.parquet"
        header = read_json(pq.read_schema(path).metadata[b"gammalab"].decode())
        assert header["kind"] == "requests" and header["meta"]["policy"] == policy
        assert header["meta"]["seed"] == seed


def test_sums_are_those_of_the_request_log(done: Done) -> None:
    """Warm-up 0.1: the first two requests do not count."""
    raw = read_json((done.out / "serve.json").read_text())
    for row in raw["rows"]:
        for seed, found in zip(SEEDS, row["runs"], strict=True):
            log = {name: column[2:] for name, column in done.log(row["policy"], seed).items()}
            span_s = log["finish_s"].max() - log["arrival_s"].min()
            ttft_s = log["first_s"] - log["arrival_s"]
            assert found["requests"] == found["finished"] == REQUESTS - 2
            assert found["tokens_per_s"] == pytest.approx(log["tokens"].sum() / span_s)
            assert found["goodput_per_s"] == pytest.approx((ttft_s <= 60).sum() / span_s)
            assert found["ttft"]["p90"] == pytest.approx(np.quantile(ttft_s, 0.9))


def test_policies_meet_the_same_requests(done: Done) -> None:
    workload = Workload(REQUESTS, "poisson", rate_per_s=0.006)
    for seed in SEEDS:
        wanted = demand(workload, done.trace.category, seed)
        for policy in POLICIES:
            log = done.log(policy, seed)
            assert log["arrival_s"].tobytes() == wanted.arrival_s.tobytes()
            assert log["row"].tobytes() == wanted.row.tobytes()
    first, second = (done.log("never", seed)["arrival_s"] for seed in SEEDS)
    assert (first != second).all()


def test_ratios_are_taken_seed_by_seed(done: Done) -> None:
    first, second = read_json((done.out / "serve.json").read_text())["rows"]
    for ratio in (first["tokens_ratio"], first["goodput_ratio"]):
        assert ratio == {"mean": 1.0, "low": 1.0, "high": 1.0}
    for field, name in (("tokens_per_s", "tokens_ratio"), ("goodput_per_s", "goodput_ratio")):
        pairs = zip(second["runs"], first["runs"], strict=True)
        own = interval([ours[field] / theirs[field] for ours, theirs in pairs])
        assert second[name] == pytest.approx(dataclasses.asdict(own))


def test_the_same_command_gives_the_same_bytes(done: Done, tmp_path: Path) -> None:
    again = done.inputs.serve(out=tmp_path / "out", slo="ttft_s=60")
    assert again == done.outcome
    paths = [done.out / "serve.txt", *sorted((done.out / "requests").iterdir())]
    assert len(paths) == 5
    for path in paths:
        copy = tmp_path / "out" / path.relative_to(done.out)
        assert copy.read_bytes() == path.read_bytes()


def test_json_on_stdout(done: Done) -> None:
    one = done.inputs.serve("--json", seeds=1, slo="ttft_s=60")
    assert one.code == 0 and one.err == ""
    raw = read_json(one.out)
    kept = read_json((done.out / "serve.json").read_text())
    for row, other in zip(raw["rows"], kept["rows"], strict=True):
        assert row["runs"] == other["runs"][:1]
        assert row["tokens_ratio"]["low"] is None and row["tokens_ratio"]["high"] is None
    # What is not defined is null: nobody drafts under `never`, and with an objective that nobody
    # keeps there is no ratio of goodputs.
    assert raw["rows"][0]["runs"][0]["acceptance"] is None
    hopeless = read_json(done.inputs.serve("--json", seeds=1, slo="ttft_s=0").out)
    assert hopeless["rows"][1]["goodput_ratio"]["mean"] is None
    assert hopeless["rows"][1]["runs"][0]["goodput_share"] == 0


def test_nothing_is_overwritten_unasked(done: Done) -> None:
    before = {path: path.read_bytes() for path in done.out.rglob("*") if path.is_file()}
    refused(done.inputs.serve(out=done.out), "serve.json", "--force")
    assert {path: path.read_bytes() for path in before} == before
    assert done.inputs.serve("--force", "--timeline", out=done.out, slo="ttft_s=60").code == 0
    after = {path: path.read_bytes() for path in before}
    assert after == before


def test_another_first_policy_turns_the_ratio_over(done: Done) -> None:
    raw = read_json(done.inputs.serve("--json", seeds=1, policies="fixed:gamma=2,never").out)
    kept = read_json((done.out / "serve.json").read_text())["rows"]
    straight = kept[1]["runs"][0]["tokens_per_s"] / kept[0]["runs"][0]["tokens_per_s"]
    assert raw["rows"][1]["tokens_ratio"]["mean"] == pytest.approx(1 / straight)


def test_the_series_adds_up_to_the_requests(done: Done) -> None:
    for path in sorted((done.out / "series").glob("*.parquet")):
        series = pq.read_table(path).to_pydict()
        requests = pq.read_table(done.out / "requests" / path.name).to_pydict()
        assert sum(series["emitted"]) == sum(requests["tokens"]) > 0
        assert sum(series["drafted"]) == sum(requests["drafted"])
        assert series["start_s"] == sorted(series["start_s"])


@pytest.mark.parametrize("policies", ["never,never", "never,fixed:gamma=2,fixed:gamma=2"])
def test_a_policy_named_twice_is_refused(inputs: Inputs, policies: str) -> None:
    """As `gammalab compare` does: runs are kept by label."""
    refused(inputs.serve(policies=policies, seeds=1), "twice")


def test_recorded_arrivals_come_from_a_file(inputs: Inputs, tmp_path: Path) -> None:
    workload = Workload(3, "recorded", arrival_s=(0.0, 1.0, 400.0))
    write_workload(workload, tmp_path / "w.json")
    ran = inputs.serve(
        workload=tmp_path / "w.json", policies="never", seeds=1, out=tmp_path / "out"
    )
    assert ran.code == 0 and ran.out.startswith("3 requests, recorded")
    log = pq.read_table(tmp_path / "out/requests/never-s0.parquet")
    assert log.column("arrival_s").to_pylist() == [0.0, 1.0, 400.0]


def test_more_slots_than_were_measured_warn(inputs: Inputs) -> None:
    ran = inputs.serve(server="slots=3", policies="never", seeds=1)
    (line,) = ran.err.splitlines()
    assert ran.code == 0 and line.startswith("gammalab: warning: ") and "up to batch 2" in line


def test_default_policies_leave_out_what_the_trace_cannot_feed(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "DEFAULT_POLICIES", "never,tail-pruning")
    given = (*save_bare(tmp_path), "--workload", "closed:users=1", "--requests", 2, "--json")
    argv = ("serve", *given, "--timing", inputs.timing, "--server", "slots=1", "--seeds", 1)
    rows = read_json(gammalab(*argv).out)["rows"]
    assert [row["policy"] for row in rows] == ["never"]


# --- intervals and settings


def test_intervals() -> None:
    values = [1.0, 1.2, 1.7, 1.1]
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert dataclasses.astuple(interval(values)) == pytest.approx((1.25, low, high))
    # Two values half a unit off their mean: 12.706 standard errors of half a unit.
    assert interval([2.0, 3.0]).high == pytest.approx(2.5 + 12.7062 / 2, abs=1e-4)
    one = interval([1.5])
    assert one.mean == 1.5 and math.isnan(one.low) and math.isnan(one.high)
    assert interval([2.0] * 3) == Interval(2.0, 2.0, 2.0)


def test_settings() -> None:
    text = " slots=4, padded = TRUE,hop_s=1e-3,order=shortest,max_gamma=2,apart=true,"
    found = settings(Server(), text, "--server")
    assert found == Server(
        slots=4, padded=True, hop_s=1e-3, order="shortest", max_gamma=2, apart=True
    )
    assert settings(Server(slots=3), "", "--server") == Server(slots=3)
    assert settings(Objective(), "ttft_s=1", "--slo") == Objective(1.0, math.inf)


def test_a_request_log_is_not_a_trace(done: Done) -> None:
    log = done.out / "requests/never-s0.parquet"
    refused(done.inputs.serve(trace=log), "never-s0.parquet", "not a GammaLab trace")


# --- the timeline


def intervals_of(found: list[Event]) -> dict[tuple[int, int], list[tuple[float, float]]]:
    """(begin, end) of the rounds of every slot."""
    lanes: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for event in found:
        if event["ph"] == "X":
            assert all(type(event[name]) is int for name in ("pid", "tid"))
            assert event["ts"] >= 0 and event["dur"] > 0
            lanes[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    return lanes


def check_events(found: list[Event]) -> None:
    """What any timeline keeps: a slot does one thing at a time, every wait ends after it began,
    every lane has a name.
    """
    lanes = intervals_of(found)
    for spans in lanes.values():
        spans.sort()
        for (_, end), (begin, _) in itertools.pairwise(spans):
            assert begin >= end * (1 - 1e-12)
    begins = {event["id"]: event["ts"] for event in found if event["ph"] == "b"}
    ends = {event["id"]: event["ts"] for event in found if event["ph"] == "e"}
    waits = [event for event in found if event["ph"] in "be"]
    assert len(waits) == 2 * len(begins) and begins.keys() == ends.keys()
    assert all(begins[key] < ends[key] for key in begins)
    assert all(event["pid"] == WAITS and event["cat"] == "wait" for event in waits)
    named = {(e["pid"], e["tid"]) for e in found if e["ph"] == "M" and e["name"] == "thread_name"}
    assert lanes.keys() <= named
    assert {event["ph"] for event in found} <= set("MXCbe")


def test_timelines(done: Done) -> None:
    for policy in POLICIES:
        found, log = done.timeline(policy), done.log(policy, SEEDS[0])
        check_events(found)
        rounds = [event for event in found if event["ph"] == "X"]
        emitted: dict[str, int] = defaultdict(int)
        for event in rounds:
            emitted[event["args"]["request"]] += event["args"]["emitted"]
        expected: dict[str, int] = defaultdict(int)
        for name, tokens in zip(log["request_id"], log["tokens"].tolist(), strict=True):
            expected[name] += tokens
        assert emitted == expected and len(rounds) == log["rounds"].sum()
        assert {lane for lane in intervals_of(found)} == {(0, 0), (0, 1)}
        waited = np.flatnonzero(log["admitted_s"] > log["arrival_s"])
        assert sorted(e["id"] for e in found if e["ph"] == "b") == waited.tolist() != []
        counts = [e["args"]["requests"] for e in found if e["ph"] == "C"]
        assert set(counts) == {1, 2}


def test_rounds_are_those_of_the_timeline(done: Done) -> None:
    for policy, name in POLICIES.items():
        log = read_roundlog(done.out / "rounds" / f"{name}.parquet")
        spans = sorted(span for lane in intervals_of(done.timeline(policy)).values()
                       for span in lane)  # fmt: skip
        starts = np.sort(log.start_s)
        assert [begin for begin, _ in spans] == pytest.approx((1e6 * starts).tolist())
        assert log.meta["policy"] == policy and log.meta["clock"] == "simulated"


def test_a_timeline_by_hand() -> None:
    found = events(*by_hand())
    check_events(found)
    rounds = [
        (e["args"]["request"], 1e-6 * e["ts"], 1e-6 * e["dur"], e["name"], e["cname"])
        for e in found if e["ph"] == "X"
    ]  # fmt: skip
    assert rounds == [
        ("a", 0, 12, "2/2", "good"), ("b", 0, 12, "0/2", "bad"),
        ("a", 12, 12, "0/2", "bad"), ("b", 12, 12, "0/2", "bad"),
        ("b", 24, 12, "0/2", "bad"), ("c", 24, 12, "0/2", "bad"),
        ("d", 50, 12, "1/2", "yellow"),
    ]  # fmt: skip
    waits = [(e["ph"], e["name"], 1e-6 * e["ts"]) for e in found if e["ph"] in "be"]
    assert waits == [("b", "c", 5), ("e", "c", 24)]


def test_replicas_are_processes() -> None:
    found = events(*by_hand(slots=1, replicas=2))
    check_events(found)
    assert set(intervals_of(found)) == {(0, 0), (1, 0)}
    assert not [e for e in events(*by_hand(log=False)) if e["ph"] in "XC"]


# --- rooflines


def test_weights_of_known_shapes_by_hand() -> None:
    from real_backend.models.shapes import SHAPES

    # Per layer: queries and output 4096 x 4096, keys and values 4096 x 1024 each, three matrices
    # 4096 x 14336 of the MLP; then the head 4096 x 128256.
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    weights, row = sizes(SHAPES["llama-3.1-8b"])
    assert weights == 32 * layer + 4096 * 128256 == 7_504_658_432
    assert row == 32 * 2 * 8 * 128 * 2  # keys and values of 8 heads of 128, two bytes each
    small = 2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192
    assert sizes(SHAPES["llama-3.2-1b"]) == (16 * small + 2048 * 128256, 16 * 2 * 8 * 64 * 2)


def test_roofline_seconds_by_hand() -> None:
    priced = read_costs("roofline:a100:llama-3.1-8b+llama-3.2-1b")
    model, target, draft = priced.model, 7_504_658_432, 1_235_746_816
    assert priced.slots == 0 and priced.about["device_name"] == "a100 (roofline)"
    assert model.verify_s(1, 1, 0) == pytest.approx(2 * target / 1.34e12)
    assert model.draft_step_s(1, 0) == pytest.approx(2 * draft / 1.34e12)
    # 4 rows of 1000 tokens of context read their caches beside the weights.
    caches = 4 * 1000 * 131_072
    assert model.verify_s(1, 4, 1000) == pytest.approx((2 * target + caches) / 1.34e12)
    # 4 rows of 500 tokens: the weights are read, and behind the knee of 72 tokens each of the
    # others takes 2 operations per weight.
    read_s, token_s = 2 * target / 1.34e12, 2 * target / 210e12
    assert model.verify_s(500, 4, 0) == pytest.approx(read_s + (2000 - 72) * token_s)
    assert model.control_s() == model.signal_s() == 0
    faster = roofline("h100", "llama-3.1-8b+llama-3.2-1b")
    assert faster.verify_s(1, 1, 0) == pytest.approx(2 * target / 2.24e12)


def test_serving_on_a_roofline(inputs: Inputs) -> None:
    name = "roofline:a100:llama-3.1-8b+llama-3.2-1b"
    ran = inputs.serve(
        timing=name, policies="never", seeds=1, workload="closed:users=1", server="slots=1"
    )
    assert ran.code == 0 and ran.err == ""  # any batch is known
    assert f"costs: {name} (a100 (roofline))" in ran.out
    raw = read_json(inputs.serve(
        "--json", timing=name, policies="never", seeds=1, workload="closed:users=1",
        server="slots=1",
    ).out)  # fmt: skip
    # Contexts of up to 63 tokens are priced as 32, the middle of their bucket.
    step_s = (2 * 7_504_658_432 + 131_072 * 32) / 1.34e12
    assert raw["rows"][0]["runs"][0]["tpot"]["p50"] == pytest.approx(step_s)
