"""Logits that were NaN or infinite: model, place and remedy, named once a reply.

The place is sought only then, in a second pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from real_backend.load_pair import Pair
from traces.errors import InputError


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
