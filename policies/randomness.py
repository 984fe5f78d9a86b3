"""Counter-based randomness for hooks: the same number in Python and compiled, in any order of
lanes.

A hook receives `rng`, whose key depends on (seed, request, round) alone, and draws number `i` of
that round with `uniform(rng, i)`. There is no hidden state to advance. `normal` and `beta` are
built of uniforms: a hook that mixes the three keeps the numbers apart that each of them consumes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

_MASK = 0xFFFFFFFF
_ATTEMPTS = 16  # an attempt fails with chance < 0.05, all of them with chance < 1e-20
_GAMMA_UNIFORMS = 4 * _ATTEMPTS
BETA_UNIFORMS = 2 * _GAMMA_UNIFORMS  # consumed, at most, by one draw of `beta`


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


def request_key(seed: int, request: int) -> int:
    """The key that all rounds of request number `request` share in the run with this seed."""
    return mix(mix(0x2545F491, seed), request)


def round_key(seed: int, request: int, round_index: int) -> int:
    """The key of round `round_index` of request number `request` in the run with this seed."""
    return mix(request_key(seed, request), round_index)


def uniform(rng: Rng, i: int) -> float:
    """Number i of this round, uniform on [0, 1) with 32 bits."""
    return mix(mix(rng.key, i), 0x5BD1E995) / 4294967296.0


def normal(rng: Rng, i: int) -> float:
    """Standard normal number i of this round, from uniforms 2i and 2i + 1; |value| < 6.7.

    Box and Muller, A Note on the Generation of Random Normal Deviates, 1958.
    """
    radius = math.sqrt(-2.0 * math.log(1.0 - uniform(rng, 2 * i)))  # 1 - u is never 0
    return radius * math.cos(2.0 * math.pi * uniform(rng, 2 * i + 1))


def log_gamma_draw(rng: Rng, first: int, shape: float) -> float:
    """The logarithm of a gamma number of this shape > 0, scale 1, from uniforms first ..
    first + 63; first is a multiple of 4.

    Marsaglia and Tsang, A Simple Method for Generating Gamma Variables, ACM TOMS 26(3), 2000: a
    normal is cubed and rejected, at most 5 % of the time; a shape below 1 is drawn one higher and
    multiplied by u^(1 / shape), which in logarithms cannot underflow. After 16 rejections (chance
    below 1e-20) the middle of the distribution is returned.
    """
    d = (shape if shape >= 1.0 else shape + 1.0) - 1.0 / 3.0
    log_value = math.log(d)
    for attempt in range(_ATTEMPTS):
        at = first + 4 * attempt
        x = normal(rng, at // 2)
        root = 1.0 + x / math.sqrt(9.0 * d)
        if root > 0.0:
            v = root * root * root
            log_v = math.log(v)
            if math.log(1.0 - uniform(rng, at + 2)) < 0.5 * x * x + d - d * v + d * log_v:
                log_value = math.log(d) + log_v
                break
    if shape < 1.0:
        log_value += math.log(1.0 - uniform(rng, first + 3)) / shape
    return log_value


def beta(rng: Rng, i: int, a: float, b: float) -> float:
    """Beta(a, b) number i of this round, a, b > 0, from uniforms 128 i .. 128 i + 127.

    X / (X + Y) of two gamma numbers; exact up to the 32 bits of a uniform.
    """
    first = BETA_UNIFORMS * i
    log_x = log_gamma_draw(rng, first, a)
    log_y = log_gamma_draw(rng, first + _GAMMA_UNIFORMS, b)
    return 1.0 / (1.0 + math.exp(min(log_y - log_x, 700.0)))
