"""Traces, timings and round logs as files: exact round trips, and one clear line for bad ones."""

from __future__ import annotations

import dataclasses
import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.results import make_trace as by_hand
from traces.costs.log_prices import price_log
from traces.costs.pricing import bucket_of, lag_after, make_step_costs, prices_of, round_seconds
from traces.costs.table import Table
from traces.errors import InputError
from traces.roundlog import ROUND_DTYPES, RoundLog, read_roundlog, write_roundlog
from traces.schema import Trace, TraceError, TraceMeta, refuse_censored
from traces.store import content_hash, read_trace, write_atomically, write_trace
from traces.timing import Cell, Timing, read_timing
from traces.trace_writer import TraceWriter

META = TraceMeta("pair", "target", "draft", "00", "cpu", "float32", "exact", depth=3)


def make_trace(lengths: list[int], seed: int = 0, signals: bool = True) -> Trace:
    generator = np.random.default_rng(seed)
    positions = sum(lengths)
    remaining = np.concatenate([np.arange(n, 0, -1) for n in lengths])
    shape = (positions, META.depth)
    return Trace(
        meta=META,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        prompt_tokens=generator.integers(1, 50, len(lengths)).astype(np.int32),
        request_id=tuple(f"{k}.1" for k in range(len(lengths))),
        category=tuple("qa" if k % 2 else "räg" for k in range(len(lengths))),
        accept_len=(generator.random(positions) * (remaining + 1)).astype(np.int16),
        token_ids=generator.integers(0, 2048, positions).astype(np.int32),
        top1_prob=generator.random(shape).astype(np.float32) if signals else None,
        entropy=generator.random(shape).astype(np.float32) if signals else None,
    )


def same(a: Trace, b: Trace) -> bool:
    return content_hash(a) == content_hash(b)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.booleans(), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_round_trip(tmp_path_factory: Any, lengths: list[int], signals: bool, seed: int) -> None:
    path = tmp_path_factory.mktemp("t") / "t.parquet"
    trace = make_trace(lengths, seed, signals)
    write_trace(trace, path)
    read = read_trace(path)
    assert same(trace, read) and read.meta == trace.meta
    for field in dataclasses.fields(Trace):
        before, after = getattr(trace, field.name), getattr(read, field.name)
        if isinstance(before, np.ndarray):
            assert before.dtype == after.dtype and np.array_equal(before, after)
        else:
            assert before == after


