"""The accept rule: hand-made cases, and the law of what comes out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from real_backend.decoding.verify import (
    accept_greedy,
    accept_probability,
    accept_sampled,
    distribution,
    draw,
    residual,
    signals,
)


def test_greedy_keeps_the_common_prefix_of_every_row() -> None:
    drafted = torch.tensor([[4, 5, 6], [4, 5, 6], [4, 9, 9], [3, 8, 7]])
    choices = torch.tensor([[4, 5, 9, 7], [4, 5, 6, 7], [4, 8, 9, 9], [3, 8, 7, 5]])
    counts = torch.tensor([3, 3, 1, 0])  # what stands behind a row's own tokens is padding
    accepted, extra = accept_greedy(drafted, counts, choices)
    assert accepted.tolist() == [2, 3, 1, 0]
    assert extra.tolist() == [9, 7, 8, 3]
    accepted, extra = accept_greedy(drafted[:, :0], torch.zeros(4), choices[:, :1])
    assert accepted.tolist() == [0, 0, 0, 0] and extra.tolist() == [4, 4, 4, 3]


def test_nucleus_by_hand() -> None:
    logits = torch.log(torch.tensor([0.5, 0.25, 0.15, 0.1]))
    kept = distribution(logits, 1.0, 0.6)  # 0.5 does not reach 0.6, 0.75 does
    assert torch.allclose(kept, torch.tensor([2 / 3, 1 / 3, 0.0, 0.0]))
    sharp = distribution(logits, 0.5, 1.0)
    squares = torch.tensor([0.25, 0.0625, 0.0225, 0.01])
    assert torch.allclose(sharp, squares / squares.sum())


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.5, 1), (0.50001, 2), (0.75, 2), (0.75001, 3), (0.875, 3), (1.0, 4)]
)
def test_a_nucleus_that_reaches_its_mass_exactly_takes_no_more(top_p: float, kept: int) -> None:
    """Halves are exact in float32: 1/2, 1/4, and 1/8 twice, of which the lower id comes first."""
    logits = torch.log2(torch.tensor([0.125, 0.5, 0.125, 0.25])) * math.log(2.0)
    assert torch.softmax(logits, -1).tolist() == [0.125, 0.5, 0.125, 0.25]
    found = distribution(logits, 1.0, top_p)
    assert found.nonzero()[:, 0].tolist() == sorted([1, 3, 0, 2][:kept])
    assert float(found.sum()) == 1.0


def test_no_nucleus_is_the_law_itself() -> None:
    """To the last bit: no token is cut where sums round to one, nothing is scaled anew."""
    logits = 4.0 * torch.randn(64, 5_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(distribution(logits, 1.0, 1.0), torch.softmax(logits, -1))


def test_signals_by_hand() -> None:
    top1, entropy = signals(torch.tensor([0.5, 0.5, 0.0])).tolist()
    assert top1 == 0.5 and entropy == pytest.approx(np.log(2), rel=1e-6)


def test_draw_inverts_the_cumulative_sum_and_never_takes_an_impossible_token() -> None:
    probs = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0])
    for u, token in ((0.0, 1), (0.2499, 1), (0.2501, 3), (0.999999, 3)):
        assert int(draw(probs, u)) == token
    rows = draw(probs.repeat(2, 1), torch.tensor([0.1, 0.9]))
    assert rows.tolist() == [1, 3]


def sampled_by_hand(
    drafted: list[int], target: torch.Tensor, draft: torch.Tensor, uniforms: list[float]
) -> tuple[int, int]:
    """Leviathan's Algorithm 1 for one row, token by token."""
    for k, token in enumerate(drafted):
        if uniforms[k] >= min(1.0, float(target[k, token]) / float(draft[k, token])):
            rest = (target[k] - draft[k]).clamp(min=0.0)
            return k, int(draw(rest, uniforms[-1]))
    return len(drafted), int(draw(target[len(drafted)], uniforms[-1]))


def one_row(
    drafted: list[int], target: torch.Tensor, draft: torch.Tensor, uniforms: list[float]
) -> tuple[int, int]:
    accepted, extra = accept_sampled(
        torch.tensor([drafted], dtype=torch.long),
        torch.tensor([len(drafted)]),
        target[None],
        draft[None],
        torch.tensor([uniforms[:-1]], dtype=torch.float64),
        torch.tensor(uniforms[-1:], dtype=torch.float64),
    )
    return int(accepted), int(extra)


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_rows_are_judged_as_if_alone(depth: int) -> None:
    """Rows of different lengths in one padded call, against the rule token by token."""
    generator = np.random.default_rng(8)
    vocabulary, rows = 7, 400
    target = torch.from_numpy(generator.dirichlet(np.ones(vocabulary), (rows, depth + 1))).float()
    draft = torch.from_numpy(generator.dirichlet(np.ones(vocabulary), (rows, depth))).float()
    counts = generator.integers(0, depth + 1, size=rows)
    drafted = draw(draft, torch.from_numpy(generator.random((rows, depth))))
    decisions, final = generator.random((rows, depth)), generator.random(rows)
    accepted, extra = accept_sampled(
        drafted,
        torch.from_numpy(counts),
        target,
        draft,
        torch.from_numpy(decisions),
        torch.from_numpy(final),
    )
    expected = [
        sampled_by_hand(
            drafted[r, :n].tolist(), target[r], draft[r], [*decisions[r, :n].tolist(), final[r]]
        )
        for r, n in enumerate(counts.tolist())
    ]
    assert list(zip(accepted.tolist(), extra.tolist(), strict=True)) == expected
    assert len({n for n, _ in expected}) == depth + 1


