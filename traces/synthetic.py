"""Traces with a known optimum: constant, drifting and bursty acceptance, no model behind them.

Every position is *acceptable* or not, a coin whose bias the generator sets; accept_len is the run
of acceptable positions that starts there, clipped at the end of the reply. Under `constant` a round
therefore meets fresh independent coins, as Leviathan et al. (arXiv 2211.17192) assume.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from traces.schema import Trace, TraceMeta

FloatArray = npt.NDArray[np.float64]
FlagArray = npt.NDArray[np.bool_]

_INT16_MAX = 32767


def constant(
    alpha: float,
    generator: np.random.Generator,
    *,
    requests: int = 16,
    reply_tokens: int = 128,
    depth: int = 16,
    signals: bool = False,
    prompt_tokens: int = 32,
) -> Trace:
    """Every draft is accepted with chance alpha, independently."""
    rates = np.full((requests, reply_tokens), alpha, dtype=np.float64)
    return from_rates(
        rates, generator, "constant", depth=depth, signals=signals, prompt_tokens=prompt_tokens
    )


def drifting(
    start: float,
    end: float,
    generator: np.random.Generator,
    *,
    requests: int = 16,
    reply_tokens: int = 128,
    depth: int = 16,
    signals: bool = False,
    prompt_tokens: int = 32,
) -> Trace:
    """The chance moves linearly from `start` at the first token of a reply to `end` at its last."""
    rates = np.tile(np.linspace(start, end, reply_tokens), (requests, 1))
    return from_rates(
        rates, generator, "drifting", depth=depth, signals=signals, prompt_tokens=prompt_tokens
    )


def bursty(
    easy: float,
    hard: float,
    generator: np.random.Generator,
    *,
    switch: float = 0.05,
    requests: int = 16,
    reply_tokens: int = 128,
    depth: int = 16,
    signals: bool = False,
    prompt_tokens: int = 32,
) -> Trace:
    """Two-state Markov chain: the text is easy or hard, and changes with chance `switch` a token.

    Both states are equally likely at the first token, so the mean rate is (easy + hard) / 2.
    """
    flips = generator.random((requests, reply_tokens)) < switch
    flips[:, 0] = generator.random(requests) < 0.5
    is_easy = np.cumsum(flips, axis=1) % 2 == 1
    rates = np.where(is_easy, easy, hard)
    return from_rates(
        rates, generator, "bursty", depth=depth, signals=signals, prompt_tokens=prompt_tokens
    )


def from_rates(
    rates: FloatArray,
    generator: np.random.Generator,
    category: str,
    *,
    depth: int = 16,
    signals: bool = False,
    prompt_tokens: int = 32,
) -> Trace:
    """A trace of R replies of L tokens whose position i is acceptable with chance rates[r, i].

    rates: [R, L] in 0..1. signals: also draw what the draft shows, G = depth steps deep.
    """
    requests, reply_tokens = rates.shape
    acceptable = generator.random(rates.shape) < rates
    accept_len = run_lengths(acceptable)
    top1: npt.NDArray[np.float32] | None = None
    entropy: npt.NDArray[np.float32] | None = None
    if signals:
        replies = zip(acceptable, accept_len, strict=True)
        pairs = [_signals(flags, runs, depth, generator) for flags, runs in replies]
        top1 = np.concatenate([pair[0] for pair in pairs])
        entropy = np.concatenate([pair[1] for pair in pairs])
    return Trace(
        meta=_meta(category, depth, reply_tokens),
        offsets=np.arange(requests + 1, dtype=np.int64) * reply_tokens,
        prompt_tokens=np.full(requests, prompt_tokens, dtype=np.int32),
        request_id=tuple(f"{category}-{r}" for r in range(requests)),
        category=(category,) * requests,
        accept_len=np.minimum(accept_len, _INT16_MAX).astype(np.int16).ravel(),
        top1_prob=top1,
        entropy=entropy,
    )


def run_lengths(acceptable: FlagArray) -> npt.NDArray[np.int64]:
    """How many acceptable positions in a row start at each position: [R, L] flags -> [R, L]."""
    runs = np.zeros(acceptable.shape, dtype=np.int64)
    following = np.zeros(acceptable.shape[0], dtype=np.int64)
    for i in range(acceptable.shape[1] - 1, -1, -1):
        following = np.where(acceptable[:, i], following + 1, 0)
        runs[:, i] = following
    return runs


def _meta(category: str, depth: int, reply_tokens: int) -> TraceMeta:
    return TraceMeta(
        pair=f"synthetic/{category}",
        target="none",
        draft="none",
        tokenizer_sha256="",
        device="none",
        dtype="none",
        exactness="synthetic",
        depth=depth,
        max_new_tokens=reply_tokens,
    )


def _signals(
    acceptable: FlagArray,
    accept_len: npt.NDArray[np.int64],
    depth: int,
    generator: np.random.Generator,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """top1_prob and entropy [L, G] of one reply, shared between starts as in a real capture.

    Up to and including the first rejected position j the draft is on the reply's path, so depth k
    from start i shows the signals of position i + k. Behind j it follows its own rejected token,
    one rollout for all starts whose run ends at j.
    """
    length = len(acceptable)
    # Behind the end of the reply the draft goes on talking; those signals are drawn too.
    flags = np.concatenate([acceptable, np.ones(depth, dtype=np.bool_)])
    on_path = _shown(flags, generator)
    rollout = _shown(np.zeros((length + 1, depth), dtype=np.bool_), generator)
    start = np.arange(length)[:, None]
    rejected = start + accept_len[:, None]
    position = start + np.arange(depth)[None, :]
    behind = position - rejected - 1  # depth of the off-path rollout, negative on the path
    step = np.clip(behind, 0, depth - 1)
    off_path = (behind >= 0) & (rejected < length)
    shown = [
        np.where(off_path, off[rejected, step], on[position]).astype(np.float32)
        for on, off in zip(on_path, rollout, strict=True)
    ]
    return shown[0], shown[1]


def _shown(acceptable: FlagArray, generator: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Top-1 probability and entropy (nats): confident where a token will be accepted, but not
    always. The rest of the probability lies evenly on 2 to 50 other tokens.
    """
    sure = generator.beta(6.0, 1.5, acceptable.shape)
    doubtful = generator.beta(2.5, 2.5, acceptable.shape)
    top1 = np.clip(np.where(acceptable, sure, doubtful), 0.01, 0.999)
    others = generator.integers(2, 51, acceptable.shape)
    rest = 1.0 - top1
    return top1, -top1 * np.log(top1) - rest * np.log(rest / others)
