"""What serving engines and transformers log of a run, as a Trace; and what makes no trace."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from policies.registry import parse_policy
from real_backend.decoding.engine import Engine
from real_backend.huggingface.recorder import Recorder, record
from real_backend.load_pair import load_pair
from real_backend.pair_spec import EMBEDDED, resolve_pair
from real_backend.prompts import EMBEDDED_PROMPTS, Request, read_questions, requests_of_trace
from simulator.replay.replay import replay
from traces.costs.pricing import StepCosts, tabulate
from traces.costs.table import Table
from traces.errors import InputError
from traces.importers import llama_cpp, sglang, vllm
from traces.importers.common import Options
from traces.importers.marginals import Marginals, MarginalsOnly
from traces.roundlog import RoundLog
from traces.schema import Trace
from traces.store import read_trace
from traces.timing import read_timing

DATA = Path(__file__).parents[3] / "traces/data"
ROUND = ("request", "context_tokens", "gamma", "drafted", "accepted", "emitted")
AS_SHIPPED = Options(depth=16, max_new_tokens=128)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """More threads only wait for each other in models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shipped() -> Trace:
    return read_trace(DATA / "embedded-greedy.parquet")


@pytest.fixture(scope="module")
def prices() -> StepCosts:
    timing = read_timing(DATA / "timing-x86_64-cpu.json")
    return tabulate(Table(timing), max_context=1024, width=26)


ROWS = [0, 58, 116, 174]  # replies of four tasks


@pytest.fixture(scope="module")
def few(shipped: Trace) -> Trace:
    return shipped.select(ROWS)


@pytest.fixture(scope="module")
def requests(shipped: Trace) -> list[Request]:
    pair = load_pair(resolve_pair("embedded", None, None), device="cpu")
    every = requests_of_trace(read_questions(EMBEDDED_PROMPTS), shipped, pair)
    return [every[row] for row in ROWS]


def file_with(tmp_path: Path, *rows: Any) -> Path:
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n")
    return path


def as_vllm_logs(log: RoundLog, trace: Trace, replies: list[list[int]]) -> list[dict[str, Any]]:
    """One response per request, as a server with detailed metrics answers."""
    rows = []
    for number, (name, task) in enumerate(zip(trace.request_id, trace.category, strict=True)):
        mine = log.request == number
        rounds = log.accepted[mine].tolist(), log.drafted[mine].tolist()
        prompt = int(trace.prompt_tokens[number])
        rows.append(vllm.response_of(name, task, prompt, replies[number], *rounds))
    return rows


def replies_of(trace: Trace) -> list[list[int]]:
    assert trace.token_ids is not None
    return [part.tolist() for part in np.split(trace.token_ids, trace.offsets[1:-1])]


def same_rounds(one: RoundLog, other: RoundLog) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ROUND)


def check_against(imported: Trace, truth: Trace) -> None:
    """Where nothing is censored the truth itself, elsewhere a bound below it."""
    assert imported.meta.exactness == "censored" and imported.censored is not None
    assert np.array_equal(imported.token_ids, truth.token_ids)
    known = ~imported.censored
    assert 0 < known.sum() < len(known)
    assert np.array_equal(imported.accept_len[known], truth.accept_len[known])
    assert (imported.accept_len <= truth.accept_len).all()


# ---- vLLM: round trip ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fixed:gamma=3", "hf-heuristic:gamma0=5", "gammatune", "ucb"])
def test_replay_logged_as_vllm_does_comes_back(
    name: str, shipped: Trace, prices: StepCosts, tmp_path: Path
) -> None:
    """All 175 shipped replies: log, import, replay - the same rounds."""
    policy = parse_policy(name)
    log = replay(policy, shipped, prices)
    path = file_with(tmp_path, *as_vllm_logs(log, shipped, replies_of(shipped)))
    imported = vllm.read(path, AS_SHIPPED)
    check_against(imported, shipped)
    assert same_rounds(replay(policy, imported, prices), log)


@pytest.mark.parametrize("name", ["fixed:gamma=4", "gammatune"])
def test_real_run_logged_as_vllm_does_comes_back(
    name: str, few: Trace, requests: list[Request], prices: StepCosts, tmp_path: Path
) -> None:
    """Trace, real engine, log, import, replay: the replay is that of the first trace."""
    policy = parse_policy(name)
    pair = load_pair(resolve_pair("embedded", None, None), device="cpu")
    run = Engine(pair, prices, max_gamma=16).decode(policy, requests, clock="model")
    path = file_with(tmp_path, *as_vllm_logs(run.log, few, run.tokens))
    imported = vllm.read(path, AS_SHIPPED)
    check_against(imported, few)
    again = replay(policy, imported, prices)
    assert same_rounds(again, run.log)
    assert same_rounds(again, replay(policy, few, prices))


