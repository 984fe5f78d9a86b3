"""Spec-Bench: the answer files of its evaluation scripts, one question per line.

github.com/hemingkx/Spec-Bench. choices[0] holds turns (the replies' text), new_tokens, wall_time
and decoding_steps per turn, and accept_lengths: the tokens emitted by every round, the bonus
included, all turns concatenated. What was drafted is not in the file: `--schedule` rebuilds it, and
every round is checked against it. Without it a rejected token looks like a bonus token.

The last token of a reply is unknown in any case: a round may have ended there because a drafted
end-of-text token was accepted, or because the target put its own. No replay depends on it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from traces.errors import InputError
from traces.importers.common import (
    Options,
    Reply,
    field,
    integers,
    json_lines,
    label,
    reply_length,
    trace_of,
)
from traces.importers.flags import ACCEPTED, UNKNOWN, Flags, merge_flags, round_flags
from traces.importers.schedule import Schedule, parse_schedules
from traces.schema import Trace
from traces.split import task_of

NAME = "spec-bench"
USUAL_LIMIT = 1024  # --max-new-tokens of its scripts
_MODEL_ID = re.compile(r"(?P<pair>.+)-(?P<dtype>b?float\d+)-temp-(?P<temperature>\d+(\.\d+)?)$")


@dataclasses.dataclass(frozen=True)
class AnswerTurn:
    """One reply. dialogue: its text behind that of the turns before; emitted: tokens of each round;
    wall_s: seconds, NaN if the file has none.
    """

    request_id: str
    category: str
    dialogue: tuple[str, ...]
    tokens: int
    emitted: tuple[int, ...]
    wall_s: float


@dataclasses.dataclass(frozen=True)
class AnswerFile:
    """One answer file. counts: what was mended; limit: of new tokens in a reply."""

    path: Path
    model_id: str
    turns: tuple[AnswerTurn, ...]
    schedule: Schedule | None
    limit: int
    counts: Counter[str]

    def drafted(self, turn: AnswerTurn) -> list[int]:
        """Tokens drafted per round; without a schedule, just what must have been."""
        if self.schedule is None:
            return [tokens - 1 for tokens in turn.emitted]
        return self.schedule.drafted(turn.emitted, self.limit)


def read(path: Path, options: Options) -> Trace:
    """The replies of an answer file, made less censored by further runs (options.merge) of the
    same questions.

    Raises InputError naming file and line.
    """
    runs = read_runs(path, options)
    first, others = runs[0], runs[1:]
    about = about_model(first.model_id)
    if others and about.get("temperature", 0.0) > 0:
        raise InputError(f"{path} was sampled: another run draws anew, so runs cannot be merged")
    flags = {turn.request_id: flags_of(first, turn) for turn in first.turns}
    merged = [_merge(flags, first, other) for other in others]
    source = {
        "format": NAME,
        "files": [run.path.name for run in runs],
        "prompt_tokens": "not in the file, 0 here",
        **_summary(first),
        "merged": merged,
    }
    replies = [Reply(t.request_id, t.category, 0, flags[t.request_id]) for t in first.turns]
    depth = max((d for run in runs for t in run.turns for d in run.drafted(t)), default=1)
    return trace_of(replies, options, source, depth=depth, usual_limit=USUAL_LIMIT, **about)


def read_runs(path: Path, options: Options) -> list[AnswerFile]:
    """The file and those to merge with it, each with its schedule."""
    options.only(NAME, "schedule", "merge", "vanilla")
    paths = (path, *options.merge)
    schedules = parse_schedules(options.schedule, len(paths))
    return [read_run(p, options, s) for p, s in zip(paths, schedules, strict=True)]


def read_run(path: Path, options: Options, schedule: Schedule | None = None) -> AnswerFile:
    """One answer file; raises InputError naming file and line."""
    turns: list[AnswerTurn] = []
    counts: Counter[str] = Counter()
    model_id, seen = "", set()
    for where, raw in json_lines(path):
        question = label(field(raw, "question_id", where), "question_id", where)
        if question in seen:
            raise InputError(f"{where}: question_id {question} occurs twice")
        seen.add(question)
        model_id = model_id or label(raw.get("model_id", ""), "model_id", where)
        turns += _turns_of(raw, question, where, options.strict, counts)
    longest = max((turn.tokens for turn in turns), default=1)
    limit = max(options.max_new_tokens or USUAL_LIMIT, longest)
    return AnswerFile(path, model_id, tuple(turns), schedule, limit, counts)


def _turns_of(
    raw: dict[str, Any], question: str, where: str, strict: bool, counts: Counter[str]
) -> list[AnswerTurn]:
    """The replies to one question whose rounds fill them; the others are counted."""
    task = task_of(label(field(raw, "category", where), "category", where))
    choices = field(raw, "choices", where)
    if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
        raise InputError(f"{where}: 'choices' must be a list with an object")
    counts["further_choices"] += len(choices) - 1
    choice: dict[str, Any] = choices[0]
    texts = field(choice, "turns", where)
    if not isinstance(texts, list):
        raise InputError(f"{where}: 'turns' must be a list of texts")
    tokens = integers(field(choice, "new_tokens", where), "new_tokens", where).tolist()
    seconds = _seconds(choice, len(tokens), where)
    if not len(texts) == len(tokens) == len(seconds):
        raise InputError(
            f"{where}: turns, new_tokens and wall_time have {len(texts)}, {len(tokens)} and "
            f"{len(seconds)} entries; they must agree"
        )
    lengths = field(choice, "accept_lengths", where)
    emitted = integers(lengths, "accept_lengths", where, low=1).tolist()
    found = []
    for k, rounds in enumerate(_split(emitted, tokens, choice.get("decoding_steps"))):
        cut = reply_length(sum(rounds), where) - tokens[k]
        if tokens[k] and rounds and 0 <= cut < rounds[-1]:
            counts["cut_rounds"] += cut > 0
            dialogue = tuple(str(text) for text in texts[: k + 1])
            name = f"{question}.{k + 1}"
            found.append(AnswerTurn(name, task, dialogue, tokens[k], tuple(rounds), seconds[k]))
        elif strict:
            raise InputError(
                f"{where}: the rounds of turn {k + 1} emit {sum(rounds)} tokens, new_tokens says "
                f"{tokens[k]}"
            )
        else:
            counts["turns_left_out"] += 1
    return found


def _seconds(choice: dict[str, Any], turns: int, where: str) -> list[float]:
    values = choice.get("wall_time", [math.nan] * turns)
    try:
        if isinstance(values, list) and all(type(v) in (int, float) for v in values):
            return [float(v) for v in values]
    except OverflowError:
        pass
    raise InputError(f"{where}: 'wall_time' must be a list of seconds")


def _split(emitted: list[int], tokens: list[int], steps: Any) -> list[list[int]]:
    """The rounds of each turn: by decoding_steps if they count all rounds, else by tokens.

    Rounds that are left over belong to the last turn, which is then seen to have too many.
    """
    turns: list[list[int]] = []
    counted = isinstance(steps, list) and all(type(n) is int and n >= 0 for n in steps)
    trusted = counted and len(steps) == len(tokens) and sum(steps) == len(emitted)
    at = 0
    for k, wanted in enumerate(tokens):
        end = at + steps[k] if trusted else at
        while not trusted and end < len(emitted) and sum(emitted[at:end]) < wanted:
            end += 1
        turns.append(emitted[at:end])
        at = end
    if turns:
        turns[-1] += emitted[at:]
    return turns


def flags_of(run: AnswerFile, turn: AnswerTurn) -> Flags:
    """[tokens] what the run says of every position of one reply."""
    accepted = [tokens - 1 for tokens in turn.emitted]
    flags = round_flags(run.drafted(turn), accepted)
    beyond = len(flags) - turn.tokens
    flags = flags[: turn.tokens]
    flags[-1] = ACCEPTED if beyond else UNKNOWN
    return flags


def _merge(flags: dict[str, Flags], first: AnswerFile, other: AnswerFile) -> dict[str, Any]:
    """Fill in what `other` knows about replies with the same text; what was done, as counts."""
    counts = Counter(agree=0, differ=0, only_here=0, resolved=0, conflicts=0)
    ours = {turn.request_id: turn for turn in first.turns}
    for turn in other.turns:
        mine = ours.get(turn.request_id)
        if mine is None:
            counts["only_here"] += 1
        elif (mine.dialogue, mine.tokens) != (turn.dialogue, turn.tokens):
            counts["differ"] += 1
        else:
            name = turn.request_id
            flags[name], resolved, conflicts = merge_flags(flags[name], flags_of(other, turn))
            counts.update(agree=1, resolved=resolved, conflicts=conflicts)
    return {"file": other.path.name, **_summary(other), **counts}


def _summary(run: AnswerFile) -> dict[str, Any]:
    """Rounds and violations of one run, and what was mended in reading it.

    full: rounds that accepted all they drafted; violations: more than that.
    """
    pairs = [
        (drafted, tokens - 1)
        for turn in run.turns
        for drafted, tokens in zip(run.drafted(turn), turn.emitted, strict=True)
    ]
    facts: dict[str, Any] = {"model_id": run.model_id, "rounds": len(pairs)}
    facts["mended"] = {what: count for what, count in run.counts.items() if count}
    if run.schedule is None or not pairs:
        return facts | {"schedule": "", "violations": 0}
    rule, gamma0 = run.schedule
    return facts | {
        "schedule": f"{rule}:{gamma0}",
        "violations": sum(n > d for d, n in pairs),
        "full": sum(n >= d for d, n in pairs),
        "mean_gamma": round(float(np.mean([d for d, _ in pairs])), 4),
        "tokens_per_round": round(sum(turn.tokens for turn in run.turns) / len(pairs), 4),
    }


def about_model(model_id: str) -> dict[str, Any]:
    """The facts that a model_id such as "vicuna-7b-v1.3-sps-68m-float16-temp-0.0" tells, for
    TraceMeta.
    """
    match = _MODEL_ID.match(model_id)
    if not match:
        return {"pair": model_id} if model_id else {}
    about: dict[str, Any] = {"pair": match["pair"], "dtype": match["dtype"]}
    about["temperature"] = float(match["temperature"])
    target, sps, draft = match["pair"].partition("-sps-")
    return about | ({"target": target, "draft": draft} if sps else {"target": match["pair"]})
