"""Inputs of running servers as clients keep them: streams, wrappers, metrics, results, gzip.

test_importers_engines.py beside it has what each engine's fields mean.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from experiments.cli import main
from traces.errors import InputError
from traces.importers import FORMATS, common, llama_cpp, sglang, vllm
from traces.importers.common import Options
from traces.importers.marginals import Marginals, MarginalsOnly
from traces.store import read_trace

DETAILED = {
    "mean_acceptance_length": 2.5,
    "acceptance_histogram": [0, 1, 1, 0],
    "num_spec_steps": 2,
    "num_accepted_draft_tokens": 3,
    "num_draft_tokens": 6,
    "num_spec_tokens": 3,
    "per_step_accepted": [2, 1],
    "per_step_drafted": [3, 3],
}
SUMMARY = {k: v for k, v in DETAILED.items() if not k.startswith("per_step")}
USAGE = {"prompt_tokens": 4, "completion_tokens": 6, "total_tokens": 10}


def written(folder: Path, text: str) -> Path:
    path = folder / "kept.txt"
    path.write_text(text)
    return path


def lines(*rows: Any) -> str:
    return "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows)


def refused(form: str, path: Path) -> Marginals:
    """The counts of a file that makes no trace."""
    with pytest.raises(MarginalsOnly, match="not where") as caught:
        FORMATS[form](path, Options())
    assert "\n" not in str(caught.value)
    return caught.value.marginals


def answer(name: str, stats: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A whole response of vLLM's chat endpoint."""
    row = {"id": name, "object": "chat.completion", "model": "m", "system_fingerprint": "x"}
    choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "logprobs": None}
    metrics = {"speculative_decoding": stats, "time_to_first_token_ms": 12.5}
    return row | {"choices": [choice], "usage": USAGE, "metrics": metrics} | more


def stream(name: str, stats: dict[str, Any] | None, end: bool = True) -> list[str]:
    """The lines of a streamed answer: token ids in every chunk, metrics and usage in the last."""
    rows: list[dict[str, Any]] = [
        {
            "choices": [{"index": 0, "delta": {"role": "assistant"}}],
            "prompt_token_ids": [1, 2, 3, 4],
        }
    ]
    for tokens in ([11], [12, 13, 14], [15, 16]):
        choice = {"index": 0, "delta": {"content": "a\u2028b"}, "token_ids": tokens}
        rows.append({"choices": [choice], "usage": None})
    if stats is not None:
        rows.append({"choices": [], "usage": USAGE, "metrics": {"speculative_decoding": stats}})
    about = {"id": name, "object": "chat.completion.chunk", "created": 1, "model": "m"}
    told = [f"data: {json.dumps(about | row, ensure_ascii=False)}\n" for row in rows]
    return [": keep-alive", *told, *(["data: [DONE]\n"] if end else [])]


# ---- streams ---------------------------------------------------------------------------------


def test_a_stream_is_one_answer(tmp_path: Path) -> None:
    """Six tokens in three chunks; the last chunk has the steps: prefill, 2 of 3, 1 of 3."""
    trace = vllm.read(written(tmp_path, "\n".join(stream("s", DETAILED))), Options(strict=True))
    assert trace.request_id == ("s",) and trace.prompt_tokens.tolist() == [4]
    assert trace.token_ids is not None and trace.token_ids.tolist() == [11, 12, 13, 14, 15, 16]
    assert trace.accept_len.tolist() == [0, 2, 1, 0, 1, 0]
    assert trace.meta.source["without_metrics"] == 0


def test_streams_side_by_side_are_told_apart_by_their_ids(tmp_path: Path) -> None:
    one, other = stream("a", DETAILED), stream("b", DETAILED)
    mixed = [line for pair in zip(one, other, strict=True) for line in pair]
    trace = vllm.read(written(tmp_path, "\n".join(mixed)), Options())
    assert trace.request_id == ("a", "b") and trace.token_ids is not None
    assert trace.token_ids.tolist() == [11, 12, 13, 14, 15, 16] * 2


def test_chunks_kept_as_json_lines_are_one_answer(tmp_path: Path) -> None:
    """As clients dump them, without "data:"; beside two whole answers of one id, which are two."""
    rows = [line.strip()[6:] for line in stream("s", SUMMARY, end=False) if "data" in line[:4]]
    whole = answer("w", SUMMARY)
    counts = refused("vllm", written(tmp_path, lines(*rows, whole, whole)))
    assert (counts.steps, counts.left_out) == (6, 0)


