"""Record transformers' own assisted generation as a Trace, with two lines in the user's code.

    with record(model, assistant) as recorder:
        model.generate(**inputs, assistant_model=assistant, do_sample=False)
    recorder.write("trace.parquet")

transformers names no hook for its rounds (5.23: `generate` makes the candidate generator itself),
but a round begins with one call of the assistant's public `generate`: its input is the prompt and
all tokens fixed so far, its output ends in the proposals (AssistedCandidateGenerator,
huggingface/transformers, generation/candidate_generator.py). Inside the `with` block both models'
`generate` are therefore wrapped on the two objects, and nothing else is touched. A proposal was
accepted if and only if it is the token that the reply has in its place.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from real_backend.load_pair import versions
from real_backend.models.checkpoint import weights_hash
from real_backend.models.device import device_name
from traces.errors import InputError
from traces.importers.common import Options, Reply, trace_of
from traces.importers.flags import ACCEPTED, REJECTED, UNKNOWN, Flags
from traces.schema import Trace
from traces.store import write_trace

_REFUSED = {
    "assistant_tokenizer": "its proposals are tokens of another vocabulary",
    "assistant_early_exit": "the target drafts for itself",
    "prompt_lookup_num_tokens": "no assistant drafts",
    "assistant_ensemble_weight": "the output depends on the draft's length",
}


@dataclasses.dataclass(frozen=True)
class Drafted:
    """One round: the output position where it started, and what was proposed there."""

    start: int
    proposed: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Recorded:
    """One call of generate: its reply and its rounds, those that drafted nothing left out."""

    category: str
    prompt_tokens: int
    limit_tokens: int
    reply: tuple[int, ...]
    rounds: tuple[Drafted, ...]

    def accepted(self, drafted: Drafted) -> int:
        """How many proposals of a round the target kept."""
        pairs = zip(drafted.proposed, self.reply[drafted.start :], strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    def flags(self) -> Flags:
        """[reply] one flag per output position."""
        flags = np.full(len(self.reply), UNKNOWN, dtype=np.int8)
        for drafted in self.rounds:
            start, accepted = drafted.start, self.accepted(drafted)
            flags[start : start + accepted] = ACCEPTED
            if accepted < len(drafted.proposed):
                flags[start + accepted : start + accepted + 1] = REJECTED  # none behind the end
        return flags


@contextmanager
def record(model: Any, assistant: Any) -> Iterator[Recorder]:
    """Record every assisted `model.generate` of the block; see the module docstring.

    Greedy decoding of one prompt at a time by a decoder-only model, as transformers has it; what
    would not be a trace (sampling, another tokenizer) is refused by the call, with InputError.
    """
    if model is assistant:
        raise InputError("target and assistant are one object; load the assistant separately")
    recorder = Recorder(model, assistant)
    with ExitStack() as stack:
        stack.enter_context(_wrapped(model, recorder.target_generate))
        stack.enter_context(_wrapped(assistant, recorder.assistant_generate))
        yield recorder


@contextmanager
def _wrapped(module: Any, wrapper: Callable[..., Any]) -> Iterator[None]:
    """`wrapper(generate, ...)` in the place of this object's `generate`, for a while."""
    before = vars(module).get("generate")
    bound = module.generate
    module.generate = functools.wraps(bound)(functools.partial(wrapper, bound))
    try:
        yield
    finally:
        if before is None:
            del module.generate
        else:
            module.generate = before


