"""The steps of any draft tree, or of a menu of them, made for an engine."""

from __future__ import annotations

from collections.abc import Sequence

from real_backend.decoding.leanest_steps import SMALLER
from real_backend.decoding.steps import MakeSteps, Steps
from real_backend.device_errors import device_faults
from real_backend.load_pair import Pair, check_caches
from real_backend.trees.grown_steps import GrownSteps
from real_backend.trees.steps import TreeSteps
from traces.errors import InputError
from traces.shapes.shape import Grown, Shape


def steps_of(shapes: Sequence[Shape | Grown]) -> MakeSteps:
    """Of a tree, or of several known ones. Raises InputError for one that grows among others; what
    is made raises as LevelSteps.
    """
    known = [shape for shape in shapes if isinstance(shape, Shape)]
    if len(known) < len(shapes) > 1:
        raise InputError("the engine decodes menus of trees that do not grow")

    def make(pair: Pair, batch: int, capacity: int) -> Steps:
        (first, *_) = shapes
        places = capacity + max(shape.nodes for shape in shapes)
        check_caches(pair, batch * places, SMALLER)
        with device_faults(f"making caches of {places} tokens at batch {batch}", SMALLER):
            if isinstance(first, Grown):
                return GrownSteps(pair, batch, capacity, first)
            return TreeSteps(pair, batch, capacity, *known)

    return make