def test_last_chunks_alone_are_an_answer_each(tmp_path: Path) -> None:
    """Kept without the rest of their streams, and without ids."""
    last = {"choices": [], "usage": USAGE, "metrics": {"speculative_decoding": DETAILED}}
    trace = vllm.read(written(tmp_path, f"data: {json.dumps(last)}\n\n" * 2), Options())
    assert trace.requests == 2 and trace.token_ids is None


def test_a_stream_that_breaks_off_loses_no_other(tmp_path: Path) -> None:
    cut = (
        "\n".join([*stream("a", DETAILED), *stream("b", None, end=False)])
        + '\ndata: {"id": "b", "ch'
    )
    trace = vllm.read(written(tmp_path, cut), Options())
    assert trace.request_id == ("a",)
    source = trace.meta.source
    assert (source["without_metrics"], source["cut_lines"]) == (1, 1)
    summed = cut.replace(json.dumps(DETAILED), json.dumps(SUMMARY))
    counts = refused("vllm", written(tmp_path, summed))
    assert counts.steps == 2 and "2 answers without counts left out" in counts.table()


@pytest.mark.parametrize("form", ["vllm", "sglang", "llama.cpp"])
def test_a_stream_without_its_last_chunk_says_so(form: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no .*") as error:
        FORMATS[form](written(tmp_path, "\n".join(stream("a", None))), Options())
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="breaks off in its first chunk"):
        FORMATS[form](written(tmp_path, 'data: {"id": "b", "ch'), Options())


def test_a_broken_line_that_is_no_streams_end_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 2 is not JSON"):
        vllm.read(written(tmp_path, lines(answer("a", DETAILED), '{"id": "b', "{}")), Options())


def test_every_chunk_of_llama_cpp_counts_from_the_beginning(tmp_path: Path) -> None:
    """timings_per_token: the last chunk has the totals. Two streams of /completion without ids."""
    rows = []
    for _ in range(2):
        for n in (2, 5, 9):
            timings = {"predicted_n": 2 * n, "draft_n": n, "draft_n_accepted": n - 1}
            rows.append({"index": 0, "content": "x", "stop": n == 9, "timings": timings})
    text = "".join(f"data: {json.dumps(row)}\n\n" for row in rows)
    counts = refused("llama.cpp", written(tmp_path, text))
    assert (counts.drafted_tokens, counts.accepted_tokens) == (18, 16)


@pytest.mark.parametrize("repeats", [True, False])
def test_streams_of_sglang(repeats: bool, tmp_path: Path) -> None:
    """Each chunk repeats the reply so far, or goes on: the ids are those of the reply."""
    text = ""
    for steps, tokens in ((1, [1, 2, 3, 4]), (2, [5, 6])):
        stats = {"verify_lengths": [6, 5][:steps], "accept_lengths": [3, 2][:steps]}
        meta = {"id": "q", "prompt_tokens": 9, "completion_tokens": 4 if steps == 1 else 6}
        meta |= {"spec_verify_ct": steps, "speculative_decoding_stats": stats}
        said = [1, 2, 3, 4, 5, 6][: meta["completion_tokens"]] if repeats else tokens
        text += f"data: {json.dumps({'text': 'x', 'output_ids': said, 'meta_info': meta})}\n\n"
    trace = sglang.read(written(tmp_path, text + "data: [DONE]\n\n"), Options(strict=True))
    assert trace.request_id == ("q",) and trace.accept_len.tolist() == [0, 2, 1, 0, 1, 0]
    assert trace.token_ids is not None and trace.token_ids.tolist() == [1, 2, 3, 4, 5, 6]


# ---- wrappers, usage, gzip -------------------------------------------------------------------