class Recorder:
    """The recorded calls; made by `record`.

    category: task name of the calls to come, set it between them. requests: the recorded calls.
    """

    def __init__(self, model: Any, assistant: Any) -> None:
        self.model, self.assistant = model, assistant
        self.category = "all"
        self.requests: list[Recorded] = []
        self._prompt: list[int] | None = None
        self._rounds: list[Drafted] = []

    def target_generate(self, generate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`model.generate`, and its rounds written down if `assistant` drafts for it."""
        if kwargs.get("assistant_model") is not self.assistant:
            return generate(*args, **kwargs)
        config = kwargs.get("generation_config") or self.model.generation_config
        self._check(config, kwargs)
        ids = kwargs.get("input_ids", args[0] if args else kwargs.get("inputs"))
        if ids is None or ids.ndim != 2:
            raise InputError("the recorder needs the prompt as input_ids [1, T]")
        self._prompt, self._rounds = ids[0].tolist(), []
        try:
            output = generate(*args, **kwargs)
            prompt, tokens = self._prompt, getattr(output, "sequences", output)[0].tolist()
        finally:
            self._prompt = None
        reply = tuple(tokens[len(prompt) :])
        if reply:
            limit = max(_limit_tokens(config, kwargs, len(prompt)), len(reply))
            rounds = tuple(self._rounds)
            self.requests.append(Recorded(self.category, len(prompt), limit, reply, rounds))
        return output

    def assistant_generate(self, generate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`assistant.generate`, and what it proposed written down if the target asked for it."""
        output = generate(*args, **kwargs)
        if self._prompt is not None:
            known = kwargs["input_ids"][0].tolist()
            if known[: len(self._prompt)] != self._prompt:
                raise InputError("the assistant was given other tokens than the target's")
            sequence = getattr(output, "sequences", output)[0].tolist()
            proposed = tuple(sequence[len(known) :])
            if proposed:
                self._rounds.append(Drafted(len(known) - len(self._prompt), proposed))
        return output

    def _check(self, config: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("do_sample", getattr(config, "do_sample", False)):
            raise InputError("the recorder covers greedy decoding; pass do_sample=False")
        for name, why in _REFUSED.items():
            if kwargs.get(name, getattr(config, name, None)) is not None:
                raise InputError(f"{name} cannot be recorded: {why}")
        if getattr(self.model.config, "is_encoder_decoder", False):
            raise InputError("the recorder covers decoder-only models")

    def trace(self, *, depth: int = 0) -> Trace:
        """All recorded calls, in order; raises InputError if there are none.

        Positions that no proposal reached are unknown. The draft's signals are not recorded: a
        bounded draft shows them at its own depths only. depth: deepest draft of a replay, 0: the
        longest one recorded.
        """
        if not self.requests:
            raise InputError(
                "no assisted call was recorded; inside the block, call "
                "model.generate(..., assistant_model=assistant)"
            )
        rounds = [drafted for request in self.requests for drafted in request.rounds]
        return trace_of(
            [
                Reply(
                    str(number),
                    r.category,
                    r.prompt_tokens,
                    r.flags(),
                    np.asarray(r.reply, np.int32),
                )
                for number, r in enumerate(self.requests)
            ],
            Options(depth=depth),
            {"format": "hf", "files": ["model.generate"], "rounds": len(rounds)},
            depth=max((len(drafted.proposed) for drafted in rounds), default=1),
            usual_limit=max(request.limit_tokens for request in self.requests),
            **self._about(),
        )

    def write(self, path: Path | str, *, depth: int = 0, overwrite: bool = False) -> Trace:
        """Write `trace` as Parquet; raises InputError if the file is there already."""
        trace = self.trace(depth=depth)
        write_trace(trace, Path(path), overwrite=overwrite)
        return trace

    def _about(self) -> dict[str, Any]:
        """Facts of the two models, for the meta."""
        models = self.model, self.assistant
        names = [Path(m.name_or_path).name or type(m).__name__ for m in models]
        contexts = [int(getattr(m.config, "max_position_embeddings", 0) or 0) for m in models]
        return {
            "pair": "+".join(names),
            "target": names[0],
            "draft": names[1],
            "weights_sha256": weights_hash(*models),
            "device": device_name(str(self.model.device)),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "max_context": min((c for c in contexts if c), default=0),
            "versions": versions(),
        }


def _limit_tokens(config: Any, kwargs: dict[str, Any], prompt_tokens: int) -> int:
    """The most tokens this reply may have, as generate reads its arguments."""
    new = kwargs.get("max_new_tokens", getattr(config, "max_new_tokens", None))
    if new is not None:
        return int(new)
    whole = kwargs.get("max_length", getattr(config, "max_length", None))
    return 1 if whole is None else max(1, int(whole) - prompt_tokens)
