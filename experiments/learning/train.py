"""`gammalab train`: a network for a pair and a machine, from a trace and a timing to a policy file.

See experiments.learning.task for what is learned and on what. The held-out half is looked at once,
at the end.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.common.results import read_inputs, versions
from experiments.comparison.compare import compare
from experiments.comparison.result import Comparison
from experiments.learning import ppo
from experiments.learning.cloning import clone, demonstrations
from experiments.learning.task import Task, TrainingMemory, make_task, note
from experiments.options import TrainOptions
from policies.base import Policy
from policies.learned.neural import WIDEST, neural_policy, quantise
from policies.overhead import measured_overhead
from policies.registry import DEFAULT, label, parse_policy, title, write_policies
from real_backend.command_line import Result
from real_backend.progress import progress
from traces.errors import InputError, missing
from traces.json_text import dumps
from traces.store import content_hash, refuse_existing, write_atomically

ALGORITHMS = ("ppo", "clone", "sb3-ppo", "sb3-dqn")
THREADS = 1  # of torch: sums in another order would end elsewhere, and layers are small
DEMONSTRATED = 512  # steps of every lane


def fit_ppo(
    task: Task,
    settings: ppo.PPOSettings,
    *,
    lanes: int,
    folder: Path,
    check: int = 25,
    patience: int = 30,
    warm: bool = True,
) -> TrainingMemory:
    """Train; every `check` iterations the policy is judged on the validation requests, the run
    saved to `folder`, and stopped if it has not got better `patience` times. Goes on from `folder`.
    """
    torch.set_num_threads(THREADS)
    state, run = ppo.State(task.env(lanes), settings), TrainingMemory()
    if not resume(state, run, folder) and warm:
        seen, done = demonstrations(task.env(lanes), DEMONSTRATED, settings.seed)
        clone(state.policy, seen, done, seed=settings.seed)
    with progress(settings.iterations, "train", state.iteration) as step:
        began, before = time.perf_counter(), run.curve[-1]["seconds"] if run.curve else 0.0
        while state.iteration < settings.iterations and run.checks_since < patience:
            reward = ppo.advance(state)
            step()
            if state.iteration % check == 0 or state.iteration == settings.iterations:
                seconds = before + time.perf_counter() - began
                steps = state.iteration * lanes * settings.horizon
                weights = ppo.weights_of(state.policy)
                note(run, task, weights, steps=steps, seconds=seconds, reward=reward)
                save(state, run, folder)
    return run


def save(state: ppo.State, run: TrainingMemory, folder: Path) -> None:
    """checkpoint.safetensors, with the curve in its header, and curve.csv for readers."""
    from safetensors.torch import save_file

    tensors = {name: value.clone() for name, value in state.tensors().items()}
    tensors |= {f"best.{k}": torch.from_numpy(np.asarray(w)) for k, w in enumerate(run.best)}
    about = {"curve": run.curve, "score": run.best_score, "since": run.checks_since}
    metadata = {"progress": json.dumps(about)}
    write_atomically(
        folder / "checkpoint.safetensors",
        lambda path: save_file(tensors, path, metadata),
        overwrite=True,
    )
    write_curve(run, folder / "curve.csv")


def write_curve(run: TrainingMemory, path: Path) -> None:
    """One line per judgement."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(run.curve[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(run.curve)
    write_atomically(path, lambda to: to.write_text(text.getvalue(), "utf-8"), overwrite=True)


def resume(state: ppo.State, run: TrainingMemory, folder: Path) -> bool:
    """Go on from a checkpoint, if there is one; raises InputError if it cannot be read."""
    from safetensors import SafetensorError, safe_open

    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["progress"])
            names: list[str] = file.keys()  # the file itself cannot be looped over
            saved: dict[str, Tensor] = {name: file.get_tensor(name) for name in names}
        state.load(saved)
        run.best = [saved[f"best.{k}"].numpy() for k in range(6)]
        run.curve, run.best_score = about["curve"], about["score"]
        run.checks_since = about["since"]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path} is no checkpoint of this run ({str(error).splitlines()[0]}); delete it or "
            "pass --force to train anew"
        ) from None
    return True


def fit_clone(task: Task, settings: ppo.PPOSettings, *, lanes: int) -> TrainingMemory:
    """The clairvoyant schedule, cloned and nothing more."""
    torch.set_num_threads(THREADS)
    env = task.env(lanes)
    torch.manual_seed(settings.seed)
    policy = ppo.layers(env.stage.numbers, settings.hidden, env.choices)
    seen, done = demonstrations(env, DEMONSTRATED, settings.seed)
    clone(policy, seen, done, seed=settings.seed)
    weights = ppo.weights_of(policy)
    run = TrainingMemory()
    note(run, task, weights, steps=len(done), seconds=0.0, reward=float("nan"))
    return run


