"""Speculative decoding of real models under any Policy, one request after another.

A round: the draft reads what it has not read yet and proposes up to gamma tokens; the target reads
the newest token and the proposals in one forward; the accepted prefix and one token of the target's
own are emitted; both caches roll back by reading on from an earlier index. Greedy output equals
plain greedy decoding, sampled output has the target's law.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from policies.base import Draft, Outcome, Policy, State, View, clamp_gamma, uses_signals
from policies.randomness import Rng, round_key
from policies.shelf import label, parse_policies
from real_backend.kvcache import Reader
from real_backend.models import Pair, pair_from_args
from real_backend.options import add_decode_arguments, add_pair_arguments, run_module
from real_backend.prompts import EMBEDDED_PROMPTS, Request, read_questions, requests_of_trace
from real_backend.verify import accept_greedy, accept_sampled, distribution, draw, signals
from traces.costs import Table, bucket_of, lag_after, prices_of, round_seconds, tabulate
from traces.errors import InputError
from traces.roundlog import ROUND_DTYPES, RoundLog, write_roundlog
from traces.store import read_trace
from traces.timing import StepCosts, read_timing


class Run(NamedTuple):
    """What decode returns: one token list per request (end token included) and the rounds."""

    tokens: list[list[int]]
    log: RoundLog


@dataclasses.dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; max_new_tokens bounds each reply; seed drives draws and policies."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_new_tokens: int = 128


class Proposal(NamedTuple):
    """What one round's drafting left: tokens on the device, and their laws [d, V] if sampled."""

    tokens: list[Tensor]
    probs: list[Tensor]


class Engine:
    """Decodes requests of one pair under any policy.

    costs: the step costs a policy sees in its View. max_gamma: the most tokens any policy may
    draft. clock "wall" tells policies the measured seconds of a round; "model" tells them what
    `costs` says, so that controllers that read seconds decide as in a replay. The log always holds
    wall seconds.
    """

    def __init__(self, pair: Pair, costs: StepCosts, *, max_gamma: int = 16) -> None:
        if costs.verify_s.shape[1] < max_gamma + 2:
            raise ValueError(f"costs cover {costs.verify_s.shape[1] - 2} drafted tokens")
        self.pair, self.costs, self.max_gamma = pair, costs, max_gamma
        self._readers: tuple[Reader, Reader] | None = None

    def readers(self, capacity: int) -> tuple[Reader, Reader]:
        """Target and draft with caches of at least `capacity` tokens, kept between calls."""
        if self._readers is None or self._readers[0].capacity < capacity:
            self._readers = self.pair.target.reader(capacity), self.pair.draft.reader(capacity)
        return self._readers

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
        clock: str = "wall",
        progress: Callable[[], object] | None = None,
    ) -> Run:
        """Decode all requests in order with one policy state; see Run.

        Raises InputError if a prompt does not fit into the pair's context.
        """
        if clock not in ("wall", "model"):
            raise ValueError(f"clock must be 'wall' or 'model', not {clock!r}")
        sampling = Sampling(temperature, top_p, seed, max_new_tokens)
        longest = max(len(r.prompt_ids) for r in requests) + max_new_tokens + self.max_gamma + 1
        target, draft = self.readers(longest)
        state = policy.new_state(1)
        replies: list[list[int]] = []
        rows: list[tuple[float, ...]] = []
        prefills: list[float] = []
        began = time.perf_counter()
        for index, request in enumerate(requests):
            decoder = Decoder(self, policy, state, sampling, index, target, draft)
            prefills.append(decoder.prefill(request))
            while not decoder.finished:
                start_s = time.perf_counter() - began
                rows.append((index, 0, start_s, *decoder.round(clock)))
            replies.append(decoder.reply)
            if progress is not None:
                progress()
        columns = zip(*rows, strict=True)
        arrays: dict[str, Any] = {
            name: np.asarray(column, dtype=dtype)
            for (name, dtype), column in zip(ROUND_DTYPES.items(), columns, strict=True)
        }
        meta = {
            "policy": label(policy),
            "clock": "measured",
            "policy_clock": clock,
            "max_gamma": self.max_gamma,
            **dataclasses.asdict(sampling),
            **self.pair.describe(),
        }
        return Run(replies, RoundLog(**arrays, prefill_s=np.asarray(prefills), meta=meta))


