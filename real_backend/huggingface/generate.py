"""A policy inside transformers' own `generate`: one more argument, the same output, fewer seconds.

    from real_backend.huggingface.generate import speculate
    output = model.generate(**inputs, custom_generate=speculate(draft, "gammatune"))

A callable given as `custom_generate` replaces the decoding loop of `generate`, which goes on
preparing inputs, logits processors and stopping criteria (transformers 5, generation_strategies,
"Custom generation methods"). The loop here is that of `real_backend.decoding.engine`.
"""

from __future__ import annotations

import dataclasses
import threading
import time
import warnings
from collections import deque
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor
from transformers.generation import GenerateDecoderOnlyOutput

from policies.base import STEP_COSTS, Policy, State, reads_seconds
from policies.registry import label, parse_policy
from real_backend.decoding.engine import Engine
from real_backend.decoding.graphs import DEPTH
from real_backend.drafters.load import is_model
from real_backend.huggingface.generate_call import Call, GrowingReply, read_call, sequences_of
from real_backend.load_pair import Pair, pair_of
from real_backend.pair_spec import PairSpec
from real_backend.prompts import Request
from traces.costs.pricing import StepCosts, make_step_costs, tabulate
from traces.costs.table import Table
from traces.errors import InputError
from traces.roundlog import ROUND, RoundLog, join_logs, log_of
from traces.timing import Timing, read_timing

LOGGED_CALLS = 1_000  # a server may call generate for days
_PRICED_CONTEXT = 8_192  # tokens; longer contexts are shown at the price of this one
_PADDED = 1_024  # tokens by which the embeddings of one tokenizer may be padded apart


def speculate(
    draft: Any,
    policy: Policy | str,
    *,
    timing: Timing | Path | str | None = None,
    max_gamma: int = 20,
    batch: int = 8,
) -> Speculation:
    """The callable for a transformers model's `generate` as `custom_generate`; see Speculation.

    draft: a loaded causal language model with the target's vocabulary, device and dtype, or
    another drafter by name: "lookup:greatest=4", the folder of a head. policy: a Policy, or one as
    on the command line ("fixed:gamma=4"). timing: a Timing of this pair, or its file, for policies
    that choose by step costs. max_gamma: the most tokens any policy may draft in a round. batch:
    the most rows decoded at once; a row that ends makes place for the next.

    Raises InputError for an unknown policy, an unreadable timing, a draft that is no model, and a
    policy that reads step costs without a timing: no cost is better than an invented one.
    """
    if not 1 <= max_gamma <= DEPTH or batch < 1:
        raise InputError(f"max_gamma must be 1 to {DEPTH} and batch at least 1")
    named = isinstance(draft, str) and not is_model(draft)
    if not isinstance(draft, torch.nn.Module) and not named:
        raise InputError(
            f"the draft must be a loaded model, a look-up or a folder with a head, not {draft!r}; "
            "load a model with AutoModelForCausalLM.from_pretrained"
        )
    chosen = parse_policy(policy) if isinstance(policy, str) else policy
    if isinstance(timing, str | Path):
        timing = read_timing(Path(timing))
    if timing is None and reads_seconds(chosen, STEP_COSTS):
        raise InputError(
            f"policy {chosen.name!r} chooses by measured step costs; record them with `gammalab "
            "measure --target NAME --draft NAME --out timing.json` and pass timing='timing.json'"
        )
    return Speculation(draft, chosen, timing, max_gamma, batch)


@dataclasses.dataclass(frozen=True, eq=False)
class _Prepared:
    """A Pair, and where each weight lay when the pair was made."""

    pair: Pair
    weights: tuple[Any, ...]


# All objects of speculate for the same two models share one Pair: no weight is fused twice. An
# entry lives as long as one of them uses it, and keeps both models, so that their ids stay theirs.
_PREPARED: WeakValueDictionary[tuple[int, int | str], _Prepared] = WeakValueDictionary()


