"""Sweeps as data: which policies, which of their fields, at which costs, on which traces."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from policies.registry import SHELF

Points = tuple[int, ...] | tuple[float, ...] | tuple[bool, ...]

DATA = Path(__file__).parents[2] / "traces" / "data"
GREEDY, SAMPLED = DATA / "embedded-greedy.parquet", DATA / "embedded-sampled.parquet"
TIMING = DATA / "timing-x86_64-cpu.json"
MEASURED = "measured"

CAPS = (4, 6, 8, 12, 16)
TOP1 = (0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.9)

SPACES: dict[str, dict[str, Points]] = {
    "fixed": {"gamma_tokens": tuple(range(1, 17))},
    "gammatune": {
        "gamma0": (2, 4, 8),
        "eta": (0.1, 0.3, 0.6),
        "delta": (1, 2, 4),
        "gamma_max": (4, 6, 10, 16),
        "clip_expansion": (False, True),
    },
    "gammatune+": {
        "tau": (0.2, 0.4, 0.5, 0.6, 0.7, 0.8),
        "eta": (0.1, 0.3, 0.6),
        "delta": (1, 2, 4),
        "gamma_max": (6, 10, 16),
        "early_stop": (0, 1, 2),
    },
    "hf-heuristic": {"gamma0": (1, 2, 3, 5, 8, 12, 20), "transient": (False, True)},
    "hf-heuristic+": {
        "gamma0": (3, 5, 10, 20),
        "threshold": TOP1,
        "transient": (False, True),
    },
    "streak": {
        "gamma0": (1, 3, 8),
        "streak": (1, 2, 3, 5, 11),
        "bias": (0, 1),
        "gamma_max": (4, 8, 16),
    },
    "rate-ema": {
        "base": (4, 8, 16),
        "decay": (0.7, 0.9, 0.95),
        "high": (0.6, 0.7, 0.8),
        "low": (0.3, 0.4, 0.5),
        "floor": (1, 2, 4),
    },
    "censored-ema": {
        "weight": (0.1, 0.25, 0.5),
        "probe": (0.5, 1.0, 2.0),
        "gamma_max": (4, 8, 16),
    },
    "rate-buckets": {
        "length_high": (6, 10, 15),
        "length_mid": (4, 6, 10),
        "length_low": (2, 5),
        "weight": (0.05, 0.1, 0.3),
    },
    "rate-servo": {
        "gamma0": (3, 5, 8),
        "threshold": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
        "window": (5, 10, 30),
        "gamma_max": (4, 8, 16),
    },
    "sglang-tiers": {
        "down": (-0.5, -0.25, 0.0),
        "up": (0.0, 0.25),
        "weight": (0.1, 0.2, 0.4),
        "interval": (1, 5, 10),
    },
    "batch-table": {"gamma1": tuple(range(1, 17))},
    "disable-gate": {
        "gamma_tokens": (2, 3, 4, 6, 8),
        "threshold": (0.1, 0.3, 0.5),
        "window": (16, 64, 256),
    },
    "hf-confidence": {"threshold": TOP1, "gamma_max": CAPS},
    "batch-confidence": {"threshold": TOP1, "gamma_max": CAPS},
    "hf-roc": {
        "threshold0": (0.2, 0.4, 0.6, 0.8),
        "miss_weight": (1, 2, 3, 5),
        "gamma_max": CAPS,
    },
    "draft-verify": {
        "threshold0": (0.2, 0.4, 0.6, 0.8),
        "target": (0.6, 0.75, 0.9),
        "epsilon": (0.01, 0.05),
        "gamma_max": (6, 8, 16),
    },
    "svip": {"threshold": (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6), "gamma_max": CAPS},
    "adaedl": {
        "threshold0": (0.2, 0.4, 0.6, 0.8),
        "scale": (0.1, 0.2, 0.5),
        "gamma_max": (4, 7, 16),
    },
    "tail-pruning": {"theta": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8), "gamma_max": CAPS},
    "profile-guided": {"gamma_max": (3, 4, 6, 8, 12, 16)},
    "disco": {"tau": TOP1, "gamma_max": CAPS},
    "specdec++": {
        "threshold": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        "gamma_min": (1, 2),
        "gamma_max": (6, 10, 16),
    },
    "vllm-dynamic": {"gamma_max": (3, 4, 6, 8, 12, 16), "probe_every": (8, 16, 64)},
    "sglang-throughput": {
        "gamma_min": (1, 2),
        "gamma_step": (1, 2),
        "gamma_max": (5, 7, 11),
        "window": (10, 20, 60),
        "hysteresis": (0.0, 0.1),
    },
    "smartspec": {
        "gamma_max": (4, 8, 16),
        "memory": (0.7, 0.85, 0.95, 0.99),
        "decide_every": (1, 5, 20),
        "plain_gain": (1.0, 1.1),
        "probe_every": (0, 16, 64),
    },
    "adaptive-k": {
        "gamma_max": (5, 10, 16),
        "eta": (0.1, 0.3),
        "window": (5, 10, 30),
        "hysteresis_tokens": (0, 1),
    },
    "cascade": {
        "gamma0": (2, 3, 5),
        "gamma_max": (4, 8, 16),
        "trial_rounds": (2, 4, 8),
        "set_rounds": (8, 16, 64),
    },
    "speckv": {"gamma0": (2, 4, 6, 8)},
    "ucb": {
        "gamma_min": (0, 1),
        "gamma_max": (4, 6, 8, 12),
        "exploration": (0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
    },
    "ucb1": {"gamma_min": (0, 1), "gamma_max": (3, 4, 6, 8, 12)},
    "ucbspec": {"gamma_max": (2, 3, 4, 6, 8), "delta": (0.01, 0.1, 1.0)},
    "ucbspec-released": {"gamma_max": (2, 3, 4, 6, 8)},
    "d-ucb": {
        "gamma_min": (0, 1),
        "gamma_max": (4, 6, 8),
        "exploration": (0.02, 0.1, 0.3),
        "discount": (0.98, 0.995, 0.999),
    },
    "sw-ucb": {
        "gamma_min": (0, 1),
        "gamma_max": (4, 6, 8),
        "exploration": (0.02, 0.1, 0.3),
        "window": (100, 400, 1600),
    },
    "exp3": {"gamma_min": (0, 1), "gamma_max": (4, 6, 8), "exploration": (0.02, 0.05, 0.1, 0.2)},
    "exp3spec": {"gamma_max": (2, 3, 4, 6, 8)},
    "thompson-beta": {"gamma_max": (4, 6, 8, 12), "discount": (0.9, 0.97, 0.99, 0.999)},
    "thompson-gauss": {"gamma_min": (0, 1), "gamma_max": (3, 4, 6, 8, 12)},
    "beg-mab": {"gamma_max": (2, 3, 4, 6, 8), "epsilon": (0.02, 0.1), "window": (50, 300)},
    "tapout": {
        "gamma_max": (4, 8, 16),
        "confidence": (0.4, 0.6, 0.8),
        "blend": (0.2, 0.5, 0.8),
        "exploration": (0.2, 0.7, 2.0),
    },
    "linucb": {
        "gamma_min": (0, 1),
        "gamma_max": (4, 6, 8),
        "exploration": (0.1, 0.5, 1.0),
        "memory": (0.8, 0.9, 0.97),
    },
    "lin-thompson": {
        "gamma_min": (0, 1),
        "gamma_max": (4, 6, 8),
        "exploration": (0.1, 0.5, 1.0),
        "memory": (0.8, 0.9, 0.97),
    },
    "nightjar": {"gamma_max": (3, 4, 6, 8), "switch_steps": (0.0, 1.0, 4.0)},
    "ollama-depth": {
        "gamma_max": (4, 8, 16),
        "acceptance_weight": (0.03, 0.1, 0.3),
        "cost_weight": (0.1, 0.3),
        "probe_every": (2, 4, 16),
        "samples": (5, 10, 30),
    },
    "onnx-adaptive-k": {
        "gamma_min": (1, 2, 3),
        "gamma_max": (4, 8, 16),
        "weight": (0.1, 0.25, 0.5),
        "high": (0.6, 0.75, 0.9),
        "wait_rejected": (2, 6, 20),
    },
    "leading-positions": {
        "gamma_max": (3, 5, 8, 12),
        "threshold": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
        "window": (32, 64, 256),
        "probe_every": (16, 64),
    },
    "context-table": {"short1": tuple(range(9)), "long1": tuple(range(9))},
    "length-table": {"gamma1": tuple(range(1, 17)), "context1": (64, 128, 256, 131072)},
    "credit-bucket": {
        "gamma_min": (1, 2, 3),
        "gamma_max": (4, 8, 12),
        "climb": (5, 10, 20),
        "drop": (5, 10, 20),
        "drop_depth": (2, 4, 10),
    },
    "zones": {
        "gamma_max": (4, 8, 16),
        "rounds": (1, 3, 11),
        "bias": (0, 1),
        "window": (10, 30),
        "positive": (5, 8, 24),
        "negative": (3, 5, 20),
    },
    "dsde": {
        "gamma_min": (1, 2, 6),
        "gamma_max": (6, 10, 20),
        "memory": (0.8, 0.85, 0.9),
        "scale": (0.5, 1.0, 2.0),
        "stretch": (0.5, 1.0),
    },
    "entropy-gate": {
        "gamma_tokens": (3, 4, 5, 8),
        "low": (0.15, 0.55, 1.0),
        "high": (0.7, 0.82, 1.5, 2.5),
        "weight": (0.35, 0.65, 1.0),
        "look_every": (1, 2, 4),
    },
    "specstop": {"gamma_max": (4, 6, 10, 20), "discount": (0.99, 0.999), "strength": (5.0, 20.0)},
    "ucb-specstop": {"gamma_max": (3, 4, 6, 8, 10), "beta_ms": (0.1, 0.3, 1.0, 3.0, 10.0)},
    "goodput": {
        "discount": (0.8, 0.9, 0.97, 0.99),
        "own_strength": (2.0, 6.0, 20.0),
        "pool_strength": (4.0, 16.0),
        "gamma_max": (6, 12),
    },
    "alpha-goodput": {
        "gamma_max": (4, 8, 16),
        "memory": (0.8, 0.95, 0.99),
        "probe_every": (8, 16, 64),
    },
    "hedge": {
        "gamma_max": (6, 12),
        "rate": (0.1, 0.3, 1.0),
        "share": (0.01, 0.05, 0.2),
        "discount": (0.97, 0.99),
    },
    "marginal": {"rate": (0.05, 0.1, 0.2), "memory": (0.99, 0.999), "look": (1, 3, 8)},
    "payback": {
        "rate": (0.05, 0.1, 0.2),
        "memory": (0.99, 0.999),
        "doubt": (0.5, 1.0, 2.0),
        "probe_every": (8, 16, 64),
    },
}
"""The points of every searched field, from which grids, random draws and Optuna are made."""

PAPER_GAMMAS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24)
PAPER_RULES = ("fixed:gamma", "gammatune:gamma0", "gammatune+:gamma0", "hf-heuristic:gamma0")
PAPER_VARIANTS = (
    "gammatune:clip_expansion=false,gamma0",
    "gammatune+:clip_expansion=false,gamma0",
    "gammatune+:early_stop=1,gamma0",
    "gammatune+:early_stop=2,gamma0",
)
"""What the port's worked example leaves open, answered otherwise than by default."""


