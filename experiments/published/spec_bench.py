"""The heuristic run of Spec-Bench (Vicuna-7B, 68M draft): imported, priced, replayed.

The published side are the figures known of BNukhkadiev/Spec-Bench's public run; another answer file
gets the same tables without them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from experiments.common.cost_sources import step_costs
from experiments.common.text_table import number, percent, table
from experiments.options import PublishedOptions
from policies.counts.heuristic import HFHeuristic
from policies.fixed import Never
from simulator.replay.metrics import per_request
from simulator.replay.replay import replay
from traces.errors import InputError
from traces.importers.common import Options
from traces.importers.spec_bench import AnswerFile, read, read_run, read_runs
from traces.importers.spec_bench_timing import fit_timing
from traces.roundlog import RoundLog
from traces.schema import Trace
from traces.split import question_of

FloatArray = npt.NDArray[np.float64]

GAMMA0 = 5
PUBLISHED: dict[str, Any] = {
    "rounds": 40632,
    "tokens_per_round": 2.278,
    "mean_gamma": 3.24,
    "full": 0.289,
    "tasks": {
        "conversation": 2.35,
        "translation": 1.45,
        "summarization": 2.42,
        "qa": 2.24,
        "math_reasoning": 2.09,
        "rag": 2.46,
    },
    "speedup": {"token_weighted": 1.79, "mean_of_questions": 1.64},
    "round_s": 22.3e-3,
    "drafted_token_s": 1.92e-3,
    "vanilla_token_s": 22.97e-3,
    "r2": 0.986,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Rounds:
    """Recorded rounds, a row each, K in all: reply (row of the trace), drafted and emitted
    tokens; the last round of a reply emits no more than the reply has.
    """

    reply: npt.NDArray[np.int64]
    drafted: npt.NDArray[np.int64]
    emitted: npt.NDArray[np.int64]


def recorded_rounds(run: AnswerFile, trace: Trace) -> Rounds:
    """The rounds of a run in the order of the trace's replies."""
    turns = {turn.request_id: turn for turn in run.turns}
    rows = []
    for reply, name in enumerate(trace.request_id):
        turn = turns[name]
        left = turn.tokens
        for drafted, emitted in zip(run.drafted(turn), turn.emitted, strict=True):
            rows.append((reply, drafted, min(emitted, left)))
            left -= emitted
    columns = np.asarray(rows, dtype=np.int64).T
    return Rounds(columns[0], columns[1], columns[2])


def differing_rounds(rounds: Rounds, log: RoundLog) -> int:
    """Rounds that a replay plays otherwise than they were recorded; where a reply has another
    number of them, those too many or too few.
    """
    count = 0
    for reply in range(len(log.prefill_s)):
        ours, theirs = log.request == reply, rounds.reply == reply
        pairs = [
            list(zip(log.drafted[ours].tolist(), log.emitted[ours].tolist(), strict=True)),
            list(
                zip(rounds.drafted[theirs].tolist(), rounds.emitted[theirs].tolist(), strict=True)
            ),
        ]
        shared = min(map(len, pairs))
        count += sum(a != b for a, b in zip(*pairs, strict=False)) + max(map(len, pairs)) - shared
    return count


def by_question(
    names: Sequence[str], tokens: FloatArray, seconds: FloatArray
) -> dict[str, FloatArray]:
    """[tokens, seconds] of every question, its turns together."""
    totals: dict[str, FloatArray] = {}
    for name, *row in zip(names, tokens, seconds, strict=True):
        question = question_of(name)
        totals[question] = totals.get(question, np.zeros(2)) + np.asarray(row)
    return totals


def speedups(
    ours: dict[str, FloatArray], plain: dict[str, FloatArray], questions: Sequence[str]
) -> dict[str, float]:
    """Tokens/s over plain decoding on these questions, in both conventions."""
    a, b = (np.array([side[q] for q in questions]) for side in (ours, plain))
    rates = [x[:, 0] / x[:, 1] for x in (a, b)]
    (tokens, seconds), (plain_tokens, plain_seconds) = a.sum(axis=0), b.sum(axis=0)
    return {
        "token_weighted": float(tokens / seconds * plain_seconds / plain_tokens),
        "mean_of_questions": float((rates[0] / rates[1]).mean()),
    }


