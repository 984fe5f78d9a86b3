"""The offers at every position of a reply, as columns of a trace."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from traces.schema import RANK_UNKNOWN

FloatArray = npt.NDArray[np.float32]


class Offers(NamedTuple):
    """Columns of traces.schema.Trace, of one reply."""

    accept_len: npt.NDArray[np.int16]
    top1_prob: FloatArray
    entropy: FloatArray
    target_rank: npt.NDArray[np.int16]
    accept_prob: FloatArray | None = None
    draft_len: npt.NDArray[np.int16] | None = None
    level_rank: npt.NDArray[np.int16] | None = None


def ranks(logits: Tensor, tokens: Tensor) -> npt.NDArray[np.int16]:
    """[L] how many tokens stand before each of tokens [L] in its logits [L, V]; of equals the lower
    id stands first. RANK_UNKNOWN where the token cannot be proposed at all.
    """
    own = logits.gather(-1, tokens[:, None])
    lower = logits.new_ones(logits.shape).cumsum(-1) - 1 < tokens[:, None]
    before = (logits > own) | ((logits == own) & lower)
    found = before.sum(-1).clamp(max=RANK_UNKNOWN)
    found = found.masked_fill(own[:, 0].isneginf(), RANK_UNKNOWN)
    return found.cpu().numpy().astype(np.int16)
