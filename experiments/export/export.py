"""`gammalab export`: a policy as the settings that a serving engine accepts, and what is lost.

Settings are chosen on the training half of the questions and reported on the held-out one, as in
`compare`. A fixed length stays what it is. A controller that the engine has as well keeps its
numbers. One that stops at doubtful tokens becomes the best such stop where the engine has one.
Everything else becomes the best fixed length, by batch size where the engine has a table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from experiments.common.cost_sources import step_costs
from experiments.common.results import read_input
from experiments.export.engines import EngineSetting, Names, ServingEngine, find_engine
from experiments.export.replay import (
    Batches,
    best_ranges,
    measured_sizes,
    run_batches,
    setting_seconds,
)
from experiments.export.result import BatchRow, Export, Predicted
from experiments.export.text import advice, export_dict, export_text
from experiments.export.trees import export_tree, tree_named
from experiments.options import ExportOptions
from policies.base import Policy, uses_signals
from policies.confidence.roc import HFRocConfidence
from policies.confidence.thresholds import HFConfidence
from policies.counts.gammatune import GammaTunePlus
from policies.counts.heuristic import HFHeuristic
from policies.fixed import Fixed, Never
from policies.registry import label, parse_policy
from real_backend.command_line import Result
from simulator.replay.hindsight import best_fixed
from simulator.replay.replay import replay
from traces.costs.pricing import StepCosts
from traces.errors import InputError, warn
from traces.json_text import dumps
from traces.schema import Trace, refuse_censored
from traces.split import split_rows
from traces.store import refuse_existing, write_atomically
from traces.timing import Timing

THRESHOLDS = tuple(k / 20 for k in range(1, 20))


@dataclasses.dataclass(frozen=True, eq=False)
class Halves:
    """Halves that settings are chosen on (train) and reported on (test).

    costs: of one request alone. on_train, on_test: every fixed length in lock-step batches; at
    batch 1 only if the engine's setting cannot be about batches.
    """

    train: Trace
    test: Trace
    costs: StepCosts
    on_train: Batches
    on_test: Batches


def export(
    policy: Policy, engine: ServingEngine, trace: Trace, timing: Timing, seed: int = 0
) -> Export:
    """Translate a policy and replay both; raises InputError if the trace cannot be split, or lacks
    the signals that the policy reads.
    """
    names = Names(trace.meta.target, trace.meta.draft, trace.meta.drafter)
    names.others(engine.name, 1)  # before the work: does it have such a drafter?
    if names.kind in ("lookup", "suffix", "block"):  # no engine stops these at a doubtful token
        engine = dataclasses.replace(engine, stops=False, discards=False)
    train, test = (trace.select(rows) for rows in split_rows(trace, seed=seed))
    steps = step_costs(timing, trace)
    policy_s = float(replay(policy, test, steps, seed=seed).elapsed_s.sum())
    sizes = measured_sizes(timing) if engine.batches else (1,)
    on_train, on_test = (run_batches(part, timing, steps, sizes) for part in (train, test))
    bench = Halves(train, test, steps, on_train, on_test)
    setting = choose(policy, engine, bench)
    return Export(
        policy=policy,
        engine=engine,
        setting=setting,
        rendered=engine.render(setting, names),
        names=names,
        predicted=predict(policy_s, setting, engine, bench),
        depth=trace.meta.depth,
        temperature=trace.meta.temperature,
    )


def choose(policy: Policy, engine: ServingEngine, bench: Halves) -> EngineSetting:
    """The engine's setting for a policy; what is free in it is tuned on the training half."""
    if isinstance(policy, Never):
        return EngineSetting(0)
    if isinstance(policy, Fixed):
        return EngineSetting(policy.gamma_tokens)
    if engine.name == "hf" and isinstance(policy, HFHeuristic):
        kept = "heuristic_transient" if policy.transient else "heuristic"
        return EngineSetting(policy.gamma0, schedule=kept)
    if engine.name == "hf" and isinstance(policy, HFRocConfidence):
        return EngineSetting(policy.gamma_max, policy.threshold0, moving=True)
    if engine.stops and uses_signals(policy):
        return best_stop(stops(policy, bench.train.meta.depth), engine, bench)
    if engine.table and len(bench.on_train.sizes) > 1:
        return best_table(engine, bench.on_train)
    return EngineSetting(best_fixed(bench.train, bench.costs)[0])


def stops(policy: Policy, depth: int) -> list[EngineSetting]:
    """The stops at one doubtful token that a policy may become; what it fixes stays fixed."""
    longest = int(getattr(policy, "gamma_max", depth))
    if isinstance(policy, HFConfidence):
        return [EngineSetting(longest, policy.threshold)]
    if isinstance(policy, GammaTunePlus):
        return [EngineSetting(cap, policy.tau) for cap in range(1, min(longest, depth) + 1)]
    return [EngineSetting(longest, threshold) for threshold in THRESHOLDS]


