"""One request in flight: its tokens, what its caches hold, and what its policy is told.

A slot is host bookkeeping only; `Steps` do the work on the device.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from policies.base import Draft, Outcome, Policy, State, View, clamp_gamma
from policies.randomness import Rng, mix, request_key
from policies.round import (
    Limits,
    Settled,
    clamp_entry,
    longest_reply,
    menu_view_at,
    room_at,
    settle,
    view_at,
)
from real_backend.decoding.steps import Feed, Sampling, Steps, Verdict
from real_backend.drafters.drafter import MOST
from real_backend.prompts import Request
from traces.costs.pricing import StepCosts, bucket_of, lag_after
from traces.errors import InputError
from traces.schema import Trace
from traces.shapes.shape import Grown, Shape


@dataclasses.dataclass(frozen=True)
class DecodeParameters:
    """temperature 0 is greedy; max_new_tokens bounds each reply; seed drives draws and policies."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_new_tokens: int = 128

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen."""
        return Sampling(self.temperature, self.top_p)


class ReplayedAcceptance(NamedTuple):
    """A trace's acceptance in the place of the models' own: request `row` of `trace`.

    The forwards are real; what they say is not looked at. Tokens are the trace's, folded into the
    pair's vocabulary.
    """

    trace: Trace
    row: int
    vocab_size: int

    @property
    def reply_tokens(self) -> int:
        """Length of the recorded reply."""
        return int(self.trace.offsets[self.row + 1] - self.trace.offsets[self.row])

    def verdict(self, emitted: int, drafted: list[int]) -> Verdict:
        """The trace's verdict on a round that starts behind `emitted` tokens of the reply."""
        at = int(self.trace.offsets[self.row]) + emitted
        accepted = min(len(drafted), int(self.trace.accept_len[at]))
        tokens = self.trace.token_ids
        end = int(self.trace.offsets[self.row + 1])
        recorded = [] if tokens is None else tokens[at : min(at + accepted + 1, end)].tolist()
        recorded = [token % self.vocab_size for token in recorded]
        recorded += [0] * (accepted + 1 - len(recorded))  # behind the end, or never recorded
        return Verdict(recorded[:-1] + drafted[accepted:], accepted, recorded[-1])

    def offered(self, emitted: int) -> int:
        """Tokens that the trace's drafter had to offer behind `emitted` tokens of the reply."""
        draft_len = self.trace.draft_len
        at = int(self.trace.offsets[self.row]) + emitted
        return int(draft_len[at]) if draft_len is not None else MOST

    def signals(self, emitted: int, drafted: int) -> tuple[float, float]:
        """top1_prob and entropy that the trace recorded for the newest drafted token."""
        at = int(self.trace.offsets[self.row]) + emitted
        if self.trace.top1_prob is None or self.trace.entropy is None:
            raise InputError("the trace has no draft signals, which this policy looks at")
        return (
            float(self.trace.top1_prob[at, drafted - 1]),
            float(self.trace.entropy[at, drafted - 1]),
        )


