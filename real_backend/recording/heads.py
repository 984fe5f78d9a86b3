"""The offers of heads over the target's states at every position of a reply.

Behind its first token a draft of a head goes on from states of its own, so that the continuation
of every start is another one: all starts are rolled out, in one batch. Greedy, a start's draft is
taken as far as it is the reply. Sampled, the reply came of the target's law p alone; given its
token y, the token drafted for it from q is y, and accepted, with probability min(1, q(y) / p(y)),
and else one of the residual (q - p)+ that was rejected. One number a position decides, whatever the
start: a replay judges every position in one round only.

Letters: L reply tokens, P prompt tokens, G depth, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from real_backend.decoding.verify import draw, residual, signals
from real_backend.drafters.block import BlockDrafter
from real_backend.drafters.eagle3 import Eagle3Drafter, Eagle3Head
from real_backend.load_pair import Pair
from real_backend.models.finite import Watch
from real_backend.models.kvcache import LeanReader
from real_backend.prompts import Request
from real_backend.recording.coupling import CaptureSettings, Decoded, draw_uniforms, judged
from real_backend.recording.offers import FloatArray, Offers, ranks
from real_backend.recording.rollout import roll_out
from traces.errors import InputError
from traces.schema import RANK_UNKNOWN


class HeadReader:
    """A head and its cache as a draft's (models.kvcache.Reader), whose tokens are read with
    `feature` [N, E], and which goes on from its own states.
    """

    def __init__(self, head: Eagle3Head, capacity: int, feature: Tensor) -> None:
        self.head, self.capacity, self.feature = head, capacity, feature
        self.reader = LeanReader(head, capacity, 1)
        self.states, self.held = feature, capacity

    def read(
        self,
        tokens: Tensor,
        start: int,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        last: int | None = None,
    ) -> Tensor:
        """Logits [1, T, V] of the target's vocabulary."""
        self.head.feature = self.feature
        logits = self.reader.read(tokens, start, positions, mask, last)
        kept = self.head.states if last is None else self.head.states[-last:]
        self.feature = self.states = kept.clone()
        return self.head.spread(logits)


class Coupling:
    """Which drafted tokens of every start are taken, step by step."""

    def __init__(
        self,
        pair: Pair,
        watch: Watch,
        request: Request,
        decoded: Decoded,
        settings: CaptureSettings,
        laws: Tensor | None,
    ) -> None:
        """laws [L, V]: the target's, None if greedy."""
        length = len(decoded.tokens)
        self.watch, self.settings, self.laws = watch, settings, laws
        self.reply = torch.tensor(decoded.tokens, device=pair.device)
        stream = judged(request.request_id)
        self.uniforms = draw_uniforms(settings.seed, stream, length, settings.depth)
        self.going = torch.ones(length, dtype=torch.bool, device=pair.device)
        self.accept_len = torch.zeros(length, dtype=torch.long, device=pair.device)
        self.labels = torch.full((length, settings.depth), torch.nan, device=pair.device)

    def choose(self, logits: Tensor, at: npt.NDArray[np.int64], step: int) -> tuple[Tensor, Tensor]:
        """Tokens [L] of the draft's logits [L, V] at this depth of every start, and their laws."""
        length = len(self.reply)
        place = torch.arange(length, device=logits.device) + step
        inside = place < length
        place = place.clamp(max=length - 1)
        meant = self.reply[place]
        if self.laws is None:
            tokens, probs = self.watch.best(logits), torch.softmax(logits.float(), -1)
            taken = tokens == meant
        else:
            probs = self.watch.probs(logits, self.settings.temperature, self.settings.top_p)
            tokens, taken = self._sampled(probs, place, inside, meant, step)
        self.going &= taken & inside
        self.accept_len += self.going
        return tokens, probs

    def _sampled(
        self, probs: Tensor, place: Tensor, inside: Tensor, meant: Tensor, step: int
    ) -> tuple[Tensor, Tensor]:
        assert self.laws is not None
        laws = self.laws[place]
        ours, theirs = (law.gather(-1, meant[:, None])[:, 0].double() for law in (laws, probs))
        decide = torch.from_numpy(self.uniforms.path[:, 1]).to(place.device)[place]
        taken = decide < (theirs / ours).clamp(max=1.0)
        numbers = torch.from_numpy(self.uniforms.branch[: len(place), step]).to(place.device)
        judged = self.going & inside
        rejected = judged & ~taken
        law = torch.where(rejected[:, None], residual(probs, laws), probs)
        tokens = torch.where(judged & taken, meant, draw(law, numbers))
        ratio = laws.gather(-1, tokens[:, None]) / probs.gather(-1, tokens[:, None])
        label = ratio[:, 0].clamp(max=1.0).float()
        self.labels[:, step] = torch.where(judged, label, self.labels[:, step])
        return tokens, taken

    def ranks_at(self, logits: Tensor, step: int) -> npt.NDArray[np.int16]:
        """[L] ranks of the reply's tokens in logits [L, V] of this depth of every start;
        RANK_UNKNOWN behind the reply.
        """
        place = torch.arange(len(self.reply), device=logits.device) + step
        found = ranks(logits, self.reply[place.clamp(max=len(self.reply) - 1)])
        found[max(0, len(self.reply) - step) :] = RANK_UNKNOWN
        return found

    def offers(self, seen: FloatArray, level_rank: Sequence[npt.NDArray[np.int16]]) -> Offers:
        """The columns; seen [L, G, 2]: signals; level_rank: G times [L]."""
        return Offers(
            accept_len=self.accept_len.cpu().numpy().astype(np.int16),
            top1_prob=np.ascontiguousarray(seen[:, :, 0]),
            entropy=np.ascontiguousarray(seen[:, :, 1]),
            target_rank=level_rank[0],
            accept_prob=None if self.laws is None else self.labels.cpu().numpy(),
            level_rank=np.stack(level_rank, axis=1),
        )


