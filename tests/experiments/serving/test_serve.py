"""`gammalab serve`: the table, the files, the timeline, roofline costs, and one clear line for all
bad input.

The costs: a draft step 1 s, a verify 10 s, a prompt 5 s, for one row as for two.
"""

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
from experiments.serving import serve as serving
from experiments.serving.serve import REQUEST_COLUMNS, Interval, interval, settings
from experiments.serving.serve_check import Speed, speed_of, text_of
from experiments.serving.timeline import WAITS, events
from policies.fixed import Fixed, Never
from simulator.costs import Affine
from simulator.serving.costs import tabulate_batches
from simulator.serving.metrics import Objective
from simulator.serving.options import Server
from simulator.serving.result import Served
from simulator.serving.server import serve
from tests.command import Outcome, gammalab, read_json, refused
from tests.results import lively_trace, make_timing, make_trace
from traces.errors import InputError
from traces.roundlog import RoundLog, read_roundlog
from traces.schema import Trace
from traces.store import read_trace, write_trace
from traces.workload.arrivals import Demand, demand
from traces.workload.files import write_workload
from traces.workload.workload import Workload

REQUESTS, SEEDS = 20, (0, 1)
POLICIES = {"never": "never", "fixed:gamma=2": "fixed-gamma-2"}
Event = dict[str, Any]


class Inputs(NamedTuple):
    """Files of a trace and of a timing of batches 1 and 2."""

    trace: Path
    timing: Path

    def serve(self, *more: object, **options: object) -> Outcome:
        """A small run; options replace those given here."""
        given: dict[str, object] = {
            "trace": self.trace, "timing": self.timing, "workload": "poisson:rate=0.006",
            "requests": REQUESTS, "policies": ",".join(POLICIES), "server": "slots=2",
            "seeds": len(SEEDS),
        }  # fmt: skip
        argv = [(f"--{name}", value) for name, value in (given | options).items()]
        return gammalab("serve", *(part for pair in argv for part in pair), *more)


def save_inputs(folder: Path) -> Inputs:
    timing = make_timing()
    cells = [dataclasses.replace(cell, batch=b) for cell in timing.cells for b in (1, 2)]
    dataclasses.replace(timing, cells=tuple(cells)).write(folder / "timing.json")
    write_trace(lively_trace(), folder / "trace.parquet")
    return Inputs(folder / "trace.parquet", folder / "timing.json")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return save_inputs(tmp_path_factory.mktemp("inputs"))


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


