"""A draft tree that grows as the setting of an engine: SGLang's steps, top-k and draft tokens.

SGLang grows a tree as EAGLE-2 does, whatever drafts it: a beam of topk for num-steps levels, of
whose candidates the likeliest are verified beside the newest token, num-draft-tokens in all. vLLM
drafts and verifies trees of EAGLE heads (`speculative_token_tree`, vllm-project/vllm, pull request
20401), but the sampler that would accept them (22752) was closed unmerged.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from experiments.common.cost_sources import step_costs
from experiments.common.results import command_line, describe_inputs, versions
from experiments.common.text_table import number, table
from experiments.export.text import wrapped
from policies.fixed import Fixed, Never
from simulator.replay.hindsight import best_fixed
from simulator.replay.replay import replay
from traces.costs.of_trace import tabulate_for
from traces.costs.pricing import StepCosts
from traces.costs.table import Table
from traces.errors import InputError
from traces.schema import Trace
from traces.shapes.growth import Growth, read_growth
from traces.shapes.shape import Grown, Shape, parse_draft
from traces.shapes.unfold import under
from traces.split import split_rows
from traces.timing import Timing

SOURCE = (
    "--speculative-num-steps, -eagle-topk, -num-draft-tokens: "
    "docs/advanced_features/speculative_decoding.md; the tokens are the nodes and the newest one"
)
ALGORITHMS = {"model": "STANDALONE", "eagle3": "EAGLE3"}  # of a kind of drafter, in SGLang

_TREE = re.compile(r"[gp]?\d[\dx.]*")  # no policy's name begins so


def tree_named(text: str) -> Shape | Grown | None:
    """The draft tree of this text; None for a policy. Raises InputError for no sound tree."""
    return parse_draft(text) if _TREE.fullmatch(text) else None


def setting_of(tree: Shape | Grown, engine: str) -> dict[str, int]:
    """The engine's fields of a tree. Raises InputError where it drafts no such tree."""
    if engine == "vllm":
        raise InputError(
            "--to vllm: it drafts and verifies trees of EAGLE heads, but the sampler that would "
            "accept them (pull request 22752) is not merged; sglang takes trees"
        )
    if engine != "sglang":
        raise InputError(f"--to {engine}: of a pair of models it drafts chains; sglang takes trees")
    if not isinstance(tree, Grown):
        raise InputError(f"{tree}: SGLang grows its trees; ask for one that grows, as g8x3x16")
    if not tree.nodes_wanted:
        raise InputError(
            f"{tree}: SGLang picks the nodes among all levels; say how many, as {tree}x{tree.nodes}"
        )
    return {
        "speculative_num_steps": tree.depth,
        "speculative_eagle_topk": tree.beam,
        "speculative_num_draft_tokens": tree.nodes + 1,
    }


def export_tree(
    tree: Shape | Grown,
    engine: str,
    trace: Trace,
    timing: Timing,
    grown: Path | None,
    seed: int,
) -> tuple[str, dict[str, Any]]:
    """The text to paste, and the same for programs; replayed beside the tuned chain and plain
    decoding, at batch 1 on the held-out half. grown: the recorded trees.

    Raises InputError where the engine drafts no such tree, or it is not recorded.
    """
    fields = setting_of(tree, engine)
    if trace.meta.drafter not in ALGORITHMS:
        raise InputError(f"{tree}: SGLang grows no trees for a drafter {trace.meta.drafter!r}")
    assert isinstance(tree, Grown)
    if grown is None:
        raise InputError(f"{tree}: give --grown, the trees of `python -m real_backend.trees.grow`")
    growth = read_growth(grown, trace)
    if growth.beam != tree.beam or growth.depth < tree.depth:
        raise InputError(
            f"{tree}: {grown} has a beam of {growth.beam} and {growth.depth} levels; grow those"
        )
    train, test = split_rows(trace, seed=seed)
    speeds = _speeds(tree, trace, timing, growth, train, test)
    command = ["python3", "-m", "sglang.launch_server", "--model-path", trace.meta.target]
    settings: dict[str, Any] = {
        "speculative_algorithm": ALGORITHMS[trace.meta.drafter],
        "speculative_draft_model_path": trace.meta.draft,
        **fields,
    }
    for field, value in settings.items():
        command += ["--" + field.replace("_", "-"), str(value)]
    best = max(speeds, key=lambda name: speeds[name])
    advice = "" if best == str(tree) else f"{best} is faster here, by this replay."
    shown = table(
        ("replayed at batch 1, held-out half", "tokens/s"),
        [("", [[name, number(speed, 1)] for name, speed in speeds.items()])],
    )
    lines = [f"{tree} for SGLang", *wrapped(advice), "", *shown.splitlines(), ""]
    lines += wrapped(f"where the fields are from: {SOURCE}")
    text = "\n".join(f"# {line}".rstrip() for line in lines) + "\n" + shlex.join(command)
    content = {
        "policy": str(tree), "engine": engine, "settings": settings, "command": shlex.join(command),
        "advice": advice, "sources": [SOURCE], "predicted": speeds,
        "made_by": command_line(), "versions": versions(),
    }  # fmt: skip
    return text, content | describe_inputs(trace, trace.meta.pair, timing)


def _speeds(
    tree: Grown, trace: Trace, timing: Timing, growth: Growth, train: Any, test: Any
) -> dict[str, float]:
    """Held-out tokens/s of the tree, of the chain that the training half chose, and of none."""
    costs, held = step_costs(timing, trace), trace.select(test)
    shaped = under(held, tree, growth.select(test))
    chain_tokens = best_fixed(trace.select(train), costs)[0]

    def speed(tokens: int, rows: Trace, prices: StepCosts) -> float:
        policy = Fixed(tokens) if tokens else Never()
        return held.positions / float(replay(policy, rows, prices).elapsed_s.sum())

    return {
        str(tree): speed(tree.depth, shaped, tabulate_for(shaped, Table(timing))),
        f"chain of {chain_tokens}, tuned": speed(chain_tokens, held, costs),
        "plain decoding": speed(0, held, costs),
    }
