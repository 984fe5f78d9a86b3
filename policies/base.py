"""The contract between a controller and every runtime.

The unit is a *slot*: one row of the running batch. One round of one slot is

    shape(state, slot, view, rng) -> int       which of a menu of draft trees, where there is one
    gamma(state, slot, view, rng) -> int       at most how many tokens may be drafted now
      retain(state, slot, draft) -> bool       after EVERY drafted token: is it worth verifying?
      proceed(state, slot, draft) -> bool      after every one that is retained: go on?
    learn(state, slot, view, outcome)          exactly once per round, gamma = 0 rounds included

and `admit(state, slot)` runs when a new request enters the slot.

The same hooks run as plain Python (real engine, interpreted replay) and compiled (fast replay). The
price is one rule: **a hook may read the fields of self, read and write state, call `math`,
`policies.randomness` and other module-level functions of plain arithmetic, and nothing else.** Read
arrays through a cast (`int(a[slot])`, `float(p[slot, k])`): `np.float32(0.7) < 0.7` is not the same
question in NumPy and in compiled code. Loops are explicit, logarithms are `math.log`. Never call
another hook through self: compiled, self is only the tuple of fields. Two exceptions: whole small
arrays may be copied (`a[slot, :n] = b[:n]`), and multiplied (`x @ w`) where every sum is exact
whatever its order, see policies.learned.neural.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterator, Set
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from policies.fields import check_fields
from policies.randomness import Rng

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

State = Any
"""A NamedTuple of arrays. A leading [slots] axis is per request, any other array is shared."""


class View(NamedTuple):
    """The facts that a server knows when it chooses gamma for one slot.

    context_tokens: prompt and output tokens fixed so far, the newest included.
    batch_size: running slots, this one included. waiting: requests in the queue.
    room: the most tokens that may be drafted now (length limits, depth limit), >= 0.
    draft_step_s: seconds of one draft step at this batch and context, reading its signals included
        if the policy asks for them.
    verify_s: [W] float64, seconds of a round's target step that verifies n = index tokens, the
        engine's fixed cost per round included; n = gamma + 1. verify_s[0] = 0. W > room + 1.
    """

    context_tokens: int
    batch_size: int
    waiting: int
    room: int
    draft_step_s: float
    verify_s: FloatArray


class MenuView(NamedTuple):
    """The facts that a server knows when it chooses the shape of a slot's next draft; A entries,
    a "token" drafted is a level of them (traces.shapes.menu).

    context_tokens, batch_size, waiting: as in View. room: the most levels of any entry, >= 0.
    levels: [A] int64, how deep each entry goes.
    draft_step_s: seconds of one draft step that reads one token.
    verify_s: [A, W] float64, as View's of every entry: what wide levels cost the draft beyond
    one token a step is in it.
    """

    context_tokens: int
    batch_size: int
    waiting: int
    room: int
    levels: IntArray
    draft_step_s: float
    verify_s: FloatArray


class Draft(NamedTuple):
    """Signals of the draft model after one more drafted token.

    drafted: tokens drafted so far in this round, >= 1.
    top1_prob: largest probability of the distribution the newest token was taken from, 0..1.
    entropy: entropy of that distribution, nats.
    """

    drafted: int
    top1_prob: float
    entropy: float


class Outcome(NamedTuple):
    """The result of one round.

    gamma: the cap in force (after clamping to room).
    drafted: tokens drafted and given to the target to judge, <= gamma (fewer if `proceed` stopped);
        where drafts run ahead of the target, those that were judged in this round, and gamma is not
        below them.
    accepted: drafted tokens the target accepted.
    emitted: tokens added to the reply: accepted, and one of the target's own unless the reply ended
        before it or (drafting ahead while the target verifies) a full acceptance goes on without
        it.
    ended: the reply ended at one of the drafted tokens or before them, so what lies behind the
        accepted ones was not judged, let alone rejected. Never infer it from emitted <= accepted.
        accepted == drafted is censored information: the run of acceptable tokens was *at least*
        that.

    Two clocks.

    elapsed_s: seconds of the round by the runtime's clock, comparable with other elapsed seconds
        only.
    priced_s: what the step costs that the View came from charge for the round that ran
        (traces.costs.pricing.round_seconds), a token that was not kept included. Rules that weigh
        seconds against draft_step_s or verify_s take priced_s: their decisions are then those of a
        replay on the real engine too, whatever the machine is slowed down by or interrupted for.
        Rules that compare rounds with rounds take elapsed_s: what the machine really does is what
        they are there to learn.
    """

    gamma: int
    drafted: int
    accepted: int
    emitted: int
    ended: bool
    elapsed_s: float
    priced_s: float


class NoState(NamedTuple):
    """State of a policy that remembers nothing; one dummy array keeps it a typed tuple."""

    unused: IntArray


@dataclasses.dataclass(frozen=True)
class Policy:
    """A controller: a frozen dataclass whose fields are its hyper-parameters and nothing else.

    Subclasses override `gamma` (per round), `retain` and `proceed` (per token), `learn`, `admit`,
    and `new_state` when they remember something. Class attributes describe, fields configure.

    Fields are declared with policies.fields.hyper: default, domain and origin; every policy is
    checked when it is made, and InputError raised where a field is outside of its domain.

    rule: the controller in one sentence. source: paper or repository. batch_wide: in a batch one
    row is asked for gamma and the answer holds for all, as its source does; every row still learns.
    """

    name: ClassVar[str] = ""
    batch_wide: ClassVar[bool] = False
    rule: ClassVar[str] = ""
    source: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_fields(self)

    def conflict(self) -> str:
        """Fields that do not go together, in words; empty if they do."""
        return ""

    def new_state(self, slots: int) -> State:
        """Fresh state for `slots` rows: a NamedTuple of arrays, per request if shaped [slots,
        ...].
        """
        return NoState(np.zeros(1, dtype=np.int64))

    def forgets(self) -> bool:
        """True if `admit` starts every request afresh; False if a slot is meant to remember."""
        return True

    def control_s(self) -> tuple[float, float]:
        """The policy's own word on its arithmetic: seconds per round and per drafted token, the
        latter only if it overrides `retain` or `proceed`. Charged where no timing knows the policy
        by its name; see policies.overhead.
        """
        return 0.0, 0.0

    def admit(self, state: State, slot: int) -> None:
        """A request enters `slot`: forget the previous one. Shared arrays stay."""

    def shape(self, state: State, slot: int, view: MenuView, rng: Rng) -> int:
        """The entry of the menu that this round drafts from; runtimes clamp it to 0..A-1. Asked
        before `gamma`, whose view and answer are of that entry's levels, and only where a run has
        several entries: anybody else drafts the first, a chain unless the recording says more.
        """
        return 0

    def gamma(self, state: State, slot: int, view: View, rng: Rng) -> int:
        """The most tokens to draft now; runtimes clamp it to 0..view.room."""
        raise NotImplementedError

    def retain(self, state: State, slot: int, draft: Draft) -> bool:
        """After every drafted token: False to drop it and end the draft; the target reads those
        before it, or none. Overriding it costs reading the signals.

        A token is kept or dropped before the next one is drafted. Decided later, by what followed
        it, the kept ones would no longer have the draft's law, nor sampled replies the target's.
        """
        return True

    def proceed(self, state: State, slot: int, draft: Draft) -> bool:
        """After every drafted token that was kept: True to go on. Overriding it costs reading the
        signals.
        """
        return True

    def learn(self, state: State, slot: int, view: View, outcome: Outcome) -> None:
        """The round is over. Called exactly once per round."""


def uses_signals(policy: Policy) -> bool:
    """True if the policy decides after every drafted token, so that runtimes must read (and charge)
    the signals.
    """
    return decides_by_token(type(policy))


def decides_by_token(cls: type[Policy]) -> bool:
    """`uses_signals` of a class."""
    return cls.proceed is not Policy.proceed or drops_tokens(cls)


def chooses_shapes(cls: type[Policy]) -> bool:
    """True if a policy of this class overrides `shape`."""
    return cls.shape is not Policy.shape


def drops_tokens(cls: type[Policy]) -> bool:
    """True if a policy of this class overrides `retain`: a drafted token may go unverified."""
    return cls.retain is not Policy.retain


STEP_COSTS = frozenset({"draft_step_s", "verify_s"})  # fields of View
SECONDS = STEP_COSTS | {"elapsed_s", "priced_s"}  # and of Outcome


def reads_seconds(policy: Policy, fields: Set[str] = SECONDS) -> bool:
    """True if a hook, or a plain function that it may call, names one of these fields of View or
    Outcome: then decisions may hang on what steps cost.

    Read off the bytecode: who takes such a field by its number (view[4]) goes unnoticed.
    """
    return hooks_read(type(policy), fields)


def hooks_read(cls: type[Policy], fields: Set[str]) -> bool:
    """`reads_seconds` of a class."""
    waiting: list[Any] = [getattr(cls, name) for name in HOOKS]
    seen: set[types.FunctionType] = set()
    while waiting:
        function = waiting.pop()
        function = getattr(function, "py_func", function)  # somebody's own njit
        if not isinstance(function, types.FunctionType) or function in seen:
            continue
        seen.add(function)
        if any(not fields.isdisjoint(code.co_names) for code in codes_of(function.__code__)):
            return True
        waiting += [value for _, value in named_globals(function)]
        waiting += [cell.cell_contents for cell in function.__closure__ or ()]
    return False


def codes_of(code: types.CodeType) -> Iterator[types.CodeType]:
    """A code object and those nested in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes_of(constant)


def named_globals(function: types.FunctionType) -> list[tuple[str, Any]]:
    """The globals that a function names, in a fixed order."""
    names = {name for code in codes_of(function.__code__) for name in code.co_names}
    present = function.__globals__
    return [(name, present[name]) for name in sorted(names) if name in present]


def clamp_gamma(gamma: int, room: int) -> int:
    """The cap in force: gamma inside 0..room. Every runtime uses this one."""
    return max(0, min(gamma, room))


def field_values(policy: Policy) -> dict[str, int | float | bool]:
    """The hyper-parameters of a policy by name."""
    return {f.name: getattr(policy, f.name) for f in dataclasses.fields(policy)}


Hook = Callable[..., Any]
HOOKS = ("admit", "shape", "gamma", "retain", "proceed", "learn")