def save_bare(folder: Path) -> tuple[object, ...]:
    """A trace without signals."""
    write_trace(make_trace([[1, 0, 1]] * 2, ["1", "2"], ["a"] * 2), folder / "bare.parquet")
    return ("--trace", folder / "bare.parquet")


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


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("slot=4", r"--server: 'slot=4' is not name=value; names: slots, order"),
        ("slots", "'slots' is not name=value"),
        ("=4", "'=4' is not name=value"),
        ("slots=many", "--server: slots is 'many'; give a whole number"),
        ("slots=2.5", "slots is '2.5'; give a whole number"),
        ("slots=", "slots is ''; give a whole number"),
        ("max_gamma=none", "max_gamma is 'none'; give a whole number"),
        ("hop_s=fast", "hop_s is 'fast'; give a number"),
        ("padded=yes", "padded is 'yes'; give true or false"),
        ("slots=0", "slots is 0; give 1 to 4096"),
        ("hop_s=nan", "hop_s is nan"),
        ("slots=100000", "slots is 100000; give 1 to 4096"),
        ("replicas=1000000", "replicas is 1000000; give 1 to 1024"),
        ("blocks=99999999999999999999", "blocks is 99999999999999999999; give 0 to 2147483647"),
        ("bin_s=inf", "bin_s is inf"),
        ("order=random", "order is 'random'; known: first-come"),
        ("hop_s=1", "set apart"),
    ],
)
def test_settings_that_cannot_be(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        settings(Server(), text, "--server")


# --- bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"server": "slots=0"}, ["slots is 0"]),
        ({"server": "slot=2"}, ["--server", "'slot=2'", "slots"]),
        ({"server": "slots=2,blocks=2,block_tokens=4"}, ["2 blocks of 4 tokens", "request"]),
        ({"server": "slots=2,max_gamma=5"}, ["max_gamma is 5", "0..4"]),
        ({"workload": "poisson:rate=-1"}, ["rate_per_s", "-1"]),
        ({"workload": "poisson:rate=nan"}, ["rate_per_s", "nan"]),
        ({"workload": "poison:rate=1"}, ["'poison'", "poisson"]),
        ({"workload": "poisson:user=1"}, ["'user=1'", "rate="]),
        ({"workload": "missing.json"}, ["missing.json", "no such workload file"]),
        ({"warmup": 1}, ["--warmup", "1"]),
        ({"warmup": -0.1}, ["--warmup"]),
        ({"warmup": "nan"}, ["--warmup"]),
        ({"slo": "ttft=1"}, ["--slo", "ttft_s"]),
        ({"seed": -1}, ["seed"]),
        ({"requests": 0}, ["--requests", "at least 1"]),
        ({"seeds": 0}, ["--seeds", "at least 1"]),
        ({"policies": "nevr"}, ["nevr", "never"]),
        ({"trace": "no.parquet"}, ["no.parquet", "no such file"]),
        ({"timing": "no.json"}, ["no.json", "gammalab measure"]),
        ({"timing": "roofline:b200:llama-3.1-8b+llama-3.2-1b"}, ["b200", "a100, h100"]),
        ({"timing": "roofline:a100"}, ["roofline:a100", "TARGET+DRAFT"]),
        ({"timing": "roofline:a100:llama-3.1-8b+lama"}, ["'lama'", "llama-3.2-1b"]),
        ({"timing": "roofline:a100:llama-3.1-8b"}, ["llama-3.1-8b", "TARGET+DRAFT"]),
    ],
)
def test_bad_input_is_one_line(
    inputs: Inputs, options: dict[str, object], words: list[str], tmp_path: Path
) -> None:
    refused(inputs.serve(**{"out": tmp_path / "out"} | options), *words)
    assert not (tmp_path / "out").exists()


def test_an_unknown_shape_is_not_blamed_on_an_option_that_is_not_there(inputs: Inputs) -> None:
    assert "--pair" not in inputs.serve(timing="roofline:a100:llama-3.1-8b+lama").err


@pytest.mark.parametrize("slo", ["ttft_s=nan", "tpot_s=-1"])
def test_an_objective_that_cannot_be_is_refused(inputs: Inputs, slo: str) -> None:
    refused(inputs.serve(slo=slo, policies="never", seeds=1), slo.partition("=")[0])


def test_a_timeline_needs_a_folder(inputs: Inputs) -> None:
    refused(inputs.serve("--timeline"), "--timeline needs --out")


def test_a_folder_that_is_a_file(inputs: Inputs, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    refused(inputs.serve(out=tmp_path / "out", policies="never"), "out", "is a file")


def test_a_policy_that_reads_signals_which_are_not_there(inputs: Inputs, tmp_path: Path) -> None:
    bare = save_bare(tmp_path)[1]
    refused(inputs.serve(trace=bare, policies="never,tail-pruning"), "tail-pruning", "signals")
    refused(
        inputs.serve(trace=bare, server="slots=2,allotment=tetris,budget_tokens=8"),
        "tetris", "signals",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"kind": "workload", "version": 1, "requests": 2, "process": "recorded", '
         '"arrival_s": [2.0, 1.0]}', ["arrival_s[1]", "sort"]),
        ('{"kind": "workload", "version": 1, "requests": 2, "process": "poisson", '
         '"rate_per_s": -4}', ["rate_per_s", "-4"]),
        ('{"kind": "workload", "version": 1, "requests": 2, "process": "poisson", '
         '"rate_per_s": 1, "weights": {"b": 1}}', ["weights", "'b'"]),
        ('{"kind": "workload", "version": 1, "requests": 2', ["w.json is not JSON", "truncated"]),
        ('{"kind": "timing"}', ["w.json", "not a workload"]),
        ('{"kind": "workload", "version": 7}', ["version 7"]),
        ('{"kind": "workload", "version": 1, "requests": 2, "process": "poisson", "rate": 1}',
         ["'rate'", "rate_per_s"]),
    ],
)  # fmt: skip
def test_bad_workload_files(inputs: Inputs, text: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "w.json").write_text(text)
    refused(inputs.serve(workload=tmp_path / "w.json"), *words)


