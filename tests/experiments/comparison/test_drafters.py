"""One target, several drafters: `gammalab compare` with a trace and a timing of each."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import cli
from experiments.common.cost_sources import step_costs
from experiments.comparison.command import names_of
from experiments.comparison.drafters import Drafted, compare_drafters
from policies.fixed import Never
from simulator.replay.totals import tally
from tests.results import lively_trace, make_timing
from traces.errors import InputError
from traces.schema import Trace
from traces.split import split_rows
from traces.store import read_trace, write_trace
from traces.timing import read_timing

CHOICE, ORACLE = "choice: draft or lookup", "oracle: draft or lookup"


def looked_up(trace: Trace) -> Trace:
    """What a look-up would have offered: at a third of the positions all that the target takes."""
    hit = np.arange(trace.positions) % 3 == 0
    accept_len = np.where(hit, np.minimum(trace.accept_len, 6), 0).astype(np.int16)
    return dataclasses.replace(
        trace,
        meta=dataclasses.replace(trace.meta, drafter="lookup", draft="lookup:least=1,greatest=3"),
        accept_len=accept_len,
        draft_len=np.where(hit, 6, 0).astype(np.int16),
    )


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A draft and a look-up on the same replies; the look-up's machine was half as fast."""
    trace = lively_trace(questions=24)
    trace = dataclasses.replace(trace, token_ids=np.arange(trace.positions, dtype=np.int32))
    names = {n: tmp_path / n for n in ("draft.parquet", "lookup.parquet", "d.json", "l.json")}
    write_trace(trace, names["draft.parquet"])
    write_trace(looked_up(trace), names["lookup.parquet"])
    make_timing(2.0, 10.0, drafter="model").write(names["d.json"])
    slow = make_timing(0.2, 20.0, drafter="lookup", draft_kind="host")
    cells = tuple(cell for cell in slow.cells if cell.operation != "draft")
    dataclasses.replace(slow, cells=cells).write(names["l.json"])
    return names


def compared(files: dict[str, Path], out: Path, *more: str) -> dict[str, Any]:
    argv = ["compare", "--policies", "gammatune", "--out", str(out), *more]
    for name, path in files.items():
        argv += ["--timing" if name.endswith("json") else "--trace", str(path)]
    assert cli.main(argv) == 0
    found: dict[str, Any] = json.loads((out / "compare.json").read_text())
    return found


def test_drafters_on_one_clock(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = compared(files, tmp_path / "out")["drafters"]
    assert found["scales"] == {"draft": 1.0, "lookup": 0.5}
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == [
        "plain decoding",
        "draft",
        "lookup",
        CHOICE,
        ORACLE,
    ]
    plain = rows["plain decoding"]
    assert plain["tokens_per_s"] == pytest.approx(0.1) and plain["speedup"]["value"] == 1.0
    assert rows[found["best"]]["vs_best"]["value"] == 1.0
    # A look-up costs 0.1 s of this clock in every round.
    lookup = rows["lookup"]
    assert lookup["tokens_per_s"] == pytest.approx(lookup["tokens_per_round"] / 10.1, rel=1e-6)
    oracle = rows[ORACLE]["tokens_per_s"]
    best = max(row["tokens_per_s"] for name, row in rows.items() if name != ORACLE)
    assert oracle >= best
    assert rows[CHOICE]["tokens_per_s"] > rows["draft"]["tokens_per_s"]
    assert 0 < rows[CHOICE]["looked_up"] < 1
    assert cli.main(["report", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    shown = page[page.index("Which drafter") : page.index("The comparison: draft")]
    assert ORACLE in shown and "seconds of the timings times" in shown
    told = capsys.readouterr().out
    assert "One target, several drafters" in told and ORACLE in told
    assert set(found["tasks"]) == set(oracle_tasks := rows[ORACLE]["tasks"])
    assert all(one["value"] > 1 for one in oracle_tasks.values())


def test_other_replies_are_not_compared(files: dict[str, Path], tmp_path: Path) -> None:
    trace = lively_trace(questions=24, seed=9)
    other = dataclasses.replace(trace, token_ids=np.arange(trace.positions, dtype=np.int32)[::-1])
    write_trace(looked_up(other), files["lookup.parquet"], overwrite=True)
    assert "drafters" not in compared(files, tmp_path / "out")


def test_a_timing_for_each_or_one_for_all(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    traces = [f"--trace={files[name]}" for name in ("draft.parquet", "lookup.parquet")]
    times = [f"--timing={files['d.json']}"] * 3
    assert cli.main(["compare", *traces, *times]) == 2
    assert "2 traces, but 3 timings" in capsys.readouterr().err
    assert cli.main(["compare", "--policies", "never", *traces, times[0]]) == 0
    assert "drafter 'lookup', the timing 'model'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/x.parquet", "b/y.parquet"], ["x", "y"]),
        (["a/x.parquet", "b/x.parquet"], ["a-x", "b-x"]),
    ],
)
def test_files_called_alike_go_by_their_folders(paths: list[str], names: list[str]) -> None:
    assert names_of([Path(path) for path in paths]) == names


def test_one_file_twice_is_refused() -> None:
    with pytest.raises(InputError, match="the same folder and file name"):
        names_of([Path("a/x.parquet"), Path("b/a/x.parquet")])


def test_plain_decoding_takes_as_long_by_every_timing(
    files: dict[str, Path], tmp_path: Path
) -> None:
    """Also where one of them grew with the context, and at no context they agree."""
    timing = read_timing(files["d.json"])
    grown = tuple(
        dataclasses.replace(
            cell, **{name: 10.0 + cell.context / 8 for name in ("median_s", "q25_s", "q75_s")}
        )
        if cell.operation == "verify"
        else cell
        for cell in timing.cells
    )
    other = tmp_path / "other.parquet"
    write_trace(read_trace(files["draft.parquet"]), other)
    dataclasses.replace(timing, cells=grown).write(tmp_path / "grown.json")
    pairs = {"a": files["draft.parquet"], "b": other}
    drafted = [
        Drafted(name, read_trace(path), read_timing(file))
        for (name, path), file in zip(
            pairs.items(), (files["d.json"], tmp_path / "grown.json"), strict=True
        )
    ]
    found = compare_drafters(drafted, seed=0, resamples=50)
    trace = drafted[0].trace
    held = trace.select(split_rows(trace, seed=0)[1])
    plain = [
        tally(Never(), held, step_costs(one.timing, one.trace)).decode_s.sum() for one in drafted
    ]
    assert found.scales["b"] == pytest.approx(plain[0] / plain[1])
    assert plain[1] > 1.1 * plain[0]
