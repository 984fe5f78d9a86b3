"""Sampled replies held against the exact law of their target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats

from real_backend.decoding.verify import distribution

END = 1  # the tiny pair's end token


def fit_of_law(
    pair: Any, replies: Sequence[Sequence[int]], prompt: list[int], temperature: float, top_p: float
) -> float:
    """Chi-square's p of the first two tokens of many replies to one prompt against the target's
    joint law, rare ones together; 0 if one could not be. A model of 64 tokens.
    """
    seen, ended, runs = np.zeros((64, 64)), np.zeros(64), len(replies)
    for tokens in replies:
        if len(tokens) > 1:
            seen[tokens[0], tokens[1]] += 1
        else:
            ended[tokens[0]] += 1

    def law(ids: list[int]) -> Any:
        with torch.inference_mode():
            logits = pair.target.module(torch.tensor([ids])).logits[0, -1]
        return distribution(logits, temperature, top_p).double().numpy()

    first = law(prompt)
    joint = np.stack([first[token] * law([*prompt, token]) for token in range(64)])
    joint[END] = 0.0  # it ends the reply
    observed, expected = np.append(seen.ravel(), ended[END]), np.append(joint.ravel(), first[END])
    if observed[expected == 0].sum() > 0:
        return 0.0
    often = expected * runs >= 5
    observed = np.append(observed[often], observed[~often].sum())
    expected = np.append(expected[often], expected[~often].sum()) * runs
    keep = expected > 0
    scaled = expected[keep] * observed.sum() / expected[keep].sum()
    return float(stats.chisquare(observed[keep], scaled).pvalue)