class Speculation:
    """A decoding loop for `generate`: drafts as its policy says, returns what `generate` would.

    Greedy output is that of `model.generate` token for token, sampled output has its law; what
    cannot be reproduced is refused (generate_call).

    state: the policy's memory, kept from call to call. Every row of every call is admitted as a new
    request, so policies that forget start afresh and those that learn go on learning. They are told
    wall seconds. Policies draw their randomness from the number of the call, samples draw theirs
    from torch's generator, so that torch.manual_seed decides them.

    The object keeps the draft, the last target and both caches alive. Weights of Llama layouts are
    fused in place: the models go on working, on the same memory. A model that was moved, cast or
    given other weights is read again. Threads that share the object take turns.
    """

    def __init__(
        self, draft: Any, policy: Policy, timing: Timing | None, max_gamma: int, batch: int
    ) -> None:
        self.draft, self.policy, self.timing = draft, policy, timing
        self.max_gamma, self.batch = max_gamma, batch
        self._slots = 1
        self.state = policy.new_state(1)
        self._turn = threading.Lock()
        self._calls = 0
        self._logs: deque[tuple[float, RoundLog]] = deque(maxlen=LOGGED_CALLS)
        self._prepared: _Prepared | None = None
        self._engine: Engine | None = None

    @property
    def log(self) -> RoundLog:
        """The rounds of the last 1,000 calls: `request` counts their rows, `start_s` runs from the
        first of them, `context_tokens` leaves padding out.
        """
        return _joined(list(self._logs), {"policy": label(self.policy), "clock": "measured"})

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        *,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **inputs: Any,
    ) -> Any:
        """Called by `generate`, as it calls its own loops: input_ids [B, W] to [B, W + longest]."""
        made = logits_processor, stopping_criteria, generation_config
        call = read_call(model, input_ids, *made, inputs, self.batch)
        rows = [GrowingReply(call, prompt) for prompt in input_ids]
        asked = bool(call.others) or call.streamer is not None
        with self._turn:
            engine = self._engine_for(model, call)
            seed = int(torch.randint(2**31 - 1, ())) if call.temperature else self._calls
            began = time.perf_counter()
            run = engine.decode(
                self.policy,
                [Request(str(row), "", prompt) for row, prompt in enumerate(call.prompts)],
                temperature=call.temperature,
                top_p=call.top_p,
                seed=seed,
                max_new_tokens=call.room,
                batch=self.batch,
                state=self.state,
                emit=(lambda index, tokens: rows[index].take(tokens)) if asked else None,
            )
            self._calls += 1
            self._logs.append((began, run.log))
        if call.streamer is not None:
            call.streamer.end()
        replies = [tokens[: row.stop] for tokens, row in zip(run.tokens, rows, strict=True)]
        sequences = sequences_of(input_ids, replies, generation_config)
        if generation_config.return_dict_in_generate:
            return GenerateDecoderOnlyOutput(sequences=sequences)
        return sequences

    def _engine_for(self, model: Any, call: Call) -> Engine:
        """The engine of the last call if it still fits, else a new one; the state grown to it."""
        prepared = _prepare(model, self.draft)
        if prepared is not self._prepared:
            if self.timing is not None:
                _check_timing(self.timing, prepared.pair)
            self._prepared, self._engine = prepared, None
        engine = self._engine
        if engine is None or engine.pair.eos_ids != call.eos_ids:
            pair = dataclasses.replace(prepared.pair, eos_ids=call.eos_ids)
            costs = _costs(self.timing, pair, self.max_gamma + 2, self.batch)
            self._engine = engine = Engine(pair, costs, max_gamma=self.max_gamma)
        longest = max(map(len, call.prompts)) + call.room
        _check_context(engine.pair, longest - call.room, call.room)
        batch = min(self.batch, len(call.prompts))
        with torch.inference_mode():  # in powers of two, so that caches are seldom made anew
            engine.steps(batch, 1 << (longest + self.max_gamma).bit_length())
        if batch > self._slots:
            self.state, self._slots = _grown(self.policy, self.state, batch), batch
        return engine


def _grown(policy: Policy, state: State, slots: int) -> State:
    """The state with more slots: what it knows of each slot, and of all of them, is kept."""
    grown = policy.new_state(slots)
    for known, array in zip(state, grown, strict=True):
        array[tuple(map(slice, known.shape))] = known
    return grown


