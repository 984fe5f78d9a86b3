"""`gammalab studies ladders`: published speeds by draft length, predicted from a few of them.

The table is the user's copy, CSV of source, engine, device, target, drafter, concurrency,
draft_length, tokens_per_round (may be empty) and tokens_per_s, a row a length. Two questions: what
would `gammalab recommend` have said from no drafting and two lengths, and how well does every
length follow from all the others? Where no tokens per round are given, acceptance and the price of
a drafted token are read off the speeds: every drafted token is taken to be accepted with one chance
and to cost one share of a plain round.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.common.frames import (
    Column,
    csv_of,
    described,
    figure,
    frame_of,
    share,
    text_of,
    words,
)
from experiments.servers.acceptance import tokens_at
from experiments.servers.curve import Curve
from experiments.studies import LaddersOptions
from real_backend.command_line import Result
from traces.errors import InputError
from traces.json_text import ENCODING

FIELDS = (
    *("source", "engine", "device", "target", "drafter", "concurrency"),
    *("draft_length", "tokens_per_round", "tokens_per_s"),
)
LONGEST = 128
FEW = (2, 6)  # the lengths to be played, besides none, where nothing is known
FROM_FEW, FROM_OTHERS = "few", "all others"


@dataclasses.dataclass(frozen=True)
class Rung:
    """One length of a ladder. tokens_per_round: NaN where it is not given."""

    length: int
    tokens_per_round: float
    tokens_per_s: float


@dataclasses.dataclass(frozen=True)
class Guess:
    """A length predicted. known: from which others; predicted, measured: tokens/s; error: predicted
    over measured, less one; note: where the engine's kernels change.
    """

    ladder: str
    how: str
    known: str
    length: int
    predicted: float
    measured: float
    error: float
    note: str


COLUMNS: tuple[Column, ...] = (
    words("ladder", "ladder", "ladder", "source and requests at once"),
    words("how", "from", "from", "two lengths and no drafting, or all the others"),
    words("known", "known", "known", "the lengths that were known"),
    figure("length", "length", "length", "the length that was not", 0, unit="token"),
    figure("predicted", "predicted", "predicted", "tokens/s", 1, unit="token/s"),
    figure("measured", "measured", "measured", "tokens/s", 1, unit="token/s"),
    share("error", "error", "error", "predicted over measured, less one", 1),
    words("note", "", "note", ""),
)  # fmt: skip


def run(options: LaddersOptions) -> Result:
    """The table of errors. Raises InputError for a file that is no such table."""
    ladders = read_ladders(options.data)
    guesses, silent = [], []
    for name, rungs in ladders.items():
        found = guesses_of(name, rungs)
        guesses += found
        if not found:
            silent.append(f"{name}: {len(rungs)} lengths, nothing can be held out")
    if not guesses:
        raise InputError(f"{options.data}: no ladder has three lengths, no drafting among them")
    frame = frame_of(guesses)
    lines = [text_of(COLUMNS, [("", frame)]), ""]
    for how in (FROM_FEW, FROM_OTHERS):
        errors = [abs(guess.error) for guess in guesses if guess.how == how]
        smooth = [abs(g.error) for g in guesses if g.how == how and not g.note]
        if errors:
            lines.append(
                f"from {how}: {len(errors)} lengths, error {100 * np.median(errors):.1f} % in the "
                f"median, {100 * max(errors):.1f} % at most"
                + (f", {100 * max(smooth):.1f} % where no kernel changes" if smooth else "")
            )
    content = {"columns": described(COLUMNS), "rows": frame.to_dict("records"), "silent": silent}
    return Result("\n".join([*lines, *silent]), content, csv_of(COLUMNS, frame))


def read_ladders(path: Path) -> dict[str, list[Rung]]:
    """Rungs by length, of every source and concurrency.

    Raises InputError naming line and field.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    found: dict[str, dict[int, Rung]] = {}
    try:
        with path.open(encoding=ENCODING, newline="") as file:
            reader = csv.DictReader(file)
            if lacking := set(FIELDS) - set(reader.fieldnames or ()):
                raise InputError(f"{path}: columns {', '.join(sorted(lacking))} are missing")
            for number, row in enumerate(reader, start=2):
                where = f"{path}, line {number}"
                length = _number(row, "draft_length", where, least=0.0)
                if length != int(length) or length > LONGEST:
                    raise InputError(f"{where}: draft_length must be a whole number to {LONGEST}")
                tokens = _number(row, "tokens_per_round", where, least=1.0, needed=False)
                rung = Rung(
                    int(length),
                    tokens if length else 1.0,
                    _number(row, "tokens_per_s", where, least=1e-9),
                )
                ladder = found.setdefault(f"{row['source']} x{row['concurrency']}", {})
                if rung.length in ladder:
                    raise InputError(f"{where}: length {rung.length} occurs twice")
                ladder[rung.length] = rung
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no table of comma-separated values ({error})") from None
    return {name: [rungs[n] for n in sorted(rungs)] for name, rungs in found.items()}


