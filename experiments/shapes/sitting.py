"""Chains and trees decode the same held-out replies, interleaved: does the real backend agree?

A sitting as in real_backend.decoding.interleaving, whose seats differ in the shape of their drafts,
too. The reference is the tuned chain and its second copy. What the trees' masks and gathers cost is
in what is measured and in no price.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from experiments.common.frames import Column, figure, interval, words
from experiments.common.statistics import Estimate, bootstrap_weights, enough
from experiments.common.verdict import NOISY, Turns, is_tie, ratio_of
from experiments.shapes.ways import Half, Way, Ways
from policies.base import Policy, State
from policies.registry import label
from real_backend.decoding.measured import PLACEBO
from real_backend.options import PairOptions
from traces.roundlog import RoundLog
from traces.shapes.menu import Several
from traces.shapes.shape import chain
from traces.split import held_out_rows, question_of

if TYPE_CHECKING:
    from pathlib import Path

    from real_backend.decoding.steps import MakeSteps
    from real_backend.load_pair import Pair
    from real_backend.prompts import Request


@dataclasses.dataclass(frozen=True)
class Confirmation:
    """One way to draft over the tuned chain, predicted and measured on the same replies.

    predicted, measured: tokens/s over tokens/s; the latter's interval is of the clock's chance on
    these replies. others: the interval over other questions. word: see experiments.common.verdict.
    differing: rounds that were not the replay's, of `rounds`. replies_equal: of `replies`, those of
    plain decoding. Both None of sampled replies, which are drawn anew by everybody.
    """

    name: str
    predicted: float
    measured: Estimate
    others: Estimate
    word: str
    differing: int | None
    rounds: int
    replies_equal: int | None
    replies: int


SAT: tuple[Column, ...] = (
    words("name", "draft", "Draft", "what chose the shape, or the depth of every round"),
    figure("predicted", "predicted", "Predicted", "tokens/s over the tuned chain's", 3),
    interval("measured", "measured", "Measured", "the same, 95 % of the clock's chance on these "
             "replies", 3),
    interval("others", "with other questions", "With other questions", "the same, questions "
             "resampled", 3),
    words("word", "", "", ""),
    figure("differing", "unlike", "Unlike", "rounds that were not the replay's", 0),
    figure("rounds", "rounds", "Rounds", "of the sitting", 0),
    figure("replies_equal", "equal", "Equal", "replies that are those of plain decoding", 0),
    figure("replies", "replies", "Replies", "of the sitting", 0),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Seat(Policy):
    """The place of a way in a sitting, by its number; `Shaped` asks the way's own policy."""

    number: int = 0

    name: ClassVar[str] = "seat"
    rule: ClassVar[str] = "stands for a way to draft in a sitting"
    source: ClassVar[str] = "ours"


class Shaped:
    """The backend of a sitting: every seat decodes with the steps of its shape."""

    def __init__(self, pair: Pair, ways: Sequence[Way], half: Half) -> None:
        from real_backend.decoding.engine import Engine
        from real_backend.decoding.leanest_steps import steps_for
        from real_backend.trees.load import steps_of

        self.ways = ways
        self.states: dict[int, State] = {}
        self.engines = []
        for way in ways:
            shape = way.shape or chain(1)
            make: MakeSteps = steps_for
            if not shape.is_chain or isinstance(shape, Several):
                make = steps_of(shape.entries if isinstance(shape, Several) else [shape])
            prices = half.prices(shape)
            self.engines.append(Engine(pair, prices, max_gamma=shape.depth, make=make))

    def decode(
        self,
        policy: Policy,
        requests: Sequence[Request],
        *,
        state: State | None,
        first: int,
        **how: Any,
    ) -> Any:
        """As Engine.decode; `policy` is a Seat, whose way's own state is kept here. state None: one
        that is not kept; first 0: a sitting begins.
        """
        assert isinstance(policy, Seat)
        number, way = policy.number, self.ways[policy.number]
        if state is not None and first == 0:
            self.states[number] = way.policy.new_state(1)
        own = None if state is None else self.states[number]
        return self.engines[number].decode(way.policy, requests, state=own, first=first, **how)


def load_and_sit(
    named: PairOptions,
    prompts: Path | None,
    whole: Half,
    ways: Ways,
    limit: int,
    seed: int,
) -> list[Confirmation]:
    """`sit` of the pair that is named, on about `limit` of the held-out replies, all tasks alike.
    whole: the recording, not its half.

    Raises InputError if the pair is not the trace's, or cannot draft trees.
    """
    from real_backend.load_pair import pair_from
    from real_backend.prompts import questions_of, requests_of_trace

    questions, pair = questions_of(named, prompts), pair_from(named)
    requests = requests_of_trace(questions, whole.trace, pair)
    rows = held_out_rows(whole.trace, limit, seed)
    return sit(pair, [requests[row] for row in rows], ways, whole.of(rows), seed=seed)