def _prepare(target: Any, draft: Any) -> _Prepared:
    """The Pair of two loaded models, made once while both stay as they are."""
    named = isinstance(draft, str)
    key = id(target), draft if named else id(draft)
    models = (target,) if named else (target, draft)
    prepared = _PREPARED.get(key)
    if prepared is None or prepared.weights != _weights(*models):
        names = [model.name_or_path or type(model).__name__ for model in models]
        if named:
            names.append(draft)
        else:
            _check_models(target, draft)
        spec = PairSpec("+".join(Path(name).name for name in names), names[0], names[1])
        pair = pair_of(target, None if named else draft, spec)
        _PREPARED[key] = prepared = _Prepared(pair, _weights(*models))
    return prepared


def _weights(*models: Any) -> tuple[Any, ...]:
    """Where each parameter lies, and which edit of it: another if a model is moved, cast, trained
    or given other weights.
    """
    return tuple(
        (p.data_ptr(), p.dtype, 0 if p.is_inference() else p._version)
        for model in models
        for p in model.parameters()
    )


def _check_models(target: Any, draft: Any) -> None:
    """Raise InputError if the draft cannot propose the target's tokens where the target runs."""
    for role, model in (("target", target), ("draft", draft)):
        devices = set((getattr(model, "hf_device_map", None) or {}).values())
        if len(devices) > 1:
            raise InputError(f"the {role} lies on {len(devices)} devices; load it on one")
        if not hasattr(model.config, "vocab_size"):
            raise InputError(f"the config of the {role} has no vocab_size; it must be text-only")
    for field in ("device", "dtype"):
        ours, theirs = str(getattr(target, field)), str(getattr(draft, field))
        if ours != theirs:
            move = f"torch.device({ours!r})" if field == "device" else ours
            raise InputError(
                f"the target's {field} is {ours}, the draft's {theirs}; use draft.to({move})"
            )
    ours, theirs = target.config, draft.config
    apart = abs(ours.vocab_size - theirs.vocab_size)
    if apart > _PADDED or (apart and ours.model_type != theirs.model_type):
        raise InputError(
            f"the target ({ours.model_type}) has {ours.vocab_size} tokens, the draft "
            f"({theirs.model_type}) {theirs.vocab_size}; a draft must propose the target's own "
            "tokens - choose a pair of one family"
        )


def _check_context(pair: Pair, prompt_tokens: int, room: int) -> None:
    """Raise InputError if a reply may outgrow what both models can hold."""
    if pair.max_context and prompt_tokens + room > pair.max_context:
        raise InputError(
            f"a prompt of {prompt_tokens} tokens and max_new_tokens={room} do not fit into the "
            f"{pair.max_context} tokens that target and draft both hold; shorten the prompt or "
            f"pass max_new_tokens={max(1, pair.max_context - prompt_tokens)}"
        )


def _check_timing(timing: Timing, pair: Pair) -> None:
    """Warn if policies are shown the seconds of another pair or machine; legal, but not wise."""
    here = pair.describe()
    for field in ("weights_sha256", "device_name", "dtype", "engine", "threads"):
        ours, theirs = str(here[field]), str(timing.meta.get(field, here[field]))
        if theirs != ours:
            warnings.warn(
                f"the timing was measured with {field} {theirs[:16]}, this pair has {ours[:16]}; "
                "policies that read it choose for the other one",
                stacklevel=2,
            )


def _costs(timing: Timing | None, pair: Pair, width: int, batch: int) -> StepCosts:
    """Step costs of a View at each batch size; without a timing zeros, which no policy reads."""
    if timing is None:
        nothing = np.zeros((1, width))
        return make_step_costs(nothing, nothing, bucket_tokens=_PRICED_CONTEXT)
    contexts, table = min(pair.max_context or _PRICED_CONTEXT, _PRICED_CONTEXT), Table(timing)
    return tabulate(table, range(1, batch + 1), max_context=contexts, width=width)


def _joined(parts: list[tuple[float, RoundLog]], meta: dict[str, Any]) -> RoundLog:
    """Logs of calls that began at the given seconds, as one; its meta is the last one's, or `meta`
    where there is none.
    """
    if not parts:
        return log_of(np.empty(0, ROUND), np.empty(0), meta)
    first_s = parts[0][0]
    logs = [
        dataclasses.replace(log, start_s=log.start_s + (began - first_s)) for began, log in parts
    ]
    return dataclasses.replace(join_logs(logs, one_clock=True), meta=logs[-1].meta)
