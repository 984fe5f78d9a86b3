"""One call of transformers' `generate`, as the engine needs it; what it cannot do is refused.

By the time a callable `custom_generate` runs, `generate` has turned its arguments into input_ids
[B, W] (B rows, W prompt tokens, padding included), a list of logits processors, a list of stopping
criteria and a generation config. `read_call` turns those into prompts, a sampling law and what ends
a reply, so that the engine's output is that of `generate` itself. Nothing is ignored: whatever has
no counterpart in the engine raises an InputError with the remedy.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.generation import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from traces.errors import InputError

_MODES = ("greedy_search", "sample")
_INPUTS = (
    "attention_mask",
    "position_ids",
    "past_key_values",
    "use_cache",
    "logits_to_keep",
    "cache_position",
    "streamer",
)
_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
_SMALLEST_NUCLEUS = 1e-9  # transformers keeps one token at top_p = 0
_REMEDIES = {
    "TopKLogitsWarper": "pass top_k=0 (transformers samples with top_k=50 unless told otherwise)",
    "MinPLogitsWarper": "pass min_p=None",
    "RepetitionPenaltyLogitsProcessor": "pass repetition_penalty=1.0",
    "NoRepeatNGramLogitsProcessor": "pass no_repeat_ngram_size=0",
    "MinLengthLogitsProcessor": "pass min_length=0 and min_new_tokens=None",
}
_OR_PLAIN = "or leave custom_generate out"


class Call(NamedTuple):
    """prompts: token ids of each row, its left padding taken off. temperature (0 is greedy), top_p.
        eos_ids end a reply, room bounds it (tokens), others are asked after every token.
    streamer: None or what receives the tokens.
    """

    prompts: list[list[int]]
    temperature: float
    top_p: float
    eos_ids: frozenset[int]
    room: int
    others: Any
    streamer: Any


def read_call(
    model: Any,
    input_ids: Tensor,
    processors: Any,
    criteria: Any,
    config: Any,
    inputs: dict[str, Any],
    batch: int,
) -> Call:
    """The call that `generate` prepared; inputs: what it would give to the model's forward; batch:
    the most rows decoded at once.

    Raises InputError for anything that the engine cannot reproduce.
    """
    withheld = _withheld_by_generate()
    _check_strategy(model, config, withheld)
    _check_inputs(config, inputs)
    temperature, top_p = _sampling(processors, int(model.config.vocab_size))
    prompts = _prompts(input_ids, inputs.get("attention_mask"), inputs.get("position_ids"))
    eos_ids, room, others = _endings(criteria, input_ids.shape[1])
    streamer = inputs.get("streamer", withheld.get("streamer"))
    if len(prompts) > 1:
        _check_rows(len(prompts), batch, eos_ids, others, streamer)
    return Call(
        prompts, temperature if config.do_sample else 0.0, top_p, eos_ids, room, others, streamer
    )


def _withheld_by_generate() -> dict[str, Any]:
    """Arguments of the running `generate` that transformers (5.0 to 5.23) keeps from a callable.

    They are dropped in generation/utils.py, _extract_generation_mode_kwargs. A streamer that nobody
    feeds would block its reader for good, so they are read from the frame of the call itself.
    """
    code = inspect.unwrap(GenerationMixin.generate).__code__
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    names = ("streamer", "assistant_model", "synced_gpus")
    return {} if frame is None else {name: frame.f_locals.get(name) for name in names}


def _check_strategy(model: Any, config: Any, withheld: dict[str, Any]) -> None:
    """Raise InputError for another way of decoding than one model, one beam, one process."""
    if model.config.is_encoder_decoder:
        raise InputError("speculate takes decoder-only models, not an encoder-decoder")
    mode = config.get_generation_mode()
    if mode not in _MODES:
        raise InputError(
            f"speculate does greedy search and sampling, not {mode.value.replace('_', ' ')}; pass "
            f"num_beams=1 and no other decoding strategy, {_OR_PLAIN}"
        )
    if withheld.get("assistant_model") is not None:
        raise InputError(
            "assistant_model and speculate both name a draft; give it to speculate alone"
        )
    if withheld.get("synced_gpus"):
        raise InputError(f"speculate decodes in one process; leave synced_gpus {_OR_PLAIN[3:]}")


def _check_inputs(config: Any, inputs: dict[str, Any]) -> None:
    """Raise InputError for a cache, an output or a model input that the engine does not have."""
    if inputs.get("use_cache") is False:
        raise InputError("speculate decodes with caches; leave use_cache=False out")
    if config.cache_implementation not in (None, "dynamic", "static"):
        kind = config.cache_implementation
        raise InputError(f"speculate keeps its own cache; leave cache_implementation={kind!r} out")
    cache = inputs.get("past_key_values")
    if cache is not None and cache.get_seq_length():
        raise InputError("speculate reads prompts from the start; leave past_key_values out")
    for name in _OUTPUTS:
        if config.return_dict_in_generate and getattr(config, name):
            raise InputError(f"speculate returns sequences alone; leave {name} out, {_OR_PLAIN}")
    for name, value in inputs.items():
        if name not in _INPUTS and value is not None:
            raise InputError(f"speculate reads token ids alone; leave {name} out, {_OR_PLAIN}")


def _sampling(processors: Any, vocab_size: int) -> tuple[float, float]:
    """temperature and top_p that the logits processors amount to.

    Raises InputError naming the first processor that the engine's sampler does not know, or that
    stands in another order than temperature, top_p.
    """
    temperature, top_p = 1.0, 1.0
    for processor in processors:
        kind = type(processor)
        if kind is TopKLogitsWarper and processor.top_k >= vocab_size:
            continue  # keeps every token
        if kind is TemperatureLogitsWarper and temperature == top_p == 1.0:
            temperature = float(processor.temperature)
        elif (
            kind is TopPLogitsWarper
            and top_p == processor.min_tokens_to_keep == 1
            and processor.filter_value == -math.inf
        ):
            top_p = max(float(processor.top_p), _SMALLEST_NUCLEUS)
        else:
            remedy = _REMEDIES.get(kind.__name__, "leave it out")
            raise InputError(
                "speculate knows temperature, then top_p, and cannot apply "
                f"{kind.__name__}; {remedy}, {_OR_PLAIN}"
            )
    return temperature, top_p


def _prompts(
    input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None
) -> list[list[int]]:
    """Each row's token ids without its left padding."""
    prompts = []
    for row, ids in enumerate(input_ids.tolist()):
        seen = [1] * len(ids) if attention_mask is None else attention_mask[row].tolist()
        count = sum(map(bool, seen))
        if count == 0 or not all(seen[-count:]):
            raise InputError(
                f"row {row}: attention_mask must be zeros (left padding), then at least one 1; "
                "tokenize with padding_side='left'"
            )
        if position_ids is not None:
            positions = position_ids[row % len(position_ids), ..., -count:]
            if positions.tolist() != list(range(count)):
                raise InputError("speculate counts positions itself; leave position_ids out")
        prompts.append(ids[-count:])
    return prompts


