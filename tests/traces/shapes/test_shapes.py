"""Draft trees: their numbering and notation, the way down by hand, and prices by hand."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.base import drops_tokens
from policies.fixed import Fixed
from policies.registry import REGISTRY, parse_policy
from simulator.replay.replay import replay, replay_interpreted
from tests.results import make_trace
from traces.costs.affine import Affine
from traces.costs.of_trace import prices_of_levels
from traces.costs.pricing import StepCosts, make_step_costs, tabulate
from traces.errors import InputError
from traces.schema import RANK_UNKNOWN, Trace
from traces.shapes.fit import expected_tokens, most_frequent, rank_profile, sequoia
from traces.shapes.shape import MOST_NODES, Shape, chain, from_levels, from_paths, parse_shape
from traces.shapes.unfold import cut, reach, under
from traces.shipped import GREEDY, SAMPLED
from traces.store import read_trace

UNEVEN = Shape((0, 0, 1, 1, 3))  # 0 -> 1, 2; 1 -> 3, 4; 3 -> 5


def ranked(ranks: list[list[int]], depth: int = 4) -> Trace:
    """A greedy recording of these ranks; a chain accepts the zeros."""
    runs = [
        [next((k for k, r in enumerate(reply[i:]) if r), len(reply) - i) for i in range(len(reply))]
        for reply in ranks
    ]
    names = [f"{k}.1" for k in range(len(ranks))]
    trace = make_trace(runs, names, ["t"] * len(ranks), signals=True, depth=depth)
    column = np.concatenate([np.asarray(reply, dtype=np.int16) for reply in ranks])
    return dataclasses.replace(trace, target_rank=column)


def random_shape(generator: np.random.Generator, nodes: int) -> Shape:
    parents = [0]
    for k in range(1, nodes):
        parents.append(int(generator.integers(parents[-1], k + 1)))
    return Shape(tuple(parents))


# --- shapes


def test_an_uneven_tree_by_hand() -> None:
    assert UNEVEN.depths == (1, 1, 2, 2, 3) and UNEVEN.ranks == (0, 1, 0, 1, 0)
    assert (UNEVEN.widths, UNEVEN.nodes_to) == ((2, 2, 1), (0, 2, 4, 5))
    assert (UNEVEN.nodes, UNEVEN.depth, UNEVEN.first_path) == (5, 3, 3)
    assert UNEVEN.children.tolist() == [[1, 2], [3, 4], [0, 0], [5, 0], [0, 0], [0, 0]]
    assert UNEVEN.paths() == [(0,), (1,), (0, 0), (0, 1), (0, 0, 0)]
    assert UNEVEN.cut(2) == Shape((0, 0, 1, 1)) and str(UNEVEN) == "p0.0.1.1.3"


def test_levels_as_the_field_writes_them() -> None:
    """Children 2, 1, 1 make 6 nodes, 3, 2, 1 make 15, and 4, 2, 1, 1 make 28."""
    assert [from_levels(c).nodes for c in ([2, 1, 1], [3, 2, 1], [4, 2, 1, 1])] == [6, 15, 28]
    assert from_levels([3, 2, 1]).widths == (3, 6, 6)
    assert chain(3) == parse_shape("1x1x1") and chain(3).is_chain and not UNEVEN.is_chain


@given(st.integers(0, 10_000), st.integers(1, 40))
def test_notation_and_paths_lead_back(seed: int, nodes: int) -> None:
    shape = random_shape(np.random.default_rng(seed), nodes)
    assert parse_shape(str(shape)) == shape == from_paths(shape.paths()[::-1])
    assert sum(shape.widths) == shape.nodes_to[-1] == nodes
    for depth in range(1, shape.depth + 1):
        assert shape.cut(depth).paths() == [p for p in shape.paths() if len(p) <= depth]


@pytest.mark.parametrize(
    "text",
    ["", "0", "3x", "3x0", "x3", "p", "p1", "p0.2", "p0.1.0", "p0.-1", "p0.0.9999999999", "٣"],
)
def test_what_is_no_shape_is_one_line(text: str) -> None:
    with pytest.raises(InputError, match="shape") as caught:
        parse_shape(text)
    assert "\n" not in str(caught.value)


def test_a_huge_shape_is_refused_before_it_is_built() -> None:
    for text in ("99999999x99999999", f"{MOST_NODES}x2"):
        with pytest.raises(InputError, match=str(MOST_NODES)):
            parse_shape(text)


def test_paths_need_their_way_and_elder_siblings() -> None:
    for paths in ([(0,), (1, 0)], [(1,)], [(0,), (0, 1)], [()], [(-1,)]):
        with pytest.raises(InputError, match="missing"):
            from_paths(paths)  # type: ignore[arg-type]


# --- the way down


def test_the_way_down_by_hand() -> None:
    """From 0: rank 0 to node 1, rank 1 to node 4, a leaf. From 1: rank 1 to node 2, a leaf. From 2:
    rank 5 is nobody's. From 3: node 1, node 3, node 5. From 4: node 1, node 3, the end.
    """
    trace = ranked([[0, 1, 5, 0, 0, 0]])
    assert reach(trace, UNEVEN).tolist() == [2, 1, 0, 3, 2, 1]
    assert reach(trace, chain(2)).tolist() == [1, 0, 0, 2, 2, 1]
    assert reach(ranked([[RANK_UNKNOWN, 0]]), UNEVEN).tolist() == [0, 1]
    log = replay(Fixed(3), under(trace, UNEVEN), tabulate(Affine(), width=8))
    # The second round has room for two: the last token is the target's own.
    assert log.accepted.tolist() == [2, 2] and log.emitted.tolist() == [3, 3]


def slow_reach(trace: Trace, shape: Shape) -> list[int]:
    """Descends node by node."""
    assert trace.target_rank is not None
    found = []
    for r in range(trace.requests):
        begin, end = int(trace.offsets[r]), int(trace.offsets[r + 1])
        for i in range(begin, end):
            node, depth = (), 0
            while i + depth < end and (*node, int(trace.target_rank[i + depth])) in shape.paths():
                node, depth = (*node, int(trace.target_rank[i + depth])), depth + 1
            found.append(depth)
    return found


@given(st.integers(0, 10_000))
def test_the_way_down_is_the_slow_one(seed: int) -> None:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 12, 3)
    trace = ranked([generator.integers(0, 4, n).tolist() for n in lengths])
    shape = random_shape(generator, int(generator.integers(1, 25)))
    assert reach(trace, shape).tolist() == slow_reach(trace, shape)


@pytest.mark.parametrize("length", [1, 3, 5, 16])
def test_a_chain_is_the_recording_itself(length: int) -> None:
    trace = read_trace(GREEDY)
    found = under(trace, chain(length))
    assert np.array_equal(found.accept_len, np.minimum(trace.accept_len, length))
    costs = tabulate(Affine(draft_fixed=0.1, draft_token=0.01), width=18)
    whole, same = replay(Fixed(length), trace, costs), replay(Fixed(length), found, costs)
    assert whole.same_rounds(same)


@pytest.mark.parametrize(
    ("shape", "tokens"),
    [
        ("1x1x1", 2.458),
        ("2x1x1", 2.640),
        ("3x2x1", 2.805),
        ("4x2x1x1", 3.187),
        ("1x1x1x1x1", 2.880),
    ],
)
def test_tokens_per_round_of_the_embedded_recording(shape: str, tokens: float) -> None:
    """Counted once by other means, a walk over the ranks in plain Python."""
    tree = parse_shape(shape)
    log = replay(Fixed(tree.depth), under(read_trace(GREEDY), tree), tabulate(Affine(), width=40))
    assert float(log.emitted.mean()) == pytest.approx(tokens, abs=6e-4)


def test_signals_are_those_of_the_likeliest_path() -> None:
    trace = ranked([[0, 1, 0, 0]])
    assert under(trace, from_levels([2, 2])).top1_prob.shape == (4, 2)  # type: ignore[union-attr]
    assert not under(trace, Shape((0, 0, 2))).has_signals  # its second level hangs on rank 1
    assert not under(trace, chain(5)).has_signals  # recorded four deep


def test_sampled_replies_are_as_exact() -> None:
    """The token that was drawn has a rank as any other; what was drafted beside it was drawn, so
    that its signals are not the likeliest path's.
    """
    drawn = read_trace(SAMPLED)
    assert drawn.target_rank is not None
    below = under(drawn, parse_shape("4"))
    assert below.accept_len.tolist() == (drawn.target_rank < 4).astype(int).tolist()
    assert not below.has_signals and cut(drawn, 3).has_signals
    assert cut(drawn, 3).accept_len.tolist() == np.minimum(drawn.accept_len, 3).tolist()
    with pytest.raises(InputError, match="17 tokens"):
        cut(drawn, 17)


def test_other_recordings_are_refused() -> None:
    greedy = read_trace(GREEDY)
    for trace, word in (
        (
            dataclasses.replace(greedy, meta=dataclasses.replace(greedy.meta, exactness="imputed")),
            "imputed",
        ),
        (dataclasses.replace(greedy, target_rank=None), "target_rank"),
        (
            dataclasses.replace(greedy, meta=dataclasses.replace(greedy.meta, drafter="eagle3")),
            "level_rank",
        ),
        (
            dataclasses.replace(greedy, meta=dataclasses.replace(greedy.meta, drafter="lookup")),
            "lookup",
        ),
    ):
        with pytest.raises(InputError, match=word):
            under(trace, chain(2))


# --- prices


def test_prices_by_hand() -> None:
    """Reading n tokens takes the draft 10 + n and the target 100 n."""
    width = 8
    draft = [0.0, *(10.0 + n for n in range(1, width))]
    verify = [0.0, *(100.0 * n for n in range(1, width))]
    found = prices_of_levels(make_step_costs([draft], [verify]), UNEVEN)
    # Levels of 2, 2, 1 nodes: the second level's forward reads 2 instead of 1, so does the third's.
    assert found.verify_s[0, 0, :5].tolist() == [0.0, 100.0, 300.0, 501.0, 602.0]
    assert np.array_equal(found.draft_s[0, 0], draft)
    log = replay(Fixed(3), under(ranked([[0, 0, 0, 0]]), UNEVEN), found)
    # The first level reads the newest token (11), two levels read two nodes each (12), six tokens
    # are verified.
    assert log.elapsed_s.tolist() == [11.0 + 12 + 12 + 600]


def test_a_chain_costs_what_it_did(costs: StepCosts) -> None:
    found = prices_of_levels(costs, chain(12))
    assert np.array_equal(found.verify_s[..., :14], costs.verify_s[..., :14])


def test_a_table_narrower_than_the_tree_is_refused() -> None:
    with pytest.raises(InputError, match="width=17"):
        prices_of_levels(tabulate(Affine(), width=16), from_levels([3, 2, 1]))


@pytest.mark.parametrize("name", ["gammatune", "hf-confidence", "payback", "goodput", "ucb"])
def test_controllers_decide_the_depth(name: str) -> None:
    """Compiled is plain; no round is deeper than the tree."""
    tree = from_levels([3, 1, 1, 1])
    trace = under(read_trace(GREEDY).select(list(range(12))), tree)
    costs = prices_of_levels(tabulate(Affine(draft_fixed=0.2), max_context=600, width=18), tree)
    assert not drops_tokens(REGISTRY[name])
    log = replay(parse_policy(name), trace, costs)
    assert log.same_rounds(replay_interpreted(parse_policy(name), trace, costs))
    assert 0 < log.drafted.max() <= 4


# --- which tree


def all_shapes(nodes: int) -> list[Shape]:
    """Every tree of so many nodes."""
    choices = itertools.product(*(range(k + 1) for k in range(nodes)))
    return [Shape(parents) for parents in choices if list(parents) == sorted(parents)]


@pytest.mark.parametrize("nodes", range(1, 8))
@pytest.mark.parametrize("depth", [1, 2, 3, 7])
def test_sequoia_is_exhaustive_search(nodes: int, depth: int) -> None:
    """Profiles as drafts have them, and any others that fall."""
    profiles = [np.array([0.731, 0.068, 0.034, 0.022, 0.012, 0.01, 0.008])]
    generator = np.random.default_rng(nodes)
    profiles += [np.sort(generator.dirichlet(np.ones(8)))[::-1][:7] for _ in range(5)]
    for profile in profiles:
        found = sequoia(profile, nodes, depth)
        best = max(
            expected_tokens(shape, profile)
            for count in range(1, nodes + 1)
            for shape in all_shapes(count)
            if shape.depth <= depth
        )
        assert found.nodes <= nodes and found.depth <= depth
        assert expected_tokens(found, profile) == pytest.approx(best, abs=1e-12)


def test_number_of_trees() -> None:
    """Ordered trees of n + 1 nodes: the Catalan numbers."""
    assert [len(all_shapes(n)) for n in range(1, 8)] == [1, 2, 5, 14, 42, 132, 429]


def test_most_frequent_is_the_best_on_average() -> None:
    """No tree of so many nodes accepts more from all positions together."""
    generator = np.random.default_rng(3)
    trace = ranked([generator.choice(3, 200, p=[0.6, 0.25, 0.15]).tolist() for _ in range(4)])
    for nodes in (1, 3, 6):
        found = most_frequent(trace, nodes, 4)
        fits = [s for n in range(1, nodes + 1) for s in all_shapes(n) if s.depth <= 4]
        best = max(int(reach(trace, shape).sum()) for shape in fits)
        assert int(reach(trace, found).sum()) == best


def test_the_profile_of_the_embedded_recording() -> None:
    profile = rank_profile(read_trace(GREEDY))
    assert [round(100 * float(p), 1) for p in profile[:4]] == [73.1, 6.8, 3.4, 2.2]
    assert round(100 * (1.0 - float(profile[:6].sum()))) == 12  # rank 6 and more