def sit(
    pair: Pair, requests: Sequence[Request], ways: Ways, half: Half, *, seed: int
) -> list[Confirmation]:
    """Every way but the tuned chain, and those that are it by another name, held against it.

    requests: those of the recording in `half`, one per row, whose costs are a timing's of this
    machine.
    """
    from experiments.validation.sitting_logs import on_clock
    from real_backend.decoding.interleaving import Sitting

    seated, predicted = _apart(ways, half, seed)
    seats = [Seat(number) for number in range(len(seated))]
    baseline = seats[seated.index(ways.baseline)]
    sitting = Sitting(Shaped(pair, seated, half), half.trace, requests, seed)
    measured = sitting.run(seats, baseline, what="shapes")
    logs = {name: found[0] for name, found in measured.timed.items()}
    alone = all(log.cpu_s is not None and log.meta.get("threads") == 1 for log in logs.values())
    logs = {name: on_clock(log, "cpu" if alone else "wall") for name, log in logs.items()}
    of = {label(seat): log for seat, log in zip(seats, predicted, strict=True)}
    of[PLACEBO] = base = of[label(baseline)]
    turns = {name: _turns(log, of[name], half.trace.requests) for name, log in logs.items()}
    theirs = turns[label(baseline)]
    questions = [question_of(request_id) for request_id in half.trace.request_id]
    weights = bootstrap_weights(questions, seed=seed)
    judgeable = is_tie(turns[PLACEBO], theirs) and enough(len(set(questions)))
    drawn = half.trace.meta.temperature > 0.0
    found = []
    for name in [PLACEBO, *(label(seat) for seat in seats if seat != baseline)]:
        reference = theirs if name == PLACEBO else theirs.plus(turns[PLACEBO])
        ratio = ratio_of(
            (name, label(baseline)), turns[name], reference,
            float(base.elapsed_s.sum() / of[name].elapsed_s.sum()), float("nan"), weights,
            redrawn=drawn, judgeable=judgeable,
        )  # fmt: skip
        found.append(
            Confirmation(
                name=PLACEBO if name == PLACEBO else seated[_number(name, seats)].name,
                predicted=ratio.predicted,
                measured=ratio.time,
                others=ratio.others,
                word=_placebo_word(judgeable) if name == PLACEBO else ratio.word,
                differing=None if drawn else _differing(logs[name], of[name]),
                rounds=len(logs[name]),
                replies_equal=logs[name].meta.get("replies_equal"),
                replies=half.trace.requests,
            )
        )
    return found


def _apart(ways: Ways, half: Half, seed: int) -> tuple[list[Way], list[RoundLog]]:
    """The tuned chain, then every way that takes other rounds than those before it, and their
    replays. Two names of the same rounds would be two placebos, and a word about them chance.
    """
    seated, logs = list[Way](), list[RoundLog]()
    for way in [ways.baseline, *ways.all]:
        log = half.log(way, seed)
        twins = (
            _differing(log, other) == 0 and _branches(way) == _branches(seat)
            for seat, other in zip(seated, logs, strict=True)
        )
        if not any(twins):
            seated.append(way)
            logs.append(log)
    return seated, logs


def _branches(way: Way) -> object:
    """The tree; all chains are one, as their rounds say how far they went."""
    return None if way.shape is None or way.shape.is_chain else way.shape


def _number(name: str, seats: Sequence[Seat]) -> int:
    return next(seat.number for seat in seats if label(seat) == name)


def _placebo_word(judgeable: bool) -> str:
    return "a tie, as it must be" if judgeable else f"no tie, or few questions: all is {NOISY}"


def _differing(ours: RoundLog, theirs: RoundLog) -> int:
    """Rounds that are not the replay's; all behind a differing number of them."""
    count = min(len(ours), len(theirs))
    columns = ["request", "context_tokens", "drafted", "accepted", "emitted"]
    pairs = [(getattr(ours, name), getattr(theirs, name)) for name in (*columns, "nodes", "shape")]
    pairs = [(a, b) for a, b in pairs if a is not None and b is not None]  # chains have no nodes
    same = np.logical_and.reduce([a[:count] == b[:count] for a, b in pairs])
    return int(count - same.sum()) + abs(len(ours) - len(theirs))


def _turns(log: RoundLog, replayed: RoundLog, count: int) -> Turns:
    """By request: tokens, seconds measured, and seconds that the replay's rounds are priced at."""

    def total(rounds: RoundLog, column: Any) -> Any:
        return np.bincount(rounds.request, weights=column, minlength=count).astype(np.float64)

    return Turns(
        total(log, log.emitted), total(log, log.elapsed_s), total(replayed, replayed.elapsed_s)
    )
