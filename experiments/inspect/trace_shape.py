"""`gammalab trace shape`: a recording as rounds of a draft tree meet it, for every command."""

from __future__ import annotations

from experiments.inspect.options import TraceShapeOptions
from real_backend.command_line import Result
from traces.errors import InputError
from traces.shapes.growth import read_growth
from traces.shapes.shape import Grown, parse_draft
from traces.shapes.unfold import under
from traces.store import read_trace, refuse_existing, write_trace


def run(options: TraceShapeOptions) -> Result:
    """Write it. Raises InputError as traces.shapes.unfold.under, and for a tree that grows as none
    was recorded.
    """
    refuse_existing(options.out, options.force)
    trace, shape, growth = read_trace(options.trace), parse_draft(options.shape), None
    if isinstance(shape, Grown) != (options.grown is not None):
        raise InputError("--grown goes with trees that grow, as --shape g8x6, and only with them")
    if isinstance(shape, Grown) and shape.nodes_wanted:
        raise InputError(
            f"--shape {shape}: its nodes are picked among all levels, so that rounds of fewer "
            f"levels meet others; take the beams, g{shape.beam}x{shape.depth}, of which every rule "
            "may decide the depth"
        )
    if isinstance(shape, Grown):
        assert options.grown is not None
        growth = read_growth(options.grown, trace)
        if (growth.beam, growth.depth >= shape.depth) != (shape.beam, True):
            raise InputError(
                f"--shape {shape}: {options.grown} has a beam of {growth.beam} and {growth.depth} "
                "levels"
            )
    seen = under(trace, shape, growth)
    write_trace(seen, options.out, overwrite=options.force)
    signals = "with" if seen.has_signals else "without"
    return Result(
        f"{options.out}: {trace.requests} replies under {shape}, {shape.nodes} nodes in "
        f"{shape.depth} levels, {signals} signals; a drafted token stands for a level"
    )
