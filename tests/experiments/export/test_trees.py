"""Draft trees in SGLang's terms: its three numbers, and speeds that are the replay's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments import cli
from policies.fixed import Fixed
from simulator.replay.replay import replay
from tests.experiments.shapes.test_shaped_recordings import files
from traces.costs.of_trace import tabulate_for
from traces.costs.table import Table
from traces.shapes.growth import read_growth
from traces.shapes.shape import parse_draft
from traces.shapes.unfold import under
from traces.split import split_rows
from traces.store import read_trace
from traces.timing import read_timing

__all__ = ["files"]


def argv(files: Any, tree: str, *more: object) -> list[str]:
    words = ["export", tree, "--to", "sglang", "--trace", files.trace, "--timing", files.timing]
    return [str(word) for word in [*words, "--grown", files.grown, *more]]


def test_the_three_numbers_and_the_replayed_speed(
    files: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv(files, "g2x3x5", "--json", "--out", tmp_path / "e.json")) == 0
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["settings"]["speculative_num_steps"] == 3
    assert found["settings"]["speculative_eagle_topk"] == 2
    assert found["settings"]["speculative_num_draft_tokens"] == 6  # five nodes and the newest token
    assert "--speculative-eagle-topk 2 --speculative-num-draft-tokens 6" in found["command"]
    trace, growth = read_trace(files.trace), read_growth(files.grown, read_trace(files.trace))
    _, test = split_rows(trace)
    held = trace.select(test)
    seen = under(held, parse_draft("g2x3x5"), growth.select(test))
    log = replay(Fixed(3), seen, tabulate_for(seen, Table(read_timing(files.timing))))
    assert found["predicted"]["g2x3x5"] == pytest.approx(held.positions / log.elapsed_s.sum())
    capsys.readouterr()
    assert cli.main(argv(files, "g2x3x5")) == 0
    out = capsys.readouterr().out
    assert "g2x3x5 for SGLang" in out and out.rstrip().endswith("--speculative-num-draft-tokens 6")


@pytest.mark.parametrize(
    ("tree", "engine", "word"),
    [
        ("g2x3x5", "vllm", "22752"),
        ("g2x3x5", "llama.cpp", "sglang takes trees"),
        ("3x2x1", "sglang", "SGLang grows its trees"),
        ("g2x3", "sglang", "as g2x3x6"),
        ("g3x3x5", "sglang", "a beam of 2 and 4 levels"),
        ("g2x9x5", "sglang", "a beam of 2 and 4 levels"),
        ("g8x99x16", "sglang", "at most 512 nodes"),
        ("g8x", "sglang", "write children by level"),
        ("gammatune", "sglang", "--grown goes with a draft tree"),
    ],
)
def test_what_it_does_not_draft_is_one_line(
    files: Any, capsys: pytest.CaptureFixture[str], tree: str, engine: str, word: str
) -> None:
    words = argv(files, tree)
    words[words.index("sglang")] = engine
    assert cli.main(words) == 2
    assert word in capsys.readouterr().err


def test_trees_that_grow_need_their_recording(
    files: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = argv(files, "g2x3x5")[:-2]
    assert cli.main(words) == 2 and "give --grown" in capsys.readouterr().err