def _endings(criteria: Any, width: int) -> tuple[frozenset[int], int, Any]:
    """End tokens, room and the other criteria, from those `generate` made and the user's."""
    eos_ids: set[int] = set()
    lengths: list[int] = []
    others = StoppingCriteriaList()
    for criterion in criteria:
        if type(criterion) is EosTokenCriteria:
            eos_ids.update(criterion.eos_token_id.tolist())
        elif type(criterion) is MaxLengthCriteria:
            lengths.append(criterion.max_length)
        else:
            others.append(criterion)
    # Whatever the limit, `generate` adds a token before it asks.
    return frozenset(eos_ids), max(1, min(lengths) - width), others


def _check_rows(rows: int, batch: int, eos_ids: frozenset[int], others: Any, streamer: Any) -> None:
    """Raise InputError for what rows that do not run in step cannot reproduce."""
    if streamer is not None:
        raise InputError(f"a streamer takes one row, not {rows}")
    if rows > batch and any(isinstance(criterion, MaxTimeCriteria) for criterion in others):
        raise InputError(f"max_time bounds rows that run at once; pass speculate(batch={rows})")
    if others and not eos_ids:  # plain generate then goes on in rows that have stopped
        raise InputError("stopping criteria for several rows need an eos_token_id as well")


class GrowingReply:
    """One row's reply as it grows, shown to the stopping criteria and the streamer.

    stop: tokens to keep of what the engine decoded, None for all.
    """

    def __init__(self, call: Call, prompt: Tensor) -> None:
        self.call = call
        self.start = self.length = prompt.shape[0]
        self.ids = torch.cat([prompt, prompt.new_zeros(call.room)])[None]
        self.stop: int | None = None

    def take(self, tokens: list[int]) -> bool:
        """Add a round's tokens up to the first that ends the reply; True if there is one."""
        # As in `generate`: ordinary tensors, the criteria first, then the streamer.
        with torch.inference_mode(False), torch.no_grad():
            for token in tokens:
                self.ids[0, self.length] = token
                self.length += 1
                over = bool(self.call.others(self.ids[:, : self.length], None).any())
                if self.call.streamer is not None:
                    self.call.streamer.put(torch.tensor([token]))
                if over:
                    self.stop = self.length - self.start
                    return True
        return False


def sequences_of(input_ids: Tensor, replies: list[list[int]], config: Any) -> Tensor:
    """[B, W + longest reply], as `generate` returns them: shorter replies padded on the right."""
    width, longest = input_ids.shape[1], max(map(len, replies))
    pad = config.pad_token_id
    if pad is None:  # transformers, too, then pads with the first end token
        eos = config.eos_token_id
        pad = eos[0] if isinstance(eos, list) else eos
    if pad is None and min(map(len, replies)) < longest:
        raise InputError("replies of different lengths need a pad_token_id")
    sequences = input_ids.new_full((len(replies), width + longest), pad or 0)
    sequences[:, :width] = input_ids
    for row, reply in enumerate(replies):
        sequences[row, width : width + len(reply)] = input_ids.new_tensor(reply)
    return sequences
