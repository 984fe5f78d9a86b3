"""Cost models by name: a timing file, or a roofline of two known shapes on a known device; and the
step costs of a timing for a trace.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from traces.costs.model import CostModel
from traces.costs.of_trace import tabulate_for
from traces.costs.pricing import StepCosts
from traces.costs.roofline import Roofline
from traces.costs.table import Table
from traces.errors import InputError
from traces.schema import Trace
from traces.shipped import shipped_or_file
from traces.timing import Timing, read_timing

PREFIX = "roofline:"

# Bytes/s, 16-bit operations/s and knee, tokens, that linear layers reach: the fits that `gammalab
# study-published microbenchmarks` prints for Vidur's measured layers on one device (Llama-3-8B on
# the A100, Llama-2-7B on the H100). tests/test_shared_data.py holds them against all of that size.
REACHED = {"a100": (1.34e12, 210e12, 72.0), "h100": (2.24e12, 680e12, 76.0)}


@dataclasses.dataclass(frozen=True)
class Priced:
    """A cost model, and what it is, for tables and files. slots: the largest batch it knows, 0 if
    any.
    """

    model: CostModel
    about: dict[str, Any]
    slots: int


def read_costs(name: str) -> Priced:
    """`roofline:DEVICE:TARGET+DRAFT`, or a timing: a path or a shipped name.

    Raises InputError for an unknown device or shape, or a file that is no timing.
    """
    if not name.startswith(PREFIX):
        timing = read_timing(shipped_or_file(name))
        largest = int(max(cell.batch for cell in timing.cells if cell.operation == "verify"))
        return Priced(Table(timing), {"timing": Path(name).name} | timing.meta, largest)
    device, _, pair = name.removeprefix(PREFIX).partition(":")
    if device not in REACHED or not pair:
        raise InputError(
            f"{name}: write {PREFIX}DEVICE:TARGET+DRAFT, DEVICE one of {', '.join(REACHED)}, for "
            f"example {PREFIX}h100:llama-3.1-8b+llama-3.2-1b"
        )
    return Priced(
        roofline(device, pair), {"timing": name, "device_name": f"{device} (roofline)"}, 0
    )


def step_costs(timing: Timing, trace: Trace) -> StepCosts:
    """The measured costs at batch 1, as wide and as long as the trace needs, on the clock that
    Timing.on chose or else the timing's default one (traces.costs.table.Table).
    """
    return tabulate_for(trace, Table(timing))


def roofline(device: str, pair: str) -> Roofline:
    """The costs of two shapes in 16 bit on one device; no time for launches, sampling or network.

    Per forward the weights are read once, the embedding table aside; per row the keys and values
    of its context.
    """
    from real_backend.models.shapes import SHAPES, split_pair  # brings torch

    try:
        names: tuple[str, ...] = split_pair("shape:" + pair)
    except InputError:
        names = tuple(pair.split("+"))
    unknown = [part for part in names if part not in SHAPES] or names[2:]
    if unknown or len(names) < 2:
        raise InputError(
            f"{PREFIX}{device}:{pair} must end in TARGET+DRAFT, two of {', '.join(SHAPES)}"
            + (f"; {unknown[0]!r} is not" if unknown else "")
        )
    bytes_per_s, flops_per_s, knee_tokens = REACHED[device]
    (target, target_row), (draft, draft_row) = (sizes(SHAPES[part]) for part in names)
    return Roofline(
        target_bytes=2.0 * target,
        target_flops=2.0 * target,
        draft_bytes=2.0 * draft,
        draft_flops=2.0 * draft,
        bytes_per_s=bytes_per_s,
        flops_per_s=flops_per_s,
        target_context_bytes=target_row,
        draft_context_bytes=draft_row,
        knee_tokens=knee_tokens,
    )


def sizes(shape: Any) -> tuple[float, float]:
    """Weights that a forward reads, and bytes of keys and values per context token, 16 bit."""
    head = shape.hidden // shape.heads
    attention = 2 * shape.hidden**2 + 2 * shape.hidden * shape.kv_heads * head
    layer = attention + 3 * shape.hidden * shape.intermediate
    weights = shape.layers * layer + shape.hidden * shape.vocabulary
    return float(weights), float(shape.layers * 2 * shape.kv_heads * head * 2)
