"""speculate with sampling: the target's law, and seeds that decide the samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers.generation import (
    TopPLogitsWarper,
)

from real_backend.huggingface.generate import speculate
from tests.real_backend.huggingface.models import TINY_PROMPT, Models


def joint_law(module: Any, temperature: float, top_p: float) -> np.ndarray:
    """[64 * 64] law of the first two tokens as transformers' own processors make it; the token
    behind an end token is padding, 0.
    """

    def sampling(ids: list[int]) -> np.ndarray:
        with torch.inference_mode():
            scores = module(torch.tensor([ids])).logits[:, -1] / temperature
            if top_p < 1.0:
                scores = TopPLogitsWarper(top_p)(None, scores)
        return scores.double().softmax(-1)[0].numpy()

    prompt = TINY_PROMPT[0].tolist()
    first = sampling(prompt)
    joint = np.stack([first[a] * sampling([*prompt, a]) for a in range(64)])
    joint[1] = 0.0
    joint[1, 0] = first[1]
    return joint.ravel()


def chi_square_p(seen: np.ndarray, sampling: np.ndarray) -> float:
    """p-value of counts against a law; cells that expect fewer than 5 are one cell."""
    expected = sampling * seen.sum()
    big = expected >= 5
    observed = np.append(seen[big], seen[~big].sum())
    expected = np.append(expected[big], expected[~big].sum())
    if expected[-1] == 0.0:
        return 0.0 if observed[-1] else float(stats.chisquare(observed[:-1], expected[:-1]).pvalue)
    return float(stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue)


@pytest.mark.parametrize(
    ("temperature", "top_p", "batch"),
    [
        (0.7, 0.9, 50),
        pytest.param(0.7, 0.9, 1, marks=pytest.mark.slow),
        pytest.param(1.0, 1.0, 1, marks=pytest.mark.slow),
    ],
)
@pytest.mark.long
def test_samples_have_the_targets_law(
    tiny: Models, temperature: float, top_p: float, batch: int
) -> None:
    target, draft = tiny
    spec = speculate(draft, "fixed:gamma=2", batch=batch)
    torch.manual_seed(5)
    output = target.generate(
        TINY_PROMPT,
        do_sample=True,
        temperature=temperature,
        top_p=top_p,
        top_k=0,
        max_new_tokens=3,
        num_return_sequences=2_000,
        pad_token_id=0,
        custom_generate=spec,
    )
    assert output.shape == (2_000, 7)
    seen = np.bincount((output[:, 4] * 64 + output[:, 5]).numpy(), minlength=64 * 64)
    assert chi_square_p(seen, joint_law(target, temperature, top_p)) > 1e-3
    # Power: the draft's law, another temperature and another nucleus are all found out.
    assert chi_square_p(seen, joint_law(draft, temperature, top_p)) < 1e-6
    assert chi_square_p(seen, joint_law(target, temperature * 1.25, top_p)) < 1e-6
    assert chi_square_p(seen, joint_law(target, temperature, 0.8)) < 1e-6
    assert 0 < spec.log.accepted.sum() < spec.log.drafted.sum()


def test_torch_seeds_decide_the_samples(tiny: Models) -> None:
    target, draft = tiny
    settings = {"do_sample": True, "top_k": None, "max_new_tokens": 20, "pad_token_id": 0}
    spec = speculate(draft, "gammatune")
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs += [target.generate(TINY_PROMPT, **settings, custom_generate=spec) for _ in "ab"]
    texts = [tuple(output[0].tolist()) for output in outputs]
    assert texts[:2] == texts[2:4] and len(set(texts)) == 4
    torch.manual_seed(1)
    state = torch.get_rng_state()
    target.generate(TINY_PROMPT, max_new_tokens=8, custom_generate=spec)
    assert torch.equal(torch.get_rng_state(), state)  # greedy draws nothing


def test_a_nucleus_of_nothing_and_a_top_k_of_everything(tiny: Models) -> None:
    target, draft = tiny
    greedy = target.generate(TINY_PROMPT, max_new_tokens=12, pad_token_id=0)
    output = target.generate(
        TINY_PROMPT,
        do_sample=True,
        top_p=0.0,
        top_k=64,
        max_new_tokens=12,
        pad_token_id=0,
        custom_generate=speculate(draft, "fixed"),
    )
    assert torch.equal(output, greedy)
