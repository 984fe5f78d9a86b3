"""`gammalab export`: what it prints and writes, and one clear line for bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments import cli
from tests.results import save_inputs


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    """Run one command in this process: exit code, stdout, stderr."""
    try:
        code = cli.main([str(arg) for arg in argv])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_command_prints_writes_and_speaks_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, timing = save_inputs(tmp_path)
    argv = ("export", "gammatune", "--to", "vllm", "--trace", trace, "--timing", timing)
    code, text, err = run(capsys, *argv)
    assert code == 0 and err == "" and "vllm serve target" in text
    code, raw, _ = run(capsys, *argv, "--json")
    found = json.loads(raw)
    assert code == 0 and found["engine"] == "vllm" and found["policy"] == "gammatune"
    assert found["command"] == text.strip().splitlines()[-1]
    assert found["settings"]["num_speculative_tokens"] > 0 and found["notes"]
    predicted = found["predicted"]
    share = predicted["exported_tokens_per_s"] / predicted["policy_tokens_per_s"]
    assert predicted["loss"] == pytest.approx(1.0 - share)
    out = tmp_path / "vllm.sh"
    assert run(capsys, *argv, "--out", out)[0] == 0 and out.read_text() == text
    code, _, err = run(capsys, *argv, "--out", out)
    assert code == 2 and "vllm.sh" in err and "--force" in err
    assert run(capsys, *argv, "--out", out, "--force")[0] == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"policy": "gammatun"}, ["unknown policy 'gammatun'", "'gammatune'"]),
        ({"--to": "tgi"}, ["unknown engine 'tgi'", "vllm", "llama.cpp"]),
        ({"--trace": "no.parquet"}, ["no.parquet", "no such file"]),
        ({"--timing": "no.json"}, ["no.json", "gammalab measure"]),
        ({"--timing": None}, ["--timing"]),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    words: list[str],
) -> None:
    trace, timing = save_inputs(tmp_path)
    given = {"--to": "hf", "--trace": trace, "--timing": timing} | change
    policy = given.pop("policy", "gammatune")
    options = [part for key, value in given.items() if value is not None for part in (key, value)]
    code, out, err = run(capsys, "export", policy, *options)
    (line,) = err.strip().splitlines()
    assert code == 2 and out == "" and line.startswith("gammalab: ")
    for word in words:
        assert word in line, line
