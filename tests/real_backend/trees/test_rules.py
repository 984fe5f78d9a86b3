"""Accept rules for several drafts: the target's law by chi-square, and broken rules found out."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import linprog

from real_backend.decoding.verify import accept_probability
from real_backend.trees import rules
from real_backend.trees.rules import (
    division,
    k_sequential,
    sequential_chances,
    transport_bound,
    without_replacement,
)

VOCABULARY, DRAFTS, DEPTH = 4, 3, 2
Rule = Callable[..., tuple[int, torch.Tensor]]


def laws(seed: int, sharp: float = 1.0) -> Any:
    """A law of the next token for every prefix of up to two tokens."""
    generator = np.random.default_rng(seed)
    prefixes = [p for n in range(3) for p in itertools.product(range(VOCABULARY), repeat=n)]
    return {p: torch.from_numpy(generator.dirichlet([sharp] * VOCABULARY)) for p in prefixes}


TARGET, DRAFT = laws(1), laws(2)


def drawn(law: torch.Tensor, generator: np.random.Generator, drafts: int, once: bool) -> list[int]:
    p = law.numpy() / float(law.sum())
    return [int(t) for t in generator.choice(len(p), drafts, replace=not once, p=p)]


def round_of(rule: Rule, once: bool, generator: np.random.Generator) -> tuple[int, ...]:
    """The tokens of one round of a tree of 3 drafts x depth 2, then of plain sampling up to 3."""
    reply: tuple[int, ...] = ()
    for _ in range(DEPTH):
        tokens = drawn(DRAFT[reply], generator, DRAFTS, once)
        accepted, law = rule(TARGET[reply], DRAFT[reply], tokens, generator.random(DRAFTS))
        if accepted < 0:
            reply += tuple(drawn(law, generator, 1, False))
            break
        reply += (tokens[accepted],)
    while len(reply) < 3:
        reply += tuple(drawn(TARGET[reply], generator, 1, False))
    return reply


def p_value(rule: Rule, once: bool, samples: int = 6000) -> float:
    """Of three tokens against the target's law, chi-square over all 64 replies."""
    generator = np.random.default_rng(7)
    replies = list(itertools.product(range(VOCABULARY), repeat=3))
    found = dict.fromkeys(replies, 0)
    for _ in range(samples):
        found[round_of(rule, once, generator)] += 1
    expected = np.array(
        [
            samples * float(TARGET[()][a] * TARGET[(a,)][b] * TARGET[(a, b)][c])
            for a, b, c in replies
        ]
    )
    counts, rare = np.array(list(found.values())), expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    return float(stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue)


def chance_of(p: torch.Tensor, q: torch.Tensor, drafts: int) -> float:
    """That k_sequential accepts one of so many."""
    return float(sequential_chances(p, q, drafts).any)


def first_likeliest(target: Any, draft: Any, tokens: Any, uniforms: Any) -> Any:
    """Greedy by chance: takes whichever draft the target likes best, if it is a likely one."""
    best = max(range(len(tokens)), key=lambda k: float(target[tokens[k]]))
    return (best, target) if uniforms[0] < float(target[tokens[best]]) else (-1, target)


def never_renews(target: Any, draft: Any, tokens: Any, uniforms: Any) -> Any:
    """Recursive rejection that forgets what was rejected before."""
    for k, (token, u) in enumerate(zip(tokens, uniforms, strict=True)):
        if u < accept_probability(target, draft, token):
            return k, target
    return -1, rules.residual(target, draft)


@functools.cache
def known(p: tuple[float, ...], q: tuple[float, ...], drafts: int) -> torch.Tensor:
    return division(torch.tensor(p).double(), torch.tensor(q).double(), drafts)