def test_answers_in_a_data_object(tmp_path: Path) -> None:
    """One, a list, one in the other; what the wrapper says of the task is kept."""
    wrapped = {"status": 200, "task": "qa", "data": answer("a", DETAILED)}
    listed = {"data": [answer("b", DETAILED), {"data": answer("c", DETAILED, category="math")}]}
    trace = vllm.read(written(tmp_path, lines(wrapped, listed)), Options())
    assert trace.request_id == ("a", "b", "c") and trace.category == ("qa", "all", "math")
    counts = refused("vllm", written(tmp_path, json.dumps({"data": [answer("a", SUMMARY)] * 2})))
    assert counts.at_least == (4, 2, 0)
    meta = {"completion_tokens": 6, "spec_verify_ct": 2, "spec_correct_drafts_histogram": [0, 1, 1]}
    counts = refused("sglang", written(tmp_path, json.dumps({"data": {"meta_info": meta}})))
    assert (counts.steps, counts.accepted_tokens, counts.at_least) == (2, 3, (2, 1))
    timings = {"timings": {"draft_n": 8, "draft_n_accepted": 3}}
    counts = refused("llama.cpp", written(tmp_path, json.dumps({"data": [timings, timings]})))
    assert (counts.drafted_tokens, counts.accepted_tokens) == (16, 6)


def test_a_field_named_data_is_no_wrapper(tmp_path: Path) -> None:
    """Unknown fields are ignored, whatever they are called."""
    row = answer("a", DETAILED, data={"id": "not me"}, kv_transfer_params=None)
    assert vllm.read(written(tmp_path, lines(row)), Options()).request_id == ("a",)
    with pytest.raises(InputError, match="line 1 must be a JSON object"):
        vllm.read(written(tmp_path, lines([1], {"data": {}})), Options())


def test_answers_without_usage_are_left_out_or_counted(tmp_path: Path) -> None:
    bare = answer("b", DETAILED, usage=None)
    trace = vllm.read(written(tmp_path, lines(answer("a", DETAILED), bare)), Options())
    assert trace.request_id == ("a",) and trace.meta.source["without_usage"] == 1
    path = written(tmp_path, lines(bare))
    counts = refused("vllm", path)
    assert (counts.steps, counts.drafted_tokens, counts.at_least) == (2, 6, (2, 1, 0))
    assert counts.constant_draft
    with pytest.raises(InputError, match=r"'prompt_tokens' is missing: .*include_usage"):
        vllm.read(path, Options())
    wide = DETAILED | {"per_step_accepted": [2**30], "per_step_drafted": [2**30]}
    with pytest.raises(InputError, match="a draft of 1073741824 tokens"):
        vllm.read(written(tmp_path, lines(answer("b", wide, usage=None))), Options())


def test_summaries_with_empty_fields_of_the_detailed_ones(tmp_path: Path) -> None:
    stats = SUMMARY | {"per_step_accepted": None, "per_step_drafted": None}
    assert refused("vllm", written(tmp_path, lines(answer("a", stats)))).steps == 2


def test_gzipped_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept.jsonl"  # by its content, not its name
    path.write_bytes(gzip.compress(lines(answer("a", DETAILED)).encode()))
    assert vllm.read(path, Options()).request_id == ("a",)
    rounds = tmp_path / "rounds.gz"
    rounds.write_bytes(gzip.compress(lines({"id": 1, "rounds": [[4, 2]]}).encode()))
    assert FORMATS["jsonl"](rounds, Options()).positions == 3
    whole = path.read_bytes()
    for damaged in (whole[:-9], whole[:12] + b"\xff\xff\xff" + whole[15:], b"\x1f\x8b??"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"kept\.jsonl is a damaged gzip file"):
            vllm.read(path, Options())
    monkeypatch.setattr(common, "_MOST_UNPACKED", 1 << 20)
    path.write_bytes(gzip.compress(b" " * (1 << 22)))
    with pytest.raises(InputError, match="unpacks to more than"):
        vllm.read(path, Options())


# ---- counters --------------------------------------------------------------------------------


def counters(prefix: str, labels: str, drafts: int, *at_least: int) -> str:
    """A scrape; every draft has as many tokens as there are positions."""
    name, label = f"{prefix}:spec_decode_num", labels and f"{{{labels}}}"
    rows = [
        f"# HELP {name}_drafts_total Number of drafts.",
        f"# TYPE {name}_drafts_total counter",
        f"{name}_drafts_total{label} {drafts}",
        f"{name}_draft_tokens_total{label} {drafts * len(at_least)}",
        f"{name}_accepted_tokens_total{label} {sum(at_least)}",
    ]
    for position, count in enumerate(at_least):
        both = ",".join(filter(None, [labels, f'position="{position}"']))
        rows.append(f"{name}_accepted_tokens_per_pos_total{{{both}}} {count}")
    return lines(*rows)