def test_server_that_prefills_replays_from_its_second_token(
    shipped: Trace, prices: StepCosts, tmp_path: Path
) -> None:
    """Three drafted tokens from position 1 on: the replay adds the prefill's round, no other."""
    rows, served_rounds = [], []
    for row, (begin, end) in enumerate(itertools.pairwise(shipped.offsets.tolist())):
        accepted, at = [], begin + 1
        while at < end:
            accepted.append(min(3, int(shipped.accept_len[at])))
            at += accepted[-1] + 1
        served_rounds.append([0, *accepted])
        if accepted:
            about = {"id": shipped.request_id[row], "choices": []}
            rows.append(served(accepted, [3] * len(accepted), end - begin) | about)
    imported = vllm.read(file_with(tmp_path, *rows), Options(max_new_tokens=1000))
    assert imported.requests == shipped.requests
    log = replay(parse_policy("fixed:gamma=3"), imported, prices)
    assert log.accepted.tolist() == list(itertools.chain(*served_rounds))


# ---- vLLM: by hand ---------------------------------------------------------------------------


def served(accepted: list[int], drafted: list[int], completion: int, **more: Any) -> dict[str, Any]:
    """A response of vLLM with `detailed` metrics, as its documentation shows one."""
    stats = {
        "num_spec_steps": len(accepted),
        "num_accepted_draft_tokens": sum(accepted),
        "num_draft_tokens": sum(drafted),
        "per_step_accepted": accepted,
        "per_step_drafted": drafted,
    }
    usage = {"prompt_tokens": 11, "completion_tokens": completion}
    row = {"id": "r0", "choices": [{"index": 0}], "usage": usage}
    return row | {"metrics": {"speculative_decoding": stats}} | more


def test_first_token_is_the_prefills(tmp_path: Path) -> None:
    """Prefill, 2 of 3, 3 of 3, then 1 of 2; nobody proposed at 0 and 7."""
    trace = vllm.read(file_with(tmp_path, served([2, 3, 1], [3, 3, 2], 10)), Options())
    assert trace.accept_len.tolist() == [0, 2, 1, 0, 3, 2, 1, 0, 1, 0]
    assert trace.censored is not None
    assert np.flatnonzero(trace.censored).tolist() == [0, 4, 5, 6, 7]
    assert trace.prompt_tokens.tolist() == [11] and trace.token_ids is None
    assert trace.meta.depth == 3 and trace.meta.source["steps"] == 3


def test_last_step_is_cut_at_the_end_of_the_reply(tmp_path: Path) -> None:
    """The limit cut the last step of 3 accepted tokens after two; the run ends the reply."""
    trace = vllm.read(file_with(tmp_path, served([0, 3], [3, 3], 4)), Options())
    assert trace.accept_len.tolist() == [0, 0, 2, 1]
    assert trace.censored is not None and trace.censored.tolist() == [True, False, False, False]


def test_requests_whose_steps_do_not_fill_the_reply_are_left_out(tmp_path: Path) -> None:
    """One step drafted nothing and was not logged: the others have no place. One went too far."""
    short, long = served([1], [3], 4) | {"id": "short"}, served([1, 1], [3, 3], 3) | {"id": "long"}
    good = served([1, 0], [3, 3], 4)
    path = file_with(tmp_path, short, good, long, {"id": "plain", "usage": {}})
    trace = vllm.read(path, Options())
    assert trace.request_id == ("r0",)
    assert trace.meta.source["unplaced_requests"] == 2
    assert trace.meta.source["without_metrics"] == 1
    with pytest.raises(InputError, match=r"line 1: the steps do not fill the reply"):
        vllm.read(path, Options(strict=True))
    with pytest.raises(InputError, match="no request fill its reply"):
        vllm.read(file_with(tmp_path, short, long), Options())


