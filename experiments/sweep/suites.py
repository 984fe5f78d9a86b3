"""Sweeps as data: which policies, at which costs, on which traces, searched how."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from policies.registry import REGISTRY
from traces.shipped import GREEDY, SAMPLED

MEASURED = "measured"

PAPER_GAMMAS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24)
PAPER_RULES = ("fixed:gamma", "gammatune:gamma0", "gammatune+:gamma0", "hf-heuristic:gamma0")
PAPER_VARIANTS = (
    "gammatune:clip_expansion=false,gamma0",
    "gammatune+:clip_expansion=false,gamma0",
    "gammatune+:early_stop=1,gamma0",
    "gammatune+:early_stop=2,gamma0",
)
"""Other answers than the defaults to the port's open questions."""


@dataclasses.dataclass(frozen=True)
class Suite:
    """A sweep as data.

    policies: specs; a bare name is searched over its space, one with fields is taken as it is.
    costs: "measured" (the timing), or "c=8": a target step costs 8 draft steps, whatever its width.
    traces: the defaults, replaced by --trace.
    search, trials: how a bare name is searched, and how many settings of it are tried.
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
        policies=tuple(REGISTRY),
        costs=(MEASURED, "c=4", "c=8", "c=16"),
        traces=(GREEDY, SAMPLED),
    ),
    "cost-ratio": Suite(
        "which controller wins as the target grows dearer",
        policies=tuple(REGISTRY),
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