@pytest.mark.parametrize(("prefix", "form"), [("vllm", "vllm"), ("llamacpp", "llama.cpp")])
def test_counters_of_engines_add_up_and_those_of_models_do_not(
    prefix: str, form: str, tmp_path: Path
) -> None:
    a0, a1 = ('engine="0",model_name="a/b"', 'engine="1",model_name="a/b"')
    text = counters(prefix, a0, 10, 8, 4) + counters(prefix, a1, 6, 4, 1)
    counts = refused(form, written(tmp_path, text))
    assert (counts.steps, counts.drafted_tokens, counts.accepted_tokens) == (16, 32, 17)
    assert counts.at_least == (12, 5) and counts.constant_draft and counts.format == form
    other = counters(prefix, 'engine="0",model_name="c"', 6, 4, 1)
    with pytest.raises(InputError, match=r"2 models \(a/b, c\).*keep the lines of one") as error:
        FORMATS[form](written(tmp_path, text + other), Options())
    assert not isinstance(error.value, MarginalsOnly) and "\n" not in str(error.value)


def test_llama_cpp_counters_have_no_labels(tmp_path: Path) -> None:
    text = "llamacpp:n_decode_total 7\n" + counters("llamacpp", "", 20, 15, 9, 6)
    counts = refused("llama.cpp", written(tmp_path, text))
    assert (counts.steps, counts.accepted_tokens, counts.at_least) == (20, 30, (15, 9, 6))
    early = text.replace("draft_tokens_total 60", "draft_tokens_total 52")
    assert not refused("llama.cpp", written(tmp_path, early)).constant_draft


def test_counts_of_a_constant_length_answer_for_the_shorter(tmp_path: Path) -> None:
    """A = 1, 3/4, 1/2, 1/4: 2.5 tokens; length 1 exactly 2.5 / 1.5, for 2 divides 4."""
    told = refused("vllm", written(tmp_path, counters("vllm", "", 40, 30, 20, 10))).table()
    assert "fixed length 1: 1.667 tokens per round\n" in told
    assert "fixed length 3: 2.500 tokens per round" in told
    assert "(2.000 to 2.500 by the counts alone)" in told and told.count("by the counts") == 1
    varied = counters("vllm", "", 40, 30, 20, 10).replace("draft_tokens_total 120", "x 1")
    assert "fixed length" not in refused("vllm", written(tmp_path, varied)).table()


# ---- results, logs, mlx-vlm ------------------------------------------------------------------

BENCH = {
    "date": "20261012-101500",
    "backend": "openai-chat",
    "model_id": "m",
    "completed": 8,
    "request_throughput": 1.5,
    "spec_decode_acceptance_rate": 66.66666666666666,
    "spec_decode_acceptance_length": 3.0,
    "spec_decode_num_drafts": 12,
    "spec_decode_draft_tokens": 36,
    "spec_decode_accepted_tokens": 24,
    "spec_decode_per_position_acceptance_rates": [12 / 12, 8 / 12, 4 / 12],
}


def test_results_of_vllm_bench_serve(tmp_path: Path) -> None:
    counts = refused("vllm", written(tmp_path, json.dumps(BENCH, indent=1)))
    assert (counts.steps, counts.drafted_tokens, counts.accepted_tokens) == (12, 36, 24)
    assert counts.at_least == (12, 8, 4) and counts.constant_draft and not counts.rounded
    assert refused("vllm", written(tmp_path, lines(BENCH, BENCH))).at_least == (24, 16, 8)
    shallow = BENCH | {"spec_decode_per_position_acceptance_rates": []}
    assert refused("vllm", written(tmp_path, lines(shallow))).at_least == ()
    for broken, words in (
        (lines(BENCH, BENCH | {"model_id": "n"}), r"2 models \(m, n\)"),
        (lines(BENCH | {"spec_decode_num_drafts": 1.5}), "'spec_decode_num_drafts' holds '1.5'"),
        (lines(BENCH | {"spec_decode_per_position_acceptance_rates": [2]}), "must be 0 to 1"),
        (lines({k: v for k, v in BENCH.items() if "spec" not in k}), "holds no metrics"),
    ):
        with pytest.raises(InputError, match=words):
            vllm.read(written(tmp_path, broken), Options())


SLOT = "1.02.3 I slot print_timing: id  0 | task 7 | "