class Slot:
    """One row of the running batch.

    index: the request's number in the run; row: its place in the batch and in the policy's state;
    eos_ids: tokens that end the reply; number: what keys the policy's draws for it. reads_states:
    the drafter is a feature head, see traces.costs.pricing.lag_after.
    """

    def __init__(
        self,
        request: Request,
        index: int,
        row: int,
        seed: int,
        limits: Limits,
        eos_ids: frozenset[int],
        replayed: ReplayedAcceptance | None,
        number: int,
        reads_states: bool = False,
    ) -> None:
        self.request, self.index, self.row = request, index, row
        self.limits, self.eos_ids = limits, eos_ids
        self.replayed, self.key = replayed, request_key(seed, number)
        self.ids: list[int] = list(request.prompt_ids)
        self.prompt_tokens = len(self.ids)
        self.rounds = self.gamma = self.drafted = self.kept = self.bucket = self.entry = 0
        self.lag = 1  # tokens that the draft's cache lacks
        self.reads_states = reads_states
        self.finished = False
        # From seed and request_id alone, so that requests may run in any order and grouping;
        # another stream than a capture's, so that no replay shares its draws with a real run.
        identity = hashlib.sha256(f"engine {request.request_id}".encode()).digest()[:8]
        self.random = np.random.default_rng([seed, *identity])
        self.view: View
        if limits.max_context and self.prompt_tokens + 1 >= limits.max_context:
            raise InputError(
                f"request {request.request_id}: the prompt has {self.prompt_tokens} tokens, the "
                f"pair's context holds {limits.max_context}"
            )

    @property
    def emitted(self) -> int:
        """Tokens of the reply so far."""
        return len(self.ids) - self.prompt_tokens

    @property
    def reply(self) -> list[int]:
        """The tokens decoded so far."""
        return self.ids[self.prompt_tokens :]

    def prompt(self) -> Feed:
        """The prompt but its last token, for both caches."""
        return Feed(self.row, self.ids[:-1], 0)

    def plan(
        self,
        policy: Policy,
        state: State,
        costs: StepCosts,
        row: int,
        batch_size: int,
        offered: int,
        requested_gamma: int | None,
    ) -> int:
        """Ask the policy for this round's cap, unless the batch has a wish already; returns it.

        row: of the costs, by batch size. offered: tokens that the drafter has to offer.
        """
        if self.replayed is not None:
            offered = self.replayed.offered(self.emitted)
        context = len(self.ids)
        room = room_at(self.limits, self.prompt_tokens, self.emitted, offered)
        self.bucket = bucket_of(costs, context)
        self.view = view_at(costs, row, self.bucket, context, batch_size, 0, room)
        if requested_gamma is None:
            rng = Rng(mix(self.key, self.rounds))
            requested_gamma = policy.gamma(state, self.row, self.view, rng)
        self.gamma = clamp_gamma(requested_gamma, room)
        self.drafted = self.kept = 0
        return requested_gamma

    def choose(
        self, policy: Policy, state: State, costs: StepCosts, menu: Sequence[Shape | Grown]
    ) -> int:
        """Ask the policy for this round's entry of a menu; rows of the costs are its entries."""
        limits, context = self.limits, len(self.ids)
        levels = np.array([shape.depth for shape in menu], dtype=np.int64)
        room = room_at(limits, self.prompt_tokens, self.emitted, limits.max_gamma)
        view = menu_view_at(costs, bucket_of(costs, context), context, room, levels)
        rng = Rng(mix(self.key, self.rounds))
        self.entry = clamp_entry(policy.shape(state, self.row, view, rng), len(levels))
        return self.entry

    def unread_tokens(self) -> Feed:
        """The tokens that the draft's cache lacks, read first."""
        start = len(self.ids) - self.lag
        if self.reads_states:  # a head never reads a request's first token
            start = max(start, 1)
        return Feed(self.row, self.ids[start:], start)

    def newest(self) -> Feed:
        """The newest token, which the target reads before the drafted ones."""
        return Feed(self.row, self.ids[-1:], len(self.ids) - 1)

    def continues(
        self, policy: Policy, state: State, steps: Steps, seen: list[float] | None
    ) -> bool:
        """One more token is drafted; whether to draft another one. seen: its signals, if read. What
        the policy does not retain the steps drop, and `kept` stays behind `drafted`.
        """
        self.drafted += 1
        if seen is not None:
            if self.replayed is not None:
                seen = list(self.replayed.signals(self.emitted, self.drafted))
            draft = Draft(self.drafted, *seen)
            if not policy.retain(state, self.row, draft):
                steps.drop(self.row)
                return False
            self.kept = self.drafted
            if not policy.proceed(state, self.row, draft):
                return False
        self.kept = self.drafted
        return self.drafted < self.gamma

    def uniforms(self, count: int, greedy: bool) -> list[float]:
        """The next numbers of this request's stream, none if greedy."""
        return [] if greedy else self.random.random(count).tolist()

    def take(self, verdict: Verdict) -> Settled:
        """Add the round's tokens to the reply; what the round came to."""
        if self.replayed is not None:
            verdict = self.replayed.verdict(self.emitted, verdict.drafted)
            left = self.replayed.reply_tokens - self.emitted
        else:
            left = longest_reply(self.limits, self.prompt_tokens) - self.emitted
        fresh = [*verdict.drafted[: verdict.accepted], verdict.extra]
        for k, token in enumerate(fresh[:left]):
            if token in self.eos_ids:  # the reply ends inside the block
                left = k + 1
                break
        settled = settle(self.kept, min(verdict.accepted, left), left)
        self.ids += fresh[: settled.emitted]
        self.finished = settled.emitted == left
        return settled

    def close(self, outcome: Outcome) -> None:
        """The round is over."""
        self.lag = lag_after(self.lag, self.drafted, outcome.accepted, self.reads_states)
        self.rounds += 1

    def row_of(
        self, outcome: Outcome, start_s: float, batch: int, wall_s: float
    ) -> tuple[float, ...]:
        """The round as in traces.roundlog.ROUND."""
        place = (self.index, self.row, start_s, self.view.context_tokens, batch)
        return (*place, outcome.gamma, self.drafted, *outcome[1:5], wall_s)
