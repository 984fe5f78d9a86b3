"""Two drafters of one target: the rule that chooses, and the oracle of both."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest

from policies.fixed import Fixed
from policies.round import settle
from simulator.replay.drafters import (
    LOOKED_UP,
    ROUNDS,
    SECONDS,
    Switch,
    TwoDrafters,
    switch_ceiling,
    switch_totals,
)
from simulator.replay.hindsight import clairvoyant
from simulator.replay.metrics import per_request
from simulator.replay.replay import replay
from tests.results import lively_trace
from traces.costs.affine import Affine
from traces.costs.of_trace import tabulate_for
from traces.costs.pricing import lag_after, round_seconds
from traces.schema import Trace
from traces.timing import HOST

LOOK_UP_S, START_S = 0.5, 0.25


def both(offered: int = 4) -> tuple[Trace, Trace]:
    """A draft's recording and a look-up's of the same replies; the latter offers 0 to `offered`."""
    forwards, generator = lively_trace(), np.random.default_rng(4)
    draft_len = generator.integers(0, offered + 1, forwards.positions).astype(np.int16)
    left = np.concatenate([np.arange(n, 0, -1) for n in forwards.reply_tokens])
    taken = np.minimum(generator.integers(0, 5, forwards.positions), left)
    lookup = dataclasses.replace(
        forwards,
        meta=dataclasses.replace(forwards.meta, drafter="lookup"),
        accept_len=np.minimum(draft_len, taken).astype(np.int16),
        draft_len=draft_len,
        top1_prob=generator.random((forwards.positions, forwards.meta.depth), dtype=np.float32),
    )
    return forwards, lookup


def prices(trace: Trace, look_up_s: float = LOOK_UP_S, start_s: float = START_S) -> TwoDrafters:
    """A draft that costs more the more it lacks, and starts at a price."""
    costs = tabulate_for(trace, Affine(1.0, 10.0, draft_token=0.1, target_token=0.5))
    verify_s = costs.verify_s.copy()
    verify_s[..., 2:] += start_s
    starts = np.full((1, costs.buckets), start_s)
    paid = costs._replace(verify_s=verify_s, start_s=starts)
    return TwoDrafters(paid, np.full(costs.buckets, look_up_s))


def test_who_never_looks_up_drafts_as_alone() -> None:
    forwards, lookup = both()
    free = prices(forwards, look_up_s=0.0)
    found = switch_totals(Switch(17, 0.0, 4, 3), forwards, lookup, free)
    alone = per_request(replay(Fixed(3), forwards, free.costs))
    assert found[:, SECONDS] == pytest.approx(alone.decode_s, rel=1e-12)
    assert found[:, ROUNDS].tolist() == alone.rounds.tolist() and not found[:, LOOKED_UP].any()


def test_who_only_looks_up_plays_the_look_up() -> None:
    """No draft starts; a look-up is paid in every round, also where it finds nothing."""
    forwards, lookup = both()
    two = prices(forwards)
    found = switch_totals(Switch(1, 0.0, 3, 0), forwards, lookup, two)
    model = Affine(LOOK_UP_S, 10.0, target_token=0.5, draft_kind=HOST)
    alone = per_request(replay(Fixed(3), lookup, tabulate_for(lookup, model)))
    assert found[:, SECONDS] == pytest.approx(alone.decode_s, rel=1e-12)
    assert found[:, ROUNDS].tolist() == alone.rounds.tolist()
    assert 0 < found[:, LOOKED_UP].sum() < found[:, ROUNDS].sum()


def test_a_share_is_asked_for() -> None:
    forwards, lookup = both()

    def looked_up(share: float) -> float:
        rule = Switch(1, share, 3, 2)
        return float(switch_totals(rule, forwards, lookup, prices(forwards))[:, LOOKED_UP].sum())

    assert 0 < looked_up(0.5) < looked_up(0.0)


def test_the_oracle_of_one_drafter_is_its_clairvoyant() -> None:
    forwards, lookup = both(offered=0)
    free = prices(forwards, look_up_s=0.0)
    alone = per_request(clairvoyant(forwards, free.costs)).decode_s
    assert switch_ceiling(forwards, lookup, free) == pytest.approx(alone, rel=1e-12)


def test_the_oracle_is_the_least_of_all_schedules() -> None:
    """Every choice of drafter and length, tried by recursion on short replies."""
    forwards, lookup = (trace.select([0]) for trace in both())
    cut = dataclasses.replace(
        forwards,
        offsets=np.asarray([0, 9]),
        **{
            name: getattr(forwards, name)[:9]
            for name in ("accept_len", "top1_prob", "entropy", "token_ids")
            if getattr(forwards, name) is not None
        },
    )
    left = np.arange(9, 0, -1).astype(np.int16)
    cut = dataclasses.replace(cut, accept_len=np.minimum(cut.accept_len, left))
    looks = dataclasses.replace(
        cut,
        meta=lookup.meta,
        accept_len=np.minimum(lookup.accept_len[:9], left),
        draft_len=np.asarray(lookup.draft_len)[:9],
    )
    two = prices(cut)
    costs, width = two.costs, two.costs.width - 1

    @cache
    def least(at: int, lag: int) -> float:
        if at == 9:
            return 0.0
        found = []
        room = min(cut.meta.depth, cut.meta.max_new_tokens - at - 1)
        for gamma in range(room + 1):
            accepted, emitted, _ = settle(gamma, int(cut.accept_len[at]), 9 - at)
            then = min(lag_after(lag, gamma, accepted, False), width)
            seconds = round_seconds(costs, 0, 0, gamma, lag) + LOOK_UP_S
            found.append(seconds + least(at + emitted, then))
        for gamma in range(1, min(int(np.asarray(looks.draft_len)[at]), room) + 1):
            accepted, emitted, _ = settle(gamma, int(looks.accept_len[at]), 9 - at)
            seconds = 10.0 + 0.5 * gamma + LOOK_UP_S
            found.append(seconds + least(at + emitted, min(lag + emitted, width)))
        return min(found)

    assert switch_ceiling(cut, looks, two)[0] == pytest.approx(least(0, 1), rel=1e-12)


def test_no_rule_beats_the_oracle() -> None:
    forwards, lookup = both()
    two = prices(forwards)
    ceiling = switch_ceiling(forwards, lookup, two)
    for rule in (Switch(1, 0.0, 4, 4), Switch(2, 0.5, 2, 0), Switch(9, 0.0, 1, 1)):
        found = switch_totals(rule, forwards, lookup, two)[:, SECONDS]
        assert (found >= ceiling - 1e-9).all()
