"""One speculative round: the only statement of its rules, called by every runtime.

A round at position i of a reply of L tokens may draft `room_at` tokens, shows its policy the view
of `view_at`, drafts d tokens and gives them to the target (but for a last one that was not kept),
and settles: n = min(d, accept_len[i]) are accepted,
min(n + 1, L - i) emitted, and where n >= L - i the reply ended at a drafted token. What it costs is
traces.costs.pricing.round_seconds. What is left of it is a row of traces.roundlog.RoundLog.

Plain Python of plain arithmetic, as hooks are: simulator.replay.kernels compiles the same code.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from policies.base import MenuView, Outcome, View
from traces.costs.pricing import StepCosts


class Limits(NamedTuple):
    """Bounds of a draft, tokens. max_context 0: no limit known."""

    max_gamma: int
    max_new_tokens: int
    max_context: int


def longest_reply(limits: Limits, prompt_tokens: int) -> int:
    """The most tokens a reply may have, as far as a server knows."""
    if limits.max_context > 0:
        return min(limits.max_new_tokens, limits.max_context - prompt_tokens)
    return limits.max_new_tokens


def room_at(limits: Limits, prompt_tokens: int, position: int, draft_len: int) -> int:
    """The most tokens that may be drafted at output position `position`, >= 0.

    draft_len: tokens that the drafter has to offer there. Only limits that a server knows: the
    reply's own length would tell the policy its future. The target's own token needs a place, too.
    """
    left = longest_reply(limits, prompt_tokens) - position - 1
    return max(0, min(limits.max_gamma, draft_len, left))


def view_at(
    costs: StepCosts,
    row: int,
    bucket: int,
    context_tokens: int,
    batch_size: int,
    waiting: int,
    room: int,
) -> View:
    """The view of a policy before a round; row, bucket: of the tables, by batch and context."""
    step_s = float(costs.draft_s[row, bucket, 1]) + costs.signal_s
    return View(context_tokens, batch_size, waiting, room, step_s, costs.verify_s[row, bucket])


def menu_view_at(
    costs: StepCosts,
    bucket: int,
    context_tokens: int,
    room: int,
    levels: npt.NDArray[np.int64],
) -> MenuView:
    """The view of a policy that chooses among shapes, alone on a machine: rows of the tables are
    entries of its menu. room: the most tokens that may be drafted whatever the entry.
    """
    step_s = float(costs.draft_s[0, bucket, 1]) + costs.signal_s
    return MenuView(context_tokens, 1, 0, room, levels, step_s, costs.verify_s[:, bucket])


def clamp_entry(entry: int, entries: int) -> int:
    """The entry in force: inside 0..entries - 1. Every runtime uses this one."""
    return max(0, min(entry, entries - 1))


class Settled(NamedTuple):
    """accepted: drafted tokens that the target accepted; emitted: tokens added to the reply;
    ended: the reply ended at a drafted token, or before it.
    """

    accepted: int
    emitted: int
    ended: bool


def settle(drafted: int, accept_len: int, left: int) -> Settled:
    """The outcome of a round. accept_len: drafted tokens that the target would accept, <= left;
    left: tokens of the reply from here to its end, >= 1.
    """
    accepted = min(drafted, accept_len)
    return Settled(accepted, min(accepted + 1, left), left <= accepted)


def note_round(
    record: Any,
    request: int,
    slot: int,
    batch_size: int,
    context_tokens: int,
    start_s: float,
    drafted: int,
    outcome: Outcome,
) -> None:
    """Write a finished round into a record of traces.roundlog.ROUND. drafted: tokens, those that
    nobody verified included.
    """
    record.request, record.slot, record.start_s = request, slot, start_s
    record.context_tokens, record.batch_size = context_tokens, batch_size
    record.gamma, record.drafted, record.verified = outcome.gamma, drafted, outcome.drafted
    record.accepted, record.emitted = outcome.accepted, outcome.emitted
    record.ended, record.elapsed_s = outcome.ended, outcome.elapsed_s
