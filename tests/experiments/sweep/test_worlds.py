"""Leaderboards as one table: its numbers are theirs, and the criterion counts worlds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.cli import main
from experiments.common.results import read_result
from experiments.sweep.jobs import read_rows
from experiments.sweep.worlds import verdict_lines
from traces import synthetic
from traces.store import write_trace


@pytest.mark.slow
def test_the_table_says_what_the_leaderboards_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(2)
    for name in ("a", "b"):
        trace = synthetic.bursty(
            0.9, 0.4, generator, requests=16, reply_tokens=40, depth=2, signals=True
        )
        write_trace(trace, tmp_path / f"{name}.parquet")
    out = str(tmp_path / "out")
    argv = ["sweep", "quick", "--cost", "c=5", "--out", out, "--trials", "3", "--policies"]
    argv += ["fixed,gammatune,worth", "--trace", str(tmp_path / "a.parquet")]
    argv += ["--trace", str(tmp_path / "b.parquet")]
    assert main(argv) == 0
    capsys.readouterr()
    assert main(["studies", "worlds", "--folder", str(tmp_path)]) == 2
    assert "leaderboard.json" in capsys.readouterr().err
    assert main(["studies", "worlds", "--folder", out]) == 2
    assert "without --information" in capsys.readouterr().err
    assert main([*argv, "--information"]) == 0
    assert "counts alone" in capsys.readouterr().out
    figures = tmp_path / "figures"
    asked = ["studies", "worlds", "--folder", out, "--out", str(figures)]
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["world"] for row in found] == ["a-c5", "b-c5"]
    parts = read_result("leaderboard", tmp_path / "out/leaderboard.json")["comparisons"]
    tried = read_rows(tmp_path / "out/rows.parquet")
    for row, part in zip(found, parts, strict=True):
        rows = {one["name"]: one for one in part["rows"]}
        assert row["vs_fixed"] == rows["worth"]["vs_fixed"]["value"]
        of_world = [t for t in tried if row["world"].startswith(t["trace"])]
        theirs = [t for t in of_world if t["policy"] == "gammatune"]
        label = min(theirs, key=lambda t: t["train_s"])["label"]
        assert row["published_vs_fixed"] == rows[label]["vs_fixed"]["value"]
        fixed = next(one for one in part["rows"] if one["role"] == "tuned")
        fixed_s = of_world[0]["test_tokens"] / fixed["tokens_per_s"]
        assert row["after"] == pytest.approx(fixed_s / part["information_s"]["after"])
    assert (figures / "worlds.png").exists()
    assert main([*asked, "--entrants"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.split()[:1] == ["gammatune"])
    values = [
        next(r for r in part["rows"] if r["name"].startswith("gammatune"))["vs_fixed"]["value"]
        for part in parts
    ]
    shown = [f"{value:.3f}" for value in (*values, sum(values) / 2)]
    assert line.split()[1:] == shown
    assert main([*asked, "--rule", "payback"]) == 2
    assert "a-c5: its leaderboard has no 'payback'" in capsys.readouterr().err


def test_the_criterion_counts_worlds() -> None:
    frame = pd.DataFrame(
        {
            "vs_fixed": [1.08, 1.079, 1.2, 0.99],
            "vs_published": [1.03, 1.02, 0.9, 1.5],
            "speedup": [1.3, 1.0, 1.2, 0.97],
        }
    )
    first, worst = (" ".join(line.split()) for line in verdict_lines(frame, "worth"))
    assert "in 2 of 4 worlds (a win: 4)" in first and "in 2 (a win: 3)" in first
    assert "0.970 times plain decoding (safe: 0.98)" in worst
