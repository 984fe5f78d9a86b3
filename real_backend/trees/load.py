"""The steps of any draft tree, by its text."""

from __future__ import annotations

from real_backend.decoding.steps import Steps
from real_backend.load_pair import Pair
from real_backend.trees.grown_steps import GrownSteps
from real_backend.trees.steps import TreeSteps
from traces.shapes.shape import Grown, parse_draft


def steps_of(pair: Pair, capacity: int, shape: str) -> Steps:
    """Steps of batch 1 for rows of at most so many tokens. Raises InputError as LevelSteps."""
    draft = parse_draft(shape)
    if isinstance(draft, Grown):
        return GrownSteps(pair, capacity, draft)
    return TreeSteps(pair, capacity, draft)
