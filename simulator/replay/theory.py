"""Closed forms of speculative decoding, which replays are held against."""

from __future__ import annotations


def expected_emitted(alpha: float, gamma: int) -> float:
    """Tokens per round when every draft is accepted with chance alpha, independently.

    (1 - alpha^(gamma + 1)) / (1 - alpha): Leviathan et al., Fast Inference from Transformers via
    Speculative Decoding, arXiv 2211.17192, equation 1.
    """
    if alpha == 1.0:
        return gamma + 1.0
    return float((1.0 - alpha ** (gamma + 1)) / (1.0 - alpha))


def gammatune_seconds(
    tokens: float, acceptance: float, gamma: float, cost_ratio: float, draft_s: float
) -> float:
    """Seconds for a reply of `tokens`, N / (alpha gamma + 1) * (c + gamma) * T_draft.

    GammaTune, arXiv 2504.00030. acceptance: its alpha, the share of drafted tokens accepted (so
    alpha gamma + 1 tokens per round); cost_ratio: c = T_target / T_draft.
    """
    return tokens / (acceptance * gamma + 1.0) * (cost_ratio + gamma) * draft_s