def test_streams_offline_outputs_and_tokens(tmp_path: Path) -> None:
    tokens = {"token_ids": [5, 6, 7], "index": 0}
    stats = served([1], [2], 3)["metrics"]["speculative_decoding"]
    streamed = served([1], [2], 3) | {"choices": []}
    offline = {
        "request_id": "r1",
        "prompt_token_ids": [1, 2],
        "outputs": [tokens | {"spec_decode_metrics": stats}],
    }
    path = file_with(tmp_path, "data: " + json.dumps(streamed), "", "data: [DONE]")
    assert vllm.read(path, Options()).accept_len.tolist() == [0, 1, 0]
    trace = vllm.read(file_with(tmp_path, offline), Options())
    assert trace.token_ids is not None and trace.token_ids.tolist() == [5, 6, 7]
    assert trace.prompt_tokens.tolist() == [2] and trace.request_id == ("r1",)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (served([4], [3], 5), "line 1: step 1 accepted 4 of 3"),
        (served([1, 1], [3], 5), "per_step_accepted has 2 steps, per_step_drafted 1"),
        (served([1], [-3], 3), "line 1: 'per_step_drafted' holds -3"),
        (served([1.5], [3], 3), "holds '1.5'"),  # type: ignore[list-item]
        (served([1], [3], 3, usage={}), "'prompt_tokens' is missing"),
        (served([1], [3], 3, usage=[3]), "'prompt_tokens' is missing"),
        (served([1], [3], 3, prompt_token_ids="ab"), "'prompt_token_ids' must be a list"),
        (served([1], [3], 3, choices=7, metrics=7), "holds no metrics.speculative_decoding"),
        (served([1], [3], 3, choices=[{"token_ids": [1]}]), "completion_tokens is 3, token_ids"),
        ({"id": "x"}, "holds no metrics.speculative_decoding"),
        ("{", "line 1 is not JSON"),
        ([1], "line 1 must be a JSON object"),
    ],
)
def test_malformed_responses_are_named(row: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        vllm.read(file_with(tmp_path, row, {"id": "other"}), Options())


@pytest.mark.parametrize(
    ("importer", "sought"),
    [(vllm, "SpecDecoding metrics"), (sglang, "responses of SGLang"), (llama_cpp, "draft accept")],
)
def test_a_log_without_the_lines_looked_for_says_so(
    importer: Any, sought: str, tmp_path: Path
) -> None:
    (tmp_path / "a.log").write_text("INFO starting\nINFO ready [8000]\n")
    with pytest.raises(InputError, match=f"a.log holds neither JSON nor .*{sought}"):
        importer.read(tmp_path / "a.log", Options())


# ---- counts make no trace --------------------------------------------------------------------

# 43 steps, 129 drafted: the example of vLLM's documentation.
SUMMARY = {
    "acceptance_histogram": [39, 1, 0, 3],
    "num_spec_steps": 43,
    "num_accepted_draft_tokens": 10,
    "num_draft_tokens": 129,
    "num_spec_tokens": 3,
}
COUNTERS = """# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 40.0
vllm:spec_decode_num_drafts_total{engine="1",model_name="m"} 3.0
vllm:spec_decode_num_drafts_created{engine="0",model_name="m"} 1.75e+09
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="m"} 129.0
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="m"} 10.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="1"} 3.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="0"} 4.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="2"} 3.0
"""
VLLM_LOG = (
    "(APIServer pid=7) INFO 10-26 12:36:16 [metrics.py:96] SpecDecoding metrics: Mean acceptance "
    "length: 2.01, Accepted throughput: 20.60 tokens/s, Drafted throughput: 60.90 tokens/s, "
    "Accepted: 206 tokens, Drafted: 609 tokens, Per-position acceptance rate: 0.601, 0.286, 0.128, "
    "Avg Draft acceptance rate: 33.8%"
)
LLAMA_LOG = (
    "0.06.896.015 I slot print_timing: id  1 | task 0 | draft acceptance = 0.64479 (  167 accepted "
    "/   259 generated), mean acceptance length =  2.92, acceptance rate per position = "
    "(0.805, 0.632, 0.483)"
)
SGLANG = {
    "completion_tokens": 106,
    "spec_num_correct_drafts": 63,
    "spec_num_proposed_drafts": 215,
    "spec_verify_ct": 43,
    "spec_correct_drafts_histogram": [11, 14, 11, 4, 0, 3],
}


def refused(read: Any, path: Path) -> Marginals:
    with pytest.raises(MarginalsOnly, match="not where") as caught:
        read(path, Options())
    assert "\n" not in str(caught.value)
    assert caught.value.marginals.table()
    return caught.value.marginals


def test_vllm_summaries_and_counters_agree(tmp_path: Path) -> None:
    row = {"id": "r", "metrics": {"speculative_decoding": SUMMARY}}
    pooled = refused(vllm.read, file_with(tmp_path, row, row))
    assert (pooled.steps, pooled.drafted_tokens, pooled.accepted_tokens) == (86, 258, 20)
    assert pooled.at_least == (8, 6, 6) and pooled.constant_draft
    counters = refused(vllm.read, file_with(tmp_path, COUNTERS))
    assert (counters.steps, counters.drafted_tokens, counters.accepted_tokens) == (43, 129, 10)
    assert counters.at_least == (4, 3, 3)
    assert counters.to_dict()["survival"] == [4 / 43, 3 / 43, 3 / 43]
    assert " 2          3             0.070         0.750" in counters.table()


def test_logs_with_rates_give_counts_back(tmp_path: Path) -> None:
    """203 steps of 3 drafted tokens; 87 steps of llama.cpp, whose drafts end early."""
    served_log = refused(vllm.read, file_with(tmp_path, VLLM_LOG))
    assert (served_log.steps, served_log.at_least, served_log.rounded) == (203, (122, 58, 26), True)
    assert sum(served_log.at_least) == 206 and served_log.constant_draft
    llama = refused(llama_cpp.read, file_with(tmp_path, LLAMA_LOG))
    assert (llama.steps, llama.at_least) == (87, (70, 55, 42)) and sum(llama.at_least) == 167
    assert not llama.constant_draft and "lower bound" in llama.table()


def test_llama_cpp_timings_have_totals_only(tmp_path: Path) -> None:
    row = {"timings": {"predicted_n": 200, "draft_n": 347, "draft_n_accepted": 65}}
    counts = refused(llama_cpp.read, file_with(tmp_path, row, row))
    assert (counts.drafted_tokens, counts.accepted_tokens, counts.steps) == (694, 130, 0)
    assert counts.table() == "130 of 694 drafted tokens accepted (18.7%)"
    old = "draft acceptance rate = 0.57576 (  171 accepted /   297 generated)"
    assert refused(llama_cpp.read, file_with(tmp_path, old)).accepted_tokens == 171
    with pytest.raises(InputError, match=r"no timings\.draft_n"):
        llama_cpp.read(file_with(tmp_path, {"id": 1}), Options())


@pytest.mark.parametrize(
    "row",
    [
        {"meta_info": SGLANG},
        {"choices": [{"meta_info": SGLANG}]},
        {"usage": {"completion_tokens": 106}, "sglext": {"spec_tokens_details": SGLANG}},
    ],
)
def test_sglang_counts(row: dict[str, Any], tmp_path: Path) -> None:
    counts = refused(sglang.read, file_with(tmp_path, row))
    assert (counts.steps, counts.drafted_tokens, counts.accepted_tokens) == (43, 215, 63)
    assert counts.at_least == (32, 18, 7, 3, 3) and counts.constant_draft


def test_oldest_sglang_responses_have_a_mean(tmp_path: Path) -> None:
    """106 tokens: one of the prefill, 43 of the steps, 62 accepted."""
    row = {"meta_info": {"completion_tokens": 106, "spec_verify_ct": 43}}
    counts = refused(sglang.read, file_with(tmp_path, row))
    assert (counts.steps, counts.accepted_tokens, counts.drafted_tokens) == (43, 62, 0)
    assert "is not said" in counts.table()
    with pytest.raises(InputError, match="no spec_verify_ct"):
        sglang.read(file_with(tmp_path, {"id": 1}), Options())


def test_ordered_lengths_of_sglang_make_a_trace(tmp_path: Path) -> None:
    """5 and 4 drafted, 3 and 2 accepted, the second step cut by the end."""
    stats = {"verify_lengths": [6, 5], "accept_lengths": [4, 3]}
    meta = {"id": "a", "prompt_tokens": 9, "completion_tokens": 6}
    row = {"meta_info": meta | {"speculative_decoding_stats": stats}, "output_ids": [1] * 6}
    trace = sglang.read(file_with(tmp_path, row), Options())
    assert trace.accept_len.tolist() == [0, 3, 2, 1, 0, 1]
    assert trace.censored is not None and trace.censored.tolist() == [True] + [False] * 5
    stats["accept_lengths"] = [4, 0]
    with pytest.raises(InputError, match="at least 1"):
        sglang.read(file_with(tmp_path, row), Options())


# ---- transformers ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    target, draft = (
        AutoModelForCausalLM.from_pretrained(EMBEDDED / role, dtype=torch.float32)
        for role in ("target", "draft")
    )
    return target, draft


