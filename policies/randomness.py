"""Counter-based randomness for hooks: the same number in Python and compiled, in any order of
lanes.

A hook receives `rng`, whose key depends on (seed, request, round) alone, and draws number `i` of
that round with `uniform(rng, i)`. There is no hidden state to advance.
"""

from __future__ import annotations

from typing import NamedTuple

_MASK = 0xFFFFFFFF


class Rng(NamedTuple):
    """The key of one round: 0 <= key < 2**32."""

    key: int


def mix(h: int, value: int) -> int:
    """Fold an integer into a 32-bit hash (MurmurHash3's finaliser, A. Appleby, public domain).

    Only the low 32 bits of each product are kept, so 64-bit wrap-around and Python's big integers
    agree.
    """
    h = (h ^ (value & _MASK)) & _MASK
    h = h ^ (h >> 16)
    h = (h * 0x85EBCA6B) & _MASK
    h = h ^ (h >> 13)
    h = (h * 0xC2B2AE35) & _MASK
    h = h ^ (h >> 16)
    return (h + 0x9E3779B9) & _MASK


def round_key(seed: int, request: int, round_index: int) -> int:
    """The key of round `round_index` of request number `request` in the run with this seed."""
    return mix(mix(mix(0x2545F491, seed), request), round_index)


def uniform(rng: Rng, i: int) -> float:
    """Number i of this round, uniform on [0, 1) with 32 bits."""
    return mix(mix(rng.key, i), 0x5BD1E995) / 4294967296.0
