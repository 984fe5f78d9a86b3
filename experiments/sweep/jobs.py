"""Settings of policies, replayed on traces at costs; chosen on one half, judged on the other.

A *world* is one trace at one cost and seed, split by question. A *job* is one policy in one world:
all its settings are replayed on both halves, and its rows saved as soon as they exist. A sweep that
was stopped goes on with the jobs that are missing. Settings are chosen by their seconds on the
training half alone; the held-out half is only reported.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import policies
import simulator
import traces
from experiments.censoring.intervals import complete
from experiments.common.cost_sources import step_costs
from experiments.common.parallel import run_jobs
from experiments.common.results import fits
from experiments.sweep.classifiers import FITS
from experiments.sweep.suites import MEASURED, Suite
from experiments.sweep.tuning import candidates
from policies.base import Policy, field_values
from policies.registry import label, parse_policy
from real_backend.progress import progress
from simulator.replay.totals import Tally, tally
from traces.costs.affine import Affine, at_ratio
from traces.costs.model import CostModel
from traces.costs.of_trace import by_levels, width_for
from traces.costs.pricing import StepCosts, tabulate
from traces.costs.table import Table
from traces.errors import InputError
from traces.schema import Trace
from traces.split import split_rows
from traces.store import content_hash, read_table, write_atomically
from traces.timing import Timing

TARGET_STEP_S = 1e-2  # of a world whose cost is a ratio, where nothing was measured


@dataclasses.dataclass(frozen=True, eq=False)
class Condition:
    """One trace at one cost and seed, in two halves."""

    trace: str
    cost: str
    seed: int
    train: Trace
    test: Trace
    costs: StepCosts

    @property
    def name(self) -> str:
        """As in file names: embedded-greedy-c8, with the seed if it is not 0."""
        parts = [self.trace, self.cost.replace("=", ""), *([f"s{self.seed}"] if self.seed else [])]
        return "-".join(parts)


class Job(NamedTuple):
    """All settings of one policy in world number `world`. searched: more than this one setting."""

    condition: int
    policy: Policy
    searched: bool
    search: str
    trials: int
    seed: int


def costs_of(cost: str, timing: Timing | None, trace: Trace) -> StepCosts:
    """Step costs by name: "measured" (of the timing), or "c=8", the cost ratio of the GammaTune
    paper: a target step of any width costs 8 draft steps, no other step costs anything. The unit is
    the timing's own one-token verify (traces.costs.affine.at_ratio), so that its own_s weighs there
    as much beside a target step as on that machine; without a timing no rule pays.

    Raises InputError for other names, or if "measured" has no timing.
    """
    if cost == MEASURED:
        if timing is None:
            raise InputError("the measured cost needs --timing")
        return step_costs(timing, trace)
    name, _, text = cost.partition("=")
    try:
        ratio = float(text)
    except ValueError:
        ratio = math.nan
    if name != "c":
        raise InputError(f"cost {cost!r} is unknown; known: {MEASURED}, c=RATIO")
    if not 0.0 < ratio < 1e6:
        raise InputError(f"cost {cost!r}: the ratio must be a number above 0 and below 1000000")
    unit: CostModel = Affine(target_fixed=TARGET_STEP_S) if timing is None else Table(timing)
    flat = tabulate(at_ratio(unit, ratio), max_context=0, width=width_for(trace))
    return by_levels(flat, trace)


def conditions_of(
    traces_: dict[str, Trace],
    costs: Sequence[str],
    seeds: Sequence[int],
    timing: Timing | None,
    held_out: Mapping[str, Trace] = MappingProxyType({}),
) -> list[Condition]:
    """Every trace at every cost and seed; of a censored trace one imputation, as in `compare`.

    held_out: recordings to judge on, by the name of the trace that is tuned on, then as a whole.
    """
    found = []
    for name, trace in traces_.items():
        other = held_out.get(name)
        longest = max(trace, other or trace, key=lambda one: one.longest_context)
        for seed in seeds:
            train, test = trace, other
            if test is None:
                played = trace if trace.censored is None else complete(trace, seed=seed).first_draw
                train, test = (played.select(rows) for rows in split_rows(trace, seed=seed))
            found += [
                Condition(name, cost, seed, train, test, costs_of(cost, timing, longest))
                for cost in costs
            ]
    return found


def jobs_of(suite: Suite, conditions: Sequence[Condition]) -> list[Job]:
    """One job per policy and world; policies that read signals only where the trace has them."""
    jobs = []
    for number, condition in enumerate(conditions):
        for spec in suite.policies:
            policy = parse_policy(spec)
            if not fits(policy, condition.train):
                continue
            searched = ":" not in spec
            jobs.append(Job(number, policy, searched, suite.search, suite.trials, condition.seed))
    return jobs


def work(conditions: Sequence[Condition], job: Job) -> list[dict[str, Any]]:
    """The rows of a job, in the order in which its settings were tried."""
    condition = conditions[job.condition]
    base = job.policy
    if job.searched and base.name in FITS:
        base = FITS[base.name](condition.train)

    @functools.cache
    def on_train(policy: Policy) -> Tally:
        return tally(policy, condition.train, condition.costs, seed=condition.seed)

    def seconds(policy: Policy) -> float:
        return float(on_train(policy).decode_s.sum())

    if job.searched:
        tried = [p for p, _ in candidates(base, job.search, job.trials, job.seed, seconds)]
    else:
        tried = [base]
    head = {
        "trace": condition.trace,
        "cost": condition.cost,
        "seed": condition.seed,
        "searched": job.searched,
    }
    return [
        head | {"trial": trial} | _row(condition, policy, on_train(policy))
        for trial, policy in enumerate(tried)
    ]


def _row(condition: Condition, policy: Policy, train: Tally) -> dict[str, Any]:
    test = tally(policy, condition.test, condition.costs, seed=condition.seed)
    row: dict[str, Any] = {
        "policy": policy.name,
        "label": label(policy),
        "fields": json.dumps(field_values(policy)),
    }
    for part, sums, trace in (("train", train, condition.train), ("test", test, condition.test)):
        row[f"{part}_s"] = float(sums.decode_s.sum())
        row[f"{part}_tokens"] = trace.positions
        for name in ("rounds", "drafted", "accepted"):
            row[f"{part}_{name}"] = int(getattr(sums, name).sum())
    tasks = np.asarray(condition.test.category)
    by_task = {
        task: float(test.decode_s[tasks == task].sum()) for task in sorted(set(tasks.tolist()))
    }
    return row | {"test_task_s": json.dumps(by_task)}


def code_fingerprint() -> str:
    """Of every source that a row depends on: rows of other code are not taken for ours."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for package in (policies, simulator, traces):
        for path in sorted(Path(package.__path__[0]).rglob("*.py")):
            digest.update(path.read_bytes())
    for name in ("classifiers.py", "jobs.py", "search_space.py", "suites.py", "tuning.py"):
        digest.update((here / name).read_bytes())
    return digest.hexdigest()


