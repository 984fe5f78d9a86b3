"""The check of losslessness: silent on a sound engine, loud on a broken one, exact in its units."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from policies.fixed import Never
from policies.registry import parse_policies
from real_backend import greedy_reference, lossless
from real_backend.command_line import run_module
from real_backend.decoding import judge, solo, verify
from real_backend.decoding.engine import Engine
from real_backend.greedy_reference import Noise, parting, plain, spacing
from real_backend.load_pair import load_pair
from real_backend.lossless import Difference, check, text_of, weigh
from real_backend.models.llama import LeanLlama
from real_backend.options import LosslessOptions
from real_backend.pair_spec import resolve_pair
from real_backend.prompts import EMBEDDED_PROMPTS, Request, read_questions, request_for
from tests.specimens import few_or_slow, write_prompts
from traces.costs.pricing import StepCosts

DTYPES = ("float32", "bfloat16")  # a format without near ties and one with many
BITS = {"float32": 24, "bfloat16": 8}  # of the significand
TOKENS = 24

Subject = tuple[Any, list[Request]]


def load(folder: Path, dtype: str) -> Subject:
    """The tiny pair and requests to it."""
    pair = load_pair(resolve_pair(str(folder), None, None), device="cpu", dtype=dtype)
    questions = read_questions(write_prompts(folder / "prompts.jsonl", questions=6))
    return pair, [request_for(pair, question, 0, []) for question in questions]


@pytest.fixture(scope="module", params=DTYPES)
def tiny(request: pytest.FixtureRequest, pair_folder: Path) -> Subject:
    """The tiny pair, in every format."""
    return load(pair_folder, request.param)


@pytest.fixture(scope="module", params=few_or_slow(DTYPES, ["float32"]))
def real(request: pytest.FixtureRequest) -> Subject:
    """The embedded pair, in every format, and first turns of three tasks."""
    pair = load_pair(resolve_pair("embedded", None, None), device="cpu", dtype=request.param)
    questions = read_questions(EMBEDDED_PROMPTS)[::60]
    return pair, [request_for(pair, question, 0, []) for question in questions]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`python -m real_backend.lossless` in this process: exit code, stdout, stderr."""

    def call(*argv: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["lossless", *map(str, argv)])
        code = run_module("lossless", lossless.__doc__, LosslessOptions, lossless.run)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (1.0, torch.float32, 2.0**-23),
        (1.9999999, torch.float32, 2.0**-23),
        (-2.0, torch.float32, 2.0**-22),
        (14.5, torch.bfloat16, 0.0625),  # 8 mantissa bits: 8 * 2^-7
        (15.9375, torch.bfloat16, 0.0625),
        (16.0, torch.bfloat16, 0.125),
        (0.75, torch.float16, 2.0**-11),
    ],
)
def test_spacing_by_hand(value: float, dtype: torch.dtype, expected: float) -> None:
    assert float(spacing(torch.tensor(value), dtype)) == expected


def test_spacing_is_the_step_to_the_next_float() -> None:
    x = torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 40 + 1e-3
    following = torch.nextafter(x, torch.tensor(math.inf))
    assert torch.equal(spacing(x, torch.float32), following.double() - x.double())


def test_parting_by_hand() -> None:
    assert parting([3, 4, 5], [3, 9, 5]) == 1
    assert parting([3, 4], [3, 4, 5]) == parting([3, 4, 5], [3, 4]) == 2


def test_noise_by_hand() -> None:
    """Best logits 4 and 3 of spacing 2^-5 in bfloat16; the third one's error does not count."""
    ours = torch.tensor([[3.0, 4.0, -1.0]], dtype=torch.bfloat16)
    theirs = torch.tensor([[3.0625, 3.96875, 2.0]], dtype=torch.bfloat16)
    assert greedy_reference._apart(ours, theirs, torch.bfloat16).tolist() == [1.0, 2.0]
    assert greedy_reference._noise([torch.tensor([0.0, 1.0]), torch.tensor([5.0])]) == Noise(
        1.0, 5.0
    )
    assert Noise(1.0, 5.0).bound == 10.0


def test_plain_decoding_ends_where_the_engine_does(pair: Any, costs: StepCosts) -> None:
    """By an end token, by the limit, by the context; from a prompt of one token, too."""
    requests = [
        Request(str(k), "qa", [2] + [5 + 3 * k % 50] * length)
        for k, length in enumerate((0, 1, 6, 12, 20, 249))
    ]
    run = Engine(pair, costs, max_gamma=8).decode(Never(), requests, max_new_tokens=40)
    with torch.inference_mode():
        replies = [[int(row.argmax()) for row in plain(pair, r, 40)] for r in requests]
    assert replies == run.tokens
    assert len(replies[-1]) == 6 and max(map(len, replies)) == 40


