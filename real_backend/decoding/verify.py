"""The accept rule: which drafted tokens the target keeps, and which token it adds.

Letters: A rows, D the most tokens a row drafted, V vocabulary. Source: Leviathan et al., arXiv
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
    cumulative sum exceeds it is taken. NaN draws the last one (finite.py tells): an index behind
    the end would kill the device.
    """
    cumulative = probs.double().cumsum(-1)
    if not isinstance(u, Tensor):
        u = torch.full((), u, dtype=torch.float64, device=probs.device)
    level = (u.to(cumulative) * cumulative[..., -1]).unsqueeze(-1)
    found = torch.searchsorted(cumulative, level, right=True).squeeze(-1)
    return found.clamp_(max=probs.shape[-1] - 1)


def signals(probs: Tensor) -> Tensor:
    """[..., 2] float32: top-1 probability and entropy (nats) of the draft's distributions [...,
    V].
    """
    return torch.stack([probs.amax(-1), torch.special.entr(probs).sum(-1)], dim=-1)


def accept_greedy(drafted: Tensor, counts: Tensor, choices: Tensor) -> tuple[Tensor, Tensor]:
    """Accepted counts [A] and the target's next tokens [A].

    drafted [A, D], of which row a counts the first counts[a]; choices [A, D + 1]: the target's
    arg-max behind the newest token and behind each drafted one.
    """
    accepted = _leading(drafted == choices[:, :-1], counts)
    return accepted, choices.gather(1, accepted[:, None])[:, 0]


def accepted_of(drafted: list[int], choices: list[int]) -> int:
    """How many drafted tokens the target would have chosen itself, up to the first it would not.

    choices: the target's arg-max behind the newest token and behind each drafted one; the host's
    form of `accept_greedy`.
    """
    differ = (k for k, token in enumerate(drafted) if token != choices[k])
    return next(differ, len(drafted))


def _leading(good: Tensor, counts: Tensor) -> Tensor:
    """[A] how many of the first counts [A] entries of good [A, D] are true before one is not."""
    step = torch.arange(good.shape[1], device=good.device)
    return (good & (step < counts[:, None])).long().cumprod(-1).sum(-1)


def accept_probability(target_row: Tensor, draft_row: Tensor, token: int) -> float:
    """min(1, p/q) of one drafted token."""
    return min(1.0, float(target_row[token]) / float(draft_row[token]))


def residual(target_row: Tensor, draft_row: Tensor) -> Tensor:
    """The laws [..., V] of the token that replaces a rejected one: positive part of p - q, not
    scaled.
    """
    rest = (target_row - draft_row).clamp_(min=0.0)
    # Equal laws reject only by rounding; then any token of the target's law will do.
    return torch.where(rest.sum(-1, keepdim=True) > 0.0, rest, target_row)


def accept_sampled(
    drafted: Tensor,
    counts: Tensor,
    target_probs: Tensor,
    draft_probs: Tensor,
    decisions: Tensor,
    final: Tensor,
) -> tuple[Tensor, Tensor]:
    """Accepted counts [A] and the target's next tokens [A], such that the output has the target's
    law; nothing is read back from the device.

    drafted [A, D], of which row a counts the first counts[a]; target_probs [A, D + 1, V] and
    draft_probs [A, D, V]: the laws they are judged by and were drawn from. decisions [A, D] and
    final [A]: numbers in [0, 1), float64, one per drafted token and one for the token added.
    """
    ours = target_probs[:, :-1].gather(-1, drafted[..., None])[..., 0].double()
    theirs = draft_probs.gather(-1, drafted[..., None])[..., 0].double()
    accepted = _leading(decisions < (ours / theirs).clamp(max=1.0), counts)
    at = accepted[:, None, None].expand(-1, 1, target_probs.shape[-1])
    target_prob = target_probs.gather(1, at)[:, 0]
    # Behind the last drafted token nothing was proposed: the residual of a law and zero is the law.
    proposed = torch.cat([draft_probs, torch.zeros_like(draft_probs[:, :1])], dim=1)
    if draft_probs.shape[1] == 0:
        proposed = torch.zeros_like(target_probs)
    proposed = proposed.gather(1, at)[:, 0].masked_fill((accepted == counts)[:, None], 0.0)
    return accepted, draw(residual(target_prob, proposed), final)