def _number(
    row: dict[str, str], name: str, where: str, *, least: float, needed: bool = True
) -> float:
    text = (row[name] or "").strip()
    if not text and not needed:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"{where}: {name} {text!r} is not a number") from None
    if not least <= value < math.inf:
        raise InputError(f"{where}: {name} must be at least {least:g}, not {text}")
    return value


def guesses_of(name: str, rungs: Sequence[Rung]) -> list[Guess]:
    """Every length that can be held out, from few and from all others."""
    lengths = [rung.length for rung in rungs]
    if len(rungs) < 3 or lengths[0] != 0:
        return []
    few = sorted({0, *(min(lengths[1:], key=lambda n: (abs(n - wanted), n)) for wanted in FEW)})
    if len(few) == 3 and len(rungs) == 3:
        few = few[:2]
    whole = _curve(rungs)
    changed = {} if whole is None else _changes(whole)
    found = []
    for rung in rungs:
        if rung.length == 0:
            continue
        for how, known in (
            (FROM_FEW, few),
            (FROM_OTHERS, [n for n in lengths if n != rung.length]),
        ):
            if rung.length in known:
                continue
            value = predicted([r for r in rungs if r.length in known], rung.length)
            if math.isfinite(value):
                off = value / rung.tokens_per_s - 1.0
                told = ",".join(map(str, known))
                # The line to a longer length crosses its kernel's step.
                longer = min((n for n in known if n > rung.length), default=-1)
                note = changed.get(rung.length) or changed.get(longer, "")
                measured = rung.tokens_per_s
                found.append(Guess(name, how, told, rung.length, value, measured, off, note))
    return sorted(found, key=lambda guess: (guess.how != FROM_FEW, guess.length))


def _curve(rungs: Sequence[Rung]) -> Curve | None:
    """Seconds of a round; None where tokens per round are not given."""
    seconds = [rung.tokens_per_round / rung.tokens_per_s for rung in rungs]
    if not all(map(math.isfinite, seconds)):
        return None
    lengths = tuple(rung.length for rung in rungs[1:])
    return Curve(np.array(seconds[:1]), lengths, np.array([seconds[1:]]))


def _changes(curve: Curve) -> dict[int, str]:
    """Lengths that cost less than a shorter one: another kernel serves them."""
    found, seconds = {}, curve.drafting[0]
    for place in range(1, len(seconds)):
        if seconds[place] < seconds[place - 1]:
            before, now = curve.lengths[place - 1], curve.lengths[place]
            found[now] = (
                f"{now + 1} tokens verified cost {1e3 * seconds[place]:.1f} ms, {before + 1} "
                f"{1e3 * seconds[place - 1]:.1f}: other kernels"
            )
    return found


def predicted(known: Sequence[Rung], length: int) -> float:
    """Tokens/s at a length, from others (no drafting first); NaN if they are too few."""
    drafted = known[1:]
    if not drafted:
        return math.nan
    curve = _curve(known)
    if curve is not None:
        told = np.array([rung.tokens_per_round for rung in drafted])
        tokens = tokens_at([rung.length for rung in drafted], told, [length])
        return float(tokens[0] / curve.at(length)[0])
    if len(drafted) < 2:
        return math.nan
    return _from_speeds(known, length)


def _from_speeds(known: Sequence[Rung], length: int) -> float:
    """Speed over plain decoding = (1 + p + ... + p^k) / (1 + k step), p and step fitted."""
    from scipy.optimize import least_squares

    lengths = np.array([rung.length for rung in known[1:]])
    ratios = np.array([rung.tokens_per_s / known[0].tokens_per_s for rung in known[1:]])

    def ratio(shape: np.ndarray, at: np.ndarray) -> np.ndarray:
        chance, step = shape
        powers = np.cumsum(chance ** np.arange(int(at.max()) + 1))
        return np.asarray(powers[at] / (1.0 + step * at))

    fit = least_squares(
        lambda shape: np.log(ratio(shape, lengths) / ratios), [0.6, 0.2], bounds=([0, 0], [1, 5])
    )
    return float(known[0].tokens_per_s * ratio(fit.x, np.array([length]))[0])
