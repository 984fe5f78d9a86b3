"""The answers of a server on disk: what was asked, one line an answer, resumed after any end."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.servers.engines import MOST_TOKENS
from real_backend.partial_file import PartialFile, damaged, parts_of
from traces.errors import InputError
from traces.importers.common import Options, Reply, trace_of
from traces.importers.flags import REJECTED, Flags, round_flags
from traces.schema import Trace

FILE = "answers.jsonl"
Key = tuple[int, str, str]
"""Place of an answer: block, seat, request_id."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """One answered request.

    request_id: "QUESTION.TURN"; category: its task.
    length: tokens that the server was set to draft, 0: it does not speculate.
    block, seat: of the interleaved order, see experiments.servers.plan.
    prompt_tokens, tokens: as the server counts them; the first token comes from the prompt.
    text: the reply.
    sent_unix_s, first_s, last_s: when sent; seconds from there to the first and the last event.
    decode_s: seconds from the first token to the last.
    drafted, accepted: tokens, None if not told.
    steps: drafted and accepted tokens of its rounds, in order; None if unknown.
    step_s: seconds of each round; None if unknown.
    inferred: the steps assume that every round drafted `length`.
    raw: the engine's own words.
    tries: requests that it took.
    """

    request_id: str
    category: str
    length: int
    block: int
    seat: str
    prompt_tokens: int | None
    tokens: int
    text: str
    sent_unix_s: float
    first_s: float
    last_s: float
    decode_s: float
    drafted: int | None
    accepted: int | None
    steps: tuple[tuple[int, int], ...] | None
    step_s: tuple[float, ...] | None
    inferred: bool
    raw: dict[str, Any]
    tries: int

    @property
    def key(self) -> Key:
        """Its place in the plan."""
        return self.block, self.seat, self.request_id

    @property
    def decoded(self) -> int:
        """Tokens that rounds brought."""
        return self.tokens - 1

    @property
    def traced(self) -> bool:
        """Its rounds are known, and fill it."""
        steps = self.steps or ()
        return sum(accepted + 1 for _, accepted in steps) >= self.decoded > 0

    @property
    def rounds(self) -> int | None:
        """Rounds: each brings one token of the target's own. None if acceptance is unknown."""
        if self.traced:
            return len(self.steps or ())
        if self.length == 0:
            return self.decoded
        return None if self.accepted is None else self.decoded - self.accepted


class AnswerFile:
    """The answers of one folder. asked: the settings that all of them share, to go on with them;
    None: to read them only.

    answers, refused, servers: what the file holds; refused: request -> reason; servers: facts and
    counters, a turn each.

    Raises InputError if the file is damaged or holds answers to other questions.
    """

    def __init__(self, folder: Path, asked: dict[str, Any] | None = None) -> None:
        path = folder / FILE
        self.folder = folder
        self.file: PartialFile | None = None
        if asked is None:
            if not path.is_file():
                raise InputError(f"{path}: no such file; make it with `gammalab observe`")
            self.asked, parts = parts_of(path)
            kinds = {"engine": str, "concurrency": int, "max_tokens": int}
            rate = self.asked.get("rate", "")
            usual = all(isinstance(self.asked.get(name), kind) for name, kind in kinds.items())
            if not usual or not (rate is None or isinstance(rate, int | float)):
                raise InputError(f"{path} does not begin as answers of `gammalab observe` do")
        else:
            self.file = PartialFile(path, asked)
            self.asked, parts = asked, self.file.found
        self.answers: list[Answer] = []
        self.refused: dict[Key, str] = {}
        self.servers: list[dict[str, Any]] = []
        try:
            for part in parts:
                self._sort(part)
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
            raise damaged(path) from None

    def _sort(self, part: dict[str, Any]) -> None:
        if "answer" in part:
            raw = dict(part["answer"])
            if raw["steps"] is not None:
                raw["steps"] = tuple((int(d), int(a)) for d, a in raw["steps"])
            answer = Answer(**raw)
            _check(answer)
            if answer.key not in self.done:
                self.answers.append(answer)
        elif "refused" in part:
            block, seat, name = part["refused"]
            self.refused[int(block), str(seat), str(name)] = str(part["why"])
        else:
            self.servers.append(dict(part["server"]))

    @property
    def alone(self) -> bool:
        """One request at a time was asked."""
        return not self.asked["rate"] and self.asked["concurrency"] == 1

    @property
    def done(self) -> set[Key]:
        """The places that need no request any more."""
        return {answer.key for answer in self.answers} | set(self.refused)

    def keep(self, answer: Answer) -> None:
        """One more answer."""
        self.answers.append(answer)
        self._write({"answer": dataclasses.asdict(answer)})

    def refuse(self, key: Key, why: str) -> None:
        """The server will not answer this one."""
        self.refused[key] = why
        self._write({"refused": list(key), "why": why})

    def describe(self, server: dict[str, Any]) -> None:
        """Facts of a turn: the server's settings, its counters."""
        self.servers.append(server)
        self._write({"server": server})

    def _write(self, part: dict[str, Any]) -> None:
        if self.file is not None:
            self.file.keep(part)


def _check(answer: Answer) -> None:
    """Raises ValueError or TypeError for what no server's answer is."""
    numbers = [answer.prompt_tokens or 0, answer.tokens, answer.drafted or 0, answer.accepted or 0]
    numbers += [count for step in answer.steps or () for count in step]
    if not all(type(n) is int and 0 <= n <= MOST_TOKENS for n in [*numbers, answer.length]):
        raise ValueError
    seconds = [answer.decode_s, answer.first_s, answer.last_s, *(answer.step_s or ())]
    if not all(-1.0 <= float(second) < 1e6 for second in seconds):
        raise ValueError
    if not all(isinstance(n, str) for n in (answer.request_id, answer.seat, answer.category)):
        raise TypeError
    if answer.step_s is not None and len(answer.step_s) != len(answer.steps or ()):
        raise ValueError


def flags_of(answer: Answer, *, unsaid: bool) -> Flags:
    """[decoded] flags of a reply behind its first token. unsaid: a round without a draft means that
    the drafter had nothing to offer there (look-up), which no other length would change.
    """
    steps = answer.steps or ()
    flags = round_flags([d for d, _ in steps], [a for _, a in steps])
    if unsaid:
        at = -1
        for drafted, accepted in steps:
            at += accepted + 1
            if drafted == 0:
                flags[at] = REJECTED
    return flags[: answer.decoded]


def trace_of_answers(answers: Iterable[Answer], depth: int, *, unsaid: bool) -> Trace:
    """The replies whose rounds are known, as a trace; the first token counts to the prompt.

    depth: the deepest draft of a replay. Raises InputError if no reply has rounds.
    """
    replies, left_out = [], 0
    for answer in answers:
        if not answer.traced:
            left_out += 1
            continue
        flags = flags_of(answer, unsaid=unsaid)
        about = answer.request_id, answer.category, (answer.prompt_tokens or 0) + 1
        replies.append(Reply(*about, np.asarray(flags), None))
    if not replies:
        raise InputError("the rounds of no reply are known")
    source = {"format": "observe", "files": [FILE], "left_out": left_out}
    return trace_of(replies, Options(), source, depth=depth)
