"""`gammalab recommend`: the draft length to set on the server that was observed."""

from __future__ import annotations

import statistics
from typing import Any

import pandas as pd

from experiments.common.frames import csv_of, described, frame_of, meanings, text_of
from experiments.common.results import command_line, write_result
from experiments.common.text_table import fill
from experiments.servers.answers import Answer, AnswerFile
from experiments.servers.columns import LENGTHS
from experiments.servers.engines import find_engine
from experiments.servers.launch import setting_of
from experiments.servers.options import RecommendOptions
from experiments.servers.prediction import ROUNDS, Prediction, by_length, predict
from real_backend.command_line import Result
from traces.errors import InputError

WRONG = 0.03  # of a check, beyond which it is said


def run(options: RecommendOptions) -> Result:
    """The table of lengths, the setting to use, and what would make it surer; also written as
    DIR/recommend.json.

    Raises InputError if the folder holds no observation, or too little of it.
    """
    kept = AnswerFile(options.dir)
    played = by_length(kept.answers)
    used, held_out = divided(played, options.known)
    found = predict(used, options.present, options.longest, options.seed, alone=kept.alone)
    frame = frame_of(found.rows)
    errors = held_out_errors(found, held_out)
    frame["held_out"] = [errors.get(row.length) for row in found.rows]
    content = {
        "asked": kept.asked,
        "evidence": found.evidence,
        "requests": len(found.requests),
        "present": found.present,
        "recommended": found.best,
        "setting": setting_of(find_engine(kept.asked["engine"]), found.best, _kind(kept)),
        "surer_with": found.surer(),
        "context_s_per_token": found.context_s,
        "kinks": found.kinks,
        "idle": found.idle,
        "held_out": {str(length): error for length, error in errors.items()},
        "check": {str(length): ratio for length, ratio in found.check.items()},
        "columns": described(LENGTHS),
        "rows": frame.to_dict("records"),
        "command": command_line(),
    }
    write_result("recommend", content, options.dir / "recommend.json", overwrite=True)
    return Result(_text(found, frame, kept, content), content, csv_of(LENGTHS, frame))


Played = dict[int, dict[str, Answer]]


def divided(played: Played, known: tuple[int, ...] | None) -> tuple[Played, Played]:
    """Answers to predict from, and those of the other lengths, held against the prediction.

    Raises InputError if a length was not played.
    """
    if known is None:
        return played, {}
    if lacking := [length for length in known if length not in played]:
        raise InputError(f"--known {lacking[0]}: that length was not played")
    used = {length: played[length] for length in known}
    return used, {length: played[length] for length in played if length not in used}


def held_out_errors(found: Prediction, held_out: Played) -> dict[int, float]:
    """Predicted over measured tokens/s, less one, of lengths that were played and not used; over
    the requests that were.
    """
    errors = {}
    for length, answers in held_out.items():
        if length < len(found.rows) and all(name in answers for name in found.requests):
            of = [answers[name] for name in found.requests]
            measured = sum(answer.decoded for answer in of) / sum(answer.decode_s for answer in of)
            errors[length] = found.row(length).tokens_per_s.value / measured - 1.0
    return errors


def _kind(kept: AnswerFile) -> str:
    """llama.cpp's --spec-type of the servers that were started, "" if unknown."""
    return next((str(s["spec_type"]) for s in kept.servers if s.get("spec_type")), "")


def _text(found: Prediction, frame: pd.DataFrame, kept: AnswerFile, content: dict[str, Any]) -> str:
    """For a terminal."""
    best, asked = found.row(found.best), kept.asked
    played = ", ".join(str(row.length) for row in found.rows if row.played)
    load = f"{asked['rate']:g} requests/s" if asked["rate"] else f"{asked['concurrency']} at once"
    said = [
        f"{asked['engine']}, {load}: {len(found.requests)} replies at lengths {played}; "
        f"acceptance from {found.evidence}",
        "",
        text_of(LENGTHS, [("", frame)]),
        "",
        meanings(LENGTHS),
        "",
    ]
    if errors := content["held_out"]:
        sizes = [abs(error) for error in errors.values()]
        said.append(
            f"Held out: {len(sizes)} lengths, error {statistics.median(sizes):.1%} in the median, "
            f"{max(sizes):.1%} at most."
        )
    if found.best == found.present:
        said.append(f"Keep length {found.present}: nothing else is faster here.")
    else:
        gain = best.gain
        told = f"{gain.value:.3f} ({gain.low:.3f}-{gain.high:.3f})"
        said.append(
            fill(f"Set length {found.best}: {told} times the tokens/s of length {found.present}, "
                 f"{'measured' if best.played else 'predicted'}; the fastest in "
                 f"{100 * best.best:.0f} % of resamples.")
        )  # fmt: skip
    said += ["", f"    {content['setting']}", ""]
    said += [fill(line) for line in _notes(found)]
    said.append(f"gammalab observe ... --verify --out {kept.folder}   proves it on the server")
    return "\n".join(said)


def _notes(found: Prediction) -> list[str]:
    """Limits of the table, and the run that would make it surer."""
    notes = [
        f"Beware: replayed, length {length} takes {ratio:.3f} times the tokens a round that the "
        "server counted."
        for length, ratio in found.check.items()
        if abs(ratio - 1.0) > WRONG
    ]
    notes += [f"At length {length} the server drafted nothing." for length in found.idle]
    notes += [
        f"A round of length {length} costs {off:+.0%} beside the line through its neighbours: the "
        "engine's kernels change there."
        for length, off in found.kinks
    ]
    if found.context_s > 0.0:
        notes.append(f"A round costs {1e6 * found.context_s:.2f} us more per token of context.")
    if (surer := found.surer()) is not None:
        notes.append(
            f"Surer with length {surer} played: it may be the fastest, and its seconds are read "
            "off a line; a step of the kernels would not show."
        )
    if found.evidence != ROUNDS:
        notes.append(
            "The stream shows no rounds, so other lengths' tokens per round come from a curve of "
            "two numbers."
        )
    return notes
