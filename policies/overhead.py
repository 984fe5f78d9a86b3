"""The price of a rule's own arithmetic: measured as the real engine pays it, and added to what
steps cost, in every runtime the same.

own_s throughout: by policy name (seconds per round, seconds per drafted token), as `measure` writes
it into a Timing and traces.costs.pricing.tabulate hands it on; NAME/entry: seconds per round and
entry of a menu, of a policy that chooses among trees.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from policies.base import (
    Draft,
    MenuView,
    Outcome,
    Policy,
    View,
    chooses_shapes,
    clamp_gamma,
    drops_tokens,
    uses_signals,
)
from policies.randomness import Rng
from traces.costs.pricing import StepCosts, prices_of
from traces.timing import OwnSeconds

ARBITER = "arbiter/"
ENTRY = "/entry"
TIMED_ENTRIES, TIMED_LEVELS = 8, 4  # of the menu that choosing is timed on

WARM_UP, ROUNDS = 20, 100  # of each rule; the first ones do not count
REPLY_ROUNDS = 30  # then a new reply: what some rules do grows with the length of one
TIMED_TOKENS = 2  # of a round; a median over so many rounds will do
BETWEEN_BYTES = 1 << 24  # read before a timed call: between two calls an engine reads its models
TIMED_MENU = np.full(TIMED_ENTRIES, TIMED_LEVELS)
TIMED_ROWS = np.arange(TIMED_LEVELS + 2) + np.arange(TIMED_ENTRIES)[:, None]
NANOSECONDS = 9  # digits kept: the clock says no more


def seconds_of(policy: Policy, own_s: OwnSeconds | None) -> tuple[float, float]:
    """The price of this policy's own arithmetic, per round and per drafted token.

    By its name in own_s, whatever its fields. `arbiter/X` that is not there itself: X's seconds and
    the share that the arbiter has of another rule known bare and wrapped. Else what the policy says
    of itself (Policy.control_s): networks carry theirs in their files, others say 0.
    """
    if own_s is None:
        return 0.0, 0.0
    found = _measured(policy.name, own_s)
    return policy.control_s() if found is None else found


def is_known(policy: Policy, own_s: OwnSeconds | None) -> bool:
    """True unless the policy is charged 0 for want of a measurement."""
    if own_s is None:
        return True
    says_itself = type(policy).control_s is not Policy.control_s
    return says_itself or _measured(policy.name, own_s) is not None


def _measured(name: str, own_s: OwnSeconds) -> tuple[float, float] | None:
    if name in own_s or not name.startswith(ARBITER):
        return own_s.get(name)
    inner = own_s.get(name.removeprefix(ARBITER))
    for other, wrapped in own_s.items():
        bare = own_s.get(other.removeprefix(ARBITER))
        if other.startswith(ARBITER) and bare is not None and inner is not None:
            share = max(0.0, wrapped[0] - bare[0])  # per token none: `proceed` is inherited
            return inner[0] + share, inner[1]
    return None


def charged(
    policy: Policy, costs: StepCosts, *, signals: bool | None = None, starts: bool = False
) -> StepCosts:
    """The table that this policy pays, as rounds are priced: the step costs with its own
    arithmetic, on which nothing is left to charge. The one way to add a controller's overhead.

    Rows decide one after the other, so in a batch of b rows b pay: per round with the target's
    step, per drafted token with the draft's. signals: they are read; default: by the policy alone.
    Who reads none pays for none. starts: with start_s, as for whoever may drop what it drafted.
    """
    reads = uses_signals(policy) if signals is None else signals
    round_s, token_s = seconds_of(policy, costs.own_s)
    rows = np.asarray(costs.sizes)[:, None, None]
    if costs.own_s is not None and costs.sizes.count(1) > 1:  # the rows of a menu
        round_s += len(rows) * costs.own_s.get(policy.name + ENTRY, (0.0, 0.0))[0]
    draft_s, verify_s = costs.draft_s, costs.verify_s
    if round_s > 0.0:
        verify_s = verify_s.copy()
        verify_s[:, :, 1:] += round_s * rows
    if token_s > 0.0:
        draft_s = draft_s.copy()
        draft_s[:, :, 1:] += token_s * (rows - 1)  # the first row's is in signal_s
    return prices_of(
        costs._replace(draft_s=draft_s, verify_s=verify_s, signal_s=costs.signal_s + token_s),
        signals=reads,
        starts=starts or drops_tokens(type(policy)),
    )


def uncharged(costs: StepCosts) -> StepCosts:
    """These costs for every policy, networks included."""
    return costs._replace(own_s=None)


class _Trial:
    """Rounds of one rule on random acceptance and confidence, its hooks timed: round_s, seconds of
    gamma and learn together; token_s, of retain and proceed; entry_s, of shape by entry.

    A rule that would not draft is asked about one token all the same, so that these are timed.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy, self.reads_signals = policy, uses_signals(policy)
        self.state = policy.new_state(1)
        self.generator = np.random.default_rng(0)
        self.verify_s = np.concatenate([[0.0], 1e-2 + 2e-4 * np.arange(1, 34)])
        self.round_s: list[float] = []
        self.token_s: list[float] = []
        self.entry_s: list[float] = []

    def round(self, index: int, between: Callable[[], object]) -> None:
        """One round; between: called before every timed hook."""
        policy, state, clock = self.policy, self.state, time.thread_time
        if index % REPLY_ROUNDS == 0:
            policy.admit(state, 0)
        view, rng = View(40 + index % 400, 1, 0, 16, 2e-3, self.verify_s), Rng(index)
        if chooses_shapes(type(policy)):
            menu = MenuView(*view[:4], TIMED_MENU, view.draft_step_s, self.verify_s[TIMED_ROWS])
            between()
            began = clock()
            policy.shape(state, 0, menu, rng)
            self.entry_s.append((clock() - began) / TIMED_ENTRIES)
        between()
        began = clock()
        requested_gamma = policy.gamma(state, 0, view, rng)
        spent = clock() - began
        cap = clamp_gamma(requested_gamma, view.room)
        drafted, going = cap, self.reads_signals
        if self.reads_signals:
            cap, drafted = max(1, cap), 0
        verified, drops = drafted, drops_tokens(type(policy))
        while going and drafted < cap:
            drafted += 1
            top1 = float(self.generator.beta(4.0, 1.0))
            draft = Draft(drafted, top1, 2.0 * (1.0 - top1))
            if drafted <= TIMED_TOKENS:
                between()
            began = clock()
            kept = not drops or policy.retain(state, 0, draft)
            going = kept and policy.proceed(state, 0, draft)
            if drafted <= TIMED_TOKENS:
                self.token_s.append(clock() - began)
            verified = drafted if kept else verified
        accepted = min(verified, int(self.generator.geometric(0.3)) - 1)
        elapsed_s = drafted * view.draft_step_s + float(self.verify_s[verified + 1])
        outcome = Outcome(cap, verified, accepted, accepted + 1, False, elapsed_s, elapsed_s)
        between()
        began = clock()
        policy.learn(state, 0, view, outcome)
        self.round_s.append(spent + clock() - began)


