"""A resumable optimisation loop: a killed run continued equals an uninterrupted one."""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from traces.store import write_atomically


class Recipe(NamedTuple):
    """One optimisation: AdamW, linear warm-up, cosine decay to a tenth of the peak rate.

    steps: of the optimiser.
    peak_rate: learning rate after the warm-up.
    checkpoint_s: seconds between two checkpoints.
    warmup_steps: of the rise to the peak.
    weight_decay: of AdamW.
    clip_norm: largest norm of a gradient.
    log_steps: steps of a mean in the loss curve.
    """

    steps: int
    peak_rate: float
    checkpoint_s: float = 60.0
    warmup_steps: int = 100
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    log_steps: int = 25

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.peak_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.peak_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


class TrainingProgress(NamedTuple):
    """Steps done, seconds of training, and (step, mean loss in nats since the entry before)."""

    step: int = 0
    train_s: float = 0.0
    losses: tuple[tuple[int, float], ...] = ()


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.peak_rate, betas=(0.9, 0.95), eps=1e-8)


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.AdamW, progress: TrainingProgress
) -> None:
    """Weights, moments and progress in one safetensors file, replaced in one rename."""
    tensors = {}
    for name, weight in model.named_parameters():
        state = optimizer.state[weight]
        tensors[f"weight/{name}"] = weight.detach()
        tensors[f"mean/{name}"], tensors[f"square/{name}"] = state["exp_avg"], state["exp_avg_sq"]
    note = {"note": json.dumps(progress._asdict())}
    write_atomically(path, lambda to: save_file(tensors, to, metadata=note), overwrite=True)


def read_progress(path: Path) -> TrainingProgress:
    """A checkpoint's record of the run that wrote it."""
    with safe_open(path, framework="pt") as stored:
        note = json.loads(stored.metadata()["note"])
    losses = tuple((int(step), float(loss)) for step, loss in note["losses"])
    return TrainingProgress(note["step"], note["train_s"], losses)


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.AdamW) -> TrainingProgress:
    """Restore what ``save_checkpoint`` wrote."""
    progress = read_progress(path)
    with safe_open(path, framework="pt") as stored, torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(stored.get_tensor(f"weight/{name}"))
            optimizer.state[weight] = {
                "step": torch.tensor(float(progress.step)),
                "exp_avg": stored.get_tensor(f"mean/{name}"),
                "exp_avg_sq": stored.get_tensor(f"square/{name}"),
            }
    return progress


def train(
    model: nn.Module, loss_of: Callable[[int], Tensor], recipe: Recipe, path: Path
) -> TrainingProgress:
    """Run or resume an optimisation; ``loss_of(step)`` may depend on step and weights only.

    The checkpoint at ``path`` is renewed at a log line when the last one is older than
    ``recipe.checkpoint_s``, and at the end.
    """
    optimizer = _optimizer(model, recipe)
    progress = load_checkpoint(path, model, optimizer) if path.exists() else TrainingProgress()
    started = saved = time.monotonic()
    before_s, losses, window = progress.train_s, list(progress.losses), []
    for step in range(progress.step, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        loss = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        window.append(loss.item())
        done, now = step + 1, time.monotonic()
        if done % recipe.log_steps and done != recipe.steps:
            continue
        losses.append((done, round(sum(window) / len(window), 4)))
        window = []
        progress = TrainingProgress(done, before_s + now - started, tuple(losses))
        print(
            f"{path.name.split('.')[0]} step {done}/{recipe.steps} loss {losses[-1][1]:.4f} "
            f"{progress.train_s:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        if done == recipe.steps or now - saved > recipe.checkpoint_s:
            save_checkpoint(path, model, optimizer, progress)
            saved = now
    return progress
