"""Which steps a pair gets: the leanest that its layouts and its device allow."""

from __future__ import annotations

from real_backend.decoding.eager import EagerSteps
from real_backend.decoding.graph_check import recorder_of
from real_backend.decoding.graphs import GraphSteps
from real_backend.decoding.lookup_steps import LookupSteps
from real_backend.decoding.solo import SoloSteps
from real_backend.decoding.steps import Steps
from real_backend.device_errors import device_faults
from real_backend.drafters.drafter import LooksUp
from real_backend.drafters.model import ModelDrafter
from real_backend.load_pair import Pair, check_caches

SMALLER = "a smaller --batch, shorter prompts or replies, half precision, or a smaller pair"


def steps_for(pair: Pair, batch: int, capacity: int) -> Steps:
    """The leanest device half for this pair: CUDA graphs where they can be, else eager steps."""
    check_caches(pair, batch * capacity, SMALLER)
    with device_faults(f"making caches of {capacity} tokens at batch {batch}", SMALLER):
        record = recorder_of(pair)
        if record is None:
            if isinstance(pair.drafter, LooksUp):
                return LookupSteps(pair, batch, capacity)
            if batch == 1 and isinstance(pair.drafter, ModelDrafter):
                return SoloSteps(pair, capacity)
            return EagerSteps(pair, batch, capacity)
        return GraphSteps(pair, batch, capacity, record)
