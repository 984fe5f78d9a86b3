"""A safety wrapper around any policy: speculate only while that delivers more tokens per second."""

from __future__ import annotations

import collections
import dataclasses
import re
import sys
import types
from typing import Any, ClassVar, cast

import numpy as np

from policies import base
from policies.base import Hook, Outcome, Policy, State, View, field_values
from policies.fields import FACTOR, SHARE, SOME, Domain, hyper
from policies.randomness import Rng

SPECULATE, SERIAL = 0, 1
# arbiter_mode: the mode chosen, the mode of the window at hand (another one: a probe), its rounds
# so far, tokens since the other mode was last measured, windows in a row that the other one won,
# context tokens at which both were measured, context tokens of the newest round.
CHOSEN, PLAYING, ROUNDS, TOKENS, WINS, DEPTH, NEWEST = 0, 1, 2, 3, 4, 5, 6
# arbiter_window, sums of the window at hand. arbiter_speed, per mode: tokens per second (0.0: not
# known), its mean deviation, and 1.0 if it was measured in another regime of the context.
EMITTED, SECONDS = 0, 1
SPEED, DEVIATION, STALE = 0, 1, 2

# What the hooks below call by these names is replaced by the hooks of the policy inside.
inner_admit: Hook = Policy.admit
inner_gamma: Hook = Policy.gamma
inner_learn: Hook = Policy.learn


def admit(self: Any, state: State, slot: int) -> None:
    """The hook of both: the policy around which the arbiter stands forgets the slot."""
    state.arbiter_played[slot] = SPECULATE
    inner_admit(self, state, slot)


def gamma(self: Any, state: State, slot: int, view: View, rng: Rng) -> int:
    """The inner policy's length where it is its turn, else nothing."""
    playing = int(state.arbiter_mode[PLAYING])
    state.arbiter_played[slot] = playing
    if playing == SERIAL:
        return 0
    return inner_gamma(self, state, slot, view, rng)  # type: ignore[no-any-return]


def learn(self: Any, state: State, slot: int, view: View, outcome: Outcome) -> None:
    """Count the round for its mode, and let the inner policy learn of it."""
    played = int(state.arbiter_played[slot])
    if played == SPECULATE:
        inner_learn(self, state, slot, view, outcome)
    if played != int(state.arbiter_mode[PLAYING]):
        return  # another row of the batch has closed the window that this round belonged to
    if slot == 0:
        notice_depth(self, state, view.context_tokens)
    if played == int(state.arbiter_mode[CHOSEN]):
        state.arbiter_mode[TOKENS] += outcome.emitted
    state.arbiter_window[EMITTED] += outcome.emitted
    state.arbiter_window[SECONDS] += outcome.elapsed_s
    state.arbiter_mode[ROUNDS] += 1
    if int(state.arbiter_mode[ROUNDS]) >= self.arbiter_window_rounds or probe_due(self, state):
        close_window(self, state)


def probe_every(self: Any, state: State) -> int:
    """Tokens of the chosen mode between two looks at the other one."""
    speculates = int(state.arbiter_mode[CHOSEN]) == SPECULATE
    return int(self.arbiter_draft_tokens if speculates else self.arbiter_serial_tokens)


def probe_due(self: Any, state: State) -> bool:
    """True if the chosen mode is being played and the other one should be looked at."""
    if int(state.arbiter_mode[PLAYING]) != int(state.arbiter_mode[CHOSEN]):
        return False
    return int(state.arbiter_mode[TOKENS]) >= probe_every(self, state)


def notice_depth(self: Any, state: State, context_tokens: int) -> None:
    """Where the context has grown or shrunk by the factor, both averages are stale, and a probe is
    due; contexts below the floor are all alike.
    """
    state.arbiter_mode[NEWEST] = context_tokens
    floor = self.arbiter_floor_tokens
    then, now = max(int(state.arbiter_mode[DEPTH]), floor), max(context_tokens, floor)
    if now < self.arbiter_growth * then and then < self.arbiter_growth * now:
        return
    state.arbiter_speed[SPECULATE, STALE] = 1.0
    state.arbiter_speed[SERIAL, STALE] = 1.0
    state.arbiter_mode[DEPTH] = context_tokens
    state.arbiter_mode[TOKENS] = max(int(state.arbiter_mode[TOKENS]), probe_every(self, state))


