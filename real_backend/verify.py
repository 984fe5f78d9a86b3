"""The accept rule: which drafted tokens the target keeps, and which token it adds.

Letters: d drafted tokens, V vocabulary. target_probs [d+1, V] and draft_probs [d, V] are the
distributions the tokens are judged by and were drawn from. Source: Leviathan et al., arXiv
2211.17192, Algorithm 1; Chen et al., arXiv 2302.01318.
"""

from __future__ import annotations

import torch
from torch import Tensor


def distribution(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Probabilities [..., V] in float32 after temperature (> 0) and nucleus filtering.

    The nucleus is the smallest set of most likely tokens whose mass reaches top_p; ties at its edge
    fall to the lower token id, as in a stable sort.
    """
    probs = torch.softmax(logits.float() / temperature, dim=-1)
    if top_p < 1.0:
        ordered, index = probs.sort(dim=-1, descending=True, stable=True)
        outside = ordered.cumsum(-1) - ordered >= top_p
        probs = probs.masked_fill(torch.zeros_like(outside).scatter(-1, index, outside), 0.0)
        probs = probs / probs.sum(-1, keepdim=True)
    return probs


def draw(probs: Tensor, u: float | Tensor) -> Tensor:
    """Tokens [...] by inverting the cumulative sum of probs [..., V] at u in [0, 1), in float64.

    A token of probability 0 is never drawn: u is scaled by the total, and the first token whose
    cumulative sum exceeds it is taken.
    """
    cumulative = probs.double().cumsum(-1)
    if not isinstance(u, Tensor):
        u = torch.full(probs.shape[:-1], u, dtype=torch.float64, device=probs.device)
    level = (u.to(cumulative) * cumulative[..., -1]).unsqueeze(-1)
    return torch.searchsorted(cumulative, level, right=True).squeeze(-1)


def signals(probs: Tensor) -> Tensor:
    """[..., 2] float32: top-1 probability and entropy (nats) of the draft's distributions [...,
    V].
    """
    return torch.stack([probs.amax(-1), torch.special.entr(probs).sum(-1)], dim=-1)


def accept_greedy(drafted: list[int], choices: list[int]) -> tuple[int, int]:
    """Accepted count and the target's next token; choices [d+1]: its arg-max behind each token."""
    accepted = 0
    while accepted < len(drafted) and drafted[accepted] == choices[accepted]:
        accepted += 1
    return accepted, choices[accepted]


def accept_probability(target_row: Tensor, draft_row: Tensor, token: int) -> float:
    """min(1, p/q) of one drafted token."""
    return min(1.0, float(target_row[token]) / float(draft_row[token]))


def residual(target_row: Tensor, draft_row: Tensor) -> Tensor:
    """The law [V] of the token that replaces a rejected one: positive part of p - q, unscaled."""
    rest = (target_row - draft_row).clamp_(min=0.0)
    # Equal laws reject only by rounding; then any token of the target's law will do.
    return rest if float(rest.sum()) > 0.0 else target_row


def accept_sampled(
    drafted: list[int], target_probs: Tensor, draft_probs: Tensor, uniforms: list[float]
) -> tuple[int, int]:
    """Accepted count and the target's next token, such that the output has the target's law.

    uniforms: d + 1 numbers in [0, 1): one decision per drafted token, one draw at the end.
    """
    for k, token in enumerate(drafted):
        if uniforms[k] >= accept_probability(target_probs[k], draft_probs[k], token):
            rest = residual(target_probs[k], draft_probs[k])
            return k, int(draw(rest, uniforms[-1]))
    return len(drafted), int(draw(target_probs[len(drafted)], uniforms[-1]))
