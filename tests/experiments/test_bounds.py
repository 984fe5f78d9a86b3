"""What every command shares of its input: numbers within bounds, JSON as editors save it, output
that any terminal can show.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.cli import build_parser
from experiments.common import parallel as workers
from experiments.common.results import read_result
from experiments.learning import task as learning
from policies.registry import read_policies
from real_backend import load_pair
from real_backend.command_line import Parser, add_options, print_anything
from real_backend.decoding.engine import Engine
from real_backend.options import LosslessOptions, SessionOptions, SittingOptions
from real_backend.prompts import read_questions
from tests.command import gammalab, refused
from traces.errors import InputError, brief
from traces.json_text import read_json
from traces.shipped import TIMING, shipped_or_file
from traces.timing import read_timing
from traces.workload.files import read_workload

MODULES = (SittingOptions, LosslessOptions, SessionOptions)
TRACE = TIMING.with_name("embedded-greedy.parquet")
UNBOUNDED = ("--max-error", "--seconds", "--minutes")  # any finite number


def leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of all commands."""
    below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not below:
        yield parser
    for action in below:
        for sub in action.choices.values():
            yield from leaves(sub)


def modules() -> Iterator[argparse.ArgumentParser]:
    """Those of `python -m real_backend.NAME`, beyond what the commands have."""
    for cls in MODULES:
        parser = Parser(prog=f"python -m real_backend: {cls.__name__}")
        add_options(cls, parser)
        yield parser


NUMBERS = [
    (parser, action.option_strings[0])
    for parser in (*leaves(build_parser()), *modules())
    for action in parser._actions
    if action.type not in (None, Path, shipped_or_file) and action.option_strings
]


def test_the_parsers_have_numbers() -> None:
    options = {option for _, option in NUMBERS}
    assert {"--seed", "--threads", "--workers", "--rate", "--context", "--minutes"} <= options


@pytest.mark.parametrize(
    ("parser", "option"), NUMBERS, ids=[f"{p.prog} {option}" for p, option in NUMBERS]
)
def test_every_number_has_bounds(
    parser: argparse.ArgumentParser, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["-1", "nan", "inf", "x", "", *["1" + 20 * "0"] * (option not in UNBOUNDED)]
    for text in texts:
        with pytest.raises(SystemExit) as stop:
            parser.parse_args([f"{option}={text}"])
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert stop.value.code == 2 and f"argument {option}: " in line, line
        assert "must be" in line or "is not a" in line, line


def test_a_bound_comes_with_its_reason() -> None:
    serve = ("serve", "--trace", "t", "--timing", "t", "--workload", "w")
    refused(gammalab(*serve, "--seeds", 10**9), "--seeds", "at most 1000: every seed is a run")
    refused(gammalab("sweep", "quick", "--out", "o", "--workers", 500), "--workers", "cores")
    refused(gammalab("train", "--rate", "1e6"), "--rate", "at most 1: weights")


READERS: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "workload": (
        read_workload,
        {"kind": "workload", "version": 1, "requests": 2, "process": "poisson", "rate_per_s": 1},
    ),
    "timing": (
        read_timing,
        read_json(TIMING),
    ),
    "result": (lambda path: read_result("sweep", path), {"kind": "sweep", "version": 1}),
    "policies": (
        read_policies,
        {"kind": "policies", "version": 1, "policies": [{"policy": "fixed"}]},
    ),
    "prompts": (read_questions, {"question_id": 1, "category": "qa", "turns": ["é"]}),
}


@pytest.mark.parametrize("kind", READERS)
def test_a_byte_order_mark_is_read_over(kind: str, tmp_path: Path) -> None:
    reader, raw = READERS[kind]
    plain, marked = tmp_path / "plain.json", tmp_path / "marked.json"
    plain.write_text(json.dumps(raw, ensure_ascii=False), "utf-8")
    marked.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    assert reader(marked) == reader(plain)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\xff\xfe{", "is not UTF-8 text"),
        (b'{"a": "\\uDC00"}', r"holds half a character \(\\udc00\)"),
        (b"{", "is not JSON"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "field 'c' is given twice"),
    ],
)
def test_files_that_are_no_json_text(kind: str, content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=f"a.json.*{told}"):
        READERS[kind][0](tmp_path / "a.json")


def test_pairs_of_surrogates_are_text(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('["\\ud83d\\ude00"]')
    assert read_json(tmp_path / "a.json") == ["\U0001f600"]


def test_names_that_the_terminal_lacks_are_shown_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    print_anything()
    print("Zürich.parquet \udcff", flush=True)
    assert raw.getvalue() == b"Z\\xfcrich.parquet \\udcff\n"


def test_caches_that_do_not_fit_are_refused_before_they_are_made(
    pair: Any, costs: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two models of 2 layers, 2 x 32 numbers of 4 bytes a token: 1,024 bytes."""
    monkeypatch.setattr(load_pair, "free_bytes", lambda _: 1024 * 26)
    engine = Engine(pair, costs, max_gamma=4)
    engine.steps(1, 26)
    with pytest.raises(InputError, match=r"caches of 27 tokens in all rows need .* GiB"):
        engine.steps(1, 27)


def test_weights_that_training_lost_are_named() -> None:
    weights = [np.asarray([np.nan])]
    with pytest.raises(
        InputError, match="the weights are NaN after 64 steps; pass a smaller --rate"
    ):
        learning.note(learning.TrainingMemory(), None, weights, steps=64, seconds=0, reward=0)  # type: ignore[arg-type]


def test_replicas_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    """1,024 replicas, each with 16 bytes a request in its line and 48 a bin."""
    serve = ("serve", "--trace", TRACE, "--timing", TIMING, "--workload", "poisson:rate=0.001")
    ran = gammalab(*serve, "--server", "replicas=1024,bin_s=0.001", "--policies", "never")
    refused(ran, "1024 replicas with 2000 requests", "48.", "GiB, 4 are allowed", "larger bin_s")


def test_a_folder_without_a_page_says_whose_it_is(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{}")
    refused(gammalab("report", tmp_path), "the result of `gammalab sweep`, which has no page")


def test_no_more_workers_than_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    import joblib

    asked: list[int] = []

    def noted(count: int, **_: Any) -> Any:
        asked.append(count)
        return lambda calls: iter(())

    monkeypatch.setattr(joblib, "Parallel", noted)
    list(workers.run_jobs(lambda _, job: job, None, [1, 2, 3], workers=8))
    assert asked == [3]


def test_a_message_is_one_line_whatever_it_quotes() -> None:
    assert brief("a.json: 'x\ny'\x1b[31m; mend it") == "a.json: 'x y'\\x1b[31m; mend it"
    long = brief("a.json: " + 9000 * "x" + "; mend it")
    assert len(long) < 1000 and long.startswith("a.json: ") and long.endswith("; mend it")