class Decoder:
    """One request in flight: its tokens, and how much of them each cache holds."""

    def __init__(
        self,
        engine: Engine,
        policy: Policy,
        state: State,
        sampling: Sampling,
        index: int,
        target: Reader,
        draft: Reader,
    ) -> None:
        self.pair, self.max_gamma = engine.pair, engine.max_gamma
        self.policy, self.state, self.sampling, self.index = policy, state, sampling, index
        self.target, self.draft = target, draft
        self.greedy = sampling.temperature == 0.0
        self.reads_signals = uses_signals(policy)
        self.prices = prices_of(engine.costs, self.reads_signals)
        self.ids: list[int] = []
        self.prompt_tokens = self.rounds = 0
        self.lag = 1
        self.finished = False
        self.random: np.random.Generator  # one per request, see prefill

    @property
    def reply(self) -> list[int]:
        """The tokens decoded so far."""
        return self.ids[self.prompt_tokens :]

    def prefill(self, request: Request) -> float:
        """Read the prompt but its last token into both caches; the seconds that took."""
        self.ids = list(request.prompt_ids)
        self.prompt_tokens = len(self.ids)
        # From seed and request_id alone, so that requests may run in any order and grouping;
        # another stream than a capture's, so that no replay shares its draws with a real run.
        identity = hashlib.sha256(f"engine {request.request_id}".encode()).digest()[:8]
        self.random = np.random.default_rng([self.sampling.seed, *identity])
        limit = self.pair.max_context
        if limit and self.prompt_tokens + 1 >= limit:
            raise InputError(
                f"request {request.request_id}: the prompt has {self.prompt_tokens} tokens, the "
                f"pair's context holds {limit}"
            )
        began = time.perf_counter()
        if self.prompt_tokens > 1:
            head = self._tensor(self.ids[:-1])
            self.target.read(head, 0)
            self.draft.read(head, 0)
            self._synchronise()
        self.policy.admit(self.state, 0)
        return time.perf_counter() - began

    def round(self, clock: str) -> tuple[float, ...]:
        """One round; the RoundLog columns from context_tokens on."""
        began = time.perf_counter()
        view, bucket = self._view()
        rng = Rng(round_key(self.sampling.seed, self.index, self.rounds))
        gamma = clamp_gamma(self.policy.gamma(self.state, 0, view, rng), view.room)
        proposal = self._propose(gamma)
        drafted = len(proposal.tokens)
        accepted, emitted = self._verify(proposal)
        elapsed = time.perf_counter() - began
        if clock == "model":
            elapsed = round_seconds(self.prices, bucket, drafted, self.lag)
        outcome = Outcome(gamma, drafted, accepted, emitted, elapsed)
        self.policy.learn(self.state, 0, view, outcome)
        self.lag = lag_after(self.lag, drafted, accepted)
        self.rounds += 1
        wall = time.perf_counter() - began  # what the controller learns is on its own bill
        return view.context_tokens, 1, gamma, drafted, accepted, emitted, wall

    def _view(self) -> tuple[View, int]:
        context, prices = len(self.ids), self.prices
        room = self.sampling.max_new_tokens - (context - self.prompt_tokens) - 1
        if self.pair.max_context:
            room = min(room, self.pair.max_context - context - 1)
        bucket = bucket_of(prices, context)
        room = max(0, min(self.max_gamma, room))
        step_s = float(prices.draft_s[bucket, 1]) + prices.signal_s
        return View(context, 1, 0, room, step_s, prices.verify_s[bucket]), bucket

    def _propose(self, gamma: int) -> Proposal:
        """Draft up to gamma tokens; nothing is read back unless the policy looks at signals."""
        proposal = Proposal([], [])
        if gamma == 0:
            return proposal
        start = len(self.ids) - self.lag
        feed = self._tensor(self.ids[start:])
        uniforms = [] if self.greedy else self.random.random(gamma).tolist()
        vocab = self.pair.vocab_size
        while True:
            logits = self.draft.read(feed, start)[0, -1, :vocab]
            if self.greedy:
                token = logits.argmax()
                probs = torch.softmax(logits.float(), -1) if self.reads_signals else logits
            else:
                probs = distribution(logits, self.sampling.temperature, self.sampling.top_p)
                token = draw(probs, uniforms[len(proposal.tokens)])
                proposal.probs.append(probs)
            proposal.tokens.append(token)
            drafted = len(proposal.tokens)
            if self.reads_signals:
                top1, entropy = signals(probs).tolist()
                if not self.policy.proceed(self.state, 0, Draft(drafted, top1, entropy)):
                    return proposal
            if drafted == gamma:
                return proposal
            start += feed.shape[1]
            feed = token.view(1, 1)

    def _verify(self, proposal: Proposal) -> tuple[int, int]:
        """Read newest token and proposals with the target; accepted and emitted tokens."""
        context, drafted = len(self.ids), len(proposal.tokens)
        newest = self._tensor(self.ids[-1:])
        feed = newest
        if drafted:
            feed = torch.cat([newest, torch.stack(proposal.tokens)[None]], dim=1)
        logits = self.target.read(feed, context - 1)[0, :, : self.pair.vocab_size]
        tokens: list[int]
        if self.greedy:
            both = torch.cat([feed[0, 1:], logits.argmax(-1)]).tolist()  # one read-back
            tokens = both[:drafted]
            accepted, extra = accept_greedy(tokens, both[drafted:])
        else:
            target_probs = distribution(logits, self.sampling.temperature, self.sampling.top_p)
            tokens = feed[0, 1:].tolist()
            draft_probs = torch.stack(proposal.probs) if drafted else target_probs[:0]
            uniforms = self.random.random(drafted + 1).tolist()
            accepted, extra = accept_sampled(tokens, target_probs, draft_probs, uniforms)
        fresh = [*tokens[:accepted], extra]
        for k, token in enumerate(fresh):
            if token in self.pair.eos_ids:  # the reply ends inside the block
                fresh, self.finished = fresh[: k + 1], True
                break
        self.ids += fresh
        full = len(self.ids) - self.prompt_tokens >= self.sampling.max_new_tokens
        limit = self.pair.max_context
        self.finished |= full or bool(limit and len(self.ids) >= limit)
        return min(accepted, len(fresh)), len(fresh)

    def _tensor(self, ids: list[int]) -> Tensor:
        return torch.tensor([ids], device=self.pair.device)

    def _synchronise(self) -> None:
        if self.pair.device.startswith("cuda"):
            torch.cuda.synchronize()