def own_seconds_of(
    policies: Sequence[Policy], rounds: int = ROUNDS
) -> list[tuple[float, float, float]]:
    """Median seconds that gamma and learn take per round, retain and proceed per token, shape per
    round and entry (0 for a policy that does not decide so), by policy, to the nanosecond.

    On the processor's clock, as plain Python with cold caches, as the engine runs hooks between two
    forwards; what reading the clock takes is taken off. The policies take turns round by round, so
    that a slow moment of the machine falls on all of them.
    """
    models, clock = np.ones(BETWEEN_BYTES // 8), time.thread_time
    trials = [_Trial(policy) for policy in policies]
    for trial in trials:
        for index in range(WARM_UP):
            trial.round(index, lambda: None)
        trial.round_s.clear()
        trial.token_s.clear()
        trial.entry_s.clear()
    reading = []
    for index in range(rounds):
        models.sum()
        began = clock()
        reading.append(clock() - began)
        first = index % len(trials)  # what ran just before is another rule every time
        for trial in trials[first:] + trials[:first]:
            trial.round(WARM_UP + index, models.sum)
    reading_s = float(np.median(reading))
    return [
        (
            _median_s(trial.round_s, 2 * reading_s),
            _median_s(trial.token_s, reading_s),
            _median_s(trial.entry_s, reading_s / TIMED_ENTRIES),
        )
        for trial in trials
    ]


def own_s_of(policies: Sequence[Policy], rounds: int = ROUNDS) -> OwnSeconds:
    """`own_seconds_of`, as a Timing has it."""
    found = dict[str, tuple[float, float]]()
    for policy, (round_s, token_s, entry_s) in zip(
        policies, own_seconds_of(policies, rounds), strict=True
    ):
        found[policy.name] = round_s, token_s
        if chooses_shapes(type(policy)):
            found[policy.name + ENTRY] = entry_s, 0.0
    return found


def _median_s(seconds: Sequence[float], clocks_s: float) -> float:
    """Without what the clock took; 0 of none."""
    if not seconds:
        return 0.0
    return round(max(0.0, float(np.median(seconds)) - clocks_s), NANOSECONDS)


def measured_overhead(policy: Policy, rounds: int = ROUNDS) -> tuple[float, float]:
    """`own_seconds_of` one policy, but what it takes to choose among trees."""
    return own_seconds_of([policy], rounds)[0][:2]
