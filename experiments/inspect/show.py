"""`gammalab policies` and `gammalab trace`: look at what is there."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any

import numpy as np

from experiments.common.frames import figure, frame_of, text_of, words
from experiments.common.statistics import divide
from experiments.common.text_table import table
from experiments.inspect.options import TraceCheckOptions, TraceInfoOptions, TraceSplitOptions
from experiments.options import PoliciesOptions
from policies.base import Policy, uses_signals
from policies.fields import allowed, origins, short_field
from policies.registry import REGISTRY, find_policy
from real_backend.command_line import Result
from traces.errors import InputError
from traces.schema import EXACTNESS, Trace, TraceError
from traces.split import split_rows
from traces.store import content_hash, read_trace, refuse_existing, write_trace

WIDTH = 110  # columns
BESIDE = 3 + max(map(len, REGISTRY))
ACCEPTANCE = (
    words("task", "task", None, ""),
    figure("requests", "replies", None, "", 0),
    figure("tokens_per_reply", "tokens/reply", None, "", 1),
    figure("mean_accept_len", "accept_len", None, ""),
    figure("token_acceptance", "acceptance", None, "", 3),
    figure("lag1", "lag-1", None, ""),
    figure("mean_run", "mean run", None, ""),
)
FIELD_COLUMNS = ("field", "default", "range", "the default comes from")


def show_policies(options: PoliciesOptions) -> Result:
    """All controllers in a table, or one in full."""
    name = options.name
    classes = [find_policy(name)] if name else list(REGISTRY.values())
    described = [describe_policy(cls()) for cls in classes]
    if name:
        return Result(_policy_page(described[0]), described[0])
    return Result("\n".join(line for entry in described for line in _listed(entry)), described)


def _listed(entry: dict[str, Any]) -> list[str]:
    """A controller's name beside its rule and its fields."""
    fields = ", ".join(f"{f['name']}={_plain(f['default'])}" for f in entry["fields"])
    lines = [*_folded(entry["rule"], WIDTH - BESIDE), *_folded(fields, WIDTH - BESIDE)]
    names = [entry["name"]] + [""] * (len(lines) - 1)
    return [f"{name:<{BESIDE}}{line}" for name, line in zip(names, lines, strict=True)]


def _folded(text: str, width: int) -> list[str]:
    """Lines of at most that width, broken at spaces."""
    return textwrap.wrap(text, width, break_on_hyphens=False)


def describe_policy(policy: Policy) -> dict[str, Any]:
    """name, rule, source, reads_signals, and fields with default, range and origin."""
    return {
        "name": policy.name,
        "rule": policy.rule,
        "source": policy.source,
        "reads_signals": uses_signals(policy),
        "doc": (type(policy).__doc__ or "").strip(),
        "fields": [
            {
                "name": short_field(field.name),
                "default": getattr(policy, field.name),
                "range": allowed(field),
                "from": origins(policy)[field.name],
            }
            for field in dataclasses.fields(policy)
        ],
    }


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _policy_page(entry: dict[str, Any]) -> str:
    doc = "\n".join(line.strip() for line in entry["doc"].splitlines())
    signals = "yes, after every drafted token" if entry["reads_signals"] else "no"
    lines = [entry["name"]]
    for what, text in (("rule", entry["rule"]), ("source", entry["source"]), ("signals", signals)):
        first, *others = _folded(text, WIDTH - 11)
        lines += [f"  {what:<9}{first}", *(f"{'':<11}{line}" for line in others)]
    lines += ["", doc]
    if entry["fields"]:
        lines += ["", table(FIELD_COLUMNS, [("", _field_rows(entry["fields"]))], left=4)]
    return "\n".join(lines)


def _field_rows(fields: list[dict[str, Any]]) -> list[list[str]]:
    """Field, default, range and origin, a row of its own for every further line of the latter."""
    facts = [[f["name"], _plain(f["default"]), f["range"]] for f in fields]
    columns = zip(FIELD_COLUMNS, *facts, strict=False)  # but for the last one
    taken = sum(max(map(len, column)) + 2 for column in columns)
    rows = []
    for field, fact in zip(fields, facts, strict=True):
        first, *others = _folded(field["from"], WIDTH - taken)
        rows += [[*fact, first], *(["", "", "", line] for line in others)]
    return rows