def test_equal_traces_give_equal_bytes_and_nothing_is_overwritten(tmp_path: Path) -> None:
    trace = make_trace([4, 2])
    write_trace(trace, tmp_path / "a.parquet")
    write_trace(make_trace([4, 2]), tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    with pytest.raises(InputError, match="--force"):
        write_trace(trace, tmp_path / "a.parquet")


def test_every_truncation_is_one_clear_line(tmp_path: Path) -> None:
    path, cut = tmp_path / "t.parquet", tmp_path / "cut.parquet"
    write_trace(make_trace([5, 3]), path)
    data = path.read_bytes()
    for size in range(0, len(data), 97):
        cut.write_bytes(data[:size])
        with pytest.raises(InputError, match=r"cut\.parquet"):
            read_trace(cut)


def test_damage_is_found_by_the_hash_or_the_reader(tmp_path: Path) -> None:
    path, bad = tmp_path / "t.parquet", tmp_path / "bad.parquet"
    write_trace(make_trace([5, 3]), path)
    table = pq.read_table(path)
    lists = table.column("accept_len").to_pylist()
    lists[0][0] = 1 - min(1, lists[0][0])
    column = pa.array(lists, type=pa.list_(pa.int16()))
    index = table.schema.get_field_index("accept_len")
    pq.write_table(table.set_column(index, "accept_len", column), bad)
    with pytest.raises(TraceError, match="does not match its hash"):
        read_trace(bad)


def test_foreign_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_trace(tmp_path / "none.parquet")
    foreign = tmp_path / "foreign.parquet"
    pq.write_table(pa.table({"x": [1, 2]}), foreign)
    with pytest.raises(InputError, match="not a GammaLab trace"):
        read_trace(foreign)
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(InputError, match="not a readable Parquet"):
        read_trace(tmp_path / "text.parquet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accept_len": np.array([6, 0, 0, 0, 0], dtype=np.int16)}, "accept_len must lie"),
        ({"accept_len": np.array([-1, 0, 0, 0, 0], dtype=np.int16)}, "accept_len must lie"),
        ({"offsets": np.array([0, 5, 5], dtype=np.int64)}, "offsets must have 2"),
        ({"request_id": ("a", "b")}, "offsets must have 3"),
        ({"top1_prob": np.full((5, 3), 1.5, dtype=np.float32)}, "top1_prob has a value"),
        ({"entropy": np.full((5, 3), np.nan, dtype=np.float32)}, "entropy has a value"),
        ({"top1_prob": np.zeros((5, 2), dtype=np.float32)}, "top1_prob must be"),
        ({"prompt_tokens": np.array([-1], dtype=np.int32)}, "must not be negative"),
    ],
)
def test_schema_names_what_is_wrong(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        dataclasses.replace(make_trace([5]), **change)


def test_select_keeps_requests_whole() -> None:
    trace = make_trace([3, 1, 4])
    part = trace.select([2, 0])
    assert part.request_id == ("2.1", "0.1") and part.reply_tokens.tolist() == [4, 3]
    assert part.accept_len.tolist() == [*trace.accept_len[4:], *trace.accept_len[:3]]
    assert part.top1_prob is not None and trace.top1_prob is not None
    assert np.array_equal(part.top1_prob[:4], trace.top1_prob[4:])


def test_writer_resumes_to_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    trace = make_trace([3, 2, 4])
    write_trace(trace, tmp_path / "whole.parquet")
    out = tmp_path / "parts.parquet"
    writer = TraceWriter(out, META)
    writer.append(2, trace.select([2]))
    again = TraceWriter(out, META, resume=True)
    assert again.has(2) and not again.has(0)
    for row in (1, 0):
        again.append(row, trace.select([row]))
    again.finish(3)
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_a_torn_part_says_what_to_do(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "t.parquet", META)
    writer.append(0, make_trace([3]))
    part = tmp_path / "t.parquet.partial/000000.parquet"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(InputError, match=r"000000\.parquet.*delete it and capture again with --re"):
        writer.finish(1)
    assert not (tmp_path / "t.parquet").exists()


def test_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    def full(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match="the disk is full"):
        write_atomically(tmp_path / "x", full)
    assert list(tmp_path.iterdir()) == []


def make_timing() -> Timing:
    cells = [
        Cell(op, batch, tokens, context, 1e-3 * (tokens + batch) + 1e-6 * context, 0.0, 1.0, 9)
        for op in ("prefill", "first", "draft", "verify")
        for batch in (1, 2)
        for tokens in (1, 2, 8)
        for context in (100, 200)
    ]
    return Timing({"pair": "p", "device": "cpu"}, tuple(cells), 1e-5, 2e-5)


def test_timing_round_trip_and_interpolation(tmp_path: Path) -> None:
    timing = make_timing()
    timing.write(tmp_path / "t.json")
    read = read_timing(tmp_path / "t.json")
    assert read == timing
    table = Table(read)  # verify_s(tokens, batch, context)
    assert table.verify_s(2, 1, 100) == pytest.approx(3.1e-3)
    assert table.verify_s(5, 1.5, 150) == pytest.approx(6.5e-3 + 1.5e-4)
    assert table.verify_s(10, 1, 100) == pytest.approx(11.1e-3)  # the last slope goes on
    assert table.verify_s(1, 1, 0) == pytest.approx(2.1e-3)  # the first value holds


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda raw: raw.pop("control_s"), "'control_s' is missing"),
        (lambda raw: raw["cells"].pop(), "lacks verify at batch 2"),
        (lambda raw: raw["cells"][0].__setitem__(4, -1.0), "not possible"),
        (lambda raw: raw["cells"][0].__setitem__(0, "dance"), "unknown operation"),
        (lambda raw: raw.__setitem__("kind", "x"), "not a GammaLab timing"),
        (lambda raw: raw.__setitem__("version", 99), "version 99"),
    ],
)
def test_bad_timings(tmp_path: Path, edit: Any, message: str) -> None:
    path = tmp_path / "t.json"
    make_timing().write(path)
    raw = json.loads(path.read_text())
    edit(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(InputError, match=message):
        read_timing(path)
    path.write_text(path.read_text()[:50])
    with pytest.raises(InputError, match="not JSON"):
        read_timing(path)


def test_roundlog_round_trip(tmp_path: Path) -> None:
    columns: Any = {n: np.arange(4).astype(t) for n, t in ROUND_DTYPES.items()}
    columns["batch_size"] += 1
    log = RoundLog(**columns, prefill_s=np.array([0.1, 1 / 3, 0, 1]), meta={"policy": "x"})
    write_roundlog(log, tmp_path / "l.parquet")
    read = read_roundlog(tmp_path / "l.parquet")
    assert read.same_rounds(log) and read.meta == log.meta
    with pytest.raises(InputError, match="not a GammaLab trace"):
        read_trace(tmp_path / "l.parquet")


def test_roundlogs_of_version_1_say_who_ended(tmp_path: Path) -> None:
    columns: Any = {n: np.ones(3).astype(t) for n, t in ROUND_DTYPES.items()}
    columns["emitted"] = np.array([2, 1, 1], np.int32)
    drafted = np.array([1, 1, 2], np.int32)
    columns["drafted"] = columns["verified"] = columns["accepted"] = drafted
    path = tmp_path / "l.parquet"
    write_roundlog(RoundLog(**columns, prefill_s=np.zeros(2), meta={}), path)
    assert read_roundlog(path).ended.tolist() == [True, True, True]  # as written
    table = pq.read_table(path).drop_columns(["ended", "verified"])
    for version in (1, 4):
        header = {"kind": "roundlog", "version": version, "meta": {}, "prefill_s": [0.0, 0.0]}
        old = table.replace_schema_metadata({b"gammalab": json.dumps(header).encode()})
        pq.write_table(old, tmp_path / f"{version}.parquet")
    read = read_roundlog(tmp_path / "1.parquet")
    assert read.ended.tolist() == [False, True, True] and read.ended.dtype == np.bool_
    assert read.verified.tolist() == [1, 1, 2] and read.verified.dtype == np.int32
    with pytest.raises(InputError, match="version 4; this GammaLab reads version 1 or 2 or 3"):
        read_roundlog(tmp_path / "4.parquet")


def test_round_price_by_hand() -> None:
    draft = np.array([[9.0] * 5, [0.0, 1.0, 1.5, 1.75, 2.5]])
    verify = np.array([[9.0] * 5, [0.0, 6.0, 7.0, 8.0, 9.0]])
    costs = make_step_costs(draft, verify, signal_s=0.25)
    plain, looking = prices_of(costs, signals=False), prices_of(costs, signals=True)
    assert [bucket_of(plain, context) for context in (0, 31, 32, 999)] == [0, 0, 1, 1]
    assert round_seconds(looking, 0, 1, 0, 1) == 6.0
    assert round_seconds(looking, 0, 1, 3, 1) == 1.0 + 2.0 + 0.75 + 9.0
    assert round_seconds(plain, 0, 1, 2, 2) == 1.5 + 1.0 + 8.0
    assert round_seconds(plain, 0, 1, 1, 50) == 2.5 + 7.0  # beyond the table: its last
    assert [lag_after(1, 3, 3, False), lag_after(2, 3, 1, False), lag_after(2, 0, 0, False)] == [
        2,
        1,
        3,
    ]
    assert [lag_after(1, 3, 3, True), lag_after(2, 3, 1, True), lag_after(2, 0, 0, True)] == [
        4,
        2,
        3,
    ]


def test_log_priced_by_hand() -> None:
    """Two requests: a full acceptance (the next draft lags by 2), a round without draft (by 3)."""
    draft = np.array([[0.0, 1.0, 1.5, 2.0]])
    verify = np.array([[0.0, 6.0, 7.0, 8.0]])
    costs = make_step_costs(draft, verify, signal_s=0.25)
    rounds = [(0, 9, 2, 2), (0, 12, 0, 0), (0, 13, 1, 0), (1, 5, 1, 1)]
    columns: Any = {n: np.zeros(4, t) for n, t in ROUND_DTYPES.items()}
    for k, name in enumerate(("request", "context_tokens", "drafted", "accepted")):
        columns[name] = np.array([row[k] for row in rounds], ROUND_DTYPES[name])
    columns["verified"] = columns["drafted"]
    log = RoundLog(**columns, prefill_s=np.zeros(2), meta={})
    expected = [1.0 + 1.0 + 8.0, 6.0, 2.0 + 7.0, 1.0 + 7.0]
    assert price_log(log, prices_of(costs, signals=False)).tolist() == expected
    assert price_log(log, prices_of(costs, signals=True)).tolist() == [10.5, 6.0, 9.25, 8.25]


def test_censored_positions_travel_and_exact_files_stay_as_they_were(tmp_path: Path) -> None:
    names = (["1.1", "2.1"], ["t", "t"])
    rows, censored = [[2, 1, 0, 1], [0, 1, 0, 1]], [[True, True, True, False], [False] * 4]
    trace = by_hand(rows, *names, censored=censored)
    meta = dataclasses.replace(trace.meta, source={"format": "x", "rounds": 3})
    trace = dataclasses.replace(trace, meta=meta)
    write_trace(trace, tmp_path / "t.parquet")
    back = read_trace(tmp_path / "t.parquet")
    assert back.censored is not None and back.censored.tolist() == [True] * 3 + [False] * 5
    assert back.meta.source == {"format": "x", "rounds": 3}
    picked = back.select([1])
    assert picked.censored is not None and not picked.censored.any()
    assert content_hash(trace) != content_hash(
        dataclasses.replace(trace, censored=np.zeros(8, dtype=np.bool_))
    )
    assert "source" not in by_hand(rows, *names).meta.to_dict()


def test_censoring_is_said_once_and_only_where_it_can_be() -> None:
    names = (["1.1"], ["t"])
    with pytest.raises(TraceError, match="says which positions are censored"):
        by_hand([[1, 0]], *names, exactness="censored")
    with pytest.raises(TraceError, match="ends its reply is not censored"):
        by_hand([[2, 1]], *names, censored=[[True, False]])


def test_what_needs_every_acceptance_refuses_a_censored_trace() -> None:
    names = (["1.1"], ["t"])
    seen = by_hand([[1, 0, 1]], *names, censored=[[True, True, False]])
    with pytest.raises(InputError, match="2 of 3 positions are censored"):
        refuse_censored(seen, "export")
    refuse_censored(by_hand([[1, 0, 1]], *names), "export")


def column(name: str, value: Any, kind: pa.DataType) -> Any:
    """An edit of a table: one column anew, every row the same."""

    def edit(table: pa.Table) -> pa.Table:
        made = pa.array([value] * table.num_rows, kind)
        return table.set_column(table.column_names.index(name), name, made)

    return edit


@pytest.mark.parametrize(
    ("kind", "edit", "message"),
    [
        ("trace", column("category", None, pa.string()), "'category' lacks 2 of its values"),
        ("trace", column("request_id", 1, pa.int64()), "'request_id' holds int64, not string"),
        ("trace", column("accept_len", None, pa.null()), "'accept_len' holds null, not list"),
        ("trace", column("accept_len", [1, None], pa.list_(pa.int16())), "lacks 2 of its values"),
        ("trace", lambda table: table.drop_columns(["entropy"]), "'entropy' is missing"),
        ("rounds", lambda table: table.drop_columns(["drafted"]), "'drafted' is missing"),
        ("rounds", column("accepted", None, pa.int32()), "'accepted' lacks 1 of its values"),
        ("rounds", column("accepted", 9, pa.int32()), "accepted is out of range"),
        ("rounds", column("request", 1, pa.int32()), "request is out of range"),
        ("rounds", column("elapsed_s", float("nan"), pa.float64()), "elapsed_s is out of range"),
    ],
)
def test_every_column_is_checked(kind: str, edit: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    if kind == "trace":
        write_trace(make_trace([3, 1]), path)
    else:
        one = {name: np.ones(1, dtype) for name, dtype in ROUND_DTYPES.items()}
        one["request"][0] = 0
        write_roundlog(RoundLog(**one, prefill_s=np.ones(1), meta={}), path)
        assert len(read_roundlog(path)) == 1
    pq.write_table(edit(pq.read_table(path)), path)
    with pytest.raises(TraceError, match=message) as error:
        (read_trace if kind == "trace" else read_roundlog)(path)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("depth", "3", "meta.depth must be a whole number, not '3'"),
        ("depth", 5000, "meta.depth is 5000; it must be 1 to 4096"),
        ("temperature", None, "meta.temperature must be a number"),
        ("temperature", float("nan"), "meta.temperature is nan"),
        ("pair", 1, "meta.pair must be a text"),
        ("versions", [], "meta.versions must be an object"),
        ("max_context", True, "meta.max_context must be a whole number"),
    ],
)
def test_every_field_of_the_meta_is_checked(field: str, value: Any, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        TraceMeta.from_dict(META.to_dict() | {field: value})
    with pytest.raises(TraceError, match="must be an object"):
        TraceMeta.from_dict([field])
