"""check_policy: the conformance suite for anybody's policy, as gymnasium's check_env is for worlds.

It plays a policy as plain Python against random rounds. That the compiled replay takes the same
decisions is checked by `simulator.replay.replay` against its interpreted twin.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np

from policies.base import (
    STEP_COSTS,
    Draft,
    MenuView,
    Outcome,
    Policy,
    State,
    View,
    chooses_shapes,
    clamp_gamma,
    field_values,
    hooks_read,
    uses_signals,
)
from policies.fields import origins
from policies.randomness import Rng, round_key

_SLOTS = 3
_FULL_ROUNDS = 200


class ContractError(AssertionError):
    """The policy breaks a rule of policies.base; the message names the rule."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ContractError(message)


def check_policy(policy: Policy, *, rounds: int = 400, seed: int = 0) -> None:
    """Raise ContractError at the first broken rule.

    Checked: frozen dataclass with scalar fields, described, their origins told; state a NamedTuple
    of arrays whose leading axis is [slots] or shared; hooks return int and bool (no NumPy scalars),
    stay inside their slot, leave view and self alone, keep nothing outside the state, accept any
    room;
    `admit` twice equals `admit` once; elapsed_s is not weighed against step costs; a full
    acceptance without a token of the target's own is learned from like any other.
    """
    _check_description(policy)
    _check_state(policy)
    first, second = _play(policy, rounds, seed), _play(policy, rounds, seed)
    _require(first == second, "same seed, other decisions: something is kept outside the state")
    _check_admit(policy, seed)
    _check_clocks(policy)
    _check_full_acceptance(policy, seed)


def _check_clocks(policy: Policy) -> None:
    """Only priced_s is on the clock of the step costs, and only it translates between the two. The
    hooks around a wrapped policy (policies.goodput.arbiter) are none of its business.
    """
    cls: type[Policy] = getattr(type(policy), "inner", type(policy))
    elapsed, steps, priced = (
        hooks_read(cls, fields) for fields in ({"elapsed_s"}, STEP_COSTS, {"priced_s"})
    )
    _require(
        priced or not (elapsed and steps),
        "two clocks: compare priced_s with step costs, and elapsed_s with elapsed_s only",
    )


def _check_full_acceptance(policy: Policy, seed: int) -> None:
    """Play rounds in which every draft is accepted, with a token of the target's own and without:
    arrays of the state that only the former ever change belong to a rule that takes the latter for
    the end of the reply.
    """
    with_own, without = (_touched(policy, seed, own) for own in (1, 0))
    missing = ", ".join(sorted(with_own - without))
    _require(
        not missing,
        f"a full acceptance that emits no token of the target's own leaves state.{missing} alone: "
        "ask outcome.ended, do not infer the end of the reply",
    )


def _touched(policy: Policy, seed: int, own: int) -> set[str]:
    """The arrays that `learn` ever changes where all drafts are accepted, own: target's tokens."""
    generator = np.random.default_rng(seed)
    state, touched = policy.new_state(1), set()
    policy.admit(state, 0)
    for index in range(_FULL_ROUNDS):
        view = _random_view(generator)._replace(batch_size=1)
        rng = Rng(round_key(seed, 0, index))
        _, cap, made, drafted = _draft(policy, state, 0, view, rng, generator)
        seconds = made * view.draft_step_s + float(view.verify_s[drafted + 1])
        emitted = drafted + (own if drafted > 0 else 1)
        before = [array.tobytes() for array in state]
        outcome = Outcome(cap, drafted, drafted, emitted, False, seconds, seconds)
        policy.learn(state, 0, view, outcome)
        for name, array, old in zip(state._fields, state, before, strict=True):
            if array.tobytes() != old:
                touched.add(name)
    return touched


def _check_description(policy: Policy) -> None:
    cls = type(policy)
    _require(
        dataclasses.is_dataclass(policy) and cls.__dataclass_params__.frozen,  # type: ignore[attr-defined]
        f"{cls.__name__} must be a frozen dataclass: @dataclasses.dataclass(frozen=True)",
    )
    _require(bool(cls.name and cls.rule and cls.source), "name, rule and source must be filled in")
    own_s = policy.control_s()
    sane = len(own_s) == 2 and all(0.0 <= seconds < float("inf") for seconds in own_s)
    _require(sane, f"control_s must be two numbers of seconds, not {own_s}")
    reads = uses_signals(policy) or own_s[1] == 0.0
    _require(reads, "control_s charges per token, but nothing is decided per token")
    declared = origins(policy)
    for field, value in field_values(policy).items():
        scalar = type(value) in (int, float, bool)
        _require(scalar, f"field {field} must be int, float or bool, is {type(value).__name__}")
        said = field in declared
        _require(said, f"field {field} does not say where its default comes from: policies.fields")


def _check_state(policy: Policy) -> None:
    one, many = policy.new_state(1), policy.new_state(_SLOTS)
    _require(isinstance(one, tuple) and hasattr(one, "_fields"), "state must be a NamedTuple")
    for name, small, large in zip(one._fields, one, many, strict=True):
        _require(isinstance(small, np.ndarray), f"state.{name} must be a NumPy array")
        _require(small.dtype.kind in "if", f"state.{name} must hold integers or floats")
        _require(bool(small.flags.c_contiguous), f"state.{name} must be C-contiguous")
        per_request = small.shape[:1] == (1,) and large.shape == (_SLOTS, *small.shape[1:])
        shared = large.shape == small.shape
        _require(
            per_request or shared, f"state.{name} must be [slots, ...] or the same for any slots"
        )


