"""How vLLM, SGLang and llama.cpp are asked for a streamed reply, and how they tell of its rounds.

All three take POST /v1/chat/completions. A stream says when tokens came; that a round's tokens come
together makes it a record of rounds, in order:

- llama.cpp with "timings_per_token": every event carries timings.{predicted_n, predicted_ms,
  draft_n, draft_n_accepted} so far (tools/server/server-task.cpp), and draft_n grows once a round;
- vLLM with "return_token_ids": an event is an engine step, with the tokens of that step
  (vllm/entrypoints/openai/chat_completion/serving.py); with --per-request-spec-decode-metrics
  detailed the last one has the rounds themselves;
- SGLang with "continuous_usage_stats": usage.completion_tokens so far, an event a step
  (--stream-interval 1, the default).

Rounds are kept only if they add up to what the engine itself counted; else its counts stand alone.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from experiments.servers.streams import Event
from traces.errors import InputError
from traces.importers.streams import object_of

MOST_TOKENS = 1 << 22  # of a reply or a prompt; more only fills memory
Step = tuple[int, int]
"""Drafted and accepted tokens of a round."""


@dataclasses.dataclass(frozen=True)
class Told:
    """An engine's account of one reply. The reply's first token comes from the prompt, before any
    round.

    prompt_tokens, tokens: None where the engine does not say.
    decode_s: seconds from the first token to the last, on the server's clock where it tells them,
        else on ours.
    drafted, accepted: in all, None if not told.
    steps: the rounds in order; None if the stream does not show them.
    step_s: their seconds, on the clock of decode_s; None if they are not known.
    inferred: `steps` rest on the length that the server was said to draft.
    raw: its own words.
    """

    prompt_tokens: int | None
    tokens: int | None
    decode_s: float
    drafted: int | None
    accepted: int | None
    steps: tuple[Step, ...] | None
    step_s: tuple[float, ...] | None
    inferred: bool
    raw: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Engine:
    """One engine. extra: fields of a request beyond OpenAI's. told: events, and the length that the
    server drafts, to its account.
    """

    name: str
    title: str
    extra: dict[str, Any]
    told: Callable[[Sequence[Event], int], Told]


def body_of(
    engine: Engine, model: str, messages: list[dict[str, str]], max_tokens: int, temperature: float
) -> dict[str, Any]:
    """The JSON of a request."""
    return {
        "model": model,
        "messages": messages,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    } | engine.extra


def _llama_cpp(events: Sequence[Event], length: int) -> Told:
    """Groups of events between two growths of draft_n; a token that comes alone without one is a
    round that drafted nothing.
    """
    del length
    timings = [t for e in events if (t := object_of(e.raw.get("timings")))]
    if not timings:
        return _silent(events)
    last = timings[-1]
    drafted, accepted = _number(last, "draft_n") or 0, _number(last, "draft_n_accepted") or 0
    steps: list[list[int]] = []
    ends_ms: list[float] = []
    before = _Counted(0, 0, 0)
    for raw in timings:
        now, now_ms = _counted(raw), float(raw.get("predicted_ms", 0.0))
        if now.tokens == before.tokens:
            continue
        new = now.drafted - before.drafted, now.accepted - before.accepted
        if before.tokens == 0:
            ends_ms.append(now_ms)  # the prompt's own token
        elif new[0] > 0 or not steps or steps[-1][2] > steps[-1][1]:
            steps.append([*new, now.tokens - before.tokens])
            ends_ms.append(now_ms)
        else:
            steps[-1][2] += now.tokens - before.tokens
        before = now
    tokens = before.tokens
    whole = (
        sum(step[0] for step in steps) == drafted
        and sum(step[1] for step in steps) == accepted
        and all(step[2] == step[1] + 1 for step in steps[:-1])
    )
    usage = _usage(events)
    prompt = _number(usage, "prompt_tokens")
    return Told(
        prompt_tokens=_number(last, "prompt_n") if prompt is None else prompt,
        tokens=tokens,
        decode_s=float(last.get("predicted_ms", 0.0)) / 1e3,
        drafted=drafted,
        accepted=accepted,
        steps=tuple((step[0], step[1]) for step in steps) if whole else None,
        step_s=_gaps([1e-3 * ms for ms in ends_ms]) if whole else None,
        inferred=False,
        raw={"timings": last},
    )


def _gaps(moments: Sequence[float]) -> tuple[float, ...]:
    """Seconds between one and the next."""
    return tuple(round(b - a, 6) for a, b in itertools.pairwise(moments))


class _Counted(NamedTuple):
    tokens: int
    drafted: int
    accepted: int


def _counted(timings: dict[str, Any]) -> _Counted:
    names = ("predicted_n", "draft_n", "draft_n_accepted")
    return _Counted(*(_number(timings, name) or 0 for name in names))


def _vllm(events: Sequence[Event], length: int) -> Told:
    """An event's token ids are those of one engine step."""
    counts = []
    for event in events:
        ids = object_of(event.raw.get("choices")).get("token_ids")
        if isinstance(ids, list) and ids:
            counts.append((event.at_s, len(ids)))
    raw: dict[str, Any] = {}
    for event in events:
        raw |= object_of(object_of(event.raw.get("metrics")).get("speculative_decoding"))
    drafted, accepted = raw.get("per_step_drafted"), raw.get("per_step_accepted")
    steps: tuple[Step, ...] | None = None
    if isinstance(drafted, list) and isinstance(accepted, list) and len(drafted) == len(accepted):
        steps = tuple((int(d), int(a)) for d, a in zip(drafted, accepted, strict=True))
    return _of_steps(
        events, counts, length, steps,
        (_number(raw, "num_draft_tokens"), _number(raw, "num_accepted_draft_tokens")), raw,
    )  # fmt: skip