def charge(policy: Any) -> Any:
    """The policy with its own arithmetic, as the engine runs it on this machine, in its fields."""
    round_s, token_s = measured_overhead(policy)
    if policy.name == "neural-round":
        return neural_policy(policy.network, round_s=round_s)
    return neural_policy(
        policy.network, gamma_max=policy.gamma_max, round_s=round_s, token_s=token_s
    )


def run(options: TrainOptions) -> Result:
    """Train, export, and say what the network is worth on the held-out half."""
    out = (
        options.out
        if options.out.suffix == ".json"
        else options.out.with_name(options.out.name + ".json")
    )
    if options.algo not in ALGORITHMS:
        raise InputError(f"--algo is {options.algo!r}; known: {', '.join(ALGORITHMS)}")
    if options.hidden > WIDEST:
        raise InputError(f"--hidden is {options.hidden}; a layer holds at most {WIDEST} numbers")
    refuse_existing(out, options.force)
    traces, timing = read_inputs(options.trace, options.timing)
    ratios = [0.0] if options.cost_ratios is None else numbers("--cost-ratios", options.cost_ratios)
    task = make_task(traces, timing, unit=options.unit, ratios=ratios, seed=options.split_seed)
    settings = ppo.PPOSettings(
        iterations=options.iterations,
        hidden=options.hidden,
        seed=options.seed,
        learning_rate=options.rate,
    )
    folder = out.with_suffix(".run")
    about = {
        "algo": options.algo, "unit": options.unit, "lanes": options.lanes,
        "warm_start": options.warm_start,
        "settings": dataclasses.asdict(settings), "cost_ratios": ratios,
        "split_seed": options.split_seed, "traces": [content_hash(trace) for trace in traces],
        "timing": timing.meta, "torch": torch.__version__,
    }  # fmt: skip
    begin(folder, about, force=options.force)
    found = train(options.algo, task, settings, options.lanes, folder, warm=options.warm_start)
    policy = charge(neural_policy(quantise(*found.best)))
    judged = [
        (
            f"{path.name}, {f'c = {ratio:g}' if ratio else 'measured costs'}",
            compare(trace, costs, entrants(policy), seed=options.split_seed),
        )
        for path, trace in zip(options.trace, traces, strict=True)
        for ratio, costs in zip(ratios, task.fit.costs, strict=True)
    ]
    meta = about | {"versions": versions(), "validation": found.best_score}
    write_policies([policy], out, meta, overwrite=options.force)
    text = "\n\n".join(held_out(where, part) for where, part in judged)
    steps = f"{found.curve[-1]['steps']:,.0f} steps in {found.curve[-1]['seconds']:.0f} s"
    lines = [text, "", f"{out}: {title(label(policy))}; {steps}; curve in {folder / 'curve.csv'}"]
    return Result("\n".join(lines), {"policy": str(out), "curve": found.curve})


def train(
    algo: str, task: Task, settings: ppo.PPOSettings, lanes: int, folder: Path, *, warm: bool
) -> TrainingMemory:
    """The run of one algorithm."""
    if algo == "ppo":
        return fit_ppo(task, settings, lanes=lanes, folder=folder, warm=warm)
    if algo == "clone":
        return fit_clone(task, settings, lanes=lanes)
    try:
        from experiments.learning.sb3 import fit_sb3
    except ImportError as error:
        raise missing(f"--algo {algo}", "Stable-Baselines3", "stable-baselines3>=2.4") from error
    return fit_sb3(algo.removeprefix("sb3-"), task, settings, lanes=lanes)


def begin(folder: Path, about: dict[str, Any], *, force: bool) -> None:
    """Note what is trained; raises InputError if another run lies there."""
    path = folder / "run.json"
    text = dumps(about)
    if force:
        for name in ("checkpoint.safetensors", "run.json", "curve.csv"):
            (folder / name).unlink(missing_ok=True)
    elif path.exists() and path.read_text("utf-8").strip() != text.strip():
        raise InputError(
            f"{path}: another run was begun there; choose another --out, or delete that one"
        )
    write_atomically(path, lambda to: to.write_text(text + "\n", "utf-8"), overwrite=True)


def numbers(option: str, text: str) -> list[float]:
    """Numbers separated by commas; raises InputError naming the option."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 <= value < math.inf for value in found):
        raise InputError(f"{option} is {text!r}; give numbers of 0 or more, separated by commas")
    return found


def entrants(policy: Policy) -> list[Policy]:
    """The network, and what it is up against."""
    return [policy, *map(parse_policy, (DEFAULT, "payback", "gammatune"))]


def held_out(where: str, part: Comparison) -> str:
    """The table of the held-out half."""
    lines = [f"{where}: {len(part.test_rows)} held-out replies, tokens/s over the tuned length"]
    for row in part.rows:
        if row.role in ("policy", "tuned", "clairvoyant"):
            value, low, high = row.vs_fixed
            lines.append(
                f"  {title(row.name):42}{value:7.3f} ({low:.3f}-{high:.3f})  {row.verdict}"
            )
    return "\n".join(lines)