def _frozen_rows(policy: Policy, state: State, slot: int) -> list[bytes]:
    """The rows of all per-request arrays that belong to other slots, as bytes."""
    shared = policy.new_state(1)
    return [
        np.delete(array, slot, axis=0).tobytes()
        for array, one in zip(state, shared, strict=True)
        if array.shape != one.shape
    ]


def _random_view(generator: np.random.Generator) -> View:
    room = int(generator.integers(0, 33))
    verify = np.concatenate([[0.0], np.cumsum(generator.uniform(1e-4, 1e-3, room + 4)) + 1e-2])
    return View(
        context_tokens=int(generator.integers(1, 4096)),
        batch_size=_SLOTS,
        waiting=int(generator.integers(0, 5)),
        room=room,
        draft_step_s=float(generator.uniform(1e-4, 5e-3)),
        verify_s=verify,
    )


def _choose(policy: Policy, state: State, slot: int, view: View, rng: Rng) -> None:
    """Ask for an entry of a menu of three, each dearer than the one before."""
    if not chooses_shapes(type(policy)):
        return
    levels = np.array([view.room, 1, view.room + 1])
    verify_s = np.stack([view.verify_s * dearer for dearer in (1.0, 1.1, 1.3)])
    facts = (view.context_tokens, view.batch_size, view.waiting, view.room)
    entry = policy.shape(state, slot, MenuView(*facts, levels, view.draft_step_s, verify_s), rng)
    same = bool((verify_s[0] == view.verify_s).all())
    _require(same, "a hook changed the menu's prices")
    _require(type(entry) is int, f"shape must return int, returned {type(entry).__name__}")


def _draft(
    policy: Policy, state: State, slot: int, view: View, rng: Rng, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Choose and draft with random confidence: gamma as asked, the cap, tokens drafted and kept."""
    _choose(policy, state, slot, view, rng)
    asked = policy.gamma(state, slot, view, rng)
    _require(type(asked) is int, f"gamma must return int, returned {type(asked).__name__}")
    cap, drafted, going = clamp_gamma(asked, view.room), 0, True
    while going and drafted < cap:
        drafted += 1
        top1 = float(generator.uniform(0.01, 1.0))
        draft = Draft(drafted, top1, float(-np.log(top1)))
        kept = policy.retain(state, slot, draft)
        _require(type(kept) is bool, f"retain must return bool, returned {type(kept).__name__}")
        if not kept:
            return asked, cap, drafted, drafted - 1
        going = policy.proceed(state, slot, draft)
        _require(type(going) is bool, f"proceed must return bool, returned {type(going).__name__}")
    return asked, cap, drafted, drafted


def _round(
    policy: Policy, state: State, slot: int, view: View, rng: Rng, generator: np.random.Generator
) -> tuple[int, ...]:
    """One round against random acceptance; the decisions taken."""
    asked, cap, drafted, kept = _draft(policy, state, slot, view, rng, generator)
    accepted = min(kept, int(generator.geometric(0.3)) - 1)
    elapsed = drafted * view.draft_step_s + float(view.verify_s[kept + 1])
    ended = accepted > 0 and bool(generator.uniform() < 0.1)  # the reply's end token was drafted
    emitted = accepted if ended else accepted + 1
    outcome = Outcome(cap, kept, accepted, emitted, ended, elapsed, elapsed)
    policy.learn(state, slot, view, outcome)
    return asked, cap, drafted, kept


def _play(policy: Policy, rounds: int, seed: int) -> list[tuple[int, ...]]:
    generator = np.random.default_rng(seed)
    state = policy.new_state(_SLOTS)
    fields, decisions = field_values(policy), []
    for slot in range(_SLOTS):
        policy.admit(state, slot)
    for index in range(rounds):
        slot = int(generator.integers(_SLOTS))
        if generator.uniform() < 0.03:
            policy.admit(state, slot)
        view = _random_view(generator)
        verify_before, others = view.verify_s.tobytes(), _frozen_rows(policy, state, slot)
        rng = Rng(round_key(seed, slot, index))
        decisions.append(_round(policy, state, slot, view, rng, generator))
        _require(view.verify_s.tobytes() == verify_before, "a hook changed view.verify_s")
        untouched = _frozen_rows(policy, state, slot) == others
        _require(untouched, "a hook wrote into another slot's row")
        for array in state:
            finite = array.dtype.kind != "f" or bool(np.isfinite(array).all())
            _require(finite, "the state holds NaN or infinity")
    _require(field_values(policy) == fields, "a hook changed a field")
    return decisions


def _check_admit(policy: Policy, seed: int) -> None:
    generator = np.random.default_rng(seed)
    state: Any = policy.new_state(_SLOTS)
    for index in range(37):
        view = _random_view(generator)
        _round(policy, state, 0, view, Rng(round_key(seed, 0, index)), generator)
    policy.admit(state, 0)
    once = copy.deepcopy(state)
    policy.admit(state, 0)
    same = all(a.tobytes() == b.tobytes() for a, b in zip(once, state, strict=True))
    _require(same, "admitting twice differs from admitting once")
    if not policy.forgets():
        return
    fresh: Any = policy.new_state(_SLOTS)
    for old, new, one in zip(state, fresh, policy.new_state(1), strict=True):
        if old.shape == one.shape:  # shared by all requests: meant to stay
            new[...] = old
    policy.admit(fresh, 0)
    decisions = []
    for played in (state, fresh):
        generator = np.random.default_rng(seed + 1)
        decisions.append(
            [
                _round(policy, played, 0, _random_view(generator), Rng(index), generator)
                for index in range(60)
            ]
        )
    _require(decisions[0] == decisions[1], "after admit a slot still remembers the last request")