def _sglang(events: Sequence[Event], length: int) -> Told:
    """usage.completion_tokens grows once a step."""
    counts, before = [], 0
    raw: dict[str, Any] = {}
    for event in events:
        raw |= object_of(object_of(event.raw.get("sglext")).get("spec_tokens_details"))
        raw |= object_of(object_of(event.raw.get("choices")).get("meta_info"))
        now = _number(object_of(event.raw.get("usage")), "completion_tokens")
        if now is not None and now > before:
            counts.append((event.at_s, now - before))
            before = now
    verified = _number(raw, "spec_verify_ct")
    steps = None if verified is None or verified == len(counts) - 1 else ()
    accepted = _number(raw, "spec_num_correct_drafts")
    return _of_steps(
        events, counts, length, steps or None, (_number(raw, "spec_num_proposed_drafts"), accepted),
        raw, trusted=steps is None,
    )  # fmt: skip


def _of_steps(
    events: Sequence[Event],
    counts: list[tuple[float, int]],
    length: int,
    steps: tuple[Step, ...] | None,
    totals: tuple[int | None, int | None],
    raw: dict[str, Any],
    *,
    trusted: bool = True,
) -> Told:
    """Told, from the tokens that came together. steps: the engine's own, if it tells them."""
    usage = _usage(events)
    tokens = _number(usage, "completion_tokens")
    arrived = sum(count for _, count in counts)
    inferred = steps is None
    if steps is None and trusted and counts and tokens in (None, arrived):
        rounds = [count for _, count in counts[1:]]
        # The prompt's token comes alone; an event of more tokens than a round can emit is no round.
        if counts[0][1] == 1 and max(rounds, default=0) <= length + 1:
            steps = tuple((length, count - 1) for count in rounds)
    if steps is not None and not inferred and not _fits(steps, arrived if counts else tokens):
        steps = None
    if steps is not None and totals[1] is not None:
        kept = sum(accepted for _, accepted in steps)
        if inferred and not kept <= totals[1] <= kept + length:
            steps = None
    moments = [at_s for at_s, _ in counts] or [event.at_s for event in events]
    return Told(
        prompt_tokens=_number(usage, "prompt_tokens"),
        tokens=arrived if tokens is None and counts else tokens,
        decode_s=moments[-1] - moments[0] if moments else 0.0,
        drafted=totals[0],
        accepted=totals[1],
        steps=steps,
        step_s=_gaps(moments) if steps is not None and len(steps) == len(moments) - 1 else None,
        inferred=inferred and steps is not None,
        raw=raw,
    )


def _fits(steps: tuple[Step, ...], tokens: int | None) -> bool:
    """Rounds that an engine tells fill the reply behind its first token; its limit may cut the
    last.
    """
    if not all(0 <= accepted <= drafted for drafted, accepted in steps):
        return False
    brought = sum(accepted + 1 for _, accepted in steps)
    last = steps[-1][1] if steps else 0
    return tokens is None or brought - last <= tokens - 1 <= brought


def _silent(events: Sequence[Event]) -> Told:
    return _of_steps(events, [], 0, None, (None, None), {})


def _usage(events: Sequence[Event]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for event in events:
        found |= object_of(event.raw.get("usage"))
    return found


def _number(raw: dict[str, Any], name: str) -> int | None:
    value = raw.get(name)
    if not isinstance(value, int | float) or not 0 <= value <= MOST_TOKENS:
        return None
    return int(value)


ENGINES = {
    engine.name: engine
    for engine in (
        Engine(
            "vllm",
            "vLLM",
            {"return_token_ids": True},
            _vllm,
        ),
        Engine(
            "sglang",
            "SGLang",
            {
                "stream_options": {"include_usage": True, "continuous_usage_stats": True},
                "return_spec_tokens_details": True,
            },
            _sglang,
        ),
        Engine(
            "llama.cpp",
            "llama.cpp",
            {"timings_per_token": True, "cache_prompt": False},
            _llama_cpp,
        ),
    )
}


def find_engine(name: str) -> Engine:
    """The engine of that name; raises InputError with those that there are."""
    if name not in ENGINES:
        raise InputError(f"unknown engine {name!r}; --engine takes {', '.join(ENGINES)}")
    return ENGINES[name]
