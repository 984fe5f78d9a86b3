"""Rounds timed step by step, as the engine runs them: of them a timing and a sitting's anchors are
made.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from real_backend.decoding.clock import wait_for
from real_backend.decoding.leanest_steps import steps_for
from real_backend.decoding.steps import GREEDY, Feed, Sampling
from real_backend.device_errors import device_faults
from real_backend.load_pair import Pair
from real_backend.not_finite import check_finite
from traces.errors import InputError
from traces.timing import HOST, PRICES, STEP

DRAFTED = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 24, 32)
LAGS = (1, 2, 3, 5, 9)
TIMED_ROUNDS = 3  # of a block
SIGNAL_TOKENS = 4  # drafted by rounds that read signals, and by those beside them that do not
PERIOD = 64  # tokens after which a text repeats itself, so that look-ups find some
_SIGNAL_WARM, _SIGNAL_PAIRS = 2, 33  # of such rounds
_WARM_ROUNDS = 5  # untimed, at the head of a block: behind rounds of another kind the first ones
#                   take 1.05, 1.03, 1.02, 1.01 ... of the settled, and a reply is a row of one kind
_PLAIN_WARM_ROUNDS = 10  # a target that runs alone gets faster for about eight rounds: its weights
#                          stay in the cache (1.21, 1.18, 1.15, 1.09, 1.07, 1.05 ... of the settled)

Key = tuple[str, int, int, int]
"""(operation, batch, tokens, context) of one cell."""
Spent = tuple[float, float]
"""Seconds by the wall, or in a GPU's stream; and by the processor's clock of this thread, NaN on a
GPU."""
Samples = dict[Key, list[Spent]]
"""Seconds of every cell in one sweep."""


def lags_for(pair: Pair) -> tuple[int, ...]:
    """The numbers of unread tokens to time: only a drafter of steps reads what it lacks."""
    return LAGS if PRICES[pair.drafter.kind] == STEP else LAGS[:1]


class Marks:
    """Moments between steps: both clocks of the host, or events in a GPU's stream."""

    def __init__(self, device: str) -> None:
        self.device, self.cuda = device, device.startswith("cuda")
        if not self.cuda and device != "cpu":
            raise InputError(f"--device {device}: steps can be timed on cpu and cuda only")
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Now, in the order of the device's work."""
        if self.cuda:
            event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._marks.append(event)
        else:
            self._marks.append((time.perf_counter(), time.thread_time()))

    def seconds(self) -> list[Spent]:
        """Seconds between one mark and the next."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self.cuda:
            wait_for(self.device)
            return [(before.elapsed_time(after) / 1e3, math.nan) for before, after in pairs]
        return [(after[0] - before[0], after[1] - before[1]) for before, after in pairs]


class Bench:
    """Rounds of one batch size on caches of their own, timed step by step into `samples`.

    law: how tokens are chosen; drawing from a nucleus costs what an arg-max does not. deepest: the
    most tokens that a round will draft; its steps are made ready here, not inside a timed round.
    """

    def __init__(
        self,
        pair: Pair,
        batch: int,
        longest: int,
        samples: Samples,
        sampling: Sampling = GREEDY,
        deepest: int = max(DRAFTED),
    ) -> None:
        self.pair, self.batch, self.samples, self.sampling = pair, batch, samples, sampling
        self.price = PRICES[pair.drafter.kind]
        self.steps = steps_for(pair, batch, longest)
        self.steps.prepare(sampling, False, deepest, 1)
        generator = torch.Generator().manual_seed(batch)
        # What is looked up must be there to be found.
        period = PERIOD if self.price == HOST else longest
        text = torch.randint(pair.vocab_size, (batch, period), generator=generator)
        self.ids: list[list[int]] = text.repeat(
            1, 1 + (longest + _WARM_ROUNDS * 4) // period
        ).tolist()
        self._rounds = 0  # of this block so far

    def _feeds(self, start: int, end: int) -> list[Feed]:
        return [Feed(row, ids[start:end], start) for row, ids in enumerate(self.ids)]

    def _keep(self, keys: Sequence[tuple[str, int, int]], marks: Marks) -> None:
        """Each (operation, tokens, context) took the time between two marks."""
        for (operation, tokens, context), spent in zip(keys, marks.seconds(), strict=True):
            key = (operation, self.batch, tokens, context)
            self.samples.setdefault(key, []).append(spent)

    def prefill(self, tokens: int) -> None:
        """Both models read a prompt in each row."""
        marks = Marks(self.pair.device)
        marks.mark()
        for feed in self._feeds(0, tokens):
            self.steps.prefill(feed)
        marks.mark()
        self._keep([("prefill", tokens, 0)], marks)

    def round(self, drafted: int, lag: int, context: int, reads_signals: bool = False) -> None:
        """One round as the engine runs it: look-up or first draft step, further ones, verify.
        reads_signals: of every drafted token. Where further tokens are free, what they cost all the
        same is in the verify.
        """
        steps, rows, marks = self.steps, range(self.batch), Marks(self.pair.device)
        unread_tokens = self._feeds(context - lag, context)
        newest = self._feeds(context - 1, context)
        numbers = [[0.5] * (drafted + 1) if self.sampling.temperature else [] for _ in rows]
        keys = []
        self._rounds += 1
        known = [(row, ids[: context + self._rounds]) for row, ids in enumerate(self.ids)]
        marks.mark()
        steps.offers(known)
        if self.price == HOST:
            marks.mark()
            keys.append(("first", 1, context))
        if drafted:
            steps.draft_first(unread_tokens, self.sampling, reads_signals, numbers)
            if self.price != HOST:
                marks.mark()
                keys.append(("first", lag, context))
        for _ in range(drafted - 1):
            steps.draft_next(rows)
            if self.price == STEP:
                marks.mark()
                keys.append(("draft", 1, context))
        steps.verify(newest, self.sampling, numbers)
        marks.mark()
        self._keep([*keys, ("verify", drafted + 1, context)], marks)

    def signal_s(self, context: int) -> Spent:
        """Seconds that a drafted token costs more if its signals are read: rounds that read them
        and rounds that do not in turn, so that a machine that drifts is the same for both.
        """
        kept, spent = self.samples, list[Spent]()
        for k in range(2 * (_SIGNAL_WARM + _SIGNAL_PAIRS)):
            self.samples = {}
            self.round(SIGNAL_TOKENS, 1, context, reads_signals=k % 2 == 1)
            apart = ("verify",) if self.price == STEP else ()
            drafts = [s for key, some in self.samples.items() if key[0] not in apart for s in some]
            spent.append((sum(s[0] for s in drafts), sum(s[1] for s in drafts)))
        self.samples = kept
        rounds = np.asarray(spent[2 * _SIGNAL_WARM :]).reshape(-1, 2, 2)  # pair, looks, clock
        wall, cpu = np.median(rounds[:, 1] - rounds[:, 0], axis=0) / SIGNAL_TOKENS
        return float(wall), float(cpu)

    def block(self, drafted: int, lags: Sequence[int], context: int) -> None:
        """Rounds of one kind in a row, the first ones untimed."""
        with device_faults(
            f"at batch {self.batch}, context {context}, {drafted} drafted tokens",
            "a smaller --batch or --context, half precision, or a smaller pair",
        ):
            if not self.steps.holds(context):
                for feed in self._feeds(0, context):
                    self.steps.prefill(feed)
            kept, self.samples, self._rounds = self.samples, {}, 0
            for k in range(_WARM_ROUNDS if drafted else _PLAIN_WARM_ROUNDS):
                self.round(drafted, lags[k % len(lags)], context)
            self.samples = kept
            for k in range(TIMED_ROUNDS):
                self.round(drafted, lags[k % len(lags)], context)
            check_finite(self.pair, {f"at context {context}": self.ids[0][:context]})
