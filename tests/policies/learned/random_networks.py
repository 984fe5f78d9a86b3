"""Small random networks of both kinds."""

from __future__ import annotations

from typing import Any

import numpy as np

from policies.learned.neural import (
    Network,
    answers,
    neural_policy,
    quantise,
)
from policies.learned.observation import DRAFTING, GRID, ROUND

PER_ROUND, PER_TOKEN = (len(ROUND), 17), (len(ROUND) + len(DRAFTING), 2)
KINDS = [PER_ROUND, PER_TOKEN]


def random_network(
    kind: tuple[int, int], seed: int, hidden: tuple[int, int] = (8, 6), spread: float = 2.0
) -> Network:
    """Any network whose decisions vary: outputs differ by what they are shown."""
    (k, a), (h1, h2), generator = kind, hidden, np.random.default_rng(seed)
    shapes = ((k, h1), (h1,), (h1, h2), (h2,), (h2, a), (a,))
    network = quantise(*(spread * generator.normal(size=shape) for shape in shapes))
    if a == 2:  # stop where a typical token would split the two
        network = network._replace(b3=np.zeros(2))
        state: Any = neural_policy(network).new_state(1)
        seen = generator.integers(-1024, 1025, (200, k)) / GRID
        gaps = []
        for row in seen:
            state.shown[0] = row
            gaps.append(float(np.diff(answers(state, 0))[0]) / GRID)
        bias = np.asarray([np.median(gaps) / 2, -np.median(gaps) / 2])
        network = quantise(*network[:5], bias)
    return network