def assisted(
    models: tuple[Any, Any], requests: list[Request], schedule: str, gamma: int
) -> Recorder:
    """transformers' own assisted generation of the requests, recorded."""
    target, draft = models
    config = draft.generation_config
    config.num_assistant_tokens, config.num_assistant_tokens_schedule = gamma, schedule
    config.assistant_confidence_threshold = 0.0
    with record(target, draft) as recorder:
        for request in requests:
            recorder.category = request.category
            ids = torch.tensor([request.prompt_ids])
            target.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                assistant_model=draft,
                do_sample=False,
                max_new_tokens=128,
            )
    return recorder


@pytest.mark.parametrize(
    ("schedule", "gamma", "name"),
    [
        ("constant", 4, "fixed:gamma=4"),
        ("heuristic_transient", 5, "hf-heuristic:gamma0=5"),
    ],
)
def test_recorded_rounds_are_those_of_the_replay(
    schedule: str,
    gamma: int,
    name: str,
    models: tuple[Any, Any],
    few: Trace,
    requests: list[Request],
    prices: StepCosts,
    tmp_path: Path,
) -> None:
    """Round by round; only an end token proposed by the assistant ends its draft early."""
    recorder = assisted(models, requests, schedule, gamma)
    assert not any("generate" in vars(model) for model in models)
    written = recorder.write(tmp_path / "t.parquet", depth=24)
    imported = read_trace(tmp_path / "t.parquet")
    assert imported.meta == written.meta and imported.meta.max_new_tokens == 128
    assert imported.category == few.category
    assert np.array_equal(imported.prompt_tokens, few.prompt_tokens)
    check_against(imported, few)

    deep = dataclasses.replace(few.meta, depth=24)
    truth = dataclasses.replace(few, meta=deep, top1_prob=None, entropy=None)
    policy = parse_policy(name)
    expected = replay(policy, truth, prices)
    assert same_rounds(replay(policy, imported, prices), expected)
    rounds = [
        (number, drafted.start, drafted.proposed, request.accepted(drafted))
        for number, request in enumerate(recorder.requests)
        for drafted in request.rounds
    ]
    kept = expected.drafted > 0
    starts = expected.context_tokens - few.prompt_tokens[expected.request]
    assert [r[0] for r in rounds] == expected.request[kept].tolist()
    assert [r[1] for r in rounds] == starts[kept].tolist()
    assert [r[3] for r in rounds] == expected.accepted[kept].tolist()
    end = models[0].generation_config.eos_token_id
    for (_, _, proposed, _), length in zip(rounds, expected.drafted[kept], strict=True):
        assert len(proposed) == length or (len(proposed) < length and proposed[-1] == end)


