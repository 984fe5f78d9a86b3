"""Laws of acceptance by depth, fitted to tokens per round at given draft lengths.

S_j = P(at least j drafted tokens are accepted); tokens per round at k drafts are
E_k = 1 + S_1 + ... + S_k. Two values of E fix two sums of S and no more, so a law has two
parameters, and which law it is cannot be told from them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq, minimize_scalar

from simulator.replay.theory import expected_emitted

FloatArray = npt.NDArray[np.float64]
Law = Callable[[float, float], FloatArray]

DEPTH = np.arange(1, 8, dtype=np.float64)


def first_then(first: float, later: float) -> FloatArray:
    """The first drafted token is accepted with one chance, every further one with another.

    That is how an EAGLE-type draft works: it sees the target's features once, then its own.
    """
    return np.asarray(first * later ** (DEPTH - 1))


def weibull(first: float, shape: float) -> FloatArray:
    """S_j = first ** (j ** shape): the chance falls with depth if shape > 1.

    Nakagawa and Osaki, The Discrete Weibull Distribution, IEEE Trans. Reliability 24, 1975.
    """
    return np.asarray(first ** (DEPTH**shape))


def drifting(first: float, slope: float) -> FloatArray:
    """The log-odds of acceptance change by `slope` with every step of depth."""
    odds = np.log(first / (1 - first)) + slope * (DEPTH - 1)
    return np.asarray(np.cumprod(1 / (1 + np.exp(-odds))))


LAWS: dict[str, tuple[Law, float, float]] = {  # and the range of the second parameter
    "first-then": (first_then, 1e-6, 1.0),
    "weibull": (weibull, 0.05, 6.0),
    "drifting odds": (drifting, -6.0, 6.0),
}
MAIN_LAW = "first-then"


def _root(f: Callable[[float], float], low: float, high: float) -> float:
    """Where f is 0; the better end of the range if it is nowhere."""
    at_low, at_high = f(low), f(high)
    if at_low * at_high > 0:
        return low if abs(at_low) < abs(at_high) else high
    return float(brentq(f, low, high, xtol=1e-12))


def fit_survival(name: str, at_3: float, at_7: float) -> FloatArray:
    """[7] S_1 ... S_7 of the law with E_3 = at_3 and E_7 = at_7.

    Where no parameters give both (E_7 below E_3, say), those that come nearest.
    """
    law, low, high = LAWS[name]

    def first(second: float) -> float:
        return _root(lambda p: float(law(p, second)[:3].sum()) - (at_3 - 1), 1e-9, 1 - 1e-9)

    second = _root(lambda s: float(law(first(s), s)[3:].sum()) - (at_7 - at_3), low, high)
    return law(first(second), second)


def fit_alpha(at: dict[int, float]) -> float:
    """The one acceptance rate that explains tokens per round at these k, least squares of the
    relative errors; exact if there is one k.
    """
    if len(at) == 1:
        ((k, tokens),) = at.items()
        return _root(lambda a: expected_emitted(a, k) - tokens, 0.0, 1.0)
    fit = minimize_scalar(
        lambda a: sum((expected_emitted(a, k) / tokens - 1) ** 2 for k, tokens in at.items()),
        bounds=(0.0, 1.0), method="bounded", options={"xatol": 1e-10},
    )  # fmt: skip
    return float(fit.x)
