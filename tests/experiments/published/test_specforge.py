"""SpecForge's table and the laws behind it: tables made by hand, the public file where at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.published import specforge
from experiments.published.laws import LAWS, MAIN_LAW, first_then, fit_alpha, fit_survival
from experiments.published.table import read_csv
from simulator.replay.theory import expected_emitted
from tests.experiments.published.published_tables import (
    COIN,
    SHARED,
    arguments,
    needs,
    write_chains,
)

SPECFORGE = SHARED / "specforge" / "spec_bundle_flat.csv"

# S_j = 0.8 * 0.5 ** (j - 1), so E_3 = 1 + 0.8 + 0.4 + 0.2 and so on.
FIRST_THEN = {3: 2.4, 5: 2.55, 7: 2.5875}


# -- laws


def test_first_then_is_found_from_two_numbers() -> None:
    assert first_then(0.8, 0.5)[:4].tolist() == pytest.approx([0.8, 0.4, 0.2, 0.1])
    survival = fit_survival(MAIN_LAW, FIRST_THEN[3], FIRST_THEN[7])
    np.testing.assert_allclose(survival, first_then(0.8, 0.5), rtol=1e-8)


@pytest.mark.parametrize("name", LAWS)
def test_every_law_agrees_with_both_numbers_and_contains_the_coin(name: str) -> None:
    for tokens in (COIN, FIRST_THEN, {3: 3.4, 7: 5.1}):
        survival = fit_survival(name, tokens[3], tokens[7])
        assert 1 + survival[:3].sum() == pytest.approx(tokens[3], abs=1e-8)
        assert 1 + survival.sum() == pytest.approx(tokens[7], abs=1e-8)
        assert (np.diff(survival) <= 0).all() and survival[0] <= 1
    np.testing.assert_allclose(
        fit_survival(name, COIN[3], COIN[7]), 0.5 ** np.arange(1.0, 8.0), rtol=1e-6
    )


@pytest.mark.parametrize("name", LAWS)
def test_no_law_breaks_where_longer_drafts_gave_less(name: str) -> None:
    survival = fit_survival(name, 2.5, 2.4)
    assert np.isfinite(survival).all() and survival[3:].sum() < 0.05


def test_alpha_by_hand() -> None:
    assert fit_alpha({1: 1.7}) == pytest.approx(0.7)
    assert fit_alpha({3: COIN[3]}) == pytest.approx(0.5)
    assert fit_alpha({3: COIN[3], 7: COIN[7]}) == pytest.approx(0.5, abs=1e-6)
    assert fit_alpha({3: 4.0}) == 1.0


# -- SpecForge


def test_chains_by_hand(tmp_path: Path) -> None:
    """Tokens follow first-then and seconds are affine: nothing is left to be wrong about."""
    path = write_chains(tmp_path / "t.csv", FIRST_THEN)
    text, result = specforge.study(arguments(path))
    assert result["series"] == 1 and result["incomplete_series"] == 0
    (row,) = result["rows"]
    assert row["accept_length_predicted"] == pytest.approx(2.55)
    assert row["speedup_predicted"] == pytest.approx(8 * 2.55 / 0.012 / 1000)
    assert result["accept_length"][MAIN_LAW].largest < 1e-8
    alpha = fit_alpha({3: 2.4})
    wrong = expected_emitted(alpha, 5) / 2.55 - 1
    assert wrong > 0.05 and result["accept_length"]["iid at 3"].mean == pytest.approx(wrong)
    assert result["acceptance_falls_with_depth"] == 1
    # S_4 + S_5 is at least half of 0.1875, and at most all of it (2 S_3 allows more).
    assert result["bounds"] == {"inside": 1, "width": pytest.approx(0.09375 / 2.55)}
    assert "first-then" in text


def test_seconds_that_are_not_affine_show_as_an_error_of_the_speedup(tmp_path: Path) -> None:
    path = write_chains(tmp_path / "t.csv", FIRST_THEN, round_s=(0.010, 0.0132, 0.014))
    _, result = specforge.study(arguments(path))
    assert result["accept_length"][MAIN_LAW].largest < 1e-8
    assert result["speedup"][MAIN_LAW].mean == pytest.approx(0.1)  # 13.2 ms taken for 12
    assert result["speedup_if_published_tokens"].mean == pytest.approx(0.1)
    assert result["speedup_if_published_seconds"].largest < 1e-8


def test_the_coin_is_right_about_coins(tmp_path: Path) -> None:
    _, result = specforge.study(arguments(write_chains(tmp_path / "t.csv", COIN)))
    for found in result["accept_length"].values():
        assert found.largest < 1e-6
    assert all(beyond.largest < 1e-6 for beyond in result["iid_beyond"].values())


def test_broken_names_trees_and_incomplete_series(tmp_path: Path) -> None:
    path = write_chains(tmp_path / "t.csv", COIN, draft="Draft-Forge")
    text = path.read_text().replace("t,8,3,1,Draft-Forge", "T,8,3,1,draft for ge")
    path.write_text(text + "m,t,8,3,4,d,2.0,900,0.9\nm,other,8,3,1,d,2.0,900,0.9\n")
    chains = specforge.read_chains(read_csv([path], specforge.COLUMNS))
    assert len(chains.model) == 1 and (chains.incomplete, chains.other_rows) == (1, 1)


def test_choice_by_hand(tmp_path: Path) -> None:
    chains = specforge.read_chains(
        read_csv([write_chains(tmp_path / "t.csv", FIRST_THEN)], specforge.COLUMNS)
    )
    best = chains.speedup[0]  # 1.92, 1.70, 1.48
    assert specforge.choose(chains, np.array([[1.0, 2.0, 0.5]])) == (
        specforge.Choice(0, pytest.approx(1 - 1.7 / 1.92), pytest.approx(1 - 1.7 / 1.92))
    )
    assert specforge.choose(chains, best[None]).right == 1


@needs(SPECFORGE)
def test_specforge_as_published() -> None:
    _, result = specforge.study(arguments(SPECFORGE))
    assert result["series"] == 88 and result["incomplete_series"] == 0
    ours, control = result["accept_length"][MAIN_LAW], result["accept_length"]["iid at 3"]
    assert ours.median < 0.004 and ours.largest < 0.026
    assert control.median > 0.025 and control.mean > 0.025
    assert result["speedup"][MAIN_LAW].median < 0.01 < result["speedup"][MAIN_LAW].p90
    assert result["bounds"]["inside"] == 86 and result["acceptance_falls_with_depth"] == 82