@pytest.fixture
def few_laws(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few laws are asked thousands of times."""

    def remembered(p: torch.Tensor, q: torch.Tensor, drafts: int) -> torch.Tensor:
        if p.ndim > 1:
            return division(p, q, drafts)
        return known((*p.tolist(),), (*q.tolist(),), drafts)

    monkeypatch.setattr(rules, "division", remembered)


@pytest.mark.usefixtures("few_laws")
@pytest.mark.parametrize(("rule", "once"), [(without_replacement, True), (k_sequential, False)])
def test_rules_keep_the_targets_law(rule: Rule, once: bool) -> None:
    assert p_value(rule, once) > 0.01


@pytest.mark.parametrize(
    ("rule", "once", "samples"),
    [
        (never_renews, True, 2000),
        (never_renews, False, 2000),
        (first_likeliest, True, 2000),
        # Of tokens that were drawn with replacement: nearly right, so that it takes more to show.
        (without_replacement, False, 6000),
    ],
)
@pytest.mark.long
def test_broken_rules_are_found_out(rule: Rule, once: bool, samples: int) -> None:
    assert p_value(rule, once, samples) < 1e-4


def test_too_small_a_division_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "division", lambda target, draft, drafts: torch.ones(()))
    assert p_value(k_sequential, False, 2000) < 1e-4


def test_one_draft_is_the_rule_of_a_chain() -> None:
    for seed in range(20):
        p, q = laws(seed)[()], laws(seed + 100)[()]
        overlap = float(torch.minimum(p, q).sum())
        assert float(division(p, q, 1)) == pytest.approx(1.0)
        assert chance_of(p, q, 1) == pytest.approx(overlap)
        assert float(transport_bound(p, q, 1)) == pytest.approx(overlap)


def test_two_tokens_by_hand() -> None:
    """Target 1/2, 1/2; draft always the first. However many drafts: half."""
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])
    for drafts in (1, 2, 8):
        assert float(transport_bound(p, q, drafts)) == pytest.approx(0.5)
        assert chance_of(p, q, drafts) == pytest.approx(0.5)
    # Draft 3/4, 1/4, target the other way round, two drafts: the rare token is among them with
    # 7/16, the other with 15/16.
    p, q = torch.tensor([0.25, 0.75]), torch.tensor([0.75, 0.25])
    assert float(transport_bound(p, q, 2)) == pytest.approx(0.25 + 7 / 16)


def by_linear_programme(p: Any, q: Any, drafts: int) -> float:
    """The optimal transport itself: mass from every tuple of drafts to the tokens in it."""
    tuples = list(itertools.product(range(len(p)), repeat=drafts))
    edges = [(k, y) for k, xs in enumerate(tuples) for y in set(xs)]
    rows = np.zeros((len(tuples) + len(p), len(edges)))
    for column, (k, y) in enumerate(edges):
        rows[k, column] = rows[len(tuples) + y, column] = 1.0
    mass = [float(np.prod([q[x] for x in xs])) for xs in tuples]
    found = linprog(-np.ones(len(edges)), A_ub=rows, b_ub=np.array([*mass, *map(float, p)]))
    return float(-found.fun)


@pytest.mark.parametrize("drafts", [1, 2, 3])
@pytest.mark.parametrize("seed", range(6))
def test_the_bound_is_the_transport(seed: int, drafts: int) -> None:
    p, q = laws(seed, 0.5)[()], laws(seed + 50, 0.5)[()]
    bound = float(transport_bound(p, q, drafts))
    assert bound == pytest.approx(by_linear_programme(p, q, drafts), abs=1e-8)
    reached = chance_of(p, q, drafts)
    # SpecTr, Theorem 2: at least 1 - 1/e of the bound, never above it.
    assert (1 - np.exp(-1)) * bound - 1e-9 <= reached <= bound + 1e-9


@pytest.mark.usefixtures("few_laws")
def test_the_chance_of_k_sequential_is_what_happens() -> None:
    p, q, generator = TARGET[()], DRAFT[()], np.random.default_rng(0)
    hits = sum(
        k_sequential(p, q, drawn(q, generator, 3, False), generator.random(3))[0] >= 0
        for _ in range(4000)
    )
    assert stats.binomtest(hits, 4000, chance_of(p, q, 3)).pvalue > 0.01


def test_many_laws_at_once_are_each_alone() -> None:
    p, q = (torch.stack([laws(seed)[()] for seed in range(a, a + 9)]) for a in (0, 40))
    found, bound = sequential_chances(p, q, 3), transport_bound(p, q, 3)
    for k in range(9):
        alone = sequential_chances(p[k], q[k], 3)
        assert all(
            torch.allclose(ours[k], theirs) for ours, theirs in zip(found, alone, strict=True)
        )
        assert float(bound[k]) == pytest.approx(float(transport_bound(p[k], q[k], 3)))
    torch.testing.assert_close(found.by_token.sum(-1), found.any)
    assert bool((found.by_token <= p.double() + 1e-12).all())
