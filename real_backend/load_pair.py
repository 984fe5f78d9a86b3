"""Load a target and a drafter and check that they can work together."""

from __future__ import annotations

import dataclasses
import platform
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from real_backend.device_errors import device_faults
from real_backend.drafters.drafter import Drafter
from real_backend.drafters.load import is_model, load_drafter
from real_backend.drafters.model import ModelDrafter
from real_backend.models import shapes
from real_backend.models.checkpoint import (
    DTYPES,
    check_room,
    load_model,
    load_tokenizer,
    shared_tokenizer,
    vocabulary_hash,
    weights_hash,
)
from real_backend.models.device import GIB, choose_device, describe_device, device_name, free_bytes
from real_backend.models.model import Model, check_layout
from real_backend.models.threads import choose_threads
from real_backend.number_options import MOST_THREADS
from real_backend.options import PairOptions
from real_backend.pair_spec import PairSpec, resolve_pair
from real_backend.partial_file import kept_threads
from traces.errors import InputError
from traces.timing import PRICES


@dataclasses.dataclass
class GraphUse:
    """Whether steps of a pair may be recorded as CUDA graphs. difference: what graph_check found,
    None before it has looked.
    """

    allowed: bool = True
    difference: float | None = None

    @property
    def in_use(self) -> bool:
        """They are allowed, and have been looked at."""
        return self.allowed and self.difference is not None


@dataclasses.dataclass(frozen=True)
class Pair:
    """A target and a drafter that share a tokenizer; random weights have none.

    vocab_size: tokens that both know (embeddings may be padded differently).
    eos_ids: any of them ends a reply.
    max_context: prompt and reply tokens that both can hold.
    """

    name: str
    target: Model
    drafter: Drafter
    tokenizer: Any
    tokenizer_sha256: str
    weights_sha256: str
    vocab_size: int
    eos_ids: frozenset[int]
    max_context: int
    device: str
    dtype: str
    spec: PairSpec
    graphs: GraphUse = dataclasses.field(default_factory=GraphUse, compare=False)

    @property
    def draft(self) -> Model:
        """The draft model; raises ValueError if the drafter is of another kind."""
        if not isinstance(self.drafter, ModelDrafter):
            raise ValueError(f"pair {self.name} drafts by {self.drafter.kind}, not with a model")
        return self.drafter.model

    @property
    def lean(self) -> bool:
        """True if every forward is a lean one."""
        alone = not isinstance(self.drafter, ModelDrafter)
        return self.target.lean is not None and (alone or self.draft.lean is not None)

    def describe(self) -> dict[str, Any]:
        """Facts of the pair and the machine for a Timing or a report; JSON-ready."""
        return {
            "pair": self.name,
            "target": Path(self.spec.target).name,
            "draft": self.drafter.name,
            "drafter": self.drafter.kind,
            "draft_kind": PRICES[self.drafter.kind],
            "tokenizer_sha256": self.tokenizer_sha256,
            "weights": "random" if self.spec.random else "loaded",
            "weights_sha256": self.weights_sha256,
            "device": self.device,
            "device_name": device_name(self.device),
            "dtype": self.dtype,
            "engine": "lean" if self.lean else "general",
            "steps": "graphs" if self.graphs.in_use else "eager",
            "threads": torch.get_num_threads() if self.device == "cpu" else 0,
            "versions": versions(),
            **describe_device(self.device),
        }