def test_a_reply_is_weighed_where_it_leaves_the_reference(tiny: Subject) -> None:
    """The second best token put into the reply, by hand; and a reply that just ends."""
    pair, (request, *_) = tiny
    with torch.inference_mode():
        logits = [row.tolist() for row in plain(pair, request, 9)]
        reply = [row.index(max(row)) for row in logits]
        best, second = sorted(range(len(logits[5])), key=lambda k: -logits[5][k])[:2]
        gap = logits[5][best] - logits[5][second]
        units = gap / 2.0 ** (math.frexp(logits[5][best])[1] - BITS[pair.dtype])
        other = [*reply[:5], second, *reply[6:]]
        found = weigh(pair, request, reply, other, Noise(0.0, units / 2))
        assert (found.position, found.token, found.other) == (5, best, second)
        assert (found.gap, found.spacings, found.tie) == (gap, units, True)
        assert not weigh(pair, request, reply, other, Noise(0.0, units / 2.01)).tie
        cut = weigh(pair, request, reply, reply[:4], Noise(0.0, 1e9))
        assert (cut.position, cut.other, cut.gap, cut.tie) == (4, -1, None, False)


def test_a_sound_engine_differs_by_ties_only(real: Subject) -> None:
    pair, requests = real
    policies = parse_policies("never,fixed:gamma=3,gammatune,hf-confidence")
    report = check(pair, requests, policies, [1, 3], TOKENS)
    assert report.lossless
    assert len(report.rows) == 9 and report.rows[-1].policy == "transformers generate"
    assert report.rows[0].differences == []  # never, batch 1: the reference's own steps
    if pair.dtype == "float32":
        assert not any(row.differences for row in report.rows)
        assert report.near[8.0] == 0.0
    # How common near ties are, counted in another way.
    close = positions = 0
    for request in requests:
        with torch.inference_mode():
            for row in plain(pair, request, TOKENS):
                first, second = row.double().topk(2).values.tolist()
                close += first - second <= 4.0 * 2.0 ** (math.frexp(first)[1] - BITS[pair.dtype])
                positions += 1
    assert report.positions == positions and report.near[4.0] == close / positions


def test_what_differs_in_half_precision_is_a_tie(pair_folder: Path) -> None:
    report = check(*load(pair_folder, "bfloat16"), parse_policies("gammatune"), [1, 3], TOKENS)
    assert report.lossless and report.shape.largest > 0


def test_the_general_path_is_checked_alike(pair_folder: Path) -> None:
    _, requests = load(pair_folder, "float32")
    spec = resolve_pair(str(pair_folder), None, None)
    general = load_pair(spec, device="cpu", lean=False)
    report = check(general, requests[:3], parse_policies("fixed:gamma=3"), [1, 2], TOKENS)
    assert not any(row.differences for row in report.rows)


def accepts_one_too_many(drafted: list[int], choices: list[int]) -> int:
    return min(1 + ACCEPTED_OF(drafted, choices), len(drafted))


def sees_the_future(self: LeanLlama, mask: Tensor) -> Tensor:
    return torch.zeros_like(FOLD_MASK(self, mask))


def skips_a_place(
    self: LeanLlama,
    tokens: Tensor,
    cache: Tensor,
    start: int,
    positions: Tensor | None = None,
    mask: Tensor | None = None,
    last: int | None = None,
) -> Tensor:
    """Rotary positions one too far in reads of several tokens behind others."""
    if start > 0 and tokens.shape[1] > 1:
        positions = torch.arange(start, start + tokens.shape[1])[None] + 1
    return FORWARD(self, tokens, cache, start, positions, mask, last)


FOLD_MASK, FORWARD = LeanLlama._fold_mask, LeanLlama.forward
ACCEPTED_OF = verify.accepted_of
BREAKS: dict[str, tuple[tuple[object, ...], str, Callable[..., Any], set[int]]] = {
    "accept": ((judge, solo), "accepted_of", accepts_one_too_many, {1, 3}),
    "mask": ((LeanLlama,), "_fold_mask", sees_the_future, {1, 3}),
    "positions": ((LeanLlama,), "forward", skips_a_place, {1}),
}


