"""Trace: what the draft would propose and the target accept, from every position of every reply.

Letters: R requests, N output positions in all, G = depth of the captured draft signals. Request r
owns positions offsets[r]:offsets[r+1]. *Position i* means: output tokens before i are fixed, a
round starts here. A round at i that drafts d tokens accepts n = min(d, accept_len[i]), emits n + 1
(clipped at the end of the reply), and the next round starts behind what was emitted. That single
rule replays any chain drafter.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.errors import InputError
from traces.shapes.shape import parse_draft

EXACTNESS = {
    "exact": "greedy: output independent of gamma, a replay equals the real run round by round",
    "in-law": "sampled on one coupled path: accepted lengths have the law of a real run",
    "censored": "recorded with a bounded draft: fully accepted rounds give only a lower bound",
    "imputed": "a censored trace whose unknown acceptances were filled in; its source says how",
    "synthetic": "drawn from a known acceptance law, no model behind it",
}

DRAFTERS = {
    "model": "an independent model, one forward per token",
    "lookup": "n-grams looked up in prompt and output",
    "suffix": "the longest repeated suffix of prompt and output, and what followed it most often",
    "eagle3": "a feature head over the target's states, one forward per token",
    "block": "heads over the target's states, one forward for all tokens",
}

DEEPEST = 4096  # tokens; a table of costs has a column for each
OPTIONAL: dict[str, type] = dict.fromkeys(("draft_len", "target_rank", "level_rank"), np.int16)
OPTIONAL["target_entropy"] = np.float32  # columns that a file may lack as a whole, and their types
RANK_UNKNOWN = _INT16_MAX = 32_767
_LARGEST = 2**31 - 1
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "a text"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "dict[str, str]": ((dict,), "an object"),
    "dict[str, Any]": ((dict,), "an object"),
}


class TraceError(InputError):
    """A trace (file or arrays) that breaks the schema; the message names field and remedy."""


@dataclasses.dataclass(frozen=True)
class TraceMeta:
    """Where a trace comes from. Every field is written into the file and printed in reports.

    depth: the deepest draft a replay of this trace may ask for (G where signals were captured).
    max_new_tokens: the reply limit of the capture; a server knows it, so policies may see it as
        room.
    max_context: context limit of the pair, tokens (0: none known). temperature 0 means greedy. seed
        drives every random draw of the capture.
    weights_sha256: a fingerprint of both models' weights, so that a retrained pair is not taken for
        the same.
    source: of an imported trace: format, what was rebuilt, merged, mended, JSON-ready; else empty.
    drafter: the kind of drafter, one of DRAFTERS.
    shape: of a recording under a draft tree (traces.shapes.unfold), as traces.shapes.shape.
        parse_draft reads it: then a token that is drafted stands for a level. Else empty.
    """

    pair: str
    target: str
    draft: str
    tokenizer_sha256: str
    device: str
    dtype: str
    exactness: str
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    depth: int = 16
    max_new_tokens: int = 128
    max_context: int = 0
    prompts_sha256: str = ""
    weights_sha256: str = ""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    source: dict[str, Any] = dataclasses.field(default_factory=dict)
    drafter: str = "model"
    shape: str = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            kinds, words = _KINDS[str(field.type)]
            value = getattr(self, field.name)
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise TraceError(f"meta.{field.name} must be {words}, not {value!r}")
        for name, known in (("exactness", EXACTNESS), ("drafter", DRAFTERS)):
            if (value := getattr(self, name)) not in known:
                raise TraceError(f"meta.{name} is {value!r}; it must be one of {', '.join(known)}")
        if self.shape and parse_draft(self.shape).depth != self.depth:
            raise TraceError(f"meta.shape is {self.shape!r}; meta.depth {self.depth} is not its")
        for name, low, high in (
            ("depth", 1, DEEPEST),
            ("max_new_tokens", 1, _LARGEST),
            ("max_context", 0, _LARGEST),
            ("temperature", 0.0, 1e6),
            ("top_p", 0.0, 1.0),
        ):
            if not low <= getattr(self, name) <= high:  # NaN is nowhere
                raise TraceError(
                    f"meta.{name} is {getattr(self, name)!r}; it must be {low} to {high:.10g}"
                )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields, in a fixed order; an empty source, a drafter that is a model and no
        shape are left out.
        """
        usual = {"source": {}, "drafter": "model", "shape": ""}
        raw = dataclasses.asdict(self)
        return {name: value for name, value in raw.items() if value != usual.get(name, ...)}

    @staticmethod
    def from_dict(raw: Any) -> TraceMeta:
        """Inverse of to_dict; unknown or missing fields raise TraceError naming them."""
        if not isinstance(raw, dict):
            raise TraceError("field meta must be an object")
        known = {f.name for f in dataclasses.fields(TraceMeta)}
        unknown = sorted(set(raw) - known)
        if unknown:
            raise TraceError(f"meta has unknown field {unknown[0]!r}; written by a newer GammaLab?")
        try:
            return TraceMeta(**raw)
        except TypeError as error:
            raise TraceError(f"meta is incomplete: {error}") from None


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """The arrays of one recording; see the module docstring for the letters.

    meta: where it comes from, and how exact it is.
    offsets [R + 1] int64: request r owns positions offsets[r]:offsets[r + 1].
    prompt_tokens [R] int32: tokens of its prompt.
    request_id, category: R strings.
    accept_len [N] int16: drafted tokens the target would accept if a round started here.
    token_ids [N] int32 or None: the replies themselves.
    top1_prob, entropy [N, G] float32 or None: what the draft sees at each depth of its own
        continuation from here; entropy in nats.
    accept_prob [N, G] float32 or None: min(1, p/q) of the proposed token, NaN behind the first
        rejection; known only after verification, never a feature.
    censored [N] bool or None: true where accept_len is only a lower bound: what follows was never
        proposed to the target.
    draft_len [N] int16 or None: tokens the drafter had to offer here (look-up, block); None: as
        many as asked.
    target_rank [N] int16 or None: the rank of the target's token in the drafter's distribution of
        the next token here, 0 if it is the first; RANK_UNKNOWN also where it cannot be proposed.
    level_rank [N, G] int16 or None: of heads, the same k deep in a draft that follows the reply.
    target_entropy [N] float32 or None: entropy of the target's distribution that the token was
        taken from, nats; known to a server once the token is out.
    """

    meta: TraceMeta
    offsets: npt.NDArray[np.int64]
    prompt_tokens: npt.NDArray[np.int32]
    request_id: tuple[str, ...]
    category: tuple[str, ...]
    accept_len: npt.NDArray[np.int16]
    token_ids: npt.NDArray[np.int32] | None = None
    top1_prob: npt.NDArray[np.float32] | None = None
    entropy: npt.NDArray[np.float32] | None = None
    accept_prob: npt.NDArray[np.float32] | None = None
    censored: npt.NDArray[np.bool_] | None = None
    draft_len: npt.NDArray[np.int16] | None = None
    target_rank: npt.NDArray[np.int16] | None = None
    level_rank: npt.NDArray[np.int16] | None = None
    target_entropy: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        check_arrays(self)

    @property
    def requests(self) -> int:
        """R."""
        return len(self.request_id)

    @property
    def positions(self) -> int:
        """N."""
        return int(self.offsets[-1])

    @property
    def has_signals(self) -> bool:
        """True if per-token controllers can be replayed."""
        return self.top1_prob is not None and self.entropy is not None

    @property
    def offered(self) -> npt.NDArray[np.int16]:
        """[N] draft_len; the largest number where the drafter has as many as asked."""
        if self.draft_len is not None:
            return self.draft_len
        return np.full(self.positions, _INT16_MAX, dtype=np.int16)

    @property
    def reply_tokens(self) -> npt.NDArray[np.int64]:
        """[R] output length of each request, tokens."""
        return np.diff(self.offsets)

    @property
    def longest_context(self) -> int:
        """Tokens of the longest request, prompt and reply."""
        return int((self.prompt_tokens + self.reply_tokens).max())

    def select(self, rows: npt.NDArray[np.intp] | list[int]) -> Trace:
        """The trace of the chosen requests, in the given order."""
        keep = [int(r) for r in rows]
        parts = [np.arange(self.offsets[r], self.offsets[r + 1]) for r in keep]
        index = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

        def pick(array: Any) -> Any:
            return None if array is None else array[index]

        return Trace(
            meta=self.meta,
            offsets=np.concatenate([[0], np.cumsum([len(p) for p in parts])]).astype(np.int64),
            prompt_tokens=self.prompt_tokens[keep],
            request_id=tuple(self.request_id[r] for r in keep),
            category=tuple(self.category[r] for r in keep),
            accept_len=self.accept_len[index],
            token_ids=pick(self.token_ids),
            top1_prob=pick(self.top1_prob),
            entropy=pick(self.entropy),
            accept_prob=pick(self.accept_prob),
            censored=pick(self.censored),
            **{name: pick(getattr(self, name)) for name in OPTIONAL},
        )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise TraceError(message)