def test_recorder_leaves_the_output_alone(models: tuple[Any, Any], requests: list[Request]) -> None:
    target, draft = models
    ids = torch.tensor([requests[0].prompt_ids])
    asked = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 24}
    plain = target.generate(ids, assistant_model=draft, **asked)
    with record(target, draft) as recorder:
        assert torch.equal(target.generate(ids, assistant_model=draft, **asked), plain)
        target.generate(ids, **asked)  # nobody drafts: not recorded
        whole = target.generate(
            input_ids=ids, assistant_model=draft, return_dict_in_generate=True, **asked
        )
        assert torch.equal(whole.sequences, plain)
    assert len(recorder.requests) == 2
    assert recorder.requests[0] == recorder.requests[1]
    assert list(recorder.requests[0].reply) == plain[0, ids.shape[1] :].tolist()


def test_what_the_recorder_refuses(models: tuple[Any, Any], requests: list[Request]) -> None:
    target, draft = models
    ids = torch.tensor([requests[0].prompt_ids])
    with pytest.raises(InputError, match="one object"), record(target, target):
        pass
    with record(target, draft) as recorder:
        with pytest.raises(InputError, match="do_sample=False"):
            target.generate(ids, assistant_model=draft, do_sample=True)
        with pytest.raises(InputError, match="assistant_tokenizer"):
            target.generate(ids, assistant_model=draft, assistant_tokenizer=object())
    with pytest.raises(InputError, match="no assisted call"):
        recorder.trace()
    assert "generate" not in vars(target)
