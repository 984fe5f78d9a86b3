"""Acceptance as counters have it: how often a step kept at least d tokens, and no more.

A Trace needs to know which position of which reply was accepted. Counters have lost that, and with
it how acceptance clusters; a replay made from them would assume that it does not. So they are shown
as a table, with what they say of other fixed lengths (traces.censoring.rates), and importing them
into a trace is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from traces.censoring.rates import bounds, estimate
from traces.errors import InputError


@dataclasses.dataclass(frozen=True)
class Marginals:
    """Counts over all verification steps of a file.

    at_least: steps that accepted d tokens or more, for d = 1, 2, ...; empty if unknown.
    steps, drafted_tokens: 0 if unknown.
    rounded: the counts were rebuilt from printed rates.
    left_out: answers of the file that say nothing of drafts, or broke off.
    """

    format: str
    file: str
    steps: int
    drafted_tokens: int
    accepted_tokens: int
    at_least: tuple[int, ...]
    rounded: bool = False
    left_out: int = 0

    @property
    def constant_draft(self) -> bool:
        """True if every step drafted as many tokens as there are depths."""
        return self.steps > 0 and self.drafted_tokens == self.steps * len(self.at_least)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the fields, and P(accepted >= d) of a step."""
        shares = [count / self.steps for count in self.at_least] if self.steps else []
        return dataclasses.asdict(self) | {
            "kind": "marginals",
            "constant_draft": self.constant_draft,
            "survival": shares,
        }

    def table(self) -> str:
        """The counts as text, with what they do not say."""
        lines = [
            f"{self.accepted_tokens} drafted tokens accepted; how many were drafted is not said"
        ]
        if self.drafted_tokens:
            rate = self.accepted_tokens / self.drafted_tokens
            drafted = f"{self.drafted_tokens} drafted tokens accepted ({rate:.1%})"
            lines = [f"{self.accepted_tokens} of {drafted}"]
        if self.steps:
            mean = self.accepted_tokens / self.steps
            lines.append(f"{self.steps} steps, {mean:.3f} accepted in the mean, bonus not counted")
        if self.steps and self.at_least:
            lines += ["", " d      steps  P(accepted >= d)  given >= d-1"]
            before = self.steps
            for depth, count in enumerate(self.at_least, start=1):
                given = f"{count / before:.3f}" if before else "-"
                lines.append(f"{depth:>2}  {count:>9}  {count / self.steps:>16.3f}  {given:>12}")
                before = count
            if not self.constant_draft:
                lines.append("Drafts varied or are unknown: each share is a lower bound.")
            else:
                lines += ["", *self._other_lengths()]
        if self.rounded:
            lines.append("Counts rebuilt from printed rates, so rounded.")
        if self.left_out:
            lines.append(f"{self.left_out} answers without counts left out.")
        return "\n".join(lines)

    def _other_lengths(self) -> list[str]:
        """Tokens per round of every fixed length up to the recorded one, a line each."""
        found = zip(
            estimate(self.steps, self.at_least), *bounds(self.steps, self.at_least), strict=True
        )
        return [
            f"fixed length {length}: {tokens:.3f} tokens per round"
            + (f" ({low:.3f} to {high:.3f} by the counts alone)" if high - low > 5e-4 else "")
            for length, (tokens, low, high) in enumerate(found, start=1)
        ]


class MarginalsOnly(InputError):
    """The file has counts and no order; `marginals` holds them."""

    def __init__(self, marginals: Marginals, remedy: str) -> None:
        super().__init__(
            f"{marginals.file} says how many tokens were accepted, not where: no trace; {remedy}"
        )
        self.marginals = marginals


def pooled(parts: Sequence[Marginals], left_out: int = 0) -> Marginals:
    """The counts of one or more answers or lines, added up; what one does not say is unknown."""
    drafting = [part for part in parts if part.drafted_tokens or part.accepted_tokens]
    counted = all(part.steps for part in drafting)
    deep = counted and all(part.at_least for part in drafting)
    said = all(part.drafted_tokens for part in drafting)
    return Marginals(
        format=parts[0].format,
        file=parts[0].file,
        steps=sum(part.steps for part in parts) if counted else 0,
        drafted_tokens=sum(part.drafted_tokens for part in parts) if said else 0,
        accepted_tokens=sum(part.accepted_tokens for part in parts),
        at_least=add_up([part.at_least for part in parts]) if deep else (),
        rounded=counted and any(part.rounded for part in parts),
        left_out=left_out,
    )


def from_histogram(histogram: Sequence[int]) -> tuple[int, ...]:
    """at_least, from how many steps accepted exactly 0, 1, 2, ... tokens."""
    return tuple(sum(histogram[depth:]) for depth in range(1, len(histogram)))


def from_rates(
    accepted_tokens: int, drafted_tokens: int, rates: Sequence[float]
) -> tuple[int, tuple[int, ...]]:
    """steps and at_least, from a log's tokens and the share of steps that reach each depth.

    The rates sum to accepted tokens per step, which is how the number of steps comes back. Where
    nothing was accepted there are as few steps as drafts of full length make.
    """
    whole = sum(rates)
    if whole > 0:
        steps = round(accepted_tokens / whole)
    else:
        steps = -(-drafted_tokens // len(rates)) if rates else 0
    return steps, tuple(round(rate * steps) for rate in rates)


def add_up(counts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Sums by place of sequences of different lengths; a missing place counts nothing."""
    longest = max(map(len, counts), default=0)
    return tuple(sum(c[k] for c in counts if k < len(c)) for k in range(longest))
