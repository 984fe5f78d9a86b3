"""A recording under a draft tree, as a file, in every command that takes one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from experiments import cli
from policies.fixed import Fixed
from policies.registry import parse_policy
from real_backend.prompts import read_questions, requests_of_trace
from real_backend.recording.capture import capture
from real_backend.recording.coupling import CaptureSettings
from real_backend.trees.grow import grow
from simulator.replay.replay import replay, replay_interpreted
from simulator.serving.options import Server
from simulator.serving.server import serve
from tests.results import make_timing
from tests.specimens import write_prompts
from traces.costs.affine import Affine
from traces.costs.of_trace import prices_of_levels, tabulate_for
from traces.costs.pricing import tabulate
from traces.costs.table import Table
from traces.errors import InputError
from traces.shapes.growth import write_growth
from traces.shapes.shape import parse_draft
from traces.shapes.unfold import under
from traces.store import read_trace, write_trace
from traces.workload.arrivals import demand
from traces.workload.workload import Workload

TREE = "2x1x1"


@dataclasses.dataclass(frozen=True)
class Files:
    pair: Path
    prompts: Path
    trace: Path
    timing: Path
    grown: Path


@pytest.fixture(scope="module")
def files(pair: Any, pair_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The tiny pair's recording, trees grown along it, and a timing."""
    folder = tmp_path_factory.mktemp("shaped")
    prompts = write_prompts(folder / "prompts.jsonl", questions=8, turns=1)
    settings = CaptureSettings(max_new_tokens=24, depth=8)
    questions = read_questions(prompts)
    trace = capture(pair, questions, folder / "trace.parquet", settings)
    grown = grow(pair, requests_of_trace(questions, trace, pair), trace, 2, 4)
    write_growth(folder / "grown.npz", grown)
    make_timing().write(folder / "timing.json")
    return Files(
        pair_folder, prompts, folder / "trace.parquet", folder / "timing.json", folder / "grown.npz"
    )


def shaped(files: Files, out: Path, shape: str, *more: object) -> Path:
    argv = ["trace", "shape", files.trace, "--shape", shape, "--out", out, *more]
    assert cli.main([str(word) for word in argv]) == 0
    return out