def _target(
    pair: Pair, request: Request, decoded: Decoded, settings: CaptureSettings
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Prompt and reply [P + L], the target's states there, and its laws [L, V] if sampled."""
    ids = torch.tensor([request.prompt_ids + decoded.tokens], device=pair.device)
    reader = pair.target.reader(ids.shape[1])
    greedy = settings.temperature == 0.0
    logits = reader.read(ids, 0, last=1 if greedy else len(decoded.tokens) + 1)
    if greedy:
        return ids[0], reader.states, None
    logits = logits[0, :-1, : pair.vocab_size]
    laws = pair.target.watch.probs(logits, settings.temperature, settings.top_p)
    return ids[0], reader.states, laws


def of_eagle3(
    pair: Pair,
    drafter: Eagle3Drafter,
    request: Request,
    decoded: Decoded,
    settings: CaptureSettings,
) -> Offers:
    """A dense rollout from every position. Raises InputError for a prompt of one token, behind
    which there is nothing to draft from.
    """
    length, prompt, depth = len(decoded.tokens), len(request.prompt_ids), settings.depth
    if prompt < 2:
        raise InputError(f"request {request.request_id}: heads need a prompt of two tokens or more")
    ids, states, laws = _target(pair, request, decoded, settings)
    coupling = Coupling(pair, drafter.watch, request, decoded, settings, laws)
    read = prompt + length - 2  # tokens behind the first one, but the reply's last
    reader = HeadReader(drafter.head, read + depth * length, drafter.head.fuse(states[:read]))
    logits = reader.read(ids[None, 1 : read + 1], 0, last=length)[0, :, : pair.vocab_size]
    at = np.arange(length)
    states_read = reader.feature
    first, probs = coupling.choose(logits, at, 0)

    def choose(row: Tensor, at: npt.NDArray[np.int64], step: int) -> tuple[Tensor, Tensor]:
        return coupling.choose(row[:, : pair.vocab_size], at, step)

    # A token of the head stands one place before that of the target's.
    branches = roll_out(reader, prompt - 1, at, first, depth, choose, drafter.max_context)
    seen = np.concatenate([signals(probs).cpu().numpy()[:, None], branches.signals], axis=1)
    found = [coupling.ranks_at(logits, 0)]

    def follow(row: Tensor, at: npt.NDArray[np.int64], step: int) -> tuple[Tensor, Tensor]:
        found.append(coupling.ranks_at(row[:, : pair.vocab_size], step))
        place = (torch.from_numpy(at).to(row.device) + step).clamp(max=length - 1)
        return coupling.reply[place], torch.softmax(row.float(), -1)

    reader.feature = states_read
    roll_out(reader, prompt - 1, at, coupling.reply, depth, follow, drafter.max_context)
    return coupling.offers(seen, found)


def of_block(
    pair: Pair,
    drafter: BlockDrafter,
    request: Request,
    decoded: Decoded,
    settings: CaptureSettings,
) -> Offers:
    """One forward over the states before every position. The first one of a prompt of one token
    has none: nothing is drafted there.
    """
    length, prompt = len(decoded.tokens), len(request.prompt_ids)
    _, states, laws = _target(pair, request, decoded, settings)
    coupling = Coupling(pair, drafter.watch, request, decoded, settings, laws)
    unread = int(prompt == 1)
    read = states[prompt - 2 + unread : prompt - 2 + length]
    read = torch.cat([states.new_zeros(unread, states.shape[1]), read])
    blocks = drafter.module(read)[..., : pair.vocab_size]
    coupling.going[:unread] = False
    seen, found = [], []
    for step in range(settings.depth):
        found.append(coupling.ranks_at(blocks[:, step], step))
        found[-1][:unread] = RANK_UNKNOWN
        _, probs = coupling.choose(blocks[:, step], np.arange(length), step)
        seen.append(signals(probs).cpu().numpy())
    offered = np.full(length, settings.depth, dtype=np.int16)
    offered[:unread] = 0
    return coupling.offers(np.stack(seen, axis=1), found)._replace(draft_len=offered)