@pytest.mark.parametrize("name", few_or_slow(BREAKS, ["positions", next(iter(BREAKS))]))
def test_a_broken_engine_is_no_tie(
    tiny: Subject, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners, attribute, broken, batches = BREAKS[name]
    for owner in owners:
        monkeypatch.setattr(owner, attribute, broken)
    report = check(*tiny, parse_policies("never,fixed:gamma=3"), [1, 3], TOKENS)
    assert not report.lossless
    for row in report.rows:
        findings = [d for d in row.differences if not d.tie]
        if row.policy == "fixed:gamma=3" and row.batch in batches:
            assert len(findings) >= 2
            assert max(d.spacings or 0.0 for d in findings) > 5 * row.bound
        if (row.policy == "never" and row.batch == 1) or row.policy.startswith("transformers"):
            assert not findings  # the reference itself is sound


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_wrong_lean_forward_does_not_excuse_itself(pair_folder: Path, dtype: str) -> None:
    """The engine agrees with the reference, both lack a layer; transformers does not."""
    pair, requests = load(pair_folder, dtype)
    del pair.target.lean.layers[-1]
    report = check(pair, requests, parse_policies("fixed:gamma=3"), [1], TOKENS)
    ours, theirs = report.rows
    assert report.program.median > report.shape.largest
    assert not [d for d in ours.differences if not d.tie]
    assert theirs.bound == report.shape.bound and [d for d in theirs.differences if not d.tie]


def test_what_is_printed_and_written(command: Any, tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    argv = ("--limit", 3, "--max-new-tokens", 8, "--policies", "never,ucb", "--batch", "1,2")
    code, text, _ = command("--dtype", "float32", *argv, "--out", out)
    raw = json.loads(out.read_text())
    assert code == 0 and raw["lossless"] is True and raw["kind"] == "lossless"
    assert raw["meta"]["pair"] == "embedded" and raw["meta"]["dtype"] == "float32"
    assert raw["meta"]["max_new_tokens"] == 8 and raw["positions"] <= 24
    ways = [(row["policy"], row["batch"]) for row in raw["rows"]]
    assert ways[:4] == [("never", 1), ("ucb", 1), ("never", 2), ("ucb", 2)]
    assert all(row["replies"] == 3 and row["differences"] == [] for row in raw["rows"])
    lines = text.splitlines()
    assert len(lines) == 10 and max(map(len, lines)) <= 100
    assert lines[2].split() == ["never", "1", "3", "0", *"00000", "-", lines[2].split()[-2], "0"]


def test_a_finding_is_exit_code_1(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solo, "accepted_of", accepts_one_too_many)
    out = tmp_path / "a.json"
    argv = ("--limit", 4, "--max-new-tokens", 24, "--policies", "fixed:gamma=3", "--batch", 1)
    code, text, _ = command(*argv, "--out", out)
    raw = json.loads(out.read_text())
    found = raw["rows"][0]["differences"]
    assert code == 1 and raw["lossless"] is False and found
    assert list(found[0]) == [f.name for f in dataclasses.fields(Difference)]
    assert found[0]["request_id"].endswith(".1") and found[0]["token"] != found[0]["other"]
    assert int(text.splitlines()[2].split()[-1]) == sum(not d["tie"] for d in found) > 0


def test_a_reply_that_just_ends_is_printed() -> None:
    report = lossless.Report(
        7,
        {1.0: 0.5},
        Noise(0.0, 1.0),
        Noise(0.0, 1.0),
        [lossless.DecodingCheck("never", 1, 1, 2.0, [Difference("1.1", 4, 9, lossless.END)])],
    )
    assert not report.lossless
    cells = text_of(report).splitlines()[1].split()
    assert cells == ["never", "1", "1", "1", "0", "0", "0", "0", "1", "inf", "2.0", "1"]


def test_bad_input_is_one_line(command: Any, tmp_path: Path, pair_folder: Path) -> None:
    out = tmp_path / "there.json"
    out.write_text("mine")

    def refused(*argv: object) -> str:
        code, text, error = command(*argv)
        (line,) = error.splitlines()
        assert code == 2 and text == "" and line.startswith("lossless: ")
        return str(line)

    assert "no.jsonl: no such prompt file" in refused("--prompts", tmp_path / "no.jsonl")
    assert "random weights" in refused("--pair", "shape:vicuna-7b+68m")
    assert "--force" in refused("--out", out) and out.read_text() == "mine"
    assert "--prompts is missing" in refused("--pair", pair_folder)
    assert "unknown policy" in refused("--policies", "nevr")