def versions() -> dict[str, str]:
    """Versions that can change a recording."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
    }


def _eos_ids(*sources: Any) -> frozenset[int]:
    found: set[int] = set()
    for source in sources:
        value = getattr(source, "eos_token_id", None)
        found.update([] if value is None else [value] if isinstance(value, int) else value)
    return frozenset(found)


def load_pair(
    spec: PairSpec,
    *,
    device: str = "auto",
    dtype: str = "auto",
    threads: int = 0,
    lean: bool = True,
    graphs: bool = True,
) -> Pair:
    """Load target and drafter and check them against each other; shapes are built, see shapes.py.

    dtype "auto": float32 on a CPU, elsewhere what the checkpoint says, bfloat16 for shapes. threads
    0: on a CPU what real_backend.models.threads finds. lean False keeps every model on the general
    transformers path. graphs False: no CUDA graphs.

    Raises InputError for a missing folder or tokenizer, unreadable weights, different tokenizers,
    too little memory.
    """
    if not 0 <= threads <= MOST_THREADS:
        raise InputError(f"--threads {threads}: must lie between 0 (tried) and {MOST_THREADS}")
    device = choose_device(device)
    remedy = "a smaller pair, --dtype bfloat16 or another --device"
    with device_faults(f"loading {spec.name} on {device}", remedy):
        if spec.random:
            tokenizer = None
            auto = torch.float32 if device == "cpu" else torch.bfloat16
            parts = (spec.target, spec.draft)
            target, draft = shapes.build_pair(spec.name, parts, device, DTYPES.get(dtype, auto))
        elif is_model(spec.draft):
            tokenizer = shared_tokenizer(spec.target, spec.draft)
            check_room(spec.name, (spec.target, spec.draft), device, dtype)
            target = load_model(spec.target, device, dtype)
            draft = load_model(spec.draft, device, dtype)
        else:
            tokenizer, draft = load_tokenizer(spec.target), None
            check_room(spec.name, (spec.target,), device, dtype)
            target = load_model(spec.target, device, dtype)
        if device == "cpu":
            _set_threads(threads, target)
        pair = pair_of(target, draft, spec, tokenizer, lean=lean, own=True)
        pair.graphs.allowed = graphs
        return pair


def _set_threads(threads: int, target: Any) -> None:
    """As asked for, or as a short trial says, which is told on stderr."""
    if threads:
        torch.set_num_threads(threads)
        return
    chosen, tried = choose_threads(target)
    if tried:
        figures = ", ".join(f"{count}: {1e3 * s:.0f} ms" for count, s in tried.items())
        print(f"threads: {chosen} (a forward took with {figures})", file=sys.stderr)


def pair_of(
    target: Any,
    draft: Any,
    spec: PairSpec,
    tokenizer: Any = None,
    *,
    lean: bool = True,
    own: bool = False,
) -> Pair:
    """Loaded transformers models as a Pair; they must share a vocabulary. draft None: the drafter
    that spec.draft names.

    lean True fuses weights of Llama layouts in place: the modules go on working, on shared memory.
    own: nobody else will train or save them, see LeanLlama.
    Raises InputError for a layout that cannot roll back.
    """
    check_layout(spec.target, target)
    verifier = Model(target, lean, own)
    drafter: Drafter
    if draft is None:
        drafter = load_drafter(spec.draft, verifier)
    else:
        check_layout(spec.draft, draft)
        drafter = ModelDrafter(Model(draft, lean, own), Path(spec.draft).name)
    limits = [m.max_context for m in (verifier, drafter) if m.max_context]
    known = [m.vocab_size for m in (verifier, drafter) if m.vocab_size]
    return Pair(
        name=spec.name,
        target=verifier,
        drafter=drafter,
        tokenizer=tokenizer,
        tokenizer_sha256=vocabulary_hash(tokenizer) if tokenizer is not None else "",
        weights_sha256=weights_hash(target, *drafter.modules),
        vocab_size=min(known),
        eos_ids=_eos_ids(target.generation_config, target.config, tokenizer),
        max_context=min(limits) if limits else 0,
        device=str(target.device),
        dtype=str(target.dtype).removeprefix("torch."),
        spec=spec,
    )


def check_caches(pair: Pair, tokens: int, remedy: str) -> None:
    """Raise InputError if caches of so many tokens, of all rows together, cannot fit on a CPU,
    which would hand the memory out and end the process when it is used.
    """
    free = free_bytes(pair.device) if pair.device == "cpu" else None
    dtype = getattr(torch, pair.dtype)
    configs = [module.config for module in (pair.target.module, *pair.drafter.modules)]
    kept = [config for config in configs if config is not None]  # block heads keep no cache
    needed = sum(shapes.cache_bytes(config, dtype, tokens) for config in kept)
    if free is not None and needed > free:
        raise InputError(
            f"caches of {tokens} tokens in all rows need {needed / GIB:.1f} GiB, "
            f"{free / GIB:.1f} are free; try {remedy}"
        )


def pair_from(options: PairOptions, unfinished: Path | None = None, threads: int = 0) -> Pair:
    """The pair that the options describe, with `threads` or those of an unfinished run
    (real_backend.partial_file) unless they say themselves.
    """
    return load_pair(
        resolve_pair(options.name, options.target, options.draft),
        device=options.device,
        dtype=options.dtype,
        threads=options.threads or threads or kept_threads(unfinished),
        graphs=not options.no_graphs,
    )
