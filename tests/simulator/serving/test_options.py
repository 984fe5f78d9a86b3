"""Servers that cannot be, and what does not fit together."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from policies.base import Policy
from policies.counts.gammatune import GammaTunePlus
from policies.fixed import Fixed
from simulator.serving.options import Server
from simulator.serving.server import serve
from tests.simulator.serving.small_servers import by_hand, make_trace, open_loop
from traces.costs.affine import Affine
from traces.costs.pricing import tabulate
from traces.errors import InputError


def test_tetris_may_verify_fewer_drafts_than_there_are_slots() -> None:
    assert Server(slots=4, allotment="tetris", budget_tokens=1).budget_tokens == 1
    with pytest.raises(InputError, match="budget_tokens is 3; budget needs"):
        Server(slots=4, allotment="budget", budget_tokens=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slots": 0}, "slots is 0; give 1 to 4096"),
        ({"block_tokens": 0}, "block_tokens is 0; give 1 to 2147483647"),
        ({"replicas": 0}, "replicas is 0"),
        ({"blocks": -1}, "blocks is -1"),
        ({"chunk_tokens": -1}, "chunk_tokens is -1"),
        ({"budget_tokens": -1}, "budget_tokens is -1"),
        ({"apart": True, "hop_s": -1.0}, "hop_s is -1"),
        ({"apart": True, "jitter_s": math.nan}, "jitter_s is nan"),
        ({"apart": True, "token_hop_s": math.inf}, "token_hop_s is inf"),
        ({"reentry_s": -1.0}, "reentry_s is -1"),
        ({"bin_s": 0.0}, "bin_s is 0"),
        ({"order": "last-come"}, "order is 'last-come'; known: first-come, shortest, priority"),
        ({"allotment": "all"}, "allotment is 'all'; known: each, "),
        ({"router": "dice"}, "router is 'dice'; known: round-robin, "),
        ({"slots": 4, "allotment": "budget", "budget_tokens": 3}, "budget_tokens is 3; .* 4 slots"),
        ({"slots": 4, "allotment": "tetris"}, "budget_tokens is 0; tetris"),
        ({"pipelined": True}, "pipelined .*set apart"),
        (
            {"pipelined": True, "apart": True, "allotment": "tetris", "budget_tokens": 9},
            "tetris trims .*pipelined",
        ),
        ({"hop_s": 0.1}, "hop_s, .*set apart"),
        ({"jitter_s": 0.1}, "jitter_s .*set apart"),
        ({"token_hop_s": 0.1}, "token_hop_s .*set apart"),
    ],
)
def test_a_server_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Server(**changes)
    assert str(caught.value).startswith("server: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["slots", "blocks", "replicas", "chunk_tokens", "block_tokens"])
def test_counts_are_whole_numbers(field: str) -> None:
    """1.5 slots must not reach NumPy."""
    with pytest.raises(InputError, match=field):
        Server(**{field: 1.5})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("policy", "server", "changes", "message"),
    [
        (Fixed(1), {"max_gamma": 5}, {}, r"max_gamma is 5; this trace can play 0\.\.4"),
        (Fixed(1), {"max_gamma": -1}, {}, "max_gamma is -1"),
        (GammaTunePlus(), {}, {}, r"'gammatune\+' .*signals"),
        (Fixed(1), {"allotment": "adaptive"}, {}, "'adaptive' .*signals"),
        (Fixed(1), {"allotment": "tetris", "budget_tokens": 9}, {}, "'tetris' .*signals"),
        (Fixed(1), {}, {"wanted": open_loop([])}, "no request"),
        (Fixed(1), {"slots": 3}, {}, "costs cover 2 rows .* 3 slots"),
        (Fixed(1), {}, {"width": 5}, "costs cover 2 rows of 4 tokens; .* gamma 4"),
        # 9 + 2 tokens, 4 + 1 more: 16, four blocks of 4.
        (Fixed(1), {"blocks": 3, "block_tokens": 4}, {}, "3 blocks of 4 .*'r1'.*4 are needed"),
    ],
)
def test_what_does_not_fit_together(
    policy: Policy, server: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    trace = make_trace([[0], [0, 0]], [3, 9])
    costs = tabulate(Affine(), range(1, 3), max_context=64, width=changes.get("width", 6))
    wanted = changes.get("wanted", open_loop([0, 0]))
    with pytest.raises(InputError, match=message) as caught:
        serve(policy, trace, wanted, costs, Server(**({"slots": 2} | server)), compiled=False)
    assert "\n" not in str(caught.value)


def test_memory_that_is_just_enough() -> None:
    trace = make_trace([[0], [0, 0]], [3, 9])
    served = by_hand(
        Fixed(4), trace, open_loop([0, 0]), Affine(), slots=2, blocks=4, block_tokens=4
    )
    assert np.isfinite(served.finish_s).all() and served.totals["peak_blocks"] <= 4
