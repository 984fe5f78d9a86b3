"""Several independent drafts on a recording: the law of rounds that really draw their chains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from experiments.shapes.independent import reach_in_law, run
from experiments.studies import DraftsOptions
from real_backend.trees.chances import Chances, chances_of_reply
from real_backend.trees.rules import k_sequential
from tests.real_backend.trees.test_rules import few_laws  # noqa: F401  a fixture
from tests.results import make_trace
from tests.specimens import few_or_slow
from traces.errors import InputError
from traces.shipped import shipped_or_file
from traces.store import read_trace

LEVELS = 3


def drawn(target: np.ndarray, draft: np.ndarray, drafts: int, rounds: int) -> np.ndarray:
    """[LEVELS + 1] rounds by accepted tokens, chains drawn and judged level by level."""
    generator, counts = np.random.default_rng(4), np.zeros(LEVELS + 1)
    p, q = torch.from_numpy(target), torch.from_numpy(draft)
    for _ in range(rounds):
        chains, level = drafts, 0
        while level < LEVELS:
            tokens = generator.choice(len(q), chains, p=draft).tolist()
            taken, _ = k_sequential(p, q, tokens, generator.random(chains))
            if taken < 0:
                break
            chains, level = tokens.count(tokens[taken]), level + 1
        counts[level] += 1
    return counts


@pytest.mark.usefixtures("few_laws")
@pytest.mark.parametrize("drafts", few_or_slow([1, 2, 4], [4]))
def test_rounds_have_the_law_of_chains_that_are_drawn(drafts: int) -> None:
    """Replies drawn from the target; laws that are the same everywhere. The replay is told the
    replies and nothing of the draws.
    """
    generator = np.random.default_rng(drafts)
    target, draft = generator.dirichlet(np.ones(5)), generator.dirichlet(np.ones(5))
    length = 60_000
    tokens = torch.from_numpy(generator.choice(5, length, p=target))
    laws = (torch.from_numpy(law).expand(length, -1) for law in (target, draft))
    chances = Chances(*chances_of_reply(*laws, tokens, drafts))
    trace = make_trace([[0] * length], ["1.1"], ["t"])
    reached = reach_in_law(trace, chances, drafts, LEVELS, generator)
    ours = np.bincount(reached[:-LEVELS], minlength=LEVELS + 1)
    theirs = drawn(target, draft, drafts, 3000)
    assert stats.chi2_contingency(np.stack([ours, theirs])).pvalue > 0.01
    assert (ours > 100).sum() >= 3
    # Survivors matter: were all chains to go on, rounds would be longer than they are.
    if drafts > 1:
        every = generator.random(length) < chances.given[drafts - 1]
        again = np.array([float((every[:-2] & every[1:-1]).mean()), float((reached > 1).mean())])
        assert again[0] > 1.02 * again[1]


@pytest.mark.slow
def test_one_draft_is_the_recording() -> None:
    """The share of positions that accept is the recording's own, within its chance."""
    result = run(DraftsOptions(drafts=(1, 2)))
    one, two = result.content["rows"]
    trace = read_trace(shipped_or_file("embedded-sampled"))
    recorded = float((trace.accept_len > 0).mean())
    assert one["accepted"] == pytest.approx(recorded, abs=3 * 0.5 / np.sqrt(trace.positions))
    assert one["bound"] == pytest.approx(one["accepted"])
    assert one["accepted"] < two["accepted"] < two["bound"]
    assert trace.target_rank is not None
    for row in (one, two):  # the reply was drawn: within its chance
        drawn = float((trace.target_rank < row["drafts"]).mean())
        assert row["likeliest"] == pytest.approx(drawn, abs=3 * 0.5 / np.sqrt(trace.positions))
    assert two["likeliest"] > one["likeliest"] + 0.05


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trace": "embedded-greedy"}, ["sampled", "exact"]),
        ({"trace": "smollm2-lookup-sampled"}, ["draft model", "lookup"]),
        ({"drafts": (64,)}, ["--drafts 64", "33"]),
        ({"cost": "timing-smollm2-eagle3"}, ["--cost", "eagle3", "one of kind 'model'"]),
        ({"cost": "timing-smollm2-lookup"}, ["--cost", "lookup"]),
    ],
)
def test_what_does_not_fit_is_one_line(options: dict[str, Any], words: list[str]) -> None:
    if "trace" in options:
        options = options | {"trace": shipped_or_file(options["trace"])}
    with pytest.raises(InputError) as caught:
        run(DraftsOptions(**options))
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value
