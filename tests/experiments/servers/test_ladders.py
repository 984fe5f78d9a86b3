"""Published speeds by length: read, held out, predicted."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.servers.ladders import FIELDS, FROM_FEW, FROM_OTHERS, guesses_of, read_ladders, run
from experiments.studies import LaddersOptions
from traces.errors import InputError

LADDERS = Path(__file__).resolve().parents[4] / "shared/data/ladders/ladders.csv"


def write(path: Path, rows: list[tuple[int, str, float]]) -> Path:
    """A table of one ladder: length, tokens per round as text, tokens/s."""
    lines = [",".join(FIELDS)]
    lines += [f"s,e,d,t,m,1,{length},{tokens},{speed}" for length, tokens, speed in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def straight(length: int) -> tuple[float, float]:
    """Tokens per round 1 + 0.8 (1 + 0.5 + ...), and tokens/s at 20 ms + 10 ms + 5 ms a token."""
    tokens = 1 + 0.8 * sum(0.5**k for k in range(length))
    return tokens, tokens / (0.020 if length == 0 else 0.030 + 0.005 * length)


def test_a_straight_ladder_is_predicted(tmp_path: Path) -> None:
    rows = [(n, f"{straight(n)[0]}", straight(n)[1]) for n in range(9)]
    (rungs,) = read_ladders(write(tmp_path / "l.csv", rows)).values()
    found = guesses_of("s", rungs)
    few = [guess for guess in found if guess.how == FROM_FEW]
    assert [guess.length for guess in few] == [1, 3, 4, 5, 7, 8]
    assert {guess.known for guess in few} == {"0,2,6"}
    assert all(abs(guess.error) < 1e-3 and not guess.note for guess in found)
    assert sum(guess.how == FROM_OTHERS for guess in found) == 8


def test_a_cheaper_kernel_is_named(tmp_path: Path) -> None:
    rows = [(n, f"{straight(n)[0]}", straight(n)[1] * (2.0 if n == 8 else 1.0)) for n in range(9)]
    (rungs,) = read_ladders(write(tmp_path / "l.csv", rows)).values()
    found = guesses_of("s", rungs)
    worst = max(found, key=lambda guess: abs(guess.error))
    assert worst.length == 8 and worst.error == pytest.approx(-0.5, abs=0.01)
    assert {g.length for g in found if g.note} == {7, 8}
    assert worst.note == "9 tokens verified cost 35.0 ms, 8 65.0: other kernels"


def test_speeds_alone(tmp_path: Path) -> None:
    def speed(length: int) -> float:  # every token accepted with 0.7, and 0.2 of a round
        return 50 * sum(0.7**k for k in range(length + 1)) / (1 + 0.2 * length)

    rows = [(n, "", speed(n)) for n in (0, 1, 2, 3)]
    (rungs,) = read_ladders(write(tmp_path / "l.csv", rows)).values()
    (guess,) = [g for g in guesses_of("s", rungs) if g.length == 3 and g.how == FROM_OTHERS]
    assert guess.predicted == pytest.approx(speed(3), rel=1e-3)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a,b\n1,2\n", "columns .* are missing"),
        (",".join(FIELDS) + "\ns,e,d,t,m,1,x,1,2\n", "line 2: draft_length 'x' is not a number"),
        (",".join(FIELDS) + "\ns,e,d,t,m,1,1,0.5,2\n", "tokens_per_round must be at least 1"),
        (",".join(FIELDS) + "\ns,e,d,t,m,1,1,1,2\ns,e,d,t,m,1,1,1,2\n", "length 1 occurs twice"),
        (",".join(FIELDS) + "\ns,e,d,t,m,1,1\n", "tokens_per_s '' is not a number"),
        (",".join(FIELDS) + "\ns,e,d,t,m,1,1,1,2\n", "no ladder has three lengths"),
        ("", "columns .* are missing"),
    ],
)
def test_bad_tables_are_one_line(text: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=line):
        run(LaddersOptions(data=path))


@pytest.mark.skipif(not LADDERS.is_file(), reason="the shared data is not here")
def test_the_public_ladders() -> None:
    found = run(LaddersOptions(data=LADDERS))
    rows = {(r["ladder"], r["how"], r["length"]): r for r in found.content["rows"]}
    # RTX 3090: from 0, 2 and 6. The kernel of nine tokens is not to be foreseen, and is named.
    errors = [rows["rtx3090 x1", FROM_FEW, n]["error"] for n in (1, 3, 4, 5, 7)]
    assert max(map(abs, errors)) < 0.07 and sorted(map(abs, errors))[2] < 0.03
    assert rows["rtx3090 x1", FROM_FEW, 8]["error"] < -0.25
    assert "other kernels" in rows["rtx3090 x1", FROM_FEW, 8]["note"]
    assert [line for line in found.content["silent"] if line.startswith("spark-343")]