def refusal(argv: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main([str(word) for word in argv]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert all("warning" in line or line.startswith(" ") for line in lines[:-1])
    return lines[-1]


@pytest.mark.parametrize("shape", [TREE, "g2x3"])
def test_the_file_is_the_recording_under_the_tree(
    files: Files, tmp_path: Path, shape: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--grown", files.grown) if shape.startswith("g") else ()
    seen = read_trace(shaped(files, tmp_path / "t.parquet", shape, *more), shaped=True)
    trace, draft = read_trace(files.trace), parse_draft(shape)
    assert seen.meta.shape == shape and seen.meta.depth == draft.depth == 3
    assert f"{draft.nodes} nodes in 3 levels" in capsys.readouterr().out
    costs = tabulate_for(seen, Affine(target_token=1e-3, draft_fixed=2e-3, target_fixed=1e-2))
    plain = Affine(target_token=1e-3, draft_fixed=2e-3, target_fixed=1e-2)
    wide = tabulate(plain, max_context=trace.longest_context + 32, width=draft.nodes + 2)
    assert (costs.verify_s == prices_of_levels(wide, draft).verify_s).all()
    policy = parse_policy("gammatune")
    assert replay(policy, seen, costs).same_rounds(replay_interpreted(policy, seen, costs))


def test_compare_and_sweep_take_it(files: Files, tmp_path: Path) -> None:
    tree, out = shaped(files, tmp_path / "t.parquet", TREE), tmp_path / "out"
    inputs = ["--trace", str(tree), "--timing", str(files.timing)]
    named = ["--policies", "never,fixed:gamma=2,gammatune"]
    assert cli.main(["compare", *inputs, *named, "--out", str(out)]) == 0
    (part,) = json.loads((out / "compare.json").read_text())["comparisons"]
    rows = {row["name"]: row for row in part["rows"]}
    assert rows["gammatune"]["tokens_per_round"] > 1.0 and part["trace_meta"]["shape"] == TREE
    assert len(part["fixed_curve"]) == 4 and part["shape"] == TREE
    assert f"under the draft tree {TREE}" in (out / "compare.txt").read_text()
    other = shaped(files, tmp_path / "o.parquet", "1x2x1")
    sweep = ["sweep", "leaderboard", *inputs[:2], "--policies", "gammatune", "--cost", "c=4"]
    sweep += ["--trials", "2", "--out", str(tmp_path / "sweep")]
    assert cli.main([*sweep, "--held-out", str(other)]) == 2  # one table of prices for both
    assert cli.main(sweep) == 0


def test_the_real_backend_decodes_it(files: Files, tmp_path: Path) -> None:
    for shape, more in ((TREE, ()), ("g2x4", ("--grown", files.grown))):
        tree, out = shaped(files, tmp_path / f"{shape}.parquet", shape, *more), tmp_path / shape
        argv = ["validate", "--pair", files.pair, "--prompts", files.prompts, "--trace", tree]
        argv += ["--timing", files.timing, "--policies", "never,fixed:gamma=3,gammatune", "--out"]
        argv += [out, "--repeats", "1", "--max-error", "1e9", "--device", "cpu"]
        code = cli.main([str(word) for word in argv])
        found = json.loads((out / "validate.json").read_text())
        assert code == bool(found["findings"])  # by the clock
        assert {check["agreement"]["differing"] for check in found["checks"]} == {0}
        assert {check["replies_equal"] for check in found["checks"]} == {found["requests"]}
        assert "under the draft tree" in (out / "validate.txt").read_text()


def test_serving_prices_nodes_and_refuses_what_counts_tokens(files: Files) -> None:
    trace = under(read_trace(files.trace), parse_draft(TREE))
    model = Affine(target_fixed=1e-2, target_token=1e-3, draft_fixed=1e-3)
    costs = tabulate_for(trace, model, (1, 2))
    asked = demand(Workload(trace.requests, "closed", users=1, order="recorded"), trace.category, 0)
    alone = serve(Fixed(3), trace, asked, tabulate_for(trace, model), Server(slots=1), log=True)
    log = replay(Fixed(3), trace, tabulate_for(trace, model))
    assert alone.round_log is not None
    assert alone.round_log.elapsed_s.tolist() == log.elapsed_s.tolist()
    # Six nodes behind the newest token: 10 ms and 6, behind three draft steps of 1 ms.
    assert log.elapsed_s[log.drafted == 3][0] == pytest.approx(0.019)
    for wrong in (
        {"blocks": 99, "block_tokens": 8},
        {"allotment": "budget", "budget_tokens": 9},
        {"apart": True, "pipelined": True},
        {"apart": True, "token_hop_s": 1e-3},
    ):
        with pytest.raises(InputError, match=TREE):
            serve(Fixed(3), trace, asked, costs, Server(slots=2, **wrong))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="drops"):
        serve(parse_policy("llama-p-min"), trace, asked, costs, Server(slots=2))


def test_refusals_are_one_line(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = shaped(files, tmp_path / "t.parquet", TREE)
    timing, prompts = files.timing, files.prompts
    capsys.readouterr()
    make: list[object] = ["trace", "shape", files.trace, "--out", tmp_path / "x.parquet", "--shape"]
    inputs: list[object] = ["--trace", tree, "--timing", timing]
    cases: list[tuple[list[object], str]] = [
        ([*make, "3y2"], "children by level"),
        ([*make, "g2x3"], "--grown goes with"),
        ([*make, TREE, "--grown", files.grown], "--grown goes with"),
        ([*make, "g3x3", "--grown", files.grown], "beam of 2 and 4 levels"),
        ([*make, "g2x5", "--grown", files.grown], "beam of 2 and 4 levels"),
        ([*make, "g2x3x5", "--grown", files.grown], "picked among all levels"),
        ([*make, "g0x3", "--grown", files.grown], "a tree grows from"),
        (["trace", "shape", tree, "--shape", "2x1", "--out", tmp_path / "x.parquet"], TREE),
        (["export", "gammatune", "--to", "vllm", *inputs], "chains alone"),
        (["compare", *inputs, "--policies", "llama-p-min"], "drops drafted tokens"),
        (
            ["validate", "--pair", files.pair, "--prompts", prompts, *inputs, "--acceptance",
             "trace", "--policies", "never,gammatune", "--out", tmp_path / "v"],
            "one request at a time",
        ),
    ]  # fmt: skip
    for argv, word in cases:
        assert word in refusal(argv, capsys), argv
    assert not (tmp_path / "x.parquet").exists()


def test_a_timing_prices_no_tree_that_is_wider_than_it(files: Files) -> None:
    wide = under(read_trace(files.trace), parse_draft("64"))
    with pytest.raises(InputError, match="verifies 65 tokens, the timing measured up to"):
        tabulate_for(wide, Table(make_timing()))


def test_a_shape_that_is_none_is_found_in_the_file(files: Files, tmp_path: Path) -> None:
    meta = read_trace(files.trace).meta
    for shape, word in (("2x", "children by level"), ("2x1", "meta.depth 8 is not its")):
        with pytest.raises(InputError, match=word):
            dataclasses.replace(meta, shape=shape)
    seen = under(read_trace(files.trace), parse_draft(TREE))
    write_trace(seen, tmp_path / "t.parquet")
    with pytest.raises(InputError, match="chains alone"):
        read_trace(tmp_path / "t.parquet")
    picked = dataclasses.replace(seen, meta=dataclasses.replace(seen.meta, shape="g2x3x5"))
    write_trace(picked, tmp_path / "p.parquet")
    with pytest.raises(InputError, match="picked among all levels"):
        read_trace(tmp_path / "p.parquet", shaped=True)
