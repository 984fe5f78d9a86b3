"""Do recorded steps do what the same functions do run one by one? Asked once of every pair and
device before anything is decoded with graphs; where they do not, steps run eagerly.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch

from real_backend.decoding.cuda_graphs import GraphRecorder, Recorder, eagerly
from real_backend.decoding.graphs import GraphSteps
from real_backend.decoding.steps import Feed, Sampling
from real_backend.device_errors import out_of_memory
from real_backend.drafters.model import ModelDrafter
from real_backend.load_pair import Pair

_PROMPT, _CAPACITY, _DRAFTED = 12, 64, 3  # tokens
_ROUNDING = 64.0  # spacings of the format at the largest number compared


class GraphCheck(NamedTuple):
    """difference: the largest between a number that the recorded steps left (signals, keys and
    values of every layer) and the eager one; allowed: what rounding may do. reason: why graphs are
    not used, "" if they are.
    """

    difference: float
    allowed: float
    reason: str


def graphs_possible(pair: Pair) -> bool:
    """True where graphs can be recorded: both models lean, on a CUDA device."""
    lean = pair.lean and isinstance(pair.drafter, ModelDrafter)
    return lean and pair.device.startswith("cuda")


def recorder_of(pair: Pair) -> Recorder | None:
    """The recorder of this pair's graphs; None: its steps run eagerly. Checks them at the first
    call and says on stderr in one line how that went.
    """
    if not pair.graphs.allowed or not graphs_possible(pair):
        return None
    record = GraphRecorder(torch.device(pair.device))
    if pair.graphs.difference is None:
        found = check(pair, record)
        pair.graphs.difference = found.difference
        if found.reason:
            pair.graphs.allowed = False
            print(f"warning: CUDA graphs are off: {found.reason}", file=sys.stderr)
            return None
        print(
            f"CUDA graphs: a recorded round differs from an eager one by {found.difference:.2g}",
            file=sys.stderr,
        )
    return record


@torch.inference_mode()
def check(pair: Pair, record: Recorder) -> GraphCheck:
    """One round of three drafted tokens, recorded and eager, on two caches with the same prompt."""
    nan = float("nan")
    try:
        (numbers, tokens), (expected, same) = (_round(pair, how) for how in (record, eagerly))
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        return GraphCheck(nan, nan, f"recording failed ({str(error).strip().splitlines()[0]})")
    difference = max(float((a - b).abs().max()) for a, b in zip(numbers, expected, strict=True))
    largest = max(float(b.abs().max()) for b in expected)
    spacing = max(torch.finfo(cache).eps for cache in _dtypes(pair))
    allowed = _ROUNDING * spacing * largest
    wrong = tokens != same or not difference <= allowed  # NaN is wrong
    reason = (
        f"a recorded round differs from an eager one by {difference:.2g}, of which rounding "
        f"explains {allowed:.2g}; steps run eagerly"
    )
    return GraphCheck(difference, allowed, reason if wrong else "")


def _dtypes(pair: Pair) -> list[torch.dtype]:
    return [m.lean.embedding.dtype for m in (pair.target, pair.draft) if m.lean is not None]


def _round(pair: Pair, record: Recorder) -> tuple[list[torch.Tensor], list[int]]:
    """State that a round leaves on the device, and the tokens that came back; run twice, so that a
    graph is replayed at least once after it has been recorded.
    """
    steps, none = GraphSteps(pair, 1, _CAPACITY, record), [list[float]()]
    ids = [(7 * k + 3) % pair.vocab_size for k in range(_PROMPT)]
    steps.prefill(Feed(0, ids[:-1], 0))
    newest = Feed(0, ids[-1:], _PROMPT - 1)
    tokens: list[int] = []
    numbers: list[torch.Tensor] = []
    for _ in range(2):
        seen = [steps.draft_first([newest], Sampling(), True, none)]
        seen += [steps.draft_next([0]) for _ in range(_DRAFTED - 1)]
        verdict = steps.verify([newest], Sampling(), none)[0]
        tokens += [*verdict.drafted, verdict.accepted, verdict.extra]
        numbers.append(torch.tensor(seen, dtype=torch.float64))
    end = _PROMPT + _DRAFTED
    numbers += [cache[..., :end, :].double().cpu() for cache in steps.caches]
    return numbers, tokens
