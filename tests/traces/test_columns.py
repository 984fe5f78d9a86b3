"""Columns that a trace may lack: kept in file, hash and selection; refused where impossible."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policies.fixed import Fixed
from policies.registry import REGISTRY
from simulator.replay.hindsight import clairvoyant
from simulator.replay.replay import replay
from tests.results import lively_trace
from traces.censoring.known import flags_of
from traces.costs.affine import Affine
from traces.costs.of_trace import tabulate_for
from traces.errors import InputError
from traces.schema import OPTIONAL, RANK_UNKNOWN, Trace, TraceError
from traces.store import concatenate, content_hash, read_trace, write_trace


def looked_up() -> Trace:
    """A recording as a look-up might have made it: some positions offer nothing."""
    trace, generator = lively_trace(), np.random.default_rng(2)
    offered = generator.integers(0, 5, trace.positions).astype(np.int16)
    rank = generator.choice([0, 3, RANK_UNKNOWN], trace.positions).astype(np.int16)
    return dataclasses.replace(
        trace,
        meta=dataclasses.replace(trace.meta, drafter="lookup"),
        accept_len=np.minimum(trace.accept_len, offered),
        draft_len=offered,
        target_rank=rank,
        level_rank=np.stack([rank] * trace.meta.depth, axis=1),
        target_entropy=generator.random(trace.positions).astype(np.float32),
    )


def test_written_and_read_back_bit_for_bit(tmp_path: Path) -> None:
    trace = looked_up()
    write_trace(trace, tmp_path / "t.parquet")
    again = read_trace(tmp_path / "t.parquet")
    assert again.meta == trace.meta and content_hash(again) == content_hash(trace)
    for name, kind in OPTIONAL.items():
        column = getattr(again, name)
        assert column.dtype == kind and np.array_equal(column, getattr(trace, name))
    parts = [trace.select([row]) for row in range(trace.requests)]
    assert content_hash(concatenate(parts)) == content_hash(trace)
    assert np.array_equal(parts[1].draft_len, trace.draft_len[24:48])


def test_a_recording_without_them_has_the_hash_it_had() -> None:
    """Those of a model drafter that lacks them: neither its columns nor its kind are in it."""
    plain = lively_trace()
    assert "drafter" not in plain.meta.to_dict() and content_hash(plain).startswith(
        "235026b8d56dd202"
    )


def test_every_column_is_in_the_hash() -> None:
    trace = looked_up()
    for name in OPTIONAL:
        column = getattr(trace, name).copy()
        column[3] += 1
        assert content_hash(dataclasses.replace(trace, **{name: column})) != content_hash(trace)
        assert content_hash(dataclasses.replace(trace, **{name: None})) != content_hash(trace)


def test_ranks_by_level_are_as_deep_as_the_recording() -> None:
    trace = looked_up()
    assert trace.level_rank is not None
    for wrong in (trace.level_rank[:, 1:], trace.level_rank[1:], trace.target_rank):
        with pytest.raises(TraceError, match=rf"level_rank must be \[{trace.positions}, "):
            dataclasses.replace(trace, level_rank=wrong)
    with pytest.raises(TraceError, match="target_rank must have"):
        dataclasses.replace(trace, target_rank=trace.level_rank)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"draft_len": -1}, "draft_len has a negative value"),
        ({"draft_len": 0}, "accept_len must not be above draft_len"),
        ({"target_rank": -1}, "target_rank has a negative value"),
        ({"target_entropy": np.nan}, "target_entropy has a negative value or NaN"),
    ],
)
def test_impossible_values_are_refused(change: dict[str, Any], message: str) -> None:
    trace = looked_up()
    ((name, value),) = change.items()
    column = getattr(trace, name).copy()
    column[int(np.flatnonzero(trace.accept_len)[0])] = value
    with pytest.raises(TraceError, match=message):
        dataclasses.replace(trace, **{name: column})
    with pytest.raises(TraceError, match=f"{name} must have {trace.positions} entries"):
        dataclasses.replace(trace, **{name: column[:-1]})


def test_an_unknown_drafter_is_refused() -> None:
    with pytest.raises(TraceError, match=r"meta\.drafter is 'oracle'"):
        dataclasses.replace(lively_trace().meta, drafter="oracle")


def test_no_round_drafts_more_than_there_is() -> None:
    """By hand: what is offered bounds the round, and is the room that a policy sees."""
    trace = looked_up()
    costs = tabulate_for(trace, Affine(draft_fixed=1e-3, target_fixed=5e-3))
    assert trace.draft_len is not None
    for log in (
        replay(Fixed(16), trace, costs),
        replay(REGISTRY["gammatune"](), trace, costs),
        clairvoyant(trace, costs),
    ):
        starts = log.context_tokens - trace.prompt_tokens[log.request] + trace.offsets[log.request]
        assert (log.drafted <= trace.draft_len[starts]).all() and log.drafted.max() == 4
        assert (log.accepted == np.minimum(log.drafted, trace.accept_len[starts])).all()
    longest = replay(Fixed(16), trace, costs)
    starts = longest.context_tokens - trace.prompt_tokens[longest.request]
    starts += trace.offsets[longest.request]
    left = trace.meta.max_new_tokens - (starts - trace.offsets[longest.request]) - 1
    assert (longest.drafted == np.minimum(trace.draft_len[starts], left)).all()


def test_only_a_models_acceptance_is_a_flag_a_position() -> None:
    with pytest.raises(InputError, match="needs the trace of a draft model; this one is of kind"):
        flags_of(looked_up())
    assert set(flags_of(lively_trace()).tolist()) == {0, 1}