def check_arrays(trace: Trace) -> None:
    """Raise TraceError at the first array that breaks the schema; O(N)."""
    requests, offsets = len(trace.request_id), trace.offsets
    _require(
        offsets.ndim == 1 and len(offsets) == requests + 1 and int(offsets[0]) == 0,
        f"offsets must have {requests + 1} entries starting with 0, has {len(offsets)}",
    )
    _require(bool((np.diff(offsets) > 0).all()), "offsets must increase: a reply is empty")
    _require(len(trace.category) == requests, "category must have one entry per request")
    _require(
        trace.prompt_tokens.shape == (requests,), "prompt_tokens must have one entry per request"
    )
    _require(bool((trace.prompt_tokens >= 0).all()), "prompt_tokens must not be negative")
    _require(len(set(trace.request_id)) == requests, "request_id must be unique")
    positions, depth = int(offsets[-1]), trace.meta.depth
    _require(trace.accept_len.shape == (positions,), f"accept_len must have {positions} entries")
    remaining = np.repeat(offsets[1:], np.diff(offsets)) - np.arange(positions)
    _require(
        bool(((trace.accept_len >= 0) & (trace.accept_len <= remaining)).all()),
        "accept_len must lie between 0 and what is left of the reply",
    )
    if trace.token_ids is not None:
        _require(trace.token_ids.shape == (positions,), f"token_ids must have {positions} entries")
    censored = trace.censored
    _require(
        (censored is not None) == (trace.meta.exactness == "censored"),
        "a censored trace, and no other, says which positions are censored",
    )
    if censored is not None:
        _require(censored.shape == (positions,), f"censored must have {positions} entries")
        at_end = trace.accept_len == remaining
        _require(not bool((censored & at_end).any()), "a run that ends its reply is not censored")
    for name in ("top1_prob", "entropy", "accept_prob", "level_rank"):
        array = getattr(trace, name)
        if array is not None:
            _require(array.shape == (positions, depth), f"{name} must be [{positions}, {depth}]")
    for name in OPTIONAL:
        if (column := getattr(trace, name)) is not None:
            fits = column.shape == (positions,) or name == "level_rank"
            _require(fits, f"{name} must have {positions} entries")
            _require(bool((column >= 0).all()), f"{name} has a negative value or NaN")
    fits = bool((trace.accept_len <= trace.offered).all())
    _require(fits, "accept_len must not be above draft_len")
    for name, low, high in (("top1_prob", 0.0, 1.0 + 1e-5), ("entropy", -1e-4, np.inf)):
        array = getattr(trace, name)
        if array is not None:
            good = bool(((array >= low) & (array <= high)).all())
            _require(good, f"{name} has a value outside {low:g}..{high:g} or NaN")


def refuse_censored(trace: Trace, what: str) -> None:
    """Raise InputError if acceptance is only bounded somewhere and `what` must know it."""
    if trace.censored is not None and bool(trace.censored.any()):
        raise InputError(
            f"{what} needs a trace that knows every acceptance; {int(trace.censored.sum())} of "
            f"{trace.positions} positions are censored - `gammalab compare` gives intervals instead"
        )