def test_truncated_and_foreign_files(inputs: Inputs, tmp_path: Path) -> None:
    cut, half, other = tmp_path / "cut.parquet", tmp_path / "half.json", tmp_path / "other.json"
    cut.write_bytes(inputs.trace.read_bytes()[:500])
    refused(inputs.serve(trace=cut), "cut.parquet", "truncated or foreign")
    half.write_text(inputs.timing.read_text()[:300])
    refused(inputs.serve(timing=half), "half.json is not JSON")
    other.write_text('{"kind": "serve"}')
    refused(inputs.serve(timing=other), "other.json", "not a GammaLab timing")
    refused(inputs.serve(timing=inputs.trace), "trace.parquet")
    refused(inputs.serve(trace=inputs.timing), "timing.json")


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


def by_hand(log: bool = True, **server: Any) -> tuple[Served, Trace]:
    """Four requests, two drafts a round, every iteration 12 s: see test_service."""
    trace = make_trace([[2, 1, 0, 0], [0, 0, 0], [0], [1, 0]], ["a", "b", "c", "d"], ["x"] * 4)
    costs = tabulate_batches(Affine(draft_fixed=1, target_fixed=10), 2, width=6)
    zeros = np.zeros(4, dtype=np.int32)
    wanted = Demand(
        np.arange(4, dtype=np.int32), np.asarray([0.0, 0.0, 5.0, 50.0]), np.zeros(4), zeros, 0
    )
    settings = Server(**({"slots": 2} | server))
    trace = dataclasses.replace(trace, meta=dataclasses.replace(trace.meta, max_new_tokens=100))
    ran = serve(Fixed(2), trace, wanted, costs, settings, log=log, compiled=False)
    return ran, trace


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


# --- the check against the real engine


def test_speed_of_a_log_by_hand() -> None:
    log = by_hand()[0].round_log
    assert isinstance(log, RoundLog)
    # 10 tokens in the 4 iterations of 12 s, whose rows began together.
    assert speed_of(log) == Speed(10 / 48, 12.0, 4)


def test_errors_of_a_prediction_by_hand() -> None:
    rows = [
        (1, "never", Speed(11.0, 0.1, 50), [Speed(v, 0.08, 50) for v in (9.0, 10.0, 10.5)]),
        (2, "never", Speed(19.0, 0.1, 50), [Speed(20.0, 0.1, 60)]),
    ]
    lines = text_of(rows, 7, 3).splitlines()
    assert lines[0].startswith("7 held-out replies, medians of 3 repeats")
    (one, two) = (line.split() for line in lines if line.startswith("never"))
    assert one[1:6] == ["11", "10", "9..10", "+10.0%", "100.000"] and one[7] == "+25.0%"
    assert two[4] == "-5.0%" and two[7:] == ["+0.0%", "50", "60"]
    assert "batch 1: absolute error median 10.0%, largest 10.0%; machine +10.0%" in lines
    assert lines[-1] == "all: median 7.5%"


def test_never_is_the_baseline() -> None:
    """The first of the default policies, which all ratios refer to, is plain decoding."""
    assert serving.DEFAULT_POLICIES.split(",")[0] == Never.name