def test_the_chance_of_a_token_is_at_most_one() -> None:
    target, draft = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    assert accept_probability(target, draft, 0) == 1.0
    assert accept_probability(target, draft, 1) == pytest.approx(2 / 3)


def test_a_token_that_the_target_never_takes_is_rejected_at_any_draw() -> None:
    """Also at a draw of exactly 0, which a generator may give; the residual then is the target."""
    target = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])
    draft = torch.tensor([[[0.0, 1.0]]])
    zero = torch.zeros(1, 1, dtype=torch.float64)
    accepted, extra = accept_sampled(
        torch.tensor([[1]]), torch.tensor([1]), target, draft, zero, zero[:, 0]
    )
    assert accepted.tolist() == [0] and extra.tolist() == [0]


def test_equal_laws_that_reject_by_rounding_replace_by_the_targets() -> None:
    law = torch.tensor([0.25, 0.75, 0.0])
    assert residual(law, law).tolist() == law.tolist()
    assert residual(law, torch.tensor([0.5, 0.25, 0.25])).tolist() == [0.0, 0.5, 0.0]


def test_output_has_the_targets_law() -> None:
    """First emitted token and, given acceptance, the second: chi-square against the target."""
    generator = np.random.default_rng(3)
    vocabulary, rounds = 6, 30_000
    target = torch.from_numpy(generator.dirichlet(np.ones(vocabulary), 3)).float()
    draft = torch.from_numpy(generator.dirichlet(np.ones(vocabulary), 2)).float()
    first, second = np.zeros(vocabulary), np.zeros(vocabulary)
    numbers = torch.from_numpy(generator.random((rounds, 5)))
    rows = draft.expand(rounds, -1, -1)
    drafted = draw(rows, numbers[:, :2])
    accepted, extra = accept_sampled(
        drafted,
        torch.full((rounds,), 2),
        target.expand(rounds, -1, -1),
        rows,
        numbers[:, 2:4],
        numbers[:, 4],
    )
    for proposed, kept, added in zip(
        drafted.tolist(), accepted.tolist(), extra.tolist(), strict=True
    ):
        emitted = [*proposed[:kept], added]
        first[emitted[0]] += 1
        if len(emitted) > 1:
            second[emitted[1]] += 1
    for seen, sampling in ((first, target[0]), (second, target[1])):
        expected = sampling.double().numpy() / float(sampling.double().sum()) * seen.sum()
        assert stats.chisquare(seen, expected).pvalue > 1e-3
    accept = float(torch.minimum(target[0], draft[0]).sum())
    assert second.sum() / rounds == pytest.approx(accept, abs=4 * 0.5 / np.sqrt(rounds))


def test_a_wrong_rule_would_be_noticed() -> None:
    """The same chi-square rejects the shortcut of drawing a rejected token from p itself."""
    generator = np.random.default_rng(4)
    target, draft = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.3, 0.5])
    seen = np.zeros(3)
    for _ in range(5_000):
        token = int(draw(draft, generator.random()))
        if generator.random() >= min(1.0, float(target[token] / draft[token])):
            token = int(draw(target, generator.random()))
        seen[token] += 1
    assert stats.chisquare(seen, target.double().numpy() * 5_000).pvalue < 1e-6


def test_dropping_keeps_the_law_only_if_decided_before_the_next_token() -> None:
    """A token may be dropped by its own law's signals, which do not know which token was drawn; not
    by those of the token behind it, which do (policies.base.Policy.retain).
    """
    generator = np.random.default_rng(0)
    target, draft = np.array([0.2, 0.3, 0.5]), np.array([0.5, 0.3, 0.2])
    sure_behind = np.array([0.9, 0.5, 0.5])  # top-1 behind each token: only token 0 looks good

    def replies(by_what_follows: bool) -> np.ndarray:
        counts = np.zeros(3)
        for _ in range(4_000):
            token = generator.choice(3, p=draft)
            sure = sure_behind[token] if by_what_follows else generator.choice([0.9, 0.5])
            if sure < 0.7:  # dropped: a plain round
                token = generator.choice(3, p=target)
            elif generator.random() >= min(1.0, target[token] / draft[token]):
                rest = np.maximum(target - draft, 0.0)
                token = generator.choice(3, p=rest / rest.sum())
            counts[token] += 1
        return counts

    assert stats.chisquare(replies(False), target * 4_000).pvalue > 1e-3
    assert stats.chisquare(replies(True), target * 4_000).pvalue < 1e-9