def measure(self: Any, state: State) -> None:
    """Fold the window's tokens per second into the average of its mode; a probe's, or one of
    another regime, replaces it.
    """
    playing = int(state.arbiter_mode[PLAYING])
    seconds = float(state.arbiter_window[SECONDS])
    if seconds <= 0.0:
        return
    rate = float(state.arbiter_window[EMITTED]) / seconds
    before = float(state.arbiter_speed[playing, SPEED])
    deviation = float(state.arbiter_speed[playing, DEVIATION])
    probe = playing != int(state.arbiter_mode[CHOSEN])
    if before == 0.0 or probe or float(state.arbiter_speed[playing, STALE]) > 0.0:
        state.arbiter_speed[playing, SPEED] = rate
        state.arbiter_speed[playing, DEVIATION] = 0.5 * deviation
    else:
        eta = self.arbiter_eta
        after = (1.0 - eta) * before + eta * rate
        state.arbiter_speed[playing, SPEED] = after
        state.arbiter_speed[playing, DEVIATION] = (1.0 - eta) * deviation + eta * abs(rate - after)
    state.arbiter_speed[playing, STALE] = 0.0


def decide(self: Any, state: State) -> None:
    """Change sides if the other mode has won often enough in a row."""
    chosen = int(state.arbiter_mode[CHOSEN])
    mine = float(state.arbiter_speed[chosen, SPEED])
    other = float(state.arbiter_speed[1 - chosen, SPEED])
    if mine <= 0.0 or other <= 0.0:
        return
    spread = float(state.arbiter_speed[0, DEVIATION]) + float(state.arbiter_speed[1, DEVIATION])
    margin = max(self.arbiter_margin * mine, self.arbiter_deviations * spread)
    wins = int(state.arbiter_mode[WINS]) + 1 if other > mine + margin else 0
    if wins >= self.arbiter_wins:
        state.arbiter_mode[CHOSEN] = 1 - chosen
        state.arbiter_mode[TOKENS] = 0
        state.arbiter_mode[DEPTH] = int(state.arbiter_mode[NEWEST])
        wins = 0
    state.arbiter_mode[WINS] = wins


def close_window(self: Any, state: State) -> None:
    """Measure the window; then a probe if one is due, else the verdict and the chosen mode."""
    probe = int(state.arbiter_mode[PLAYING]) != int(state.arbiter_mode[CHOSEN])
    measure(self, state)
    unknown = float(state.arbiter_speed[1 - int(state.arbiter_mode[CHOSEN]), SPEED]) == 0.0
    if not probe and (unknown or probe_due(self, state)):
        state.arbiter_mode[PLAYING] = 1 - int(state.arbiter_mode[CHOSEN])
    else:
        decide(self, state)
        if probe:
            state.arbiter_mode[TOKENS] = 0  # the other mode has just been measured
        state.arbiter_mode[PLAYING] = int(state.arbiter_mode[CHOSEN])
    state.arbiter_mode[ROUNDS] = 0
    for k in range(2):
        state.arbiter_window[k] = 0.0