def best_stop(
    candidates: Iterable[EngineSetting], engine: ServingEngine, bench: Halves
) -> EngineSetting:
    """The candidate with the fewest seconds on the training half; ties to the first."""
    return min(
        candidates, key=lambda setting: setting_seconds(setting, engine, bench.train, bench.costs)
    )


def best_table(engine: ServingEngine, batches: Batches) -> EngineSetting:
    """The best length of every batch size under the engine's rules.

    No table where it would say nothing: 0 throughout, or one length in an engine that goes on with
    the last row.
    """
    seconds = batches.priced(engine.idle_draft)
    highest = seconds.shape[1] - 1
    ranges = best_ranges(batches.sizes, seconds, highest)
    if engine.falling:
        highest = ranges[0][2]
        ranges = best_ranges(batches.sizes, seconds, highest)
    longest = max(gamma for _, _, gamma in ranges)
    silent = longest == 0 or (len(ranges) == 1 and not engine.ends)
    return EngineSetting(longest, table=() if silent else ranges)


def predict(
    policy_s: float, setting: EngineSetting, engine: ServingEngine, bench: Halves
) -> Predicted:
    """Replay the setting on the held-out half. policy_s: decode seconds of the policy there."""
    held = bench.on_test

    def speed(what: EngineSetting) -> float:
        if what.table:
            return held.tokens_per_s(1, what.at(1), idle_draft=engine.idle_draft)
        return held.tokens / setting_seconds(what, engine, bench.test, bench.costs)

    policy_speed, exported = held.tokens / policy_s, speed(setting)
    others = alternatives(setting, engine, bench.test)
    return Predicted(
        policy_tokens_per_s=policy_speed,
        exported_tokens_per_s=exported,
        plain_tokens_per_s=held.tokens_per_s(1, 0),
        loss=1.0 - exported / policy_speed,
        alternatives={what: speed(other) for what, other in others.items()},
        batches=batch_rows(setting, engine, bench) if engine.batches else (),
    )


def batch_rows(
    setting: EngineSetting, engine: ServingEngine, bench: Halves
) -> tuple[BatchRow, ...]:
    """The exported length at every measured batch size, beside the best one."""
    held, best = bench.on_test, bench.on_train.seconds.argmin(axis=1).tolist()
    # A zero inside a table is not the same as a server without a draft model.
    idle = engine.idle_draft and bool(setting.table)
    return tuple(
        BatchRow(
            batch=size,
            gamma=setting.at(size),
            tokens_per_s=held.tokens_per_s(size, setting.at(size), idle_draft=idle),
            plain_tokens_per_s=held.tokens_per_s(size, 0),
            best_gamma=gamma,
            best_tokens_per_s=held.tokens_per_s(size, gamma),
        )
        for size, gamma in zip(held.sizes, best, strict=True)
    )


def alternatives(
    setting: EngineSetting, engine: ServingEngine, trace: Trace
) -> dict[str, EngineSetting]:
    """Other settings that a user of the engine may end up with.

    transformers moves a threshold if scikit-learn is installed; its defaults are 20 and 0.4.
    """
    if engine.name != "hf" or not trace.has_signals or setting.gamma == 0:
        return {}
    if setting.threshold > 0:
        where = "without scikit-learn" if setting.moving else "with scikit-learn"
        return {f"exported, {where}": dataclasses.replace(setting, moving=not setting.moving)}
    return {"transformers' own defaults": EngineSetting(20, 0.4, moving=True)}


def run(options: ExportOptions) -> Result:
    """`gammalab export`."""
    engine, tree = find_engine(options.to), tree_named(options.policy)
    policy = None if tree else parse_policy(options.policy)
    if tree is None and options.grown is not None:
        raise InputError("--grown goes with a draft tree that grows, as g8x3x16")
    if options.out is not None:
        refuse_existing(options.out, options.force)
    trace, timing = read_input(options.trace, options.timing)
    refuse_censored(trace, "export")
    if tree is not None:
        text, content = export_tree(tree, engine.name, trace, timing, options.grown, options.seed)
        said = content["advice"]
    else:
        assert policy is not None
        result = export(policy, engine, trace, timing, options.seed)
        about = result, trace, options.trace.name, timing, options.timing.name
        content, text, said = export_dict(*about), export_text(*about), advice(result)
    if said:
        warn(said)
    if options.out is None:
        return Result(text, content)
    kept = (dumps(content) if options.json else text) + "\n"
    write_atomically(options.out, lambda to: to.write_text(kept, "utf-8"), options.force)
    what = label(policy) if policy else tree
    return Result(f"{options.out}: {what} for {engine.title}", content)
