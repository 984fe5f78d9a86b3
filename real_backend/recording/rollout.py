"""The draft's signals G steps deep from every position, in one pass and G - 1 small ones.

Letters: P prompt tokens, L reply tokens, G depth, M branches. At position i the draft proposes a
token; let j be the first position at or after i whose proposal is rejected. Up to and including j
the draft is on the reply's own path, so one teacher-forced pass over the reply yields its laws
there. Behind j it follows its rejected proposal, and that continuation is the same for every start
whose accepted run ends at j: one rollout per rejected position serves them all. All rollouts of a
reply advance together, one forward per depth, each branch seeing its own prefix and itself. The
position behind the reply's end counts as a rejected one: a round may draft past the end of the
reply.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from real_backend.decoding.verify import signals
from real_backend.models.kvcache import Reader

Choose = Callable[[Tensor, npt.NDArray[np.int64], int], tuple[Tensor, Tensor]]
"""(logits [M, V], positions [M], depth) -> (tokens [M], laws [M, V] that signals are taken
from).
"""

FloatArray = npt.NDArray[np.float32]


class Branches(NamedTuple):
    """Rollouts of M rejected positions: at [M], signals [M, G - 1, 2] and tokens [M, G - 1] from
    depth 1 on.
    """

    at: npt.NDArray[np.int64]
    signals: FloatArray
    tokens: npt.NDArray[np.int64]


def roll_out(
    draft: Reader,
    prompt: int,
    at: npt.NDArray[np.int64],
    first: Tensor,
    depth: int,
    choose: Choose,
    max_context: int = 0,
) -> Branches:
    """Follow the rejected proposals `first` [M], made at reply positions `at` [M], to depth G.

    The draft's cache must hold prompt and reply. Depth 0 of a branch is known from the
    teacher-forced pass; here come depths 1..G-1.
    """
    branches, device = len(at), first.device
    found = np.zeros((branches, max(depth - 1, 0), 2), dtype=np.float32)
    drafted = np.zeros((branches, max(depth - 1, 0)), dtype=np.int64)
    reply_end = prompt + int(at.max()) if branches else prompt
    prefix = torch.from_numpy(prompt + at).to(
        device
    )  # tokens a branch sees of the reply, its own off
    shared = torch.arange(reply_end, device=device)[None] < prefix[:, None]  # (M, reply_end)
    own = torch.eye(branches, dtype=torch.bool, device=device)
    tokens = first
    for step in range(1, depth):
        if not branches:
            break
        mask = torch.cat([shared, own.repeat(1, step)], dim=1)[None, None]  # (1, 1, M, S)
        positions = (prefix + step - 1)[None]
        if max_context:  # no round can draft there, but an absolute embedding must not overflow
            positions = positions.clamp(max=max_context - 1)
        start = reply_end + (step - 1) * branches
        logits = draft.read(tokens[None], start, positions, mask)[0]
        tokens, probs = choose(logits, at, step)
        found[:, step - 1] = signals(probs).cpu().numpy()
        drafted[:, step - 1] = tokens.cpu().numpy()
    return Branches(at, found, drafted)


def spread(
    on_path: FloatArray, accept_len: npt.NDArray[np.int16], branches: Branches
) -> FloatArray:
    """Dense [L, G, 2] signals from every start.

    on_path [L + 1, 2]: depth-0 signals at every position and behind the end; accept_len [L];
    branches.at holds every rejected position and L, ascending.
    """
    replies, depth = len(accept_len), branches.signals.shape[1] + 1
    start = np.arange(replies)
    rejected = start + accept_len  # j of every start; L where the run reaches the end
    row = np.searchsorted(branches.at, rejected)
    dense = np.empty((replies, depth, 2), dtype=np.float32)
    for k in range(depth):
        on = start + k <= rejected
        dense[on, k] = on_path[(start + k)[on]]
        off = ~on
        dense[off, k] = branches.signals[row[off], (start + k - rejected - 1)[off]]
    return dense