def study(options: PublishedOptions) -> tuple[str, dict[str, Any]]:
    """The suite: text and result."""
    if len(options.data) != 1:
        raise InputError(f"spec-bench takes one answer file, got {len(options.data)}")
    assert options.vanilla is not None  # the command refuses to go on without
    path, importing = options.data[0], Options(schedule=f"heuristic:{GAMMA0}")
    trace, run = read(path, importing), read_runs(path, importing)[0]
    plain = read_run(options.vanilla, Options())
    timing = fit_timing(path, dataclasses.replace(importing, vanilla=options.vanilla))
    costs = step_costs(timing, trace)
    log = replay(HFHeuristic(gamma0=GAMMA0), trace, costs)
    rounds = recorded_rounds(run, trace)
    wall = {turn.request_id: turn.wall_s for turn in run.turns}
    names, tokens = trace.request_id, trace.reply_tokens.astype(np.float64)
    recorded = by_question(names, tokens, np.array([wall[name] for name in names]))
    replayed = by_question(names, tokens, per_request(log).total_s)
    replayed_plain = by_question(names, tokens, per_request(replay(Never(), trace, costs)).total_s)
    vanilla = by_question(
        [turn.request_id for turn in plain.turns],
        np.array([turn.tokens for turn in plain.turns], dtype=np.float64),
        np.array([turn.wall_s for turn in plain.turns]),
    )
    tasks = {question_of(n): task for n, task in zip(names, trace.category, strict=True)}
    both = [question for question in recorded if question in vanilla]

    def part(task: str | None) -> dict[str, Any]:
        asked = [q for q in both if task in (None, tasks[q])]
        reply_in = np.array([task in (None, name) for name in trace.category])
        mine = reply_in[rounds.reply]
        error = np.array([replayed[q][1] / recorded[q][1] - 1 for q in asked])
        return {
            "questions": len(asked),
            "rounds": int(mine.sum()),
            "tokens_per_round": float(rounds.emitted[mine].sum() / mine.sum()),
            "mean_gamma": float(rounds.drafted[mine].mean()),
            "full": float((rounds.emitted[mine] > rounds.drafted[mine]).mean()),
            "speedup": speedups(recorded, vanilla, asked),
            "speedup_replayed": speedups(replayed, replayed_plain, asked),
            "seconds_error": {
                "median": float(np.median(np.abs(error))),
                "largest": float(np.abs(error).max()),
                "total": sum(replayed[q][1] for q in asked) / sum(recorded[q][1] for q in asked)
                - 1,
            },
        }

    result: dict[str, Any] = {
        "violations": trace.meta.source["violations"],
        "replayed_differently": differing_rounds(rounds, log),
        **part(None),
        "tasks": {task: part(task) for task in dict.fromkeys(tasks[q] for q in both)},
        "fitted": timing.meta["fitted"],
    }
    # The figures are those of one public run, told by its number of rounds.
    result["published"] = PUBLISHED if result["rounds"] == PUBLISHED["rounds"] else None
    return text_of(result), result


def text_of(result: dict[str, Any]) -> str:
    """The result for a terminal."""
    fitted, known = result["fitted"], result["published"] or {}
    known_speed, known_tasks = known.get("speedup", {}), known.get("tasks", {})
    fitted_speed = fitted["speedup"]["predicted"]
    facts = [
        ["tokens per round", number(known.get("tokens_per_round"), 3),
         number(result["tokens_per_round"], 3)],
        ["mean gamma", number(known.get("mean_gamma")), number(result["mean_gamma"])],
        ["rounds fully accepted", percent(known.get("full"), 1), percent(result["full"], 1)],
        ["ms per round", _ms(known.get("round_s")), _ms(fitted["round_s"])],
        ["ms per drafted token", _ms(known.get("drafted_token_s")), _ms(fitted["drafted_token_s"])],
        ["ms per reply", "-", _ms(fitted["start_s"])],
        ["R2 of the fit", number(known.get("r2"), 3), number(fitted["r2"], 3)],
        ["ms per token without a draft", _ms(known.get("vanilla_token_s")),
         _ms(fitted["vanilla"]["token_s"])],
    ]  # fmt: skip
    speeds = [
        [label, number(known_speed.get(key)), number(result["speedup"][key]),
         number(fitted_speed[key]), number(result["speedup_replayed"][key])]
        for key, label in (
            ("token_weighted", "token-weighted"), ("mean_of_questions", "mean of questions")
        )
    ]  # fmt: skip
    tasks = [
        [task, number(known_tasks.get(task)), number(t["tokens_per_round"]),
         number(t["mean_gamma"]), percent(t["full"]), number(t["speedup"]["token_weighted"]),
         number(t["speedup_replayed"]["token_weighted"]),
         percent(t["seconds_error"]["median"], 1), percent(t["seconds_error"]["largest"], 1)]
        for task, t in result["tasks"].items()
    ]  # fmt: skip
    errors = result["seconds_error"]
    return "\n\n".join(
        [
            f"{result['questions']} questions, {result['rounds']} rounds; gamma rebuilt as "
            f"heuristic:{GAMMA0}: {result['violations']} rounds contradict it.\nReplay of the "
            f"heuristic on the imported trace: {result['replayed_differently']} rounds differ.",
            table(("", "published", "ours"), [("", facts)]),
            table(("speed-up", "published", "recorded", "fitted", "replayed"), [("", speeds)]),
            table(
                ("task", "tokens/round\npublished", "\nours", "mean\ngamma", "\nfull",
                 "speed-up\nrecorded", "\nreplayed", "seconds, error\nmedian", "\nlargest"),
                [("", tasks)],
            ),
            "seconds of a question, replayed against recorded:\nmedian error "
            f"{percent(errors['median'], 1)}, largest {percent(errors['largest'], 1)}, "
            f"all together {percent(errors['total'], 1)}.",
        ]
    )  # fmt: skip


def _ms(seconds: float | None) -> str:
    return number(None if seconds is None else 1000 * seconds)