def test_logs_of_llama_cpp_give_their_steps_back(tmp_path: Path) -> None:
    """mean = 1 + accepted / steps: 47 / 3.92 = 12 steps; and at trace verbosity the depths."""
    line = SLOT + "draft acceptance = 1.00000 (   47 accepted /    47 generated), mean len =  4.92"
    counts = refused("llama.cpp", written(tmp_path, lines(line)))
    assert (counts.steps, counts.accepted_tokens, counts.at_least) == (12, 47, ())
    assert counts.rounded
    older = SLOT + "draft acceptance = 0.355 (  116 accepted /   327 generated), mean acceptance "
    counts = refused("llama.cpp", written(tmp_path, lines(line, older + "length =  2.40")))
    assert (counts.steps, counts.accepted_tokens, counts.drafted_tokens) == (12 + 83, 163, 374)
    deep = SLOT + "     acc per pos = (0.800, 0.500, 0.300)"
    first = SLOT + "draft acceptance = 0.53333 (   16 accepted /    30 generated), mean len =  2.60"
    counts = refused("llama.cpp", written(tmp_path, lines(first, deep, first, deep)))
    assert (counts.steps, counts.at_least) == (20, (16, 10, 6)) and counts.constant_draft
    mixed = refused("llama.cpp", written(tmp_path, lines(first, deep, line)))
    assert (mixed.steps, mixed.at_least) == (22, ())


def test_a_request_without_a_hit_hides_its_steps(tmp_path: Path) -> None:
    """A mean of 1.00 is that of any number of steps; with depths there are at least 12 / 3."""
    none = SLOT + "draft acceptance = 0.00000 (    0 accepted /    12 generated), mean len =  1.00"
    some = SLOT + "draft acceptance = 0.53333 (   16 accepted /    30 generated), mean len =  2.60"
    assert refused("llama.cpp", written(tmp_path, lines(none, some))).steps == 0
    deep = [SLOT + f"     acc per pos = ({r})" for r in ("0.000, 0.000, 0.000", "0.8, 0.5, 0.3")]
    counts = refused("llama.cpp", written(tmp_path, lines(none, deep[0], some, deep[1])))
    assert counts.steps == 4 + 10 and counts.constant_draft


def mlx(predicted: int, rounds: int | None, drafted: int | None, accepted: int | None) -> Any:
    timings = {"prompt_n": 9, "predicted_n": predicted, "peak_memory": 3.5, "draft_kind": "mtp"}
    timings |= {"draft_rounds": rounds, "draft_n": drafted, "draft_n_accepted": accepted}
    return {"id": "chatcmpl-1", "choices": [{"message": {}}], "timings": timings}


def test_answers_of_mlx_vlm_say_their_rounds(tmp_path: Path) -> None:
    """Six tokens accepted of a reply of two: counted before the stop cut it (mlx-vlm 2324)."""
    rows = [mlx(2, 1, 7, 6), mlx(111, 30, 90, 81), mlx(5, None, None, None)]
    counts = refused("llama.cpp", written(tmp_path, lines(*rows)))
    assert (counts.steps, counts.drafted_tokens, counts.accepted_tokens) == (31, 97, 87)
    assert counts.left_out == 1 and not counts.constant_draft
    plain = {"timings": {"draft_n": 8, "draft_n_accepted": 3}}
    assert refused("llama.cpp", written(tmp_path, lines(*rows, plain))).steps == 0
    with pytest.raises(InputError, match=r"no timings\.draft_n"):
        llama_cpp.read(written(tmp_path, lines(rows[2])), Options())


# ---- the command -----------------------------------------------------------------------------


def test_the_command_says_what_was_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t.parquet"
    path = written(tmp_path, "\n".join([*stream("a", DETAILED), 'data: {"id']))
    command = ["trace", "import", str(path), "--out", str(out), "--format"]
    assert main([*command, "vllm"]) == 0 and "cut lines         1" in capsys.readouterr().out
    assert read_trace(out).requests == 1
    written(tmp_path, counters("vllm", "", 40, 30, 20, 10))
    assert main([*command, "vllm", "--force"]) == 2
    told = capsys.readouterr()
    assert "fixed length 1: 1.667 tokens per round" in told.out and told.err.count("\n") == 1
    assert main([*command, "vllm", "--force", "--pad"]) == 2
    assert "--pad means nothing to --format vllm" in capsys.readouterr().err
