"""Speculative decoding of real models under any Policy, one request after another or in a batch.

A round: the draft reads what it has not read yet and proposes up to gamma tokens; the target reads
the newest token and the proposals in one forward; the accepted prefix and one token of the target's
own are emitted; both caches roll back by reading on from an earlier index. In a batch, drafts run
in lock step (step j holds the rows that still draft) and one verify serves all rows. Greedy output
equals plain greedy decoding, sampled output has the target's law.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from policies.base import Outcome, Policy, State, uses_signals
from policies.overhead import charged
from policies.registry import label
from policies.round import Limits
from real_backend.decoding.clock import ProcessorClock, wait_for
from real_backend.decoding.leanest_steps import SMALLER, steps_for
from real_backend.decoding.request import DecodeParameters, ReplayedAcceptance, Slot
from real_backend.decoding.steps import MakeSteps, ShapedSteps, Steps
from real_backend.device_errors import DeviceLost, device_faults
from real_backend.energy import Meter
from real_backend.load_pair import Pair
from real_backend.not_finite import check_finite
from real_backend.prompts import Request
from traces.costs.pricing import StepCosts, kept_seconds
from traces.errors import InputError
from traces.roundlog import ROUND, RoundLog, log_of
from traces.schema import Trace
from traces.shapes.menu import with_trees
from traces.timing import FEATURE_HEADS


class EngineRun(NamedTuple):
    """The result of decode: one token list per request (end token included) and the rounds."""

    tokens: list[list[int]]
    log: RoundLog


Emit = Callable[[int, list[int]], bool]
"""(request index, new tokens) -> True to end this reply; called after every round of it."""


class Engine:
    """Decodes requests of one pair under any policy.

    costs: the step costs a policy sees in its View, at every batch size 1..S; a larger batch is
    shown the last ones. max_gamma: the most tokens any policy may draft. make: the steps of a
    batch; by default chains', the leanest.
    """

    def __init__(
        self, pair: Pair, costs: StepCosts, *, max_gamma: int = 16, make: MakeSteps = steps_for
    ) -> None:
        self.pair, self.costs, self.max_gamma, self.make = pair, costs, max_gamma, make
        if costs.width < max_gamma + 2:
            raise ValueError(f"costs cover {costs.width - 2} drafted tokens")
        self._steps: dict[int, Steps] = {}

    def steps(self, batch: int, capacity: int) -> Steps:
        """The device half for `batch` rows of at least `capacity` tokens, kept between calls, one
        of every batch while memory lasts.
        """
        kept = self._steps.get(batch)
        if kept is None or kept.capacity < capacity:
            self._steps.pop(batch, None)
            kept = None  # free the old caches first
            try:
                kept = self.make(self.pair, batch, capacity)
            except DeviceLost:
                raise
            except InputError:
                if not self._steps:
                    raise
                self._steps.clear()
                kept = self.make(self.pair, batch, capacity)
            self._steps[batch] = kept
        return kept

    def use(self, steps: Steps) -> None:
        """Run batches of this size on these steps as long as they are large enough."""
        self._steps[steps.batch] = steps

    @torch.inference_mode()
    def decode(
        self,
        policy: Policy,
        requests: Sequence[Request],
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        max_new_tokens: int = 128,
        batch: int = 1,
        clock: str = "wall",
        state: State | None = None,
        first: int = 0,
        began: float | None = None,
        acceptance: Trace | None = None,
        progress: Callable[[], object] | None = None,
        emit: Emit | None = None,
    ) -> EngineRun:
        """Decode all requests in order with one policy state; see Run.

        batch: rows decoded at once; a row that ends takes the next request. clock "wall" tells
        policies the measured seconds of a round; "model" tells them what `costs` says (batch 1), so
        that all controllers decide as in a replay; the log always holds wall seconds. priced_s is
        what `costs` says under either clock; in a batch, which drafts in lock step, at that batch
        size and for the longest draft of the round.
        state: continue with this policy state instead of a new one; first: number of requests that
        it has seen, so that draws go on as in one run. began: moment (time.perf_counter) from which
        start_s counts, default now. acceptance: a trace with a row per request whose acceptance,
        tokens and signals stand in for the models' own; every forward is real. emit: see Emit.

        Raises InputError if a prompt does not fit into the pair's context, or a model says NaN.
        """
        if clock not in ("wall", "model"):
            raise ValueError(f"clock must be 'wall' or 'model', not {clock!r}")
        if clock == "model" and batch > 1:
            raise ValueError("the model's clock prices one request at a time")
        batch = max(1, min(batch, len(requests)))
        parameters = DecodeParameters(temperature, top_p, seed, max_new_tokens)
        longest = max((len(r.prompt_ids) for r in requests), default=1)
        steps = self.steps(batch, longest + max_new_tokens + self.max_gamma + 1)
        shortest = min((len(r.prompt_ids) for r in requests), default=1)
        steps.prepare(parameters.sampling, uses_signals(policy), self.max_gamma, shortest)
        loop = _Loop(self, steps, policy, parameters, acceptance, clock, state)
        loop.first, loop.began = first, time.perf_counter() if began is None else began
        doing = f"decoding at batch {batch}, in {steps.capacity} tokens of cache"
        with device_faults(doing, SMALLER), Meter(self.pair.device) as meter:
            loop.run(requests, progress, emit)
        meta = {
            "policy": label(policy),
            "clock": "measured",
            "policy_clock": clock,
            "acceptance": "own" if acceptance is None else f"trace of {acceptance.meta.pair}",
            "batch": batch,
            "max_gamma": self.max_gamma,
            **dataclasses.asdict(parameters),
            **self.pair.describe(),
            **meter.report(),
        }
        return EngineRun(loop.replies, loop.log(meta))


class _Loop:
    """The rounds of one decode."""

    def __init__(
        self,
        engine: Engine,
        steps: Steps,
        policy: Policy,
        parameters: DecodeParameters,
        acceptance: Trace | None,
        clock: str,
        state: State | None,
    ) -> None:
        self.engine, self.steps, self.policy, self.parameters = engine, steps, policy, parameters
        self.acceptance, self.clock = acceptance, clock
        self.shaped = steps if isinstance(steps, ShapedSteps) else None
        self.state = policy.new_state(steps.batch) if state is None else state
        self.reads_signals = uses_signals(policy)
        self.costs = charged(policy, engine.costs)
        self.greedy = parameters.temperature == 0.0
        self.replies: list[list[int]] = []
        self.prefill_s: list[float] = []
        self.rounds: list[tuple[float, ...]] = []
        self.entries: list[int] = []  # of a menu, by round
        self.processor = ProcessorClock(engine.pair.device)
        self.first, self.began = 0, 0.0

    def run(
        self, requests: Sequence[Request], progress: Callable[[], object] | None, emit: Emit | None
    ) -> None:
        """Decode them all; fills replies, prefill_s and rounds."""
        self.replies = [[] for _ in requests]
        self.prefill_s = [0.0] * len(requests)
        free, waiting = list(range(self.steps.batch)), list(range(len(requests)))[::-1]
        running: list[Slot] = []
        while waiting or running:
            while waiting and free:
                running.append(self._admit(requests, waiting.pop(), free.pop(0)))
            for slot, fresh in zip(running, self._round(running), strict=True):
                if emit is not None and emit(slot.index, slot.ids[-fresh:]):
                    slot.finished = True
                if slot.finished:
                    self._check(running)
                    self.replies[slot.index] = slot.reply
                    free.append(slot.row)
                    if progress is not None:
                        progress()
            running = [slot for slot in running if not slot.finished]

    def _admit(self, requests: Sequence[Request], index: int, row: int) -> Slot:
        """A slot for this request, its prompt in both caches."""
        engine, parameters, trace = self.engine, self.parameters, self.acceptance
        context = engine.pair.max_context if trace is None else trace.meta.max_context
        eos_ids = engine.pair.eos_ids if trace is None else frozenset[int]()
        limits = Limits(engine.max_gamma, parameters.max_new_tokens, context)
        replayed = (
            None if trace is None else ReplayedAcceptance(trace, index, engine.pair.vocab_size)
        )
        number = self.first + index
        states = engine.pair.drafter.kind in FEATURE_HEADS
        slot = Slot(
            requests[index], index, row, parameters.seed, limits, eos_ids, replayed, number, states
        )
        began = time.perf_counter()
        if slot.prompt_tokens > 1:
            self.steps.prefill(slot.prompt())
        self.policy.admit(self.state, row)
        wait_for(engine.pair.device)  # or the prompt would be on the first round's bill
        self.prefill_s[index] = time.perf_counter() - began
        return slot

    def _round(self, running: list[Slot]) -> list[int]:
        """One round of all running slots; how many tokens each one emitted."""
        policy, state, steps, costs = self.policy, self.state, self.steps, self.costs
        began = time.perf_counter()
        self.processor.start()
        row = min(len(running), costs.draft_s.shape[0]) - 1
        if self.shaped is not None and len(self.shaped.shapes) > 1:
            row = running[0].choose(policy, state, costs, self.shaped.shapes)
            self.shaped.choose(row)
        requested_gamma: int | None = None
        offers = steps.offers([(slot.row, slot.ids) for slot in running])
        for slot, offered in zip(running, offers, strict=True):
            told = slot.plan(policy, state, costs, row, len(running), offered, requested_gamma)
            requested_gamma = told if policy.batch_wide else None
        self._draft([slot for slot in running if slot.gamma > 0])
        newest = [slot.newest() for slot in running]
        uniforms = [slot.uniforms(slot.kept + 1, self.greedy) for slot in running]
        verdicts = steps.verify(newest, self.parameters.sampling, uniforms)
        taken = [slot.take(verdict) for slot, verdict in zip(running, verdicts, strict=True)]
        elapsed = time.perf_counter() - began
        longest = max(slot.drafted for slot in running), max(slot.kept for slot in running)
        outcomes = []
        for slot, (accepted, emitted, ended) in zip(running, taken, strict=True):
            priced = kept_seconds(costs, row, slot.bucket, *longest, slot.lag)
            seconds = priced if self.clock == "model" else elapsed
            outcome = Outcome(slot.gamma, slot.kept, accepted, emitted, ended, seconds, priced)
            policy.learn(state, slot.row, slot.view, outcome)
            slot.close(outcome)
            outcomes.append(outcome)
        wall = time.perf_counter() - began  # what the controller learns is on its own bill
        self.processor.stop(len(running))
        for slot, outcome in zip(running, outcomes, strict=True):
            self.rounds.append(slot.row_of(outcome, began - self.began, len(running), wall))
            self.entries.append(slot.entry)
        return [outcome.emitted for outcome in outcomes]

    def _draft(self, drafting: list[Slot]) -> None:
        """Draft in lock step until every slot has its tokens or its policy stops it."""
        policy, state = self.policy, self.state
        if not drafting:
            return
        feeds = [slot.unread_tokens() for slot in drafting]
        uniforms = [slot.uniforms(slot.gamma, self.greedy) for slot in drafting]
        seen = self.steps.draft_first(feeds, self.parameters.sampling, self.reads_signals, uniforms)
        while True:
            if seen is not None and any(math.isnan(top1_prob) for top1_prob, _ in seen):
                self._check(drafting)  # now: no policy must decide by NaN
            drafting = [
                slot
                for k, slot in enumerate(drafting)
                if slot.continues(policy, state, self.steps, None if seen is None else seen[k])
            ]
            if not drafting:
                return
            seen = self.steps.draft_next([slot.row for slot in drafting])

    def _check(self, slots: Sequence[Slot]) -> None:
        """Raise InputError if tokens were chosen by NaN; slots: where it may have been."""
        try:
            check_finite(self.engine.pair, {slot.request.request_id: slot.ids for slot in slots})
        except InputError:
            self.engine._steps.clear()  # graphs read all of a cache, and 0 times NaN is NaN
            raise

    def log(self, meta: dict[str, Any]) -> RoundLog:
        """The rounds so far."""
        cpu_s = np.asarray(self.processor.seconds(), dtype=np.float64)
        rounds = np.asarray(self.rounds, dtype=ROUND)
        log = log_of(rounds, np.asarray(self.prefill_s), meta, cpu_s)
        if self.shaped is None:
            return log
        return with_trees(log, self.shaped.shapes, np.asarray(self.entries, dtype=np.int64))
