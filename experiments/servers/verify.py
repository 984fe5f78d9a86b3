"""`gammalab observe --verify`: the recommended and the present length on the server, interleaved.

Block by block of questions the server is started with the present length, with the recommended one
and with the present one again (the placebo), in an order drawn anew. The ratio of their tokens/s
is judged as a sitting's is (experiments.common.verdict).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.common.frames import csv_of, described, text_of
from experiments.common.results import write_result
from experiments.common.statistics import bootstrap_weights, enough
from experiments.common.text_table import fill
from experiments.common.verdict import CONTRADICTED, NOISY, Ratio, Turns, is_tie, ratio_of
from experiments.servers.answers import Answer, AnswerFile
from experiments.servers.columns import OBSERVED, observed_frame
from experiments.servers.engines import find_engine
from experiments.servers.launch import setting_of, spec_type_of
from experiments.servers.observe import play, settings_of
from experiments.servers.options import ObserveOptions
from experiments.servers.plan import Seat
from experiments.servers.prediction import Prediction, by_length, predict
from real_backend.command_line import Result
from real_backend.prompts import read_questions
from traces.errors import InputError
from traces.split import question_of

FOLDER = "verify"
PRESENT, RECOMMENDED, PLACEBO = "present", "recommended", "placebo"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """ratio: of recommended over present; None if they are the same length. tie: the placebo could
    not be told from the present length. requests: replies that all three seats gave.
    """

    ratio: Ratio
    tie: bool
    requests: int


def verify(options: ObserveOptions) -> Result:
    """Play, judge, and write DIR/verify/verify.json. Findings: requests without an answer, a
    prediction that was contradicted, a placebo that was no tie.

    Raises InputError if there is nothing to recommend, or the server must be restarted by hand.
    """
    kept = AnswerFile(options.out)
    asked = settings_of(options, read_questions(options.prompts, options.limit))
    free = ("blocks", "seed")
    if other := [n for n in asked if n not in free and asked[n] != kept.asked.get(n)]:
        raise InputError(
            f"--verify asks otherwise than {options.out} was observed ({', '.join(other)}); repeat "
            "its options"
        )
    predicted = predict(
        by_length(kept.answers), options.present, None, options.seed, alone=kept.alone
    )
    engine = find_engine(options.engine)
    if predicted.best == predicted.present:
        raise InputError(
            f"length {predicted.present} is both present and recommended: nothing to verify"
        )
    if options.server_command is None:
        raise InputError(by_hand(options, predicted))
    seats = [
        Seat(PRESENT, predicted.present),
        Seat(RECOMMENDED, predicted.best),
        Seat(PLACEBO, predicted.present),
    ]
    played = [[seat.name, seat.length] for seat in seats]
    answers, findings = play(options, seats, options.out / FOLDER, lengths=played)
    verdict = judge(answers.answers, predicted, options)
    frame = observed_frame(answers.answers)
    ratio = verdict.ratio
    if not verdict.tie:
        findings.append(f"the placebo differs from length {predicted.present}: no verdict")
    if ratio.word == CONTRADICTED:
        findings.append(
            f"predicted {ratio.predicted:.3f}, measured {ratio.measured:.3f}: contradicted"
        )
    kind = spec_type_of(options.server_command)
    content: dict[str, Any] = {
        "asked": answers.asked,
        "present": predicted.present,
        "recommended": predicted.best,
        "requests": verdict.requests,
        "placebo_is_tie": verdict.tie,
        "ratio": dataclasses.asdict(ratio),
        "setting": setting_of(engine, predicted.best, kind),
        "columns": described(OBSERVED),
        "rows": frame.to_dict("records"),
        "findings": findings,
    }
    write_result("verify", content, options.out / FOLDER / "verify.json", overwrite=True)
    text = "\n".join([text_of(OBSERVED, [("", frame)]), "", _told(verdict, predicted, content)])
    return Result(text, content, csv_of(OBSERVED, frame), findings)


def judge(answers: Sequence[Answer], predicted: Prediction, options: ObserveOptions) -> Verdict:
    """The ratio of the recommended over the present length.

    Raises InputError if no request was answered by all seats.
    """
    seats: dict[str, dict[str, Answer]] = {PRESENT: {}, RECOMMENDED: {}, PLACEBO: {}}
    for answer in answers:
        if answer.seat in seats and answer.decoded > 0:
            seats[answer.seat][answer.request_id] = answer
    modelled = set(predicted.requests)
    names = [
        name for name in seats[PRESENT]
        if name in modelled and all(name in found for found in seats.values())
    ]  # fmt: skip
    if not names:
        raise InputError("no request was answered by all three settings; run the command again")
    at = [predicted.requests.index(name) for name in names]

    def turns(seat: str, length: int) -> Turns:
        found = [seats[seat][name] for name in names]
        return Turns(
            np.array([answer.decoded for answer in found], dtype=np.float64),
            np.array([answer.decode_s for answer in found]),
            predicted.seconds[length][at],
        )

    present = turns(PRESENT, predicted.present)
    questions = [question_of(name) for name in names]
    tie = is_tie(turns(PLACEBO, predicted.present), present)
    gain = predicted.speeds[predicted.best] / predicted.speeds[predicted.present]
    ratio = ratio_of(
        (str(predicted.best), str(predicted.present)),
        turns(RECOMMENDED, predicted.best),
        present.plus(turns(PLACEBO, predicted.present)),
        predicted=float(gain[0]),
        timing_error=float(np.log(gain[1:]).std(ddof=1)),
        weights=bootstrap_weights(questions, seed=options.seed),
        redrawn=options.temperature > 0,
        judgeable=tie and enough(len(set(questions))),
    )
    return Verdict(ratio, tie, len(names))


def by_hand(options: ObserveOptions, predicted: Prediction) -> str:
    """One line for engines that we do not start."""
    engine = find_engine(options.engine)
    settings = " and ".join(
        f"`{setting_of(engine, length)}`" for length in (predicted.present, predicted.best)
    )
    return (
        "--verify restarts the server itself, with --server-command (llama.cpp); else restart it "
        f"in turn with {settings} and observe each into a folder of its own"
    )


def _told(verdict: Verdict, predicted: Prediction, content: dict[str, Any]) -> str:
    ratio = verdict.ratio
    others = f"{ratio.others.low:.3f}-{ratio.others.high:.3f} with other questions"
    lines = [
        fill(
            f"Length {predicted.best} over {predicted.present}: predicted {ratio.predicted:.3f}, "
            f"measured {ratio.measured:.3f} ({ratio.time.low:.3f}-{ratio.time.high:.3f} for these "
            f"{verdict.requests} replies, {others}): {ratio.word}."
        ),
        f"Placebo: {'a tie' if verdict.tie else 'NOT a tie, so nothing is judged'}.",
    ]
    if ratio.word == NOISY:
        lines.append(f"A difference of {ratio.detectable_percent:.1f} % could have been found.")
    else:
        lines += ["", f"    {content['setting']}"]
    return "\n".join(lines)
