"""Tokens per round of other fixed draft lengths, from the counts of one.

Letters: L the recorded length; A_d the share of its rounds that accepted at least d tokens, A_0 is
1; a gap is n accepted tokens and the rejected one behind them; S_d the share of gaps with n >= d.

Rounds of length k start behind a rejection, or k + 1 tokens behind the round before. They cross a
gap in floor(n / (k + 1)) + 1 rounds, whatever drafter and text, so that

    tokens per round of k = (S_0 + S_1 + S_2 + ...) / (S_0 + S_(k+1) + S_2(k+1) + ...)

(accepted + 1; a reply's end is taken for a gap's). Counts of L hold the sums
A_d = (S_d + S_(d+L+1) + S_(d+2(L+1)) + ...) / (S_0 + S_(L+1) + ...), which answer exactly where
k + 1 divides L + 1, and bound the others. 1 + A_1 + ... + A_k, which is tempting, is the answer for
drafts of k at the starts of L, which lie at harder places: easy stretches hold fewer of them.

Holds for chains of tokens (accept_len falls by one from position to position until a rejection), so
not for heads that read the target's states. Drafts that the end of a reply or the drafter cuts
short count as rejected there. Worst miss of a shorter length, plain sum / `estimate`, in percent
(`gammalab studies positions`; docs/positions.md has the others):

    counts of length          2           3           5           8
    embedded, greedy       2.0 / 0.1   3.9 / 0.3   5.8 / 0.3   7.5 / 0.6
    SmolLM2 + look-up      3.6 / 0.2   6.0 / 0.2   8.3 / 0.4  10.9 / 0.6
    SmolLM2 + draft        0.4 / 0.2   0.6 / 0.0   0.6 / 0.1   0.7 / 0.0
    SmolLM2 + EAGLE-3      0.5 / 0.5   0.8 / 0.6   0.9 / 0.8   0.9 / 0.8
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def naive(steps: int, at_least: Sequence[int]) -> FloatArray:
    """[L] 1 + A_1 + ... + A_k for k = 1..L, exact for k = L only."""
    return np.asarray(np.cumsum(_shares(steps, at_least))[1:])


def estimate(steps: int, at_least: Sequence[int]) -> FloatArray:
    """[L] tokens per round of the lengths k = 1..L.

    steps: rounds, at least 1; at_least [L]: of these, those that accepted at least d tokens. Behind
    L - 1 accepted tokens each further one is taken to be accepted with the last conditional rate,
    t = A_L / A_(L-1). A share A_L t of the rounds then starts within a gap, and with
    Z = 1 / (1 - A_L t) the gaps are S_d = Z A_d - (Z - 1) t^d for d <= L, S_(L+j) = S_L t^j.
    """
    shares = _shares(steps, at_least)
    length = len(shares) - 1
    low, high = bounds(steps, at_least)
    tail = shares[-1] / shares[-2] if shares[-2] > 0 else 0.0
    within = shares[-1] * tail
    if within >= 1:
        return high
    scale = 1 / (1 - within)
    powers = tail ** np.arange(length + 1.0)
    gaps = np.minimum.accumulate(scale * shares - (scale - 1) * powers)
    found = np.empty(length)
    for k in range(1, length + 1):
        beyond = (length // (k + 1) + 1) * (k + 1)  # the first multiple of k + 1 above L
        rest = scale * shares[-1] * tail ** (beyond - length) * powers.sum() / powers[: k + 1].sum()
        found[k - 1] = scale * shares.sum() / (gaps[:: k + 1].sum() + rest)
    return np.clip(found, low, high)


def bounds(steps: int, at_least: Sequence[int]) -> tuple[FloatArray, FloatArray]:
    """[L] least and most tokens per round of the lengths k = 1..L that go with the counts.

    With a = A_(k+1) + A_2(k+1) + ... up to L and T = 1 + A_1 + ... + A_L these are T / (1 + a),
    which is exact where k + 1 divides L + 1, and T / (1 - A_L + a): of the rounds of L at most the
    share A_L starts within a gap, and each of these spares rounds of k at most one.
    """
    shares = _shares(steps, at_least)
    length = len(shares) - 1
    whole = shares.sum()
    some = np.array([shares[k + 1 :: k + 1].sum() for k in range(1, length + 1)])
    exact = (length + 1) % np.arange(2, length + 2) == 0
    low = whole / (1 + some)
    high = whole / np.maximum(1 - shares[-1] + some, whole / np.arange(2, length + 2))
    return low, np.where(exact, low, high)


def _shares(steps: int, at_least: Sequence[int]) -> FloatArray:
    """[L+1] A_0 = 1, A_1, ..., A_L, falling (counts rebuilt from rounded rates may not)."""
    return np.minimum.accumulate(np.array([steps, *at_least]) / steps)