@dataclasses.dataclass(frozen=True)
class Suite:
    """What a sweep goes through.

    policies: specs; a bare name is searched over its space, one with fields is taken as it is.
    costs: "measured" (the timing), or "c=8": a target step costs 8 draft steps, whatever its width.
    traces: the defaults, replaced by --trace. search, trials: how a bare name is searched, and how
    many settings of it are tried.
    """

    about: str
    policies: tuple[str, ...]
    costs: tuple[str, ...] = (MEASURED,)
    traces: tuple[Path, ...] = (GREEDY,)
    search: str = "grid"
    trials: int = 72
    seeds: tuple[int, ...] = (0,)


SUITES: dict[str, Suite] = {
    "leaderboard": Suite(
        "every controller, tuned, at the measured cost and at three cost ratios",
        policies=tuple(SHELF),
        costs=(MEASURED, "c=4", "c=8", "c=16"),
        traces=(GREEDY, SAMPLED),
    ),
    "cost-ratio": Suite(
        "which controller wins as the target grows dearer",
        policies=tuple(SHELF),
        costs=tuple(f"c={c}" for c in (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)),
        trials=24,
    ),
    "seeds": Suite(
        "does the ranking hang on how the questions were split?",
        policies=(
            "hf-confidence",
            "tail-pruning",
            "disco",
            "specdec++",
            "goodput",
            "marginal",
            "payback",
        ),
        seeds=tuple(range(8)),
    ),
    "ablation": Suite(
        "what each part of payback is worth",
        policies=(
            "payback:gamma_max=16",
            "marginal:gamma_max=16",
            "payback:look=1",
            "payback:rate=0",
            "marginal:look=1,rate=0",
            "goodput:gamma_max=12",
            "hedge:gamma_max=12",
        ),
        costs=(MEASURED, "c=4", "c=8", "c=16"),
        traces=(GREEDY, SAMPLED),
    ),
    "paper": Suite(
        "the experiment of arXiv 2504.00030: twelve initial lengths",
        policies=tuple(
            f"{rule}={gamma}" for rule in PAPER_RULES + PAPER_VARIANTS for gamma in PAPER_GAMMAS
        ),
        costs=("c=4", "c=6", "c=8", "c=10", MEASURED),
    ),
    "quick": Suite(
        "a look: five controllers, few settings",
        policies=("fixed", "gammatune", "hf-confidence", "tail-pruning", "payback"),
        trials=8,
    ),
}