def run(args: argparse.Namespace) -> dict[str, Run]:
    """Decode a trace's requests again under each policy and save what happened, one file each."""
    policies = parse_policies(args.policies)
    trace, timing = read_trace(args.trace), read_timing(args.timing)
    questions = read_questions(args.prompts or EMBEDDED_PROMPTS)
    pair = pair_from_args(args)
    requests = requests_of_trace(questions, trace, pair)
    longest = int(trace.prompt_tokens.max()) + trace.meta.max_new_tokens
    costs = tabulate(Table(timing), max_context=longest, width=trace.meta.depth + 2)
    engine = Engine(pair, costs, max_gamma=trace.meta.depth)
    runs: dict[str, Run] = {}
    for policy in policies:
        name = label(policy)
        runs[name] = engine.decode(
            policy,
            requests,
            temperature=trace.meta.temperature,
            top_p=trace.meta.top_p,
            seed=args.seed,
            max_new_tokens=trace.meta.max_new_tokens,
        )
        log = runs[name].log
        file = args.out / f"{name.replace(':', '-').replace(',', '-')}.measured.parquet"
        write_roundlog(log, file, overwrite=args.force)
        speed = log.emitted.sum() / log.elapsed_s.sum()
        print(f"{name:32} {len(log):7} rounds {speed:9.1f} tokens/s  {file}")
    return runs


if __name__ == "__main__":
    sys.exit(run_module("engine", __doc__, [add_pair_arguments, add_decode_arguments], run))