def fingerprints(conditions: Sequence[Condition], jobs: Sequence[Job]) -> list[str]:
    """Digests of all that each job's rows depend on, 20 hex digits each; its file's name."""
    code = code_fingerprint()
    about = []
    for condition in conditions:
        digest = hashlib.sha256(
            f"{condition.trace} {condition.cost} {condition.seed} {code}".encode()
        )
        digest.update((content_hash(condition.train) + content_hash(condition.test)).encode())
        for table in (condition.costs.prefill_s, condition.costs.draft_s, condition.costs.verify_s):
            digest.update(np.ascontiguousarray(table).tobytes())
        costs = condition.costs
        facts = (costs.bucket_tokens, costs.signal_s, sorted((costs.own_s or {}).items()))
        digest.update(repr(facts).encode())
        about.append(digest.hexdigest())
    keys = (f"{about[job.condition]} {label(job.policy)} {job[2:]}" for job in jobs)
    return [hashlib.sha256(key.encode()).hexdigest()[:20] for key in keys]


def sweep(
    conditions: Sequence[Condition],
    jobs: Sequence[Job],
    folder: Path,
    *,
    workers: int = 1,
    ray: str | None = None,
) -> list[dict[str, Any]]:
    """Run what is missing in folder/jobs and return all rows, in the order of the jobs.

    Raises InputError if a job's file is damaged; delete it to have it made again.
    """
    names = fingerprints(conditions, jobs)
    files = [folder / "jobs" / f"{name}.parquet" for name in names]
    missing = [number for number, file in enumerate(files) if not file.exists()]
    chosen = [jobs[number] for number in missing]
    with progress(len(jobs), "sweep", len(jobs) - len(missing)) as step:
        for index, rows in run_jobs(work, conditions, chosen, workers=workers, ray=ray):
            write_rows(rows, files[missing[index]], overwrite=True)
            step()
    return [row for file in files for row in read_rows(file)]


def write_rows(rows: Sequence[dict[str, Any]], path: Path, *, overwrite: bool) -> None:
    """Rows as Parquet, atomically; the same rows give the same bytes."""
    table = pa.Table.from_pylist(list(rows))
    header = {b"gammalab": json.dumps({"kind": "sweep", "version": 1}).encode()}
    table = table.replace_schema_metadata(header)
    write_atomically(path, lambda temporary: pq.write_table(table, temporary), overwrite)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Inverse of write_rows; raises InputError if the file is damaged."""
    try:
        table, _ = read_table(path, "sweep")
    except InputError as error:
        raise InputError(f"{error}; delete it and sweep again") from None
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def rows_of(rows: Sequence[dict[str, Any]], condition: Condition) -> list[dict[str, Any]]:
    """The rows of one world."""
    key = (condition.trace, condition.cost, condition.seed)
    return [row for row in rows if (row["trace"], row["cost"], row["seed"]) == key]


def tuned(rows: Sequence[dict[str, Any]], condition: Condition) -> list[Policy]:
    """The best setting of every searched policy in a world by its seconds on the training half,
    ties to the first tried, and every policy that the suite names with its fields.
    """
    best: dict[str, dict[str, Any]] = {}
    for row in rows_of(rows, condition):
        key = row["policy"] if row["searched"] else row["label"]
        kept = best.get(key)
        if kept is None or row["train_s"] < kept["train_s"]:
            best[key] = row
    return [parse_policy(row["label"]) for row in best.values()]
