"""Offers of a look-up at every position of a reply: they need no model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from real_backend.drafters.drafter import Index
from real_backend.recording.offers import Offers
from traces.schema import RANK_UNKNOWN


def of_lookup(index: Index, prompt: Sequence[int], reply: Sequence[int], depth: int) -> Offers:
    """index: an empty one. Greedy or sampled, what is looked up is certain, so the target takes it
    as far as it is the reply: a token of probability 1 that the target gave p is accepted with
    probability p, and then is what was drawn.
    """
    length = len(reply)
    accept_len, draft_len = np.zeros(length, dtype=np.int16), np.zeros(length, dtype=np.int16)
    rank = np.full(length, RANK_UNKNOWN, dtype=np.int16)
    shares = np.zeros((length, depth), dtype=np.float32)
    entropy = np.zeros((length, depth), dtype=np.float32)
    index.extend(prompt)
    for at, token in enumerate(reply):
        found = index.find(depth)
        offered = len(found.tokens)
        draft_len[at] = offered
        shares[at, :offered], entropy[at, :offered] = found.shares, found.entropy
        pairs = zip(found.tokens, reply[at:], strict=False)
        differ = (k for k, (ours, theirs) in enumerate(pairs) if ours != theirs)
        accept_len[at] = next(differ, min(offered, length - at))
        if accept_len[at] > 0:
            rank[at] = 0
        index.extend([token])
    return Offers(accept_len, shares, entropy, rank, draft_len=draft_len)
