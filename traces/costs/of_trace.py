"""The table of step costs that a recording needs: as long and as wide, and by levels where its
rounds draft trees.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from traces.costs.model import CostModel
from traces.costs.pricing import StepCosts, read_only, tabulate
from traces.costs.table import Table
from traces.errors import InputError
from traces.schema import Trace
from traces.shapes.shape import Grown, Shape, parse_draft


def tabulate_for(
    trace: Trace, model: CostModel, batch_sizes: Sequence[int] = (1,), *, bucket_tokens: int = 32
) -> StepCosts:
    """`tabulate`, as wide and as long as a trace needs, by levels where it is under a shape.

    Raises InputError for a tree that verifies more tokens than a timing measured.
    """
    if trace.meta.shape and isinstance(model, Table):
        most = model.widest
        if width_for(trace) - 1 > most:
            raise InputError(
                f"the draft tree {trace.meta.shape} verifies {width_for(trace) - 1} tokens, the "
                f"timing measured up to {most}"
            )
    longest = trace.longest_context + bucket_tokens
    return by_levels(
        tabulate(
            model,
            batch_sizes,
            max_context=longest,
            width=width_for(trace),
            bucket_tokens=bucket_tokens,
        ),
        trace,
    )


def width_for(trace: Trace) -> int:
    """W of the table: tokens of the widest step of any round, and one."""
    shape = trace.meta.shape
    return (parse_draft(shape).nodes if shape else trace.meta.depth) + 2


def by_levels(costs: StepCosts, trace: Trace) -> StepCosts:
    """Prices of tokens as the trace's rounds meet them."""
    shape = trace.meta.shape
    return prices_of_levels(costs, parse_draft(shape)) if shape else costs


def prices_of_levels(costs: StepCosts, shape: Shape | Grown, *, as_tree: bool = False) -> StepCosts:
    """The table by which rounds of this tree are priced, a level in the place of a token.

    The first level comes of the forward that reads what the draft lacks; every further one of a
    forward that reads the level before, all of its nodes, so that an accepted token is in the
    draft's cache unless it stands in the last level, as in a chain. The target reads every drafted
    node and the newest token.

    Where steps of trees were measured (costs.trees) they are the price of all but a chain, and of a
    chain that is decoded as_tree; elsewhere those of as many tokens in a row are, without masks,
    the further tokens that a level offers, and the move of what is accepted. Raises InputError if
    the table is not as wide as the tree.
    """
    if costs.width < shape.nodes + 2:
        raise InputError(
            f"the costs cover steps of up to {costs.width - 1} tokens, shape {shape} needs "
            f"{shape.nodes + 1}: tabulate them with width={shape.nodes + 2}"
        )
    levels, judged, verify = costs.draft_s, costs.verify_s, costs.verify_s.copy()
    if costs.trees is not None and (as_tree or not shape.is_chain):
        levels, judged = (table[None] for table in costs.trees)
    wider = np.zeros(costs.verify_s.shape[:2])  # seconds that levels cost beyond one token each
    verify[..., 1] = judged[..., 1]
    for level in range(1, shape.depth + 1):
        above = shape.widths[level - 2] if level > 1 else 1
        wider += levels[..., above] - costs.draft_s[..., 1]
        verify[..., level + 1] = judged[..., shape.nodes_to[level] + 1] + wider
    verify[..., shape.depth + 2 :] = verify[..., shape.depth + 1, None]  # never asked for
    return costs._replace(verify_s=read_only(verify, np.float64), trees=None)


def prices_of_menu(costs: StepCosts, shapes: Sequence[Shape | Grown]) -> StepCosts:
    """[A, C, W] the tables of prices_of_levels by entry of a menu, in the rows where others have
    batch sizes; W: of the deepest. costs: at batch 1, as wide as the widest tree.

    Raises InputError as prices_of_levels, and for costs of a batch.
    """
    if costs.sizes not in ([], [1]):
        raise InputError(f"a menu is of one request at a time; the costs are at {costs.sizes}")
    tables = [prices_of_levels(costs, shape, as_tree=True) for shape in shapes]
    width, start_s = max(shape.depth for shape in shapes) + 2, costs.start_s
    draft, verify = (
        np.concatenate([getattr(table, name)[..., :width] for table in tables])
        for name in ("draft_s", "verify_s")
    )
    return costs._replace(
        batch_sizes=read_only(np.ones(len(shapes)), np.int64),
        trees=None,
        draft_s=read_only(draft, np.float64),
        verify_s=read_only(verify, np.float64),
        start_s=None
        if start_s is None
        else read_only(np.repeat(start_s, len(shapes), 0), np.float64),
    )
