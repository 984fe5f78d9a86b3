"""`gammalab studies shapes`: chains and trees on one recording, at one machine's costs.

Trees are chosen on the training half, what is printed is about the held-out half. A tree of n nodes
comes of the ranks that the reply's tokens had in the draft's distribution: Sequoia's dynamic
programme, and the ways that replies took most often. Their sizes, like the length of the chain, are
those that take the training half the least time at these costs. Controllers decide the depth of
every round: on the longest chain, and on the tree on which they take the training half the least
time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from experiments.common.cost_sources import Priced, read_costs
from experiments.common.frames import (
    Column,
    csv_of,
    described,
    figure,
    frame_of,
    interval,
    meanings,
    text_of,
    words,
)
from experiments.common.plots import write_pictures
from experiments.common.statistics import (
    RESAMPLES,
    Estimate,
    bootstrap_weights,
    ratio_of_sums,
    verdict,
)
from experiments.common.text_table import fill
from experiments.common.verdict import CONTRADICTED
from experiments.shapes.sitting import SAT, Confirmation, load_and_sit
from experiments.shapes.ways import (
    TUNED,
    Half,
    Played,
    Way,
    Ways,
    check_drafter,
    halves_of,
    ways_of,
    widest_of,
)
from experiments.studies import ShapesOptions
from policies.base import Policy, chooses_shapes, drops_tokens
from policies.overhead import ENTRY
from policies.registry import label, parse_policies
from real_backend.command_line import Result
from simulator.replay.hindsight import clairvoyant
from simulator.replay.metrics import per_request
from traces.costs.table import Table
from traces.errors import InputError
from traces.schema import Trace
from traces.shapes.growth import read_growth
from traces.shapes.shape import Shape, parse_shape
from traces.shapes.unfold import check_ranks
from traces.split import question_of
from traces.store import read_trace

FloatArray = npt.NDArray[np.float64]
SHOWN = 32  # characters of a shape in a table


@dataclasses.dataclass(frozen=True)
class ShapeResult:
    """One way to draft, on the held-out requests.

    batch: rows that draft alike. name: what chose the shape, or the depth of every round.
    shape: as traces.shapes.parse_shape reads it, "" where nothing is drafted. nodes, depth: of it.
    tokens_per_round, round_ms: means. tokens_per_s: of one row, over its decode seconds.
    speedup: tokens/s over plain decoding; vs_chain: over the chain whose length was tuned; both
        with intervals over questions.
    verdict: of the latter.
    """

    batch: int
    name: str
    shape: str
    nodes: int
    depth: int
    tokens_per_round: float
    round_ms: float
    tokens_per_s: float
    speedup: Estimate
    vs_chain: Estimate
    verdict: str


COLUMNS: tuple[Column, ...] = (
    figure("batch", "rows", "Rows", "that draft alike, in lock step", 0),
    words("name", "draft", "Draft", "what chose the shape, or the depth of every round"),
    Column(
        "shape", "shape", "Shape", "", "children by level, or p and the parent of every node",
        ("shape",), lambda row: _short(row["shape"]),
    ),
    figure("nodes", "nodes", "Nodes", "drafted by a whole round", 0),
    figure("depth", "depth", "Depth", "levels of a whole round", 0),
    figure("tokens_per_round", "tokens/\nround", "Tokens/round", "emitted"),
    figure("round_ms", "ms/\nround", "ms/round", "priced", unit="ms"),
    figure("tokens_per_s", "tokens/s", "Tokens/s", "decoded, of one row", 1),
    interval("speedup", "speed-up", "Speed-up", "tokens/s over plain decoding, 95 % interval"),
    interval("vs_chain", "over tuned\nchain", "Over tuned chain", "tokens/s over it, 95 % interval",
             3),
    words("verdict", "", "", "of the latter"),
)  # fmt: skip


def run(options: ShapesOptions) -> Result:
    """The table. Raises InputError for a recording without ranks or of a head, and for shapes and
    rules that do not fit.
    """
    trace, priced, given, rules, widest = _asked(options)
    growths = [read_growth(path, trace) for path in options.grown]
    if len({growth.beam for growth in growths}) < len(growths):
        raise InputError("--grown: two files have the same beam; give the deeper one")
    found: list[ShapeResult] = []
    batches = list(dict.fromkeys(options.batch))
    for batch in batches:
        train, test = halves_of(trace, priced, given, growths, widest, options.seed, batch)
        ways = ways_of(train, given, rules, widest, options.seed)
        found += judged(ways, test, batch=batch, seed=options.seed)
    frame = frame_of(found)
    groups = [
        ("" if len(batches) == 1 else f"{batch} rows", frame[frame["batch"] == batch])
        for batch in batches
    ]
    about = (
        f"{trace.meta.pair}, {test.trace.requests} of {trace.requests} replies held out; costs: "
        f"{Path(options.cost).name}, trees of up to {widest} nodes are looked for"
        + (f"; {batches[0]} rows draft alike" if batches[0] > 1 and len(batches) == 1 else "")
    )
    text = [
        fill(about),
        text_of(COLUMNS[1:], groups),
        meanings(COLUMNS[1:]),
        fill(_note(test, rules)),
    ]
    content = {"columns": described(COLUMNS), "rows": frame.to_dict("records"), "about": about}
    findings: list[str] = []
    if options.out is not None:
        from experiments.shapes.picture import draw_rounds

        picture = draw_rounds(test, given[0] if given else parse_shape("3x2x1"))
        write_pictures([picture], options.out)
        text.append(fill(f"{picture.title}. {picture.caption}"))
    if options.sit:
        whole = Half(trace, test.costs, {growth.beam: growth for growth in growths})
        sat = load_and_sit(options.pair, options.prompts, whole, ways, options.sit, options.seed)
        text += [_sat_text(sat), meanings(SAT)]
        content |= {"sitting": [dataclasses.asdict(one) for one in sat]}
        findings = [
            f"{one.name}: predicted {one.predicted:.3f}, measured {one.measured.value:.3f}"
            for one in sat
            if one.word == CONTRADICTED
        ]
    return Result("\n\n".join(text), content, csv_of(COLUMNS, frame), findings)


def _note(test: Half, rules: Sequence[Policy]) -> str:
    """How rounds are drafted and priced."""
    known = test.costs.own_s or {}
    free = any(chooses_shapes(type(r)) and r.name + ENTRY not in known for r in rules)
    said = [
        "A level is drafted by one forward that reads the level before; the target reads all nodes "
        "and the newest token."
    ]
    if test.trace.meta.temperature > 0.0:
        said.append(
            "Chains are drawn from the draft's law; trees, and all of a menu, are its likeliest "
            "tokens, of which the target draws its own."
        )
    if test.costs.trees is not None:
        said.append("Masks, wide levels and moves in the caches are priced as measured.")
    else:
        said.append("Masks and moves in caches are not priced, wide levels as a lagging draft.")
    if free:
        said.append("A rule's choice among trees is not charged.")
    return " ".join(said)


def _asked(
    options: ShapesOptions,
) -> tuple[Trace, Priced, list[Shape], list[Policy], int]:
    """The recording, its costs, the shapes and rules that were named, and the nodes of the largest
    tree that is priced. Raises InputError as `run`.
    """
    trace, priced = read_trace(options.trace), read_costs(options.cost)
    check_ranks(trace)
    check_drafter(priced, options.cost, trace.meta.drafter)
    given = [parse_shape(text) for text in options.shape]
    rules = parse_policies(options.policies) if options.policies else []
    for policy in rules:
        if drops_tokens(type(policy)):
            raise InputError(
                f"--policies {label(policy)}: it drops drafted tokens, a tree has none to drop"
            )
    if options.sit and set(options.batch) != {1}:
        raise InputError("--sit decodes one row at a time: leave --batch out")
    if options.sit and not isinstance(priced.model, Table):
        raise InputError(f"--sit: {options.cost} is a formula; give the timing of this machine")
    widest = widest_of(priced)
    for shape in given:
        if shape.nodes > widest:
            raise InputError(
                f"--shape {shape}: it verifies {shape.nodes + 1} tokens, trees are priced by "
                f"{options.cost} up to {widest + 1}"
            )
    if priced.slots and max(options.batch) > priced.slots:
        raise InputError(
            f"--batch {max(options.batch)}: {options.cost} was measured up to {priced.slots}"
        )
    return trace, priced, given, rules, widest


def _sat_text(sat: Sequence[Confirmation]) -> str:
    head = f"A sitting of {sat[0].replies} held-out replies, over the tuned chain"
    return f"{head}\n{text_of(SAT, [('', frame_of(sat))])}"


def judged(
    ways: Ways, test: Half, *, batch: int = 1, seed: int = 0, resamples: int = RESAMPLES
) -> list[ShapeResult]:
    """Every way on the held-out half, plain decoding first, the clairvoyant's depths last."""
    report = _report(test.trace, batch, seed, resamples)
    plain = test.play(ways.all[0], seed)
    base = plain if ways.baseline.shape is None else test.play(ways.baseline, seed)
    rows = [report(way, test.play(way, seed), plain, base) for way in ways.all]
    for way in ways.ceilings:
        log = clairvoyant(*test.seen(way))
        found = Played(per_request(log).decode_s, float(len(log)))
        rows.append(report(way, found, plain, base))
    return rows


