"""The columns of observations and recommendations, for terminal, JSON and CSV alike."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from experiments.common.frames import (
    Column,
    Row,
    figure,
    frame_of,
    interval,
    share,
    text_of,
    words,
)
from experiments.common.statistics import divide
from experiments.servers.answers import Answer, AnswerFile

OBSERVED: tuple[Column, ...] = (
    words("seat", "setting", "setting", "the draft length, or the seat of a verification"),
    figure("length", "length", "length", "tokens that the server drafts", 0, unit="token"),
    figure("replies", "replies", "replies", "answers", 0),
    figure("tokens", "tokens", "tokens", "of all replies", 0, unit="token"),
    figure(
        "tokens_per_s", "tokens/s", "tokens/s",
        "of one reply, from its first token on", 2, unit="token/s",
    ),
    figure(
        "tokens_per_round", "tokens\na round", "tokens a round",
        "accepted, and the target's own", 3, unit="token",
    ),
    share("accepted", "accepted", "accepted", "of the drafted tokens", 1),
    figure("first_ms", "first\ntoken ms", "first token, ms", "median, from sending", 0, unit="ms"),
    words("rounds_known", "rounds", "rounds", "in order, if the stream shows them; else counts"),
)  # fmt: skip


def _length(row: Row) -> str:
    return f"{int(row['length'])}" + ("" if row["played"] else " *")


LENGTHS: tuple[Column, ...] = (
    Column("length", "length", "length", "token", "tokens drafted; *: predicted, not played",
           ("length", "played"), _length),
    interval("tokens_per_round", "tokens a round", "tokens a round",
             "accepted, and the target's own", 2, unit="token"),
    interval("round_ms", "ms a round", "ms a round", "rounds without a draft included", 1,
             unit="ms"),
    interval("tokens_per_s", "tokens/s", "tokens/s", "of one reply, from its first token on", 1,
             unit="token/s"),
    interval("gain", "over today", "over today", "tokens/s over those of the present length", 3),
    share("best", "fastest", "fastest", "share of resamples in which it is the fastest"),
    share("held_out", "error", "error", "predicted over measured, of a length held out", 1),
    words("basis", "seconds", "seconds",
          "measured; by the ends of replies; on a line between, or beyond"),
)  # fmt: skip


def observed_frame(answers: Sequence[Answer]) -> pd.DataFrame:
    """A row a seat, in the order of the lengths."""
    seats = sorted({(answer.length, answer.seat) for answer in answers})
    rows = []
    for length, seat in seats:
        found = [answer for answer in answers if answer.seat == seat]
        rounds = [answer.rounds for answer in found]
        told = all(count is not None for count in rounds)
        decoded = sum(answer.decoded for answer in found)
        drafted = sum(answer.drafted or 0 for answer in found)
        known = sum(answer.steps is not None for answer in found)
        rows.append(
            {
                "seat": seat,
                "length": length,
                "replies": len(found),
                "tokens": sum(answer.tokens for answer in found),
                "tokens_per_s": float(divide(decoded, sum(a.decode_s for a in found))),
                "tokens_per_round": float(divide(decoded, sum(c or 0 for c in rounds)))
                if told
                else None,
                "accepted": float(divide(sum(a.accepted or 0 for a in found), drafted)),
                "first_ms": 1e3 * float(pd.Series([a.first_s for a in found]).median()),
                "rounds_known": "" if length == 0 else f"{known} of {len(found)}",
            }
        )
    return frame_of(rows)


def observed_text(kept: AnswerFile, frame: pd.DataFrame) -> str:
    """The table of an observation, and how it goes on."""
    asked = kept.asked
    load = f"{asked['rate']:g} requests/s" if asked["rate"] else f"{asked['concurrency']} at once"
    lines = [
        f"{asked['engine']}, {load}, at most {asked['max_tokens']} tokens, "
        f"{len(kept.answers)} answers in {kept.folder}",
        "",
        text_of(OBSERVED, [("", frame)]),
    ]
    if len(frame) > 1:
        lines += ["", f"gammalab recommend {kept.folder}   says what other lengths would do"]
    return "\n".join(lines)
