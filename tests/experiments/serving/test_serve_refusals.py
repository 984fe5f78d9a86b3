"""`gammalab serve` on bad input: one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.serving.serve import settings
from simulator.serving.options import Server
from tests.command import refused
from tests.experiments.serving.small_runs import Inputs, save_bare
from traces.errors import InputError


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("slot=4", r"--server: 'slot=4' is not known; it takes slots=, order="),
        ("slots", "'slots' is not known"),
        ("=4", "'=4' is not known"),
        ("slots=many", "--server: 'slots=many': slots must be a whole number"),
        ("slots=2.5", "slots must be a whole number"),
        ("slots=", "slots must be a whole number"),
        ("max_gamma=none", "max_gamma must be a whole number"),
        ("hop_s=fast", "hop_s must be a number"),
        ("padded=yes", "padded must be true or false"),
        ("slots=0", "slots is 0; give 1 to 4096"),
        ("hop_s=nan", "hop_s is nan"),
        ("slots=100000", "slots is 100000; give 1 to 4096"),
        ("replicas=1000000", "replicas is 1000000; give 1 to 1024"),
        ("blocks=99999999999999999999", "blocks is 99999999999999999999; give 0 to 2147483647"),
        ("bin_s=inf", "bin_s is inf"),
        ("order=random", "order is 'random'; known: first-come"),
        ("hop_s=1", "set apart"),
    ],
)
def test_settings_that_cannot_be(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        settings(Server(), text, "--server")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"server": "slots=0"}, ["slots is 0"]),
        ({"server": "slot=2"}, ["--server", "'slot=2'", "slots"]),
        ({"server": "slots=2,blocks=2,block_tokens=4"}, ["2 blocks of 4 tokens", "request"]),
        ({"server": "slots=2,max_gamma=5"}, ["max_gamma is 5", "0..4"]),
        ({"workload": "poisson:rate=-1"}, ["rate_per_s", "-1"]),
        ({"workload": "poisson:rate=nan"}, ["rate_per_s", "nan"]),
        ({"workload": "poison:rate=1"}, ["'poison'", "poisson"]),
        ({"workload": "poisson:user=1"}, ["'user=1'", "rate="]),
        ({"workload": "missing.json"}, ["missing.json", "no such workload file"]),
        ({"warmup": 1}, ["--warmup", "1"]),
        ({"warmup": -0.1}, ["--warmup"]),
        ({"warmup": "nan"}, ["--warmup"]),
        ({"slo": "ttft=1"}, ["--slo", "ttft_s"]),
        ({"seed": -1}, ["seed"]),
        ({"requests": 0}, ["--requests", "at least 1"]),
        ({"seeds": 0}, ["--seeds", "at least 1"]),
        ({"policies": "nevr"}, ["nevr", "never"]),
        ({"trace": "no.parquet"}, ["no.parquet", "no such file"]),
        ({"timing": "no.json"}, ["no.json", "gammalab measure"]),
        ({"timing": "roofline:b200:llama-3.1-8b+llama-3.2-1b"}, ["b200", "a100, h100"]),
        ({"timing": "roofline:a100"}, ["roofline:a100", "TARGET+DRAFT"]),
        ({"timing": "roofline:a100:llama-3.1-8b+lama"}, ["'lama'", "llama-3.2-1b"]),
        ({"timing": "roofline:a100:llama-3.1-8b"}, ["llama-3.1-8b", "TARGET+DRAFT"]),
    ],
)
def test_bad_input_is_one_line(
    inputs: Inputs, options: dict[str, object], words: list[str], tmp_path: Path
) -> None:
    refused(inputs.serve(**{"out": tmp_path / "out"} | options), *words)
    assert not (tmp_path / "out").exists()


def test_an_unknown_shape_is_not_blamed_on_an_option_that_is_not_there(inputs: Inputs) -> None:
    assert "--pair" not in inputs.serve(timing="roofline:a100:llama-3.1-8b+lama").err


@pytest.mark.parametrize("slo", ["ttft_s=nan", "tpot_s=-1"])
def test_an_objective_that_cannot_be_is_refused(inputs: Inputs, slo: str) -> None:
    refused(inputs.serve(slo=slo, policies="never", seeds=1), slo.partition("=")[0])


def test_a_timeline_needs_a_folder(inputs: Inputs) -> None:
    refused(inputs.serve("--timeline"), "--timeline needs --out")


def test_a_folder_that_is_a_file(inputs: Inputs, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    refused(inputs.serve(out=tmp_path / "out", policies="never"), "out", "is a file")


def test_a_policy_that_reads_signals_which_are_not_there(inputs: Inputs, tmp_path: Path) -> None:
    bare = save_bare(tmp_path)[1]
    refused(inputs.serve(trace=bare, policies="never,tail-pruning"), "tail-pruning", "signals")
    refused(
        inputs.serve(trace=bare, server="slots=2,allotment=tetris,budget_tokens=8"),
        "tetris", "signals",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"kind": "workload", "version": 1, "requests": 2, "process": "recorded", '
         '"arrival_s": [2.0, 1.0]}', ["arrival_s[1]", "sort"]),
        ('{"kind": "workload", "version": 1, "requests": 2, "process": "poisson", '
         '"rate_per_s": -4}', ["rate_per_s", "-4"]),
        ('{"kind": "workload", "version": 1, "requests": 2, "process": "poisson", '
         '"rate_per_s": 1, "weights": {"b": 1}}', ["weights", "'b'"]),
        ('{"kind": "workload", "version": 1, "requests": 2', ["w.json is not JSON", "truncated"]),
        ('{"kind": "timing"}', ["w.json", "not a workload"]),
        ('{"kind": "workload", "version": 7}', ["version 7"]),
        ('{"kind": "workload", "version": 1, "requests": 2, "process": "poisson", "rate": 1}',
         ["'rate'", "rate_per_s"]),
    ],
)  # fmt: skip
def test_bad_workload_files(inputs: Inputs, text: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "w.json").write_text(text)
    refused(inputs.serve(workload=tmp_path / "w.json"), *words)


def test_truncated_and_foreign_files(inputs: Inputs, tmp_path: Path) -> None:
    cut, half, other = tmp_path / "cut.parquet", tmp_path / "half.json", tmp_path / "other.json"
    cut.write_bytes(inputs.trace.read_bytes()[:500])
    refused(inputs.serve(trace=cut), "cut.parquet", "truncated or foreign")
    half.write_text(inputs.timing.read_text()[:300])
    refused(inputs.serve(timing=half), "half.json is not JSON")
    other.write_text('{"kind": "serve"}')
    refused(inputs.serve(timing=other), "other.json", "not a GammaLab timing")
    refused(inputs.serve(timing=inputs.trace), "trace.parquet")
    refused(inputs.serve(trace=inputs.timing), "timing.json")
