"""`gammalab train` from files to files, and the studies around it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from experiments.learning import regret, transfer
from policies.learned.neural import NeuralRound
from policies.registry import read_policies
from tests.command import gammalab, refused
from traces import synthetic
from traces.shipped import GREEDY, TIMING
from traces.store import read_trace, write_trace

BRIEF = ("--iterations", "2", "--lanes", "8", "--hidden", "4", "--unit", "round")


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few requests of every task."""
    whole = read_trace(GREEDY)
    rows = [row for row in range(whole.requests) if row % 4 < 2][:80]
    path = tmp_path_factory.mktemp("traces") / "some.parquet"
    write_trace(whole.select(rows), path)
    return path


@pytest.fixture(scope="module")
def network(trace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a brief training leaves."""
    out = tmp_path_factory.mktemp("net") / "net.json"
    done = gammalab("train", "--trace", trace, "--timing", TIMING, "--out", out, *BRIEF)
    assert done.code == 0, done.err
    assert "held-out replies" in done.out and "clairvoyant" in done.out
    return out


def test_what_training_writes_other_commands_take(trace: Path, network: Path) -> None:
    (policy,) = read_policies(network)
    assert isinstance(policy, NeuralRound) and policy.round_s > 0.0
    curve = (network.with_suffix(".run") / "curve.csv").read_text().splitlines()
    assert curve[0] == "steps,seconds,reward,fit,validation" and len(curve) == 2
    policies = f"{network},fixed:gamma=2"
    done = gammalab("compare", "--trace", trace, "--timing", TIMING, "--policies", policies)
    assert done.code == 0 and "neural-round" in done.out


def test_refusals(trace: Path, network: Path, tmp_path: Path) -> None:
    inputs = ("--trace", trace, "--timing", TIMING)
    cases = [
        ((*inputs, "--out", network, *BRIEF), "exists"),
        ((*inputs, "--out", tmp_path / "a", "--algo", "sarsa"), "--algo is 'sarsa'"),
        ((*inputs, "--out", tmp_path / "a", "--unit", "reply"), "--unit is 'reply'"),
        ((*inputs, "--out", tmp_path / "a", "--cost-ratios", "4,x"), "--cost-ratios"),
        ((*inputs, "--out", tmp_path / "a", "--hidden", "500"), "--hidden is 500"),
        (("--trace", tmp_path / "no", "--timing", TIMING, "--out", tmp_path / "a"), "no such"),
    ]
    for arguments, said in cases:
        done = gammalab("train", *arguments)
        refused(done, said)
    assert not (tmp_path / "a.json").exists()
    bare = tmp_path / "bare.parquet"
    random = np.random.default_rng(0)
    write_trace(synthetic.constant(0.7, random, requests=8, reply_tokens=30), bare)
    done = gammalab("train", "--trace", bare, "--timing", TIMING, "--out", tmp_path / "b")
    assert done.code == 2 and "top1_prob" in done.err


def test_another_run_in_the_same_place(trace: Path, network: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.json"
    network.with_suffix(".run").rename(out.with_suffix(".run"))
    try:
        arguments = ("train", "--trace", trace, "--timing", TIMING, "--out", out)
        done = gammalab(*arguments, *BRIEF, "--seed", "5")
        refused(done, "another run")
        done = gammalab(*arguments, *BRIEF)  # the run is finished: its network is exported again
        assert done.code == 0
        assert out.with_suffix(".safetensors").read_bytes() == (
            network.with_suffix(".safetensors").read_bytes()
        )
    finally:
        out.with_suffix(".run").rename(network.with_suffix(".run"))


def test_a_damaged_network_is_refused_in_one_line(trace: Path, network: Path) -> None:
    weights = network.with_suffix(".safetensors")
    whole = weights.read_bytes()
    try:
        for damaged in (whole[:-7], b"", whole[:40] + b"\xff" * 8 + whole[48:]):
            weights.write_bytes(damaged)
            done = gammalab("compare", "--trace", trace, "--timing", TIMING, "--policies", network)
            refused(done, str(weights))
    finally:
        weights.write_bytes(whole)


def test_regret_and_curves(trace: Path, network: Path, tmp_path: Path) -> None:
    where = ["--trace", trace, "--timing", TIMING, "--out", tmp_path]
    what = ["--policies", "ucb,fixed:gamma=3", "--networks", network, "--passes", "2"]
    said = gammalab("studies", "regret", *where, *what).out
    assert "clairvoyant" in said and "ucb" in said
    assert {path.name for path in tmp_path.glob("*.png")} == {"regret.png", "training.png"}


def test_regret_of_the_best_length_is_none_and_of_the_clairvoyant_least() -> None:
    from policies.fixed import Fixed
    from traces.costs.affine import Affine
    from traces.costs.pricing import tabulate

    trace = regret.orders(read_trace(GREEDY).select(list(range(0, 60, 5))), 2, seed=0)
    costs = tabulate(Affine(), max_context=1024, width=18)
    best, _ = regret.best_fixed(trace, costs)
    tokens, lost = regret.regrets(trace, costs, {"best": Fixed(best), "plain": Fixed(0)}, seed=0)
    assert tokens[-1] == trace.positions
    assert not lost["best"].any()
    assert lost["clairvoyant"][-1] < 0.0 < lost["plain"][-1]


def test_transfer_by_hand(trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "RATIOS", (4.0,))
    whole = read_trace(trace)
    two = [row for row, task in enumerate(whole.category) if task in whole.category[:1]]
    write_trace(whole.select(two), tmp_path / "one.parquet")
    options = ["--trace", tmp_path / "one.parquet", "--lanes", "4", "--unit", "round"]
    asked = ["studies", "transfer", *options, "--out", tmp_path / "out", "--iterations"]
    said = gammalab(*asked, "1").out
    found = json.loads((tmp_path / "out" / "transfer.json").read_text())
    assert found["worlds"] == [whole.category[0], "all, measured", "c = 4"]
    assert all(len(row) == 3 for row in found["scores"].values())
    assert gammalab(*asked, "2").code == 2  # not the runs that lie there
    rule = found["scores"]["hf-confidence"]
    below = sum(
        a < b
        for name, row in found["scores"].items()
        if name.startswith("net")
        for a, b in zip(row, rule, strict=True)
    )
    assert len(re.findall(r"\d\.\d{3}-", said)) == below


def test_the_studies_refuse_in_one_line(tmp_path: Path) -> None:
    nowhere, out = tmp_path / "no", tmp_path / "out"
    asked = ["--networks", f"{nowhere}.json", "--out", out]
    refused(gammalab("studies", "regret", *asked), str(nowhere))
    refused(gammalab("studies", "transfer", "--trace", nowhere, "--out", out), str(nowhere))
