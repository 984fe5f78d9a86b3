"""Split a trace into a half to tune on and a half to report on, by question, task by task."""

from __future__ import annotations

import numpy as np

from traces.errors import InputError
from traces.schema import Trace

_MT_BENCH = frozenset(
    ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
)


def task_of(category: str) -> str:
    """Spec-Bench's task of a category: MT-bench's eight are "conversation", others their own."""
    return "conversation" if category in _MT_BENCH else category


def named_generator(seed: int, name: str) -> np.random.Generator:
    """The random stream called `name` of the run with this seed; other names are independent."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=tuple(name.encode())))


def question_of(request_id: str) -> str:
    """The question a request belongs to: "81.2", turn 2 of question 81, gives "81"."""
    question, dot, turn = request_id.rpartition(".")
    return question if dot and turn.isdigit() else request_id


def question_rows(trace: Trace) -> dict[str, list[int]]:
    """The rows of every question, in order of first appearance."""
    rows: dict[str, list[int]] = {}
    for row, request_id in enumerate(trace.request_id):
        rows.setdefault(question_of(request_id), []).append(row)
    return rows


def shuffled_by_task(trace: Trace, seed: int) -> dict[str, list[list[int]]]:
    """For every task, the rows of its questions in random order.

    A question's turns are one list: they share a dialogue, so they must not be told apart.
    """
    tasks: dict[str, list[list[int]]] = {}
    for rows in question_rows(trace).values():
        tasks.setdefault(trace.category[rows[0]], []).append(rows)
    generator = named_generator(seed, "split")
    return {
        task: [tasks[task][k] for k in generator.permutation(len(tasks[task]))]
        for task in sorted(tasks)
    }


def split_rows(trace: Trace, fraction: float = 0.5, seed: int = 0) -> tuple[list[int], list[int]]:
    """Rows to tune on (`fraction` of the questions) and the held-out rest, both in trace order.

    Every task gives its share, rounded so that the shares of the first k tasks together are right.
    Raises InputError if a side would be empty.
    """
    if not 0.0 < fraction < 1.0:
        raise InputError(f"--fraction is {fraction:g}; it must lie between 0 and 1")
    train: list[int] = []
    seen = taken = 0
    for questions in shuffled_by_task(trace, seed).values():
        seen += len(questions)
        share = int(fraction * seen + 0.5) - taken
        taken += share
        train += [row for rows in questions[:share] for row in rows]
    test = sorted(set(range(trace.requests)) - set(train))
    if not train or not test:
        raise InputError(
            f"a trace of {seen} question(s) cannot be split into a training and a held-out part; "
            "capture more prompts"
        )
    return sorted(train), test


def spread_rows(trace: Trace, limit: int, seed: int = 0) -> list[int]:
    """At least `limit` rows (all if 0) that walk through the tasks in turn, whole questions each.

    Any stretch of the result therefore mixes the tasks; the turns of a question stay in order.
    """
    queues = list(shuffled_by_task(trace, seed).values())
    rows: list[int] = []
    for depth in range(max(len(queue) for queue in queues)):
        for queue in queues:
            if depth < len(queue) and (limit <= 0 or len(rows) < limit):
                rows += queue[depth]
    return rows


def held_out_rows(trace: Trace, limit: int, seed: int = 0) -> list[int]:
    """`spread_rows` of the half that `split_rows` holds out: nothing was tuned on these."""
    _, test = split_rows(trace, seed=seed)
    return [test[row] for row in spread_rows(trace.select(test), limit, seed)]
