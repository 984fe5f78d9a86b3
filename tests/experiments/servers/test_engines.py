"""From a stream to rounds: each engine's words, and what they do not say."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.servers.engines import find_engine
from experiments.servers.streams import Event, finish_in, text_in
from traces.errors import InputError


def llama(*timings: tuple[int, int, int]) -> list[Event]:
    """Events with predicted_n, draft_n, draft_n_accepted so far, a token each."""
    return [
        Event(0.1 * number, {
            "choices": [{"delta": {"content": "w"}, "finish_reason": None}],
            "timings": {"predicted_n": n, "predicted_ms": 10.0 * n, "draft_n": d,
                        "draft_n_accepted": a},
        })
        for number, (n, d, a) in enumerate(timings)
    ]  # fmt: skip


def test_llama_cpp_rounds_are_where_draft_n_grows() -> None:
    # First token, a round of 3 drafted and 2 kept, one of 3 and 0, one without a draft.
    told = find_engine("llama.cpp").told(
        llama((1, 0, 0), (2, 3, 2), (3, 3, 2), (4, 3, 2), (5, 6, 2), (6, 6, 2)), 3
    )
    assert told.steps == ((3, 2), (3, 0), (0, 0))
    assert (told.tokens, told.drafted, told.accepted) == (6, 6, 2)
    assert told.decode_s == pytest.approx(0.06) and not told.inferred


def test_llama_cpp_without_a_draft() -> None:
    told = find_engine("llama.cpp").told(llama((1, 0, 0), (2, 0, 0), (3, 0, 0)), 0)
    assert told.steps == ((0, 0), (0, 0)) and told.accepted == 0


def test_a_round_that_does_not_add_up_leaves_the_counts() -> None:
    # Two of three kept, but four tokens came with it: an event was lost.
    told = find_engine("llama.cpp").told(llama((1, 0, 0), (2, 3, 2), (6, 3, 2), (7, 6, 2)), 3)
    assert told.steps is None and (told.drafted, told.accepted) == (6, 2)


def test_the_last_round_may_be_cut() -> None:
    told = find_engine("llama.cpp").told(llama((1, 0, 0), (2, 3, 3), (3, 3, 3)), 3)
    assert told.steps == ((3, 3),)


def step(ids: int, **more: Any) -> Event:
    return Event(0.5, {"choices": [{"delta": {}, "token_ids": [1] * ids}], **more})


def usage(tokens: int, **more: Any) -> Event:
    return Event(1.0, {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": tokens},
                       **more})  # fmt: skip


def test_vllm_events_are_steps() -> None:
    told = find_engine("vllm").told([step(1), step(3), step(1), usage(5)], 2)
    assert told.steps == ((2, 2), (2, 0)) and told.inferred and told.prompt_tokens == 4


def test_vllm_tells_the_steps_itself() -> None:
    stats = {"per_step_drafted": [2, 1], "per_step_accepted": [2, 0], "num_draft_tokens": 3,
             "num_accepted_draft_tokens": 2}  # fmt: skip
    events = [step(1), step(3), step(1), usage(5, metrics={"speculative_decoding": stats})]
    told = find_engine("vllm").told(events, 2)
    assert told.steps == ((2, 2), (1, 0)) and not told.inferred


@pytest.mark.parametrize(
    "events",
    [
        [step(1), step(4), usage(5)],  # more than a round of 2 can bring: two steps in one event
        [step(2), step(3), usage(5)],  # the prompt's token did not come alone
        [step(1), step(3), usage(9)],  # tokens that no event brought
        [usage(5)],  # no stream
    ],
)
def test_vllm_events_that_are_no_steps(events: list[Event]) -> None:
    assert find_engine("vllm").told(events, 2).steps is None


def test_sglang_counts_tokens_as_they_come() -> None:
    events = [usage(1), usage(4), usage(5)]
    detail = {"spec_tokens_details": {"spec_verify_ct": 2, "spec_num_correct_drafts": 2}}
    told = find_engine("sglang").told([*events, usage(5, sglext=detail)], 2)
    assert told.steps == ((2, 2), (2, 0)) and told.accepted == 2


def test_sglang_events_that_hold_several_steps() -> None:
    detail = {"spec_tokens_details": {"spec_verify_ct": 4, "spec_num_correct_drafts": 0}}
    told = find_engine("sglang").told([usage(1), usage(3), usage(5, sglext=detail)], 2)
    assert told.steps is None and told.accepted == 0


def test_text_and_end_of_a_stream() -> None:
    events = [
        Event(0.0, {"choices": [{"delta": {"role": "assistant", "content": None}}]}),
        Event(0.1, {"choices": [{"delta": {"content": "a "}}]}),
        Event(0.2, {"choices": [{"delta": {"content": "b"}, "finish_reason": "length"}]}),
        Event(0.3, {"choices": [], "usage": None}),
    ]
    assert text_in(events) == "a b" and finish_in(events) == "length"
    assert finish_in(events[:2]) == ""


def test_an_engine_that_nobody_knows() -> None:
    with pytest.raises(InputError, match=r"--engine takes vllm, sglang, llama\.cpp"):
        find_engine("tgi")
