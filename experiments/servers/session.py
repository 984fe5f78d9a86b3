"""A server played: turn after turn, dialogues side by side, every answer kept as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx2 as httpx

from experiments.servers.answers import Answer, AnswerFile, Key
from experiments.servers.client import (
    Refused,
    Reply,
    Unanswered,
    ask,
    connect,
    read_object,
    read_text,
)
from experiments.servers.counters import difference, models_in, samples_of
from experiments.servers.engines import Engine, body_of
from experiments.servers.launch import launched, spec_type_of, words_of
from experiments.servers.options import ObserveOptions
from experiments.servers.plan import Turn, gaps_of
from experiments.servers.streams import text_in
from real_backend.progress import Step
from real_backend.prompts import Question
from traces.errors import InputError, warn

OUTSTANDING = 1024  # requests at once, however fast they arrive
WARM_TOKENS = 8
STARTS = 3  # of a turn whose server dies
ABOUT = ("/version", "/props", "/get_server_info")  # vLLM, llama.cpp, SGLang


def missing(turn: Turn, kept: AnswerFile) -> list[Key]:
    """The places of a turn that are still to be asked."""
    done = kept.done
    places = [
        (turn.block, turn.seat.name, question.request_id(number))
        for question in turn.questions
        for number in range(len(question.turns))
    ]
    return [place for place in places if place not in done]


class Session:
    """Plays turns and keeps what comes. failed: requests without an answer, and why."""

    def __init__(
        self, options: ObserveOptions, engine: Engine, kept: AnswerFile, step: Step
    ) -> None:
        self.options, self.engine, self.kept, self.step = options, engine, kept, step
        self.failed: dict[Key, str] = {}

    async def play(self, turns: Sequence[Turn]) -> None:
        """All turns; one whose server dies is begun again where it stopped.

        Raises InputError for what the user can mend.
        """
        options = self.options
        async with connect(options.url, options.timeout, OUTSTANDING) as client:
            for turn in turns:
                for _ in range(STARTS):
                    async with self._server(client, turn) as process:
                        await _Playing(self, client, turn, process).run()
                        died = process is not None and process.poll() is not None
                    if not died or not missing(turn, self.kept):
                        break

    @contextlib.asynccontextmanager
    async def _server(
        self, client: httpx.AsyncClient, turn: Turn
    ) -> AsyncIterator[subprocess.Popen[bytes] | None]:
        """The server of a turn: ours, started for it, or the one that runs."""
        command = self.options.server_command
        if command is None:
            yield None
            return
        words = words_of(command, self.engine, turn.seat.length, client.base_url.port)
        log = self.kept.folder / "servers" / f"{turn.block}-{turn.seat.name}.log"
        async with launched(client, words, log) as process:
            yield process


class _Playing:
    """One turn, on one start of the server."""

    def __init__(
        self,
        session: Session,
        client: httpx.AsyncClient,
        turn: Turn,
        process: subprocess.Popen[bytes] | None,
    ) -> None:
        self.session, self.client, self.turn, self.process = session, client, turn, process
        self.options, self.kept = session.options, session.kept
        self.replies = {
            answer.request_id: answer.text
            for answer in self.kept.answers
            if (answer.block, answer.seat) == (turn.block, turn.seat.name)
        }
        at_once = OUTSTANDING if self.options.rate else self.options.concurrency
        self.free = asyncio.Semaphore(at_once)
        self.model = ""
        self.fatal: InputError | None = None

    async def run(self) -> None:
        """Warm up, send everything, and keep what the server says of itself and counted."""
        self.model, about = await describe(self.client, self.options.model)
        await self._warm_up()
        before = await read_text(self.client, "/metrics")
        began = time.perf_counter()
        await self._send_all()
        if self.fatal is not None:
            raise self.fatal
        seconds = time.perf_counter() - began
        after = await read_text(self.client, "/metrics")
        counted = difference(samples_of(before), samples_of(after))
        if len(models := models_in(after)) > 1:
            warn(f"{self.options.url} counts for {', '.join(models)}: its counters are of all")
        self.kept.describe(
            {
                "block": self.turn.block,
                "seat": self.turn.seat.name,
                "length": self.turn.seat.length,
                "seconds": round(seconds, 3),
                "model": self.model,
                "spec_type": spec_type_of(self.options.server_command),
                "about": about,
                "counters": counted.grown,
                "counters_reset": counted.reset,
            }
        )

    async def _warm_up(self) -> None:
        """Requests that nobody keeps; a failure is left to the first that counts."""
        messages = [{"role": "user", "content": self.turn.questions[0].turns[0]}]
        for _ in range(self.options.warm_up):
            with contextlib.suppress(Refused, Unanswered):
                await ask(self.client, self._body(messages, WARM_TOKENS))

    def _body(self, messages: list[dict[str, str]], max_tokens: int) -> dict[str, Any]:
        body = body_of(
            self.session.engine, self.model, messages, max_tokens, self.options.temperature
        )
        return body | {"seed": self.options.seed}

    async def _send_all(self) -> None:
        """All dialogues, at the rate asked for or as fast as places get free."""
        questions = self.turn.questions
        gaps = [0.0] * len(questions)
        if self.options.rate:
            gaps = gaps_of(self.options.rate, len(gaps), self.options.seed + self.turn.block)
        try:
            async with asyncio.TaskGroup() as group:
                for question, gap in zip(questions, gaps, strict=True):
                    await asyncio.sleep(gap)
                    await self.free.acquire()
                    group.create_task(self._dialogue(question))
        except* OSError as errors:  # a full disk
            self.fatal = InputError(f"{self.kept.folder}: {errors.exceptions[0]}")

    async def _dialogue(self, question: Question) -> None:
        """The turns of one question in order; what follows a reply needs it."""
        try:
            messages: list[dict[str, str]] = []
            for number, said in enumerate(question.turns):
                messages.append({"role": "user", "content": said})
                name = question.request_id(number)
                if name not in self.replies and not await self._one(question, name, messages):
                    return
                messages.append({"role": "assistant", "content": self.replies[name]})
        finally:
            self.free.release()

    async def _one(self, question: Question, name: str, messages: list[dict[str, str]]) -> bool:
        """Ask, and keep the answer; False if there is none."""
        key = (self.turn.block, self.turn.seat.name, name)
        if key in self.kept.refused or self.fatal is not None:
            return False
        why = "the server died"
        if not self._dead():
            try:
                reply = await ask(self.client, self._body(messages, self.options.max_tokens))
                return self._keep(key, question, reply)
            except Refused as error:
                if error.for_all:
                    self.fatal = error
                else:
                    self.kept.refuse(key, str(error))
                return False
            except Unanswered as error:
                why = "the server died" if self._dead() else str(error)
        self.session.failed[key] = f"{name}: {why}"
        return False

    def _dead(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def _keep(self, key: Key, question: Question, reply: Reply) -> bool:
        """Write the answer down; False if the server did not tell its length."""
        seat = self.turn.seat
        try:
            told = self.session.engine.told(reply.events, seat.length)
            odd = not 0.0 <= told.decode_s < 86_400.0
        except (TypeError, ValueError, ArithmeticError, AttributeError):
            odd = True
        if odd:
            self.session.failed[key] = f"{key[2]}: what the server tells of it is no count"
            return False
        if not told.tokens:
            self.session.failed[key] = f"{key[2]}: the server told neither usage nor tokens"
            return False
        if told.drafted and max((d for d, _ in told.steps or ()), default=0) > seat.length:
            self.fatal = InputError(
                f"the server drafts more than --lengths {seat.length}: {told.drafted} tokens in "
                f"{key[2]}; set it so, or name the length that it has"
            )
            return False
        answer = Answer(
            request_id=key[2],
            category=question.task,
            length=seat.length,
            block=key[0],
            seat=key[1],
            prompt_tokens=told.prompt_tokens,
            tokens=told.tokens,
            text=text_in(reply.events),
            sent_unix_s=round(reply.sent_unix_s, 3),
            first_s=reply.events[0].at_s,
            last_s=reply.events[-1].at_s,
            decode_s=round(told.decode_s, 6),
            drafted=told.drafted,
            accepted=told.accepted,
            steps=told.steps,
            step_s=told.step_s,
            inferred=told.inferred,
            raw=told.raw,
            tries=reply.tries,
        )
        self.session.failed.pop(key, None)
        self.kept.keep(answer)
        self.replies[key[2]] = answer.text
        self.session.step()
        return True


async def describe(client: httpx.AsyncClient, wanted: str | None) -> tuple[str, dict[str, Any]]:
    """The model to ask for, and what the server tells of itself.

    Raises InputError if nothing answers, several models do and none is chosen, or it lacks the one
    that is.
    """
    models = await read_object(client, "/models", root=False)
    rows = models.get("data")
    listed = rows if isinstance(rows, list) else []
    names = [str(row["id"]) for row in listed if isinstance(row, dict) and "id" in row]
    if not names and not await read_text(client, "/health"):
        raise InputError(f"nothing answers at {client.base_url}; is the server up?")
    if wanted is None and len(names) > 1:
        raise InputError(f"the server has {', '.join(names)}; choose one with --model")
    if names and wanted is not None and wanted not in names:
        raise InputError(f"--model {wanted}: the server has {', '.join(names)}")
    about: dict[str, Any] = {"models": names}
    for path in ABOUT:
        told = await read_object(client, path)
        about |= {name: value for name, value in told.items() if _short(value)}
    return wanted or (names[0] if names else "default"), about


def _short(value: Any) -> bool:
    """A fact, not a document."""
    return isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) < 200)
