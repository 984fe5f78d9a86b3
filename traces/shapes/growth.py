"""Trees that grow by the draft's own probabilities, recorded at every position of a trace.

A tree grows level by level: of a level's candidates the `beam` likeliest, by the product of the
draft's probabilities on the way, are read by the draft, and each offers its `beam` likeliest tokens
as candidates of the next level. The target then reads the beam of every level, or, as EAGLE-2 does,
the likeliest n of all candidates. Source: Li et al., EAGLE-2, arXiv 2406.16858, section 4 (expand,
rerank); Wang et al., OPT-Tree, arXiv 2406.17276, grows likewise and stops where a level adds too
little, which here is a controller's decision.

How such a tree meets a greedy reply is decided by how many candidates of each level were likelier
than the reply's own node: so one recording replays every n and every depth. The beam's width it
does not leave open, for what a wider beam crowds out a narrower one reads. Letters as in
traces.schema; D levels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.errors import InputError
from traces.schema import Trace
from traces.shapes.shape import Grown
from traces.store import write_atomically

OUTSIDE = 32_767  # the reply's node is no candidate
_KIND = "gammalab growth 1"
_ARRAYS = ("before", "share", "entropy")


@dataclasses.dataclass(frozen=True)
class Growth:
    """A recording's grown trees.

    beam: of every level. offsets [R + 1] as the trace's. before [N, D, D] int16: of a tree grown at
    each position, candidates of level m (last axis) that are likelier than the reply's own node of
    level l, or come first where they are as likely; OUTSIDE where that is no candidate. share
    [N, D] float32: the beam's probability over that of the level above, the draft's own belief that
    the reply goes on through this level. entropy [N, D] float32, nats: of the distribution behind
    the likeliest node of the level above.
    reply: hash of the recording's tokens.
    """

    beam: int
    offsets: npt.NDArray[np.int64]
    before: npt.NDArray[np.int16]
    share: npt.NDArray[np.float32]
    entropy: npt.NDArray[np.float32]
    reply: str

    @property
    def depth(self) -> int:
        """D: the deepest tree that it replays."""
        return int(self.before.shape[1])

    def select(self, rows: npt.NDArray[np.intp] | list[int]) -> Growth:
        """Of the chosen requests, in the given order, as Trace.select."""
        parts = [np.arange(self.offsets[r], self.offsets[r + 1]) for r in map(int, rows)]
        index = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum([len(p) for p in parts])]).astype(np.int64)
        picked = {name: getattr(self, name)[index] for name in _ARRAYS}
        return dataclasses.replace(self, offsets=offsets, **picked)

    def reach(self, trace: Trace, rule: Grown) -> npt.NDArray[np.int16]:
        """[N] levels that a round of the whole tree accepts; where the reply's limit leaves room
        for fewer levels, of the tree of these. trace: the rows that this is about.
        """
        depth, before = rule.depth, self.before[:, : rule.depth, : rule.depth].astype(np.int32)
        levels = np.arange(depth)
        if rule.nodes_wanted == 0:
            inside = before[:, levels, levels] < self.beam
        else:
            order = np.cumsum(before, axis=2)  # candidates of the first m levels that come first
            cut = np.clip(_room(trace), 0, depth)[:, None]
            first = np.take_along_axis(order, np.maximum(cut - 1, 0)[:, None], axis=2)[..., 0]
            inside = (first < rule.nodes_wanted) & (levels < cut)
        return np.asarray(np.cumprod(inside, axis=1).sum(axis=1), dtype=np.int16)


def _room(trace: Trace) -> npt.NDArray[np.int64]:
    """[N] tokens that may be drafted at each position by the limits of the recording."""
    meta = trace.meta
    longest = np.full(trace.requests, meta.max_new_tokens, dtype=np.int64)
    if meta.max_context > 0:
        longest = np.minimum(longest, meta.max_context - trace.prompt_tokens)
    position = np.arange(trace.positions) - np.repeat(trace.offsets[:-1], trace.reply_tokens)
    return np.asarray(np.repeat(longest, trace.reply_tokens) - position - 1)


def hash_of_reply(trace: Trace) -> str:
    """Hash of a recording's tokens. Raises InputError if it has none."""
    if trace.token_ids is None:
        raise InputError("the trace has no token_ids: trees cannot be grown along its replies")
    return hashlib.sha256(np.ascontiguousarray(trace.token_ids).tobytes()).hexdigest()


def write_growth(path: Path, growth: Growth, overwrite: bool = False) -> None:
    """Into an npz file. Raises InputError as traces.store.write_atomically."""
    header = json.dumps({"kind": _KIND, "beam": growth.beam, "reply": growth.reply})
    arrays = {name: getattr(growth, name) for name in ("offsets", *_ARRAYS)}

    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, header=np.asarray(header), **arrays)
    write_atomically(path, lambda file: file.write_bytes(buffer.getvalue()), overwrite)


def read_growth(path: Path, trace: Trace) -> Growth:
    """The grown trees of this recording. Raises InputError if the file is missing, damaged, foreign
    or another recording's.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with np.load(path) as file:
            header = json.loads(str(file["header"]))
            arrays = {name: file[name] for name in ("offsets", *_ARRAYS)}
        if header["kind"] != _KIND:
            raise KeyError(header["kind"])
        growth = Growth(beam=int(header["beam"]), reply=str(header["reply"]), **arrays)
    except Exception as error:  # zip, npy and JSON each raise their own
        raise InputError(
            f"{path} is no file of grown trees, or a damaged one ({type(error).__name__}); make "
            "it with `python -m real_backend.trees.grow`"
        ) from None
    return _checked(path, growth, trace)


def _checked(path: Path, growth: Growth, trace: Trace) -> Growth:
    count, depth = trace.positions, growth.before.shape[1:2]
    expected: dict[str, tuple[tuple[Any, ...], str]] = {
        "offsets": ((trace.requests + 1,), "int64"),
        "before": ((count, *depth, *depth), "int16"),
        "share": ((count, *depth), "float32"),
        "entropy": ((count, *depth), "float32"),
    }
    if growth.reply != hash_of_reply(trace):
        raise InputError(f"{path}: these trees were grown along the replies of another recording")
    for name, (shape, kind) in expected.items():
        array = getattr(growth, name)
        if array.shape != shape or array.dtype != kind or not depth:
            raise InputError(f"{path}: {name} is {array.dtype}{list(array.shape)}, not {kind}")
    sound = growth.beam >= 1 and (growth.before >= 0).all() and (growth.entropy >= 0.0).all()
    sound = sound and ((growth.share >= 0.0) & (growth.share <= 1.0)).all()
    if not sound or (growth.offsets != trace.offsets).any():
        raise InputError(f"{path}: beam, offsets, counts, shares or entropies are out of range")
    return growth