def _report(
    test: Trace, batch: int, seed: int, resamples: int
) -> Callable[[Way, Played, Played, Played], ShapeResult]:
    """Turns sums into a row: of a way, of plain decoding, of the tuned chain."""
    questions = [question_of(request_id) for request_id in test.request_id]
    weights = bootstrap_weights(questions, seed=seed, resamples=resamples)
    tokens = float(test.reply_tokens.sum())

    def report(way: Way, ours: Played, plain: Played, base: Played) -> ShapeResult:
        seconds, shape = float(ours.seconds.sum()), way.shape
        over = ratio_of_sums(base.seconds, ours.seconds, weights)
        return ShapeResult(
            batch=batch,
            name=way.name,
            shape="" if shape is None else str(shape),
            nodes=0 if shape is None else shape.nodes,
            depth=0 if shape is None else shape.depth,
            tokens_per_round=tokens / ours.rounds,
            round_ms=1e3 * seconds / ours.rounds,
            tokens_per_s=tokens / seconds,
            speedup=ratio_of_sums(plain.seconds, ours.seconds, weights),
            vs_chain=over,
            verdict="baseline" if way.name == TUNED else verdict(over, len(set(questions))),
        )

    return report


def _short(shape: Any) -> str:
    text = str(shape or "")
    if text and not text.strip("1x"):
        return "chain"
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
