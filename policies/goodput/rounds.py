"""One round to rules that weigh tokens against seconds: its price, the tokens it judged."""

from __future__ import annotations

from policies.base import Outcome, View


def round_s(view: View, gamma: int) -> float:
    """Seconds of a round that drafts gamma <= view.room tokens at the measured prices."""
    return gamma * view.draft_step_s + float(view.verify_s[gamma + 1])


def judged_tokens(outcome: Outcome) -> int:
    """Drafted tokens that were reached: those accepted and the first rejected one."""
    if outcome.ended:  # nothing was rejected
        return outcome.accepted
    return min(outcome.accepted + 1, outcome.drafted)