@dataclasses.dataclass(frozen=True)
class Arbitration(Policy):
    """The arbiter's addition to a policy: its hyper-parameters and its state.

    Two modes: speculate (the policy inside decides) and serial (gamma = 0, and the policy inside
    learns nothing). Each keeps an exponential average of delivered tokens per second over windows
    of rounds. The other mode is taken when it was better by the margin (a share, or half the sum of
    both mean deviations if that is more) in `arbiter_wins` windows in a row. A probe plays the
    other mode for one window, every so many tokens, and cuts the window at hand short. What a probe
    measures replaces the average and halves its deviation. Both averages are stale, and a probe is
    due, once the context is `arbiter_growth` times as long or as short as where they were measured,
    contexts below the floor counting as the floor; the next window of each replaces its average.

    As in the source (MtpGate in Atlas' mtp_gate.rs), but for this: a window counts rounds of all
    slots; the context is that of slot 0 (there of the first running row); a mode not known is
    probed behind the first window (there not before arbiter_draft_tokens); a round that began
    before its window was closed by another row counts for none. Its pin, the first tokens behind a
    reasoning block always speculated, is left out.
    """

    arbiter_window_rounds: int = hyper(16, SOME, "primary")
    arbiter_eta: float = hyper(0.3, SHARE, "primary")
    arbiter_margin: float = hyper(0.05, FACTOR, "primary")
    arbiter_deviations: float = hyper(0.5, FACTOR, "primary")
    arbiter_wins: int = hyper(2, SOME, "primary")
    arbiter_serial_tokens: int = hyper(256, SOME, "primary")
    arbiter_draft_tokens: int = hyper(1024, SOME, "primary")
    arbiter_growth: float = hyper(2.0, Domain(high=1_000_000, above=1), "primary")
    arbiter_floor_tokens: int = hyper(512, SOME, "primary")

    inner: ClassVar[type[Policy]]
    state_type: ClassVar[Any]  # the fields of the state inside, and those of OWN_STATE

    def new_state(self, slots: int) -> State:
        """Per request: arbiter_played [slots], mode of the round at hand. Shared: arbiter_mode [7],
        arbiter_window [2], arbiter_speed [2, 3]; the columns are named in this module.
        """
        return self.state_type(
            *super().new_state(slots),
            np.zeros(slots, dtype=np.int64),
            np.zeros(7, dtype=np.int64),
            np.zeros(2),
            np.zeros((2, 3)),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process may not have wrapped this policy yet."""
        return remade, (self.inner, field_values(self))


OWN_STATE = ("arbiter_played", "arbiter_mode", "arbiter_window", "arbiter_speed")


_wrapped: dict[type[Policy], type[Policy]] = {}


def arbiter(inner: type[Policy]) -> type[Policy]:
    """The policy class "arbiter/NAME": `inner`, switched off while plain decoding delivers more;
    always the same one for the same `inner`.

    It has the fields and the state of `inner` under their own names, and those of Arbitration.
    Raises ValueError if another policy of that name has been wrapped: both are kept in this module,
    because numba's cache looks the state's class up by name.
    """
    if inner not in _wrapped:
        _wrapped[inner] = _wrap(inner)
    return _wrapped[inner]


def _wrap(inner: type[Policy]) -> type[Policy]:
    module = sys.modules[__name__]
    name = "Arbiter_" + re.sub(r"\W", "_", inner.name)
    if hasattr(module, name):
        raise ValueError(f"another policy called {inner.name!r} is wrapped already")
    fields = (*inner().new_state(1)._fields, *OWN_STATE)
    state_type = collections.namedtuple(f"{name}_State", fields, module=__name__)  # type: ignore[misc]
    namespace = {
        "__module__": __name__,
        "__doc__": f"{inner.__qualname__}, switched off while plain decoding delivers more.",
        "name": f"arbiter/{inner.name}",
        "rule": f"{inner.rule}; gamma = 0 while that delivers more tokens per second",
        "source": f"{inner.source}; arbiter: Atlas, mtp_gate.rs",
        "inner": inner,
        "state_type": state_type,
        **_hooks_around(inner),
    }
    cls: Any = dataclasses.dataclass(frozen=True)(type(name, (Arbitration, inner), namespace))
    setattr(module, state_type.__name__, state_type)
    setattr(module, name, cls)
    return cast(type[Policy], cls)


def remade(inner: type[Policy], values: dict[str, Any]) -> Policy:
    """The wrapped policy with these fields."""
    return arbiter(inner)(**values)


def _hooks_around(inner: type[Policy]) -> dict[str, Hook]:
    """The hooks of this module, calling those of `inner`; `proceed` is inherited."""
    names = dict(globals())
    names |= {f"inner_{hook}": getattr(inner, hook) for hook in base.HOOKS}
    templates = [cast(types.FunctionType, hook) for hook in (admit, gamma, learn)]
    return {
        hook.__name__: types.FunctionType(hook.__code__, names, hook.__name__) for hook in templates
    }
