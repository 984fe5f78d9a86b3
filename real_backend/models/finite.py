"""Logits that are NaN or infinite: noticed where tokens are chosen, named once a reply.

An arg-max over NaN is a token like any other, so nothing else would notice. The values that tokens
were chosen by go into a running sum, which NaN and infinity never leave; it is read once a reply,
behind the last read-back, so that no round waits for it. The place is sought only then, in a second
pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from real_backend.decoding.verify import distribution
from traces.errors import InputError

if TYPE_CHECKING:
    from real_backend.models.pair import Pair


class Watch:
    """Chooses tokens of one model's logits [..., V] and remembers if any were not finite."""

    def __init__(self, device: str) -> None:
        self.sum = torch.zeros((), device=device)

    def best(self, logits: Tensor, out: Tensor | None = None) -> Tensor:
        """The arg-max [...], of equals the first; NaN and +inf win over every number. out: int64
        [...] that it is written to.
        """
        tokens = logits.argmax(-1) if out is None else torch.argmax(logits, -1, out=out)
        self.note(logits.gather(-1, tokens[..., None]))
        return tokens

    def probs(self, logits: Tensor, temperature: float, top_p: float) -> Tensor:
        """verify.distribution, watched: a row with NaN or +inf is NaN in every place."""
        probs = distribution(logits, temperature, top_p)
        self.note(probs[..., 0])
        return probs

    def note(self, values: Tensor) -> None:
        """Remember it if one of these is not finite."""
        self.sum += values.sum(dtype=torch.float32)

    def broken(self) -> bool:
        """True if something was not finite since the last time this was asked."""
        if math.isfinite(float(self.sum)):
            return False
        self.sum.zero_()
        return True


def check_finite(pair: Pair, read: Mapping[str, Sequence[int]]) -> None:
    """Raise InputError naming model, place and remedy if tokens were chosen by NaN or infinity
    since the last call. read: what was read meanwhile, token ids by the name of the request.
    """
    drafter = pair.drafter
    if pair.target.watch.broken():
        raise InputError(_told("target", pair.target.module, pair.dtype, read))
    if drafter.watch is not None and drafter.watch.broken():
        raise InputError(_told("draft", drafter.modules[0], pair.dtype, read))


@torch.inference_mode()
def _told(role: str, module: Any, dtype: str, read: Mapping[str, Sequence[int]]) -> str:
    said = f"the {role} says NaN or infinity in place of logits ({dtype})"
    places = (_place(module, name, ids) for name, ids in read.items())
    said += ", " + next(filter(None, places), f"in request {', '.join(read)}")
    remedy = "an undamaged checkpoint" if dtype == "float32" else "--dtype float32"
    named = module.named_parameters()
    weight = next((name for name, values in named if not values.isfinite().all()), None)
    cause = f"; its weight {weight} is not finite" if weight else ""
    return f"{said}{cause}; try {remedy} or another pair"


def _place(module: Any, name: str, ids: Sequence[int]) -> str | None:
    """Token and layer from which one pass over these ids is not finite; None if all of it is."""
    if not isinstance(module, PreTrainedModel):  # heads have no forward over tokens alone
        return None
    tokens = torch.tensor([list(ids)], device=module.device)
    try:
        output = module(input_ids=tokens, output_hidden_states=True, use_cache=False)
    except RuntimeError:  # no memory for the states of every layer: the model is named all the same
        return None
    layers = len(output.hidden_states) - 1
    names = ["embedding", *(f"layer {k + 1} of {layers}" for k in range(layers)), "the head"]
    # By layer first: attention multiplies what it must not see by 0, and 0 times NaN is NaN, so
    # that behind its source it stands at every token.
    sizes = [state[0].abs().amax(-1) for state in output.hidden_states]
    sizes.append(output.logits[0].amax(-1))  # -inf is how some heads leave a token out
    for layer, largest in zip(names, sizes, strict=True):
        bad = ~largest.isfinite()
        if bad.any():
            at = int(bad.long().argmax()) + 1
            return f"first at token {at} of request {name}, from {layer} on"
    return None
