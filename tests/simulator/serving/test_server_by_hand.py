"""The serving simulator by hand: batches, queues, memory, chunks, a draft's own device."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from policies.base import State
from policies.fixed import Fixed
from tests.simulator.serving.small_servers import (
    ByRound,
    BySlot,
    by_hand,
    make_trace,
    mixed_trace,
    open_loop,
    rounds_of,
    same,
    serve_some,
)
from traces.costs.affine import Affine
from traces.timing import BLOCK, HOST

# --- by hand: one iteration of a batch
#
# A draft step of b rows that read t tokens each costs 1 + 0.5 (t - 1) + 2 (b - 1), a target step
# 100 + 10 (t - 1) + 2 (b - 1); t may be a mean.

HAND = Affine(draft_fixed=1, draft_token=0.5, target_fixed=100, target_token=10, row=2)


@pytest.mark.parametrize(
    ("padded", "seconds"), [(False, [128, 114, 111, 100]), (True, [128, 124, 111, 100])]
)
def test_a_row_without_room_by_hand(padded: bool, seconds: list[float]) -> None:
    # Two replies of 4 tokens, the most there may be; fixed gamma 2.
    #  1: both draft 2: 2 (1 + 2), verify 3 per row 100 + 20 + 2: 128. A accepts 2, emits 3; B 1.
    #  2: A has room for 0, B drafts 2 alone: 1 + 1; 4 tokens in 2 rows, 2 per row: 112; 114.
    #     Padded: both as wide as B, 3 per row: 122; 124. A ends; B emits 1.
    #  3: B has room for 1: 1 + 110 = 111.   4: room for 0: 100.
    trace = make_trace([[2, 1, 1, 0], [0, 0, 0, 0]], [3, 3], max_new_tokens=4)
    served = by_hand(Fixed(2), trace, open_loop([0, 0]), HAND, slots=2, padded=padded)
    log = rounds_of(served)
    assert log.request.tolist() == [0, 1, 0, 1, 1, 1]
    assert log.batch_size.tolist() == [2, 2, 2, 2, 1, 1]
    assert log.gamma.tolist() == log.drafted.tolist() == [2, 2, 0, 2, 1, 0]
    assert log.accepted.tolist() == [2, 0, 0, 0, 0, 0]
    assert log.emitted.tolist() == [3, 1, 1, 1, 1, 1]
    assert log.elapsed_s.tolist() == np.repeat(seconds, [2, 2, 1, 1]).tolist()
    ends = np.cumsum(seconds)
    assert served.first_s.tolist() == [128, 128]
    assert served.finish_s.tolist() == [ends[1], ends[3]]
    assert served.longest_s.tolist() == [seconds[1], max(seconds[1:])]
    assert served.busy_s.tolist() == [ends[3]] and served.end_s == ends[3]


@pytest.mark.parametrize(
    ("script", "padded", "expected"),
    [
        # 3 and 1: steps of 2, 1, 1 rows: 3 + 1 + 1; 6 tokens in 2 rows: 122; padded 4 each: 132.
        (13, False, 5 + 122), (13, True, 5 + 132),
        (31, False, 5 + 122),  # the same, the other way round
        # 4, 2 and 1: 3, 2, 1, 1 rows: 5 + 3 + 1 + 1; 10 tokens in 3 rows: 104 + 10 * 7 / 3.
        (124, False, 10 + 104 + 70 / 3), (124, True, 10 + 104 + 40),
        (0, False, 102), (0, True, 102),
    ],
)  # fmt: skip
def test_lock_step_by_hand(script: int, padded: bool, expected: float) -> None:
    rows = 3 if script > 99 else 2
    trace = make_trace([[0]] * rows, [3] * rows)
    served = by_hand(BySlot(script), trace, open_loop([0] * rows), HAND, slots=rows, padded=padded)
    assert served.finish_s.tolist() == pytest.approx([expected] * rows, rel=1e-12)


@pytest.mark.parametrize(
    ("script", "kind", "padded", "expected"),
    [
        (1, BLOCK, False, 1 + 107),  # one of two rows drafts: its block 1; 1.5 tokens per row: 107
        (1, BLOCK, True, 1 + 112),
        (13, BLOCK, False, 3 + 122),  # both: 1 + 2
        (101, BLOCK, False, 3 + 104 + 20 / 3),  # two of three
        (0, BLOCK, False, 102),
        (1, HOST, False, 2 + 107),  # both look up, whatever they find
        (0, HOST, False, 2 + 102),
    ],
)
def test_a_draft_starts_for_the_rows_that_draft(
    script: int, kind: str, padded: bool, expected: float
) -> None:
    rows = 3 if script > 99 else 2
    trace = make_trace([[0]] * rows, [3] * rows)
    costs = dataclasses.replace(HAND, draft_kind=kind)
    served = by_hand(BySlot(script), trace, open_loop([0] * rows), costs, slots=rows, padded=padded)
    assert served.finish_s.tolist() == pytest.approx([expected] * rows, rel=1e-12)


def test_the_first_step_reads_what_the_caches_lack() -> None:
    # A accepts both drafts and lags by 2 tokens, B by 1: the first step reads 1.5 per row, 3.25
    # seconds; then 3, and 122 for the target. Then both lag by 1.
    trace = make_trace([[2, 1, 0, 0, 0], [0, 0, 0]], [3, 3])
    served = by_hand(Fixed(2), trace, open_loop([0, 0]), HAND, slots=2)
    assert rounds_of(served).elapsed_s[::2].tolist() == [128, 128.25, 128]


def test_steps_at_the_mean_or_the_longest_context() -> None:
    # Contexts 4 and 9, one second per context token (tabulated half a token on), both steps:
    # mean 6 (of 6.5): 2 * 6.5; longest 9: 2 * 9.5.
    model = Affine(draft_fixed=0, target_fixed=0, context_token=1)
    trace = make_trace([[0], [0]], [4, 9])
    for longest, seconds in ((False, 13.0), (True, 19.0)):
        served = by_hand(Fixed(1), trace, open_loop([0, 0]), model, slots=2, longest=longest)
        assert served.end_s == seconds


# --- by hand: queues, memory, chunks


def test_a_queue_by_hand() -> None:
    # One slot, prompts 50, tokens 100 each, two tokens per reply: 250 per request.
    #  0 comes at 0: prompt until 50, tokens at 150, 250. 1 comes at 10, waits until 250: 400, 500.
    #  2 comes at 600: 750, 850.
    trace = make_trace([[0, 0]] * 3, [3] * 3)
    model = Affine(target_fixed=100, prefill_fixed=50)
    served = by_hand(Fixed(0), trace, open_loop([0, 10, 600]), model, slots=1)
    assert served.admitted_s.tolist() == [0, 250, 600]
    assert (served.first_s - served.arrival_s).tolist() == [150, 390, 150]  # time to first token
    assert served.finish_s.tolist() == [250, 500, 850]
    assert served.prefill_s.tolist() == [50, 50, 50] and served.longest_s.tolist() == [100] * 3
    assert served.busy_s.tolist() == [750] and served.end_s == 850


def test_everybody_waits_for_a_prompt() -> None:
    # 0 reads until 50, a token at 150. 1 came at 120: its prompt until 200, then both: 302. 0: 402.
    trace = make_trace([[0, 0, 0], [0]], [3, 3])
    model = Affine(target_fixed=100, prefill_fixed=50, row=2)
    served = by_hand(Fixed(0), trace, open_loop([0, 120]), model, slots=2)
    assert served.admitted_s.tolist() == [0, 150]
    assert served.first_s.tolist() == [150, 302] and served.finish_s.tolist() == [402, 302]
    assert served.longest_s.tolist() == [152, 0]
    # In bins of one second up to the 1024th, by the end of the work; the last is open.
    assert float(served.bins.running_s.sum()) == 50 + 100 + 2 * 50 + 2 * 102 + 100


def test_orders_by_hand() -> None:
    # One slot, one token each, 100 s; 0 comes first, then 1, 2, 3 wait for it together.
    trace = make_trace([[0]] * 4, [9, 8, 3, 5])
    wanted = open_loop([0, 1, 2, 3])._replace(priority=np.asarray([0, 2, 2, 1], dtype=np.int32))
    begun = {
        order: by_hand(
            Fixed(0), trace, wanted, Affine(target_fixed=100), slots=1, order=order
        ).admitted_s.tolist()
        for order in ("first-come", "shortest", "priority")
    }
    assert begun["first-come"] == [0, 100, 200, 300]
    assert begun["shortest"] == [0, 300, 100, 200]
    assert begun["priority"] == [0, 200, 300, 100]


def test_a_preemption_by_hand() -> None:
    # Four blocks of 4 tokens, no drafts: a row at context x holds x + 1 tokens. Prompts of 3; A and
    # B reply with 8 tokens, C, who waits behind both, with 1. A prompt of x costs 51 + 2x.
    #  0: A reads until 57, B until 114. Five iterations of 102, until 624: contexts 3 .. 7.
    #  624: at context 8 A needs a third block. B, admitted last, gives back its two and waits, in
    #  front of C; 8 + 1 tokens need 3 blocks and 1 is free: both wait. A alone: 724, 824, 924.
    #  924: B reads 3 + 5 tokens again, 67 s, until 991; C until 1048. Both: 1150, C ends.
    #  B alone: 1250, 1350.
    trace = make_trace([[0] * 8, [0] * 8, [0]], [3, 3, 3])
    model = Affine(target_fixed=100, prefill_fixed=50, prefill_token=2, row=2)
    served = by_hand(
        Fixed(0), trace, open_loop([0, 0, 1]), model, slots=2, block_tokens=4, blocks=4,
        max_gamma=0,
    )  # fmt: skip
    assert served.preempted.tolist() == [0, 1, 0] and served.totals["preemptions"] == 1
    assert served.admitted_s.tolist() == [0, 57, 991]
    assert served.first_s.tolist() == [216, 216, 1150]
    assert served.finish_s.tolist() == [924, 1350, 1150]
    assert served.prefill_s.tolist() == [57, 57 + 67, 57]
    assert served.longest_s.tolist() == [102, 1150 - 624, 0]
    assert served.totals["peak_blocks"] == 4
    log = rounds_of(served)
    assert log.batch_size[log.start_s == 624].tolist() == [1]
    assert log.slot[log.request == 2].tolist() == [0]  # A's, and B has its own again


def test_chunks_by_hand() -> None:
    # Four prompt tokens per iteration; a prompt of x costs 51 + 2x, 51 the part without tokens.
    #  0: A reads 4 of 6 (8 s), nobody decodes: 51 + 8 = 59.
    #  59: A reads its last 2 (4 s), B 2 of 3 (4 s): 59 again, until 118.
    #  118: A decodes alone while B reads its last token: 100 + 2, until 220.
    #  220: both, 102, until 322: the end of both.
    trace = make_trace([[0, 0], [0]], [6, 3])
    model = Affine(target_fixed=100, prefill_fixed=50, prefill_token=2, row=2)
    served = by_hand(Fixed(0), trace, open_loop([0, 0]), model, slots=2, chunk_tokens=4)
    assert served.admitted_s.tolist() == [0, 0] and served.prefill_s.tolist() == [0, 0]
    assert served.first_s.tolist() == [220, 322] and served.finish_s.tolist() == [322, 322]
    log = rounds_of(served)
    assert log.start_s.tolist() == [118, 220, 220] and log.elapsed_s.tolist() == [102, 102, 102]
    assert log.batch_size.tolist() == [1, 2, 2] and served.totals["iterations"] == 4
    assert served.busy_s.tolist() == [322]


# --- by hand: a device of its own for the draft


def test_the_network_by_hand() -> None:
    # Two hops of 3 and a quarter second for each of 3 verified tokens; without a draft, nothing.
    trace = make_trace([[0, 0]], [3])
    model = Affine(draft_fixed=1, target_fixed=100, target_token=10)
    network = {"slots": 1, "apart": True, "hop_s": 3.0, "token_hop_s": 0.25}
    served = by_hand(ByRound(2), trace, open_loop([0]), model, **network)
    assert rounds_of(served).elapsed_s.tolist() == [2 + 120 + 6 + 0.75, 100]
    shaken = by_hand(ByRound(22), trace, open_loop([0]), model, jitter_s=1.0, **network)
    more = rounds_of(shaken).elapsed_s - 128.75
    assert (more >= 0.0).all() and (more < 2.0).all() and more[0] != more[1]


def runs_of(judged: str) -> list[int]:
    """accept_len of a reply whose token i a draft would have right where judged[i] is 1."""
    return [len(judged[i:].split("0")[0]) for i in range(len(judged))]


@pytest.mark.parametrize(
    ("draft_s", "seconds"),
    [
        # A target step over k tokens takes 100 + 10 k s: 110 s where nothing is ready (pre-verify),
        # 130 s with two drafted tokens (post-verify). Three draft steps run beside it, and what was
        # made crosses the network both ways at a time, 3 s.
        (20, [113, 133, 113, 133, 113, 113, 133]),  # 60 s of draft are hidden
        (40, [123, 133, 123, 133, 123, 123, 133]),  # 120 s: longer than a pre-verify
        (50, [153] * 7),  # 150 s: longer than anything
    ],
)
def test_pipelined_by_hand(draft_s: float, seconds: list[float]) -> None:
    # Tokens 0 1 2 3 4 5 6 7 8 9, which the draft has right or not: 1 1 1 0 1 1 0 0 1 1.
    # 1. 0 is judged while 0 1 2 are drafted: right, and 1 2 are ready.
    # 2. 1 2 are right, 3 is judged while 3 4 5 are drafted: wrong, the target's goes there.
    # 3. 4 is right, 5 6 are ready.  4. 5 is right, 6 is not: all behind it is thrown away.
    # 5. 7 is wrong: one token, the target's.  6. 8 is right.  7. 9 is, and the reply ends.
    trace = make_trace([runs_of("1110110011")], [3])
    model = Affine(draft_fixed=draft_s, target_fixed=110, target_token=10)
    served = by_hand(
        Fixed(3), trace, open_loop([0]), model, slots=1, apart=True, pipelined=True, hop_s=3.0
    )
    log = rounds_of(served)
    assert log.drafted.tolist() == [1, 3, 1, 3, 1, 1, 3]
    assert log.accepted.tolist() == [1, 2, 1, 1, 0, 1, 1]
    assert log.emitted.tolist() == [1, 3, 1, 2, 1, 1, 1]
    assert log.ended.tolist() == [False] * 6 + [True]
    assert log.elapsed_s.tolist() == seconds
    assert (served.totals["steps"], served.totals["ahead"]) == (0, 7 * 3)


def test_pipelined_rows_wait_for_each_other_by_hand() -> None:
    # Row 0 has everything right, row 1 nothing. A draft step costs 50 s and 8 for a second row, a
    # target step 100 s, 8 for a second row, 10 for each further token per row. First both are
    # pre-verified: 108 s, and two draft steps take 116. Then row 0 has one token ready, half a
    # token per row: 113 s. From then on it is alone: 110 s of target, 100 of draft; at last only
    # one token is left, which is ready.
    trace = make_trace([runs_of("1" * 6), runs_of("00")], [3, 3])
    model = Affine(draft_fixed=50, row=8, target_fixed=100, target_token=10)
    served = by_hand(Fixed(2), trace, open_loop([0, 0]), model, slots=2, apart=True, pipelined=True)
    log = rounds_of(served)
    row = log.request == 0
    assert log.emitted[row].tolist() == [1, 2, 2, 1] and log.emitted[~row].tolist() == [1, 1]
    assert log.elapsed_s[row].tolist() == [116, 116, 110, 110]
    assert served.finish_s.tolist() == [452, 232]


def test_pipelined_keeps_room_for_what_is_ready() -> None:
    """Six tokens at most: of a draft of 4 three are ready at place 1, and one more may follow."""
    trace = make_trace([runs_of("111111")], [3], max_new_tokens=6)
    served = by_hand(Fixed(4), trace, open_loop([0]), Affine(), slots=1, apart=True, pipelined=True)
    assert served.totals["ahead"] == 4 + 1 and served.tokens.tolist() == [6]


def test_pipelined_without_a_draft_is_in_turn() -> None:
    trace = mixed_trace()
    one, two = (
        serve_some(Fixed(0), trace, apart=True, hop_s=0.5, pipelined=pipelined)
        for pipelined in (False, True)
    )
    assert same(one, two)


def test_signals_behind_what_is_ready_by_hand() -> None:
    """While all is accepted a rule sees every token's signals once and in order, also of tokens
    that lie deeper behind the newest verified one than the trace has signals.
    """
    trace = make_trace([runs_of("1" * 12)], [3], depth=2)
    shown = np.repeat(np.arange(1.0, 13.0, dtype=np.float32)[:, None] / 100.0, 2, axis=1)
    shown[:-1, 1] = shown[1:, 0]  # what lies one deeper is what the next position begins with
    trace = dataclasses.replace(trace, top1_prob=shown, entropy=shown * 0)
    seen: list[float] = []

    class Sees(Fixed):
        def proceed(self, state: State, slot: int, draft: Any) -> bool:
            seen.append(round(100.0 * draft.top1_prob))
            return True

    by_hand(Sees(2), trace, open_loop([0]), Affine(), slots=1, apart=True, pipelined=True)
    # 1 2 are drafted; 2 is ready while 3 4 are; then 4 while 5 6 are, ..., 12 is the last.
    assert seen[:12] == [*range(1, 13)]


@pytest.mark.parametrize(
    ("script", "seconds"),
    [(22002, [122, 100, 100, 129, 122]), (22220, [100, 129, 122, 122, 122]), (0, [100] * 5)],
)
def test_reentry_is_charged_once(script: int, seconds: list[float]) -> None:
    trace = make_trace([[0] * 5], [3])
    model = Affine(draft_fixed=1, target_fixed=100, target_token=10)
    served = by_hand(ByRound(script), trace, open_loop([0]), model, slots=1, reentry_s=7.0)
    assert rounds_of(served).elapsed_s.tolist() == seconds