@dataclasses.dataclass(frozen=True)
class Acceptance:
    """How the draft fares on some replies.

    token_acceptance: share of positions whose next drafted token would be accepted; lag1: its
    autocorrelation from one position to the next within replies; mean_run: accepted tokens in a
    row, where there is at least one.
    """

    requests: int
    tokens_per_reply: float
    mean_accept_len: float
    token_acceptance: float
    lag1: float
    mean_run: float


def acceptance(trace: Trace) -> Acceptance:
    """The figures of one trace, pooled over its replies."""
    accepted = trace.accept_len > 0
    same_reply = np.ones(trace.positions, dtype=np.bool_)
    same_reply[trace.offsets[:-1]] = False  # a reply's first position has no predecessor
    before, after = accepted[:-1][same_reply[1:]], accepted[1:][same_reply[1:]]
    runs = int((accepted & ~(np.concatenate([[False], accepted[:-1]]) & same_reply)).sum())
    mixed = len(before) > 1 and before.std() > 0 and after.std() > 0
    return Acceptance(
        requests=trace.requests,
        tokens_per_reply=trace.positions / trace.requests,
        mean_accept_len=float(trace.accept_len.mean()),
        token_acceptance=float(accepted.mean()),
        lag1=float(np.corrcoef(before, after)[0, 1]) if mixed else float("nan"),
        mean_run=float(divide(accepted.sum(), runs)),
    )


def by_task(trace: Trace) -> dict[str, Acceptance]:
    """`acceptance` of every task, in order of first appearance."""
    tasks = dict.fromkeys(trace.category)
    rows = {t: [r for r, c in enumerate(trace.category) if c == t] for t in tasks}
    return {task: acceptance(trace.select(rows[task])) for task in tasks}


def show_trace(options: TraceInfoOptions) -> Result:
    """Meta, size and acceptance of a trace."""
    trace = read_trace(options.trace, shaped=True)
    overall, tasks = acceptance(trace), by_task(trace)
    facts = {
        "meta": trace.meta.to_dict(),
        "content_sha256": content_hash(trace),
        "requests": trace.requests,
        "positions": trace.positions,
        "has_signals": trace.has_signals,
        "overall": overall,
        "tasks": tasks,
    }
    said = {
        key: ", ".join(f"{k} {v}" for k, v in value.items()) if key == "versions" else value
        for key, value in trace.meta.to_dict().items()
    }
    said |= {
        "": f"{trace.meta.exactness}: {EXACTNESS[trace.meta.exactness]}",
        "content sha256": facts["content_sha256"],
        "requests": trace.requests,
        "positions": trace.positions,
        "draft signals": "yes" if trace.has_signals else "no",
    }
    frames = [
        frame_of({"task": task} | vars(found) for task, found in part.items())
        for part in (tasks, {"all": overall})
    ]
    lines = [f"{key:<17}{value}" for key, value in said.items()]
    text = "\n".join([*lines, "", text_of(ACCEPTANCE, [("", frame) for frame in frames])])
    return Result(text, facts)


def check_trace(options: TraceCheckOptions) -> Result:
    """Does the file read, fit the schema and its hash? A damaged trace is a finding."""
    path = options.trace
    try:
        trace = read_trace(path, shaped=True)
    except TraceError as error:
        return Result(findings=(str(error),))
    return Result(
        f"{path}: ok, {trace.requests} requests, {trace.positions} positions\n"
        f"content sha256 {content_hash(trace)}"
    )


def split_trace(options: TraceSplitOptions) -> Result:
    """Write the two parts of a trace."""
    trace = read_trace(options.trace, shaped=True)
    for path in (options.out_train, options.out_test):
        refuse_existing(path, options.force)
    if options.out_train.resolve() == options.out_test.resolve():
        raise InputError(f"--out-train and --out-test are the same file {options.out_test}")
    train, test = split_rows(trace, options.fraction, options.seed)
    lines = []
    for path, rows in ((options.out_train, train), (options.out_test, test)):
        part = trace.select(rows)
        write_trace(part, path, overwrite=options.force)
        lines.append(f"{path}: {part.requests} requests, {part.positions} positions")
    return Result("\n".join(lines))
