"""Recordings from elsewhere: acc-len files, our own format, and `gammalab trace import`.

test_spec_bench.py beside it has Spec-Bench, test_importers_engines.py those of serving engines.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.cli import main
from tests.traces.importers.recordings import answer, flags_in, write_lines
from traces.errors import InputError
from traces.importers import FORMATS
from traces.importers.common import Options
from traces.importers.schedule import Schedule
from traces.schema import DRAFTERS
from traces.store import read_trace
from traces.timing import read_timing


def row(name: str, acc_len: list[Any], tokens: int | None = None) -> dict[str, Any]:
    generated = list(range(len(acc_len) if tokens is None else tokens))
    return {
        "id": name,
        "prompt_token_ids": [7, 8, 9],
        "generated_token_ids": generated,
        "stats": {"acc_len": acc_len},
    }


def test_acc_len_by_hand(tmp_path: Path) -> None:
    """The fourth entry would emit 3 where 2 tokens are left: both of them drafted."""
    path = write_lines(tmp_path / "a.jsonl", [row("a", [3, 2, 1, 4, 2]), row("b", [1, 1])])
    trace = FORMATS["acc-len"](path, Options())
    assert trace.accept_len.tolist() == [2, 1, 0, 2, 1, 0, 0]
    assert trace.token_ids is not None and trace.token_ids.tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert trace.prompt_tokens.tolist() == [3, 3] and trace.meta.exactness == "exact"
    assert trace.meta.depth == 2 and trace.meta.source["key"] == "stats"
    assert trace.meta.source["mended"]["clipped_positions"] == 1
    assert trace.meta.source["off_chain"] == 0


def test_acc_len_beyond_its_deepest_acceptance_is_censored(tmp_path: Path) -> None:
    """Nobody says that the recorder drafted more than two tokens; at the end there are no more."""
    path = write_lines(tmp_path / "a.jsonl", [row("a", [3, 3, 2, 1, 3, 2])])
    trace = FORMATS["acc-len"](path, Options(depth=5))
    assert trace.meta.depth == 5 and trace.censored is not None
    assert trace.accept_len.tolist() == [2, 2, 1, 0, 2, 1]
    assert np.flatnonzero(trace.censored).tolist() == [0, 1]


def test_drafters_that_see_more_than_tokens_are_counted(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [row("a", [3, 1, 3, 4, 2, 1, 1])])
    assert FORMATS["acc-len"](path, Options()).meta.source["off_chain"] == 3


def test_lengths_that_disagree_are_mended_and_counted(tmp_path: Path) -> None:
    """A list that is too long is cut; one that is too short cuts its reply, to nothing if empty."""
    rows = [row("a", [2, 1, 1, 9], tokens=3), row("b", [4, 1], tokens=5)]
    rows += [row("c", [], tokens=0), row("d", [], tokens=2)]
    path = write_lines(tmp_path / "a.jsonl", rows)
    trace = FORMATS["acc-len"](path, Options())
    assert trace.request_id == ("a", "b") and trace.reply_tokens.tolist() == [3, 2]
    assert trace.accept_len.tolist() == [1, 0, 0, 2, 0]
    assert trace.token_ids is not None and trace.token_ids.tolist() == [0, 1, 2, 0, 1]
    assert trace.censored is None and trace.meta.exactness == "exact"
    mended = trace.meta.source["mended"]
    assert (mended["cut_lists"], mended["cut_entries"]) == (1, 1)
    assert (mended["cut_replies"], mended["cut_positions"]) == (2, 5)
    assert mended["clipped_positions"] == 1 and mended["empty_replies_left_out"] == 2
    with pytest.raises(InputError, match="line 1"):
        FORMATS["acc-len"](path, Options(strict=True))


def test_short_lists_are_padded_on_request(tmp_path: Path) -> None:
    path, out = tmp_path / "a.jsonl", tmp_path / "t.parquet"
    write_lines(path, [row("a", [2, 1, 1]), row("b", [2], tokens=3), row("d", [], tokens=1)])
    command = ["trace", "import", str(path), "--format", "acc-len", "--out", str(out), "--pad"]
    assert main(command) == 0
    trace = read_trace(out)
    assert trace.request_id == ("a", "b", "d")
    assert trace.accept_len.tolist() == [1, 0, 0, 1, 0, 0, 0]
    assert trace.censored is not None
    assert trace.censored.tolist() == [False] * 4 + [True] * 3
    mended = trace.meta.source["mended"]
    assert (mended["padded_replies"], mended["padded_positions"]) == (2, 3)


def test_the_key_chooses_among_several(tmp_path: Path) -> None:
    one = row("a", [2, 1])
    one |= {"models": {"eagle": {"acc_len": [1, 1]}, "v1.5": {"acc_len": [1, 2]}}}
    path = write_lines(tmp_path / "a.jsonl", [one])
    with pytest.raises(InputError, match=r"stats or models\.eagle"):
        FORMATS["acc-len"](path, Options())

    def read(key: str) -> list[int]:
        return FORMATS["acc-len"](path, Options(key=key)).accept_len.tolist()

    assert read("stats") == [1, 0] and read("models.eagle") == [0, 0]
    flat = row("a", []) | {"acc_len": [1, 2]}
    del flat["stats"]
    flat["generated_token_ids"] = [1, 2]
    path = write_lines(tmp_path / "b.jsonl", [flat])
    assert read(".") == read("") == [0, 1]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"id": "x", "prompt_token_ids": [], "stats": {"acc_len": [1]}}, "'generated_token_ids'"),
        ({"prompt_token_ids": [], "generated_token_ids": [1], "stats": {"acc_len": [1]}}, "'id'"),
        (row("x", [1, -1]), "-1"),
        (row("x", [1, 0]), "at least 1|1 to"),
        (row("x", [1, 1.5]), "not an integer"),
        (row("x", [1, True]), "not an integer"),
        (row("x", [1, None]), "not an integer"),
        (row("x", [1, 10**30]), "holds 1000"),
        (row("x", "11"), "list of integers"),  # type: ignore[arg-type]
        (row("x", [1]) | {"stats": {"acc": [1]}}, "no 'acc_len' at key 'stats'"),
        (row("x", [1]) | {"generated_token_ids": [-5]}, "-5"),
    ],
)
def test_malformed_rows_are_named_by_line(
    tmp_path: Path, broken: dict[str, Any], message: str
) -> None:
    path = write_lines(tmp_path / "a.jsonl", [row("a", [1]), broken])
    with pytest.raises(InputError, match=message) as error:
        FORMATS["acc-len"](path, Options())
    assert f"{path}, line 2" in str(error.value)


# Our own format


def test_jsonl_by_hand(tmp_path: Path) -> None:
    """2 of 4, then 3 of 3 cut before the bonus; and a request given flag by flag."""
    rows = [
        {"id": "a.1", "task": "qa", "prompt_tokens": 9, "rounds": [[4, 2], [3, 3]], "tokens": 6},
        {"id": 2, "accepts": [1, 0, -1, 1]},
    ]
    trace = FORMATS["jsonl"](write_lines(tmp_path / "a.jsonl", rows), Options())
    assert flags_in(trace) == [1, 1, 0, 1, 1, 1, 1, 0, -1, 1]
    assert trace.request_id == ("a.1", "2") and trace.category == ("qa", "all")
    assert trace.prompt_tokens.tolist() == [9, 0] and trace.meta.depth == 4
    assert trace.token_ids is None and trace.meta.source["rounds"] == 2


def test_sampled_and_complete_is_in_law(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"id": 1, "accepts": [1, 0], "token_ids": [5, 6]}])
    trace = FORMATS["jsonl"](path, Options(temperature=0.8, max_new_tokens=50, depth=3))
    assert (trace.meta.exactness, trace.meta.max_new_tokens, trace.meta.depth) == ("in-law", 50, 3)
    assert trace.token_ids is not None and trace.token_ids.tolist() == [5, 6]
    assert FORMATS["jsonl"](path, Options()).meta.exactness == "exact"


@pytest.mark.parametrize(
    "broken",
    [
        {"id": 1},
        {"id": 1, "accepts": [1], "rounds": [[1, 1]]},
        {"id": 1, "accepts": []},
        {"id": 1, "accepts": [2]},
        {"id": 1, "accepts": [-2]},
        {"id": 1, "rounds": [[1, 2]]},
        {"id": 1, "rounds": [[1]]},
        {"id": 1, "rounds": [[2, 1], [2, 1]], "tokens": 2},
        {"id": 1, "rounds": [[2, 1]], "tokens": 3},
        {"id": 1, "accepts": [1, 1], "token_ids": [1]},
        {"id": 1, "accepts": [1], "promt_tokens": 3},
        {"id": 1, "accepts": [1], "prompt_tokens": -3},
        {"accepts": [1]},
        {"id": None, "accepts": [1]},
        {"id": "a\ud800", "accepts": [1]},
        {"id": 1, "task": "two\nlines", "accepts": [1]},
    ],
)
def test_jsonl_mends_nothing(tmp_path: Path, broken: dict[str, Any]) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"id": 0, "accepts": [1]}, broken])
    with pytest.raises(InputError, match="line 2"):
        FORMATS["jsonl"](path, Options())


def test_a_request_occurs_once(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"id": 1, "accepts": [1]}] * 2)
    with pytest.raises(InputError, match="twice"):
        FORMATS["jsonl"](path, Options())


# The command


@pytest.mark.parametrize("kind", DRAFTERS)
def test_whose_drafts_they_were(tmp_path: Path, kind: str) -> None:
    path, out = tmp_path / "a.jsonl", tmp_path / "a.parquet"
    path.write_text('{"id": "1", "rounds": [[4, 2], [4, 4], [4, 0]]}\n')
    command = ["trace", "import", str(path), "--format", "jsonl", "--out", str(out)]
    assert main([*command, "--drafter", kind]) == 0
    assert read_trace(out).meta.drafter == kind
    assert main([*command, "--force"]) == 0
    assert read_trace(out).meta.drafter == "model"


def test_import_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, plain = [], []
    for k in range(6):
        rounds = [2, 1, 1 + k % 2, 1] * (3 + k)  # nobody drafts less than one token
        drafted = sum(Schedule("heuristic", 2).drafted(rounds, 1024))
        rows.append(answer(k, rounds, wall_time=[0.1 + 0.02 * len(rounds) + 0.01 * drafted]))
        plain.append(answer(k, [1] * (20 + k), wall_time=[0.019 * (20 + k)]))
    a, v = write_lines(tmp_path / "a.jsonl", rows), write_lines(tmp_path / "v.jsonl", plain)
    out, timing = tmp_path / "t.parquet", tmp_path / "t.json"
    command = ["trace", "import", str(a), "--format", "spec-bench", "--schedule", "heuristic:2"]
    command += ["--out", str(out), "--vanilla", str(v), "--timing-out", str(timing)]
    assert main(command) == 0
    told = capsys.readouterr().out
    trace = read_trace(out)
    assert "6 requests" in told and f"{trace.positions} positions" in told
    assert "violations        0" in told and "censored" in told and "token-weighted" in told
    assert read_timing(timing).meta["fitted"]["round_s"] == pytest.approx(0.02)
    assert main(command) == 2 and main([*command, "--force"]) == 0


def bad_inputs(folder: Path) -> dict[str, Path]:
    files = {
        "missing": folder / "nowhere.jsonl",
        "folder": folder,
        "empty": folder / "empty.jsonl",
        "truncated": folder / "truncated.jsonl",
        "binary": folder / "binary.jsonl",
        "long": folder / "long.jsonl",
        "list": folder / "list.jsonl",
    }
    files["empty"].write_text("\n  \n")
    files["truncated"].write_text(json.dumps(answer(1, [2, 1])) + '\n{"question_id": 2, "cat')
    files["binary"].write_bytes(bytes(range(256)) * 8)
    files["long"].write_text('{"id": "' + "x" * 17_000_000)
    files["list"].write_text("[1, 2]\n")
    return files


@pytest.mark.parametrize("form", ["spec-bench", "acc-len", "jsonl"])
@pytest.mark.parametrize(
    "name", ["missing", "folder", "empty", "truncated", "binary", "long", "list"]
)
def test_bad_files_give_one_line_and_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, name: str
) -> None:
    path, out = bad_inputs(tmp_path)[name], tmp_path / "out" / "t.parquet"
    assert main(["trace", "import", str(path), "--format", form, "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and len(captured.err) < 400
    assert str(path) in captured.err and not out.parent.exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--format", "nope"], "known: spec-bench"),
        (["--format", "jsonl", "--schedule", "fixed:3"], "--schedule means nothing"),
        (["--format", "jsonl", "--key", "x"], "--key means nothing"),
        (["--format", "jsonl", "--timing-out", "t.json"], "--timing-out needs"),
        (["--format", "spec-bench", "--vanilla", "v.jsonl"], "--timing-out"),
        (["--format", "jsonl", "--depth", "99999"], "--depth"),
        (["--format", "jsonl", "{other}"], "one file"),
        (["--format", "jsonl", "{file}"], "named twice"),
        (["--format", "jsonl", "--out", "{file}", "--force"], "also an input"),
    ],
)
def test_options_that_do_not_go_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], message: str
) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"id": 1, "accepts": [1]}])
    other = write_lines(tmp_path / "b.jsonl", [{"id": 1, "accepts": [1]}])
    out = tmp_path / "t.parquet"
    named = [part.format(file=path, other=other) for part in extra]
    assert main(["trace", "import", "--out", str(out), *named, str(path)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists() and path.read_text().startswith('{"id": 1')


HUGE = 2**31 - 1


@pytest.mark.parametrize(
    ("form", "text", "words"),
    [
        ("jsonl", f'{{"id": 1, "rounds": [[{HUGE}, {HUGE}]]}}', "a reply of 2147483648 tokens"),
        ("jsonl", f'{{"id": 1, "rounds": [[{HUGE}, 1]]}}', "drafts of 2147483647 tokens; at most"),
        ("jsonl", f'{{"id": 1, "prompt_tokens": 1{"0" * 400}, "accepts": [1]}}', "2^31 - 1"),
        ("vllm", "vllm:spec_decode_num_drafts_total{} 1e999", "neither JSON nor"),
        (
            "llama.cpp",
            f"draft acceptance = 0.6 (  1{'0' * 400} accepted /   259 generated), "
            "acceptance rate per position = (0.805, 0.6)",
            "neither JSON nor",
        ),
        (
            "sglang",
            '{"meta_info": {"prompt_tokens": 1, "completion_tokens": 3, '
            f'"speculative_decoding_stats": {{"accept_lengths": [{HUGE}], '
            f'"verify_lengths": [{HUGE}]}}}}}}',
            "a reply of",
        ),
    ],
)
def test_numbers_that_nobody_counts_are_refused(
    form: str, text: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "log.txt"
    path.write_text(text + "\n")
    with pytest.raises(InputError, match=re.escape(words)) as error:
        FORMATS[form](path, Options())
    assert "log.txt" in str(error.value)
