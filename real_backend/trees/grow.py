"""Record the trees that grow along a recording's replies: `python -m real_backend.trees.grow`.

At every position the draft model alone grows a tree, as real_backend.trees.grown_steps does in a
round that starts there, and what of it the reply would meet is kept (traces.shapes.growth).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from real_backend.command_line import Result, run_module
from real_backend.decoding.steps import GREEDY, Feed
from real_backend.load_pair import Pair, pair_from
from real_backend.options import GrowOptions
from real_backend.partial_file import PartialFile, finished, partial_path
from real_backend.progress import progress
from real_backend.prompts import Request, questions_of, requests_of_trace
from real_backend.trees.grown_steps import GrownSteps, Level
from traces.schema import Trace
from traces.shapes.growth import OUTSIDE, Growth, hash_of_reply, write_growth
from traces.shapes.shape import Grown
from traces.shapes.unfold import check_whole
from traces.store import read_trace, refuse_existing


def grow(
    pair: Pair,
    requests: Sequence[Request],
    trace: Trace,
    beam: int,
    depth: int,
    kept: PartialFile | None = None,
) -> Growth:
    """The trees along the trace's replies; requests: one per row. kept: what was grown so far.

    Raises InputError as traces.shapes.unfold.check_whole and GrownSteps.
    """
    check_whole(trace)
    reply = hash_of_reply(trace)
    assert trace.token_ids is not None
    kept = kept or PartialFile(None, {})
    steps = GrownSteps(pair, 1, trace.longest_context + depth + 1, Grown(beam, depth))
    with progress(trace.requests, "growing trees", len(kept.found)) as step:
        for row in range(len(kept.found), trace.requests):
            begin, end = int(trace.offsets[row]), int(trace.offsets[row + 1])
            kept.keep(_along(steps, requests[row].prompt_ids, trace.token_ids[begin:end].tolist()))
            step()
    found = {name: [part[name] for part in kept.found] for name in ("before", "share", "entropy")}
    return Growth(
        beam=beam,
        offsets=trace.offsets,
        before=np.concatenate(found["before"]).astype(np.int16).reshape(-1, depth, depth),
        share=np.concatenate(found["share"]).astype(np.float32).reshape(-1, depth),
        entropy=np.concatenate(found["entropy"]).astype(np.float32).reshape(-1, depth),
        reply=reply,
    )


@torch.inference_mode()
def _along(steps: GrownSteps, prompt: Sequence[int], reply: Sequence[int]) -> dict[str, Any]:
    """Of every position of one reply; JSON-ready."""
    depth, ids, tree = steps.depth, list(prompt), steps.rows[0]
    if len(ids) > 1:
        steps.prefill(Feed(0, ids[:-1], 0))
    before, share, entropy = list[int](), list[float](), list[float]()
    for at, token in enumerate(reply):
        newest = Feed(0, ids[-1:], len(ids) - 1)
        if steps.taps and newest.start == 0:  # no state to draft from
            share += [0.0] * depth
            entropy += [0.0] * depth
            before += [OUTSIDE] * (depth * depth)
            steps.verify([newest], GREEDY, [[]])
            ids.append(token)
            continue
        steps.draft_first([newest], GREEDY, False, [])
        for level in range(depth):
            if level > 0:
                steps.draft_next([0])
            share.append(tree.share)
            entropy.append(tree.entropy)
        before += ranks(tree.levels, reply[at : at + depth]).ravel().tolist()
        if steps.taps:  # the target's state of the newest token is what the next draft begins with
            tree.levels = []
            steps.verify([newest], GREEDY, [[]])
        ids.append(token)
    return {"before": before, "share": share, "entropy": entropy}


def ranks(levels: Sequence[Level], reply: Sequence[int]) -> Any:
    """[D, D] int: candidates of every level that come before the reply's own node of every level,
    as traces.shapes.growth.Growth.before. reply: its next tokens, D or fewer.
    """
    depth = len(levels)
    found = np.full((depth, depth), OUTSIDE, dtype=np.int64)
    own = 0  # the reply's node of the level above, among its candidates
    for k, token in enumerate(reply):
        level = levels[k]
        mine = np.flatnonzero((level.parent == own) & (level.tokens == token))
        if len(mine) == 0:
            break
        own = int(mine[0])
        for m, other in enumerate(levels):
            found[k, m] = (other.prob > level.prob[own]).sum()
            if m < k:  # as likely ones of earlier levels come first, too
                found[k, m] += (other.prob == level.prob[own]).sum()
        found[k, k] = own
    return found


def run(options: GrowOptions) -> Result:
    """The command. Raises InputError for recordings whose trees cannot be replayed."""
    Grown(options.beam, options.levels)  # refused before anything is kept
    unfinished = partial_path(options.out)
    if options.force:
        unfinished.unlink(missing_ok=True)
    refuse_existing(options.out, options.force or unfinished.exists())  # begun with --force
    trace = read_trace(options.trace)
    check_whole(trace)
    questions, pair = questions_of(options.pair, options.prompts), pair_from(options.pair)
    requests = requests_of_trace(questions, trace, pair)
    asked = {"reply": hash_of_reply(trace), "beam": options.beam, "levels": options.levels}
    kept = PartialFile(unfinished, asked | pair.describe())
    growth = grow(pair, requests, trace, options.beam, options.levels, kept)
    write_growth(Path(options.out), growth, overwrite=True)
    finished(unfinished)
    return Result(
        f"{options.out}: trees of beam {options.beam} and {options.levels} levels at "
        f"{trace.positions:,} positions of {trace.requests} replies"
    )


if __name__ == "__main__":
    sys.exit(run_module("real_backend.trees.grow", __doc__, GrowOptions, run))
