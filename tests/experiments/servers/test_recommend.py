"""Predictions of lengths that were not played, against a server whose truth is known."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments import cli
from experiments.servers.answers import Answer, AnswerFile
from experiments.servers.curve import BETWEEN, TAILS
from experiments.servers.engines import find_engine
from experiments.servers.launch import setting_of, words_of
from experiments.servers.observe import run
from experiments.servers.options import RecommendOptions
from experiments.servers.prediction import COUNTS, ROUNDS, by_length, predict
from experiments.servers.recommend import run as recommend
from tests.experiments.servers import fake
from tests.experiments.servers.running import options_for, serving, write_questions
from traces.errors import InputError


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lengths 0, 2 and 6 of the fake, 60 questions."""
    folder = tmp_path_factory.mktemp("observed")
    write_questions(folder / "questions.jsonl", 60)
    for length in (0, 2, 6):
        kind = "draft-simple" if length else "none"
        with serving("--spec-type", kind, "--spec-draft-n-max", str(length)) as server:
            run(options_for(folder, server.url, lengths=(length,)))
    return folder


def truth(folder: Path, length: int) -> tuple[float, float]:
    """Tokens per round and tokens/s of the fake at any length, over the same replies."""
    replies = {a.request_id: a for a in AnswerFile(folder / "seen").answers if a.length == 0}
    questions = [json.loads(line) for line in (folder / "questions.jsonl").open()]
    tokens = rounds = seconds = 0.0
    for name, answer in replies.items():
        number, turn = map(int, name.split("."))
        for drafted, _, emitted in fake.rounds_of(
            questions[number]["turns"][turn - 1], answer.tokens, length
        ):
            tokens, rounds = tokens + emitted, rounds + 1
            seconds += fake.DRAFT_S + drafted * fake.STEP_S if drafted else fake.PLAIN_S
    return tokens / rounds, tokens / seconds


def test_lengths_that_were_not_played_are_predicted(observed: Path) -> None:
    found = predict(by_length(AnswerFile(observed / "seen").answers))
    assert found.evidence == ROUNDS and [row.length for row in found.rows] == list(range(9))
    for row in found.rows:
        tokens, speed = truth(observed, row.length)
        assert row.tokens_per_round.value == pytest.approx(tokens, rel=0.02), row.length
        assert row.tokens_per_s.value == pytest.approx(speed, rel=0.04), row.length
        assert row.played == (row.length in (0, 2, 6))
        if row.played:
            assert row.tokens_per_s.value == pytest.approx(speed, rel=1e-6)
    speeds = {length: truth(observed, length)[1] for length in range(9)}
    assert speeds[found.best] > 0.99 * max(speeds.values())
    assert found.check[2] == pytest.approx(1.0, abs=0.02)


@pytest.mark.long
def test_counts_alone_give_a_curve(observed: Path) -> None:
    answers = [
        dataclasses.replace(answer, steps=None) for answer in AnswerFile(observed / "seen").answers
    ]
    found = predict(by_length(answers))
    assert found.evidence == COUNTS
    for row in found.rows[:7]:
        tokens, speed = truth(observed, row.length)
        assert row.tokens_per_round.value == pytest.approx(tokens, rel=0.04), row.length
        assert row.tokens_per_s.value == pytest.approx(speed, rel=0.06), row.length


def answer_of(number: int, length: int, steps: list[tuple[int, int]], second: float) -> Answer:
    tokens = 1 + sum(a + 1 for _, a in steps)
    return Answer(
        request_id=f"{number}.1", category="qa", length=length, block=0, seat=str(length),
        prompt_tokens=4, tokens=tokens, text="", sent_unix_s=0.0, first_s=0.0, last_s=second,
        decode_s=second, drafted=sum(d for d, _ in steps), accepted=sum(a for _, a in steps),
        steps=tuple(steps), step_s=None, inferred=False, raw={}, tries=1,
    )  # fmt: skip


def test_a_drafter_that_looks_up_has_plain_rounds() -> None:
    """Six rounds without a draft cost plain rounds at any length; two with four accepted do not."""
    steps = [(0, 0), (0, 0), (4, 4), (0, 0), (0, 0), (4, 4), (0, 0), (0, 0)]
    plain = [(0, 0)] * 16
    answers = {
        0: {f"{k}.1": answer_of(k, 0, plain, 1.6) for k in range(6)},
        4: {f"{k}.1": answer_of(k, 4, steps, 6 * 0.1 + 2 * 0.2) for k in range(6)},
    }
    found = predict(answers, longest=4)
    # Length 4: 16 tokens in one second. Length 2: the four tokens of a find take a round of two and
    # the bonus, and then one of what is left; a round costs (0.1 + 0.2) / 2 on the line.
    assert found.row(4).tokens_per_s.value == pytest.approx(16.0)
    assert found.row(0).tokens_per_s.value == pytest.approx(10.0)
    assert found.row(2).round_ms.value < found.row(4).round_ms.value
    assert found.row(1).tokens_per_s.value < found.row(4).tokens_per_s.value


def test_ends_time_nothing_where_others_share_the_round(observed: Path) -> None:
    answers = by_length(AnswerFile(observed / "seen").answers)
    assert predict(answers).row(4).basis == TAILS
    assert predict(answers, alone=False).row(4).basis == BETWEEN


def test_a_length_that_drafts_nothing_has_no_price() -> None:
    """llama.cpp's ngram-simple throws drafts away that are shorter than its n-gram."""
    found, plain = [(0, 0), (0, 0), (4, 4), (0, 0)], [(0, 0)] * 8
    answers = {
        length: {f"{k}.1": answer_of(k, length, steps, second) for k in range(6)}
        for length, steps, second in ((0, plain, 0.8), (2, plain, 0.8), (4, found, 0.5))
    }
    predicted = predict(answers, longest=4)
    assert predicted.best == 4 and predicted.row(2).best == 0.0
    assert predicted.idle == (2,) and predicted.row(2).tokens_per_s.value == pytest.approx(10.0)
    # A drafting round of four costs 0.5 - 3 x 0.1; of three, on the line to a plain one, 0.175, and
    # two or three of four or five rounds are plain.
    assert 100 < predicted.row(3).round_ms.value < 175 and predicted.row(3).basis == BETWEEN


def test_too_little_was_observed(observed: Path) -> None:
    answers = by_length(AnswerFile(observed / "seen").answers)
    with pytest.raises(InputError, match="only length 2 was observed"):
        predict({2: answers[2]})
    with pytest.raises(InputError, match="no request was answered at every length"):
        predict({0: {"a.1": answers[0]["0.1"]}, 2: {"b.1": answers[2]["0.1"]}})
    with pytest.raises(InputError, match="--present 0: no drafting was not observed"):
        predict({2: answers[2], 6: answers[6]}, present=0)
    with pytest.raises(InputError, match="at length 8 the server never drafted more than 6"):
        predict({0: answers[0], 8: {n: dataclasses.replace(a, length=8)
                                    for n, a in answers[6].items()}})  # fmt: skip
    with pytest.raises(InputError, match="--present 30 lies beyond"):
        predict(answers, present=30)


@pytest.mark.long
def test_terminal_json_and_csv_say_the_same(
    observed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(observed / "seen")
    assert cli.main(["recommend", folder, "--present", "2"]) == 0
    text = capsys.readouterr().out
    assert cli.main(["recommend", folder, "--present", "2", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert cli.main(["recommend", folder, "--present", "2", "--csv"]) == 0
    rows = capsys.readouterr().out.splitlines()
    best = content["rows"][content["recommended"]]
    assert f"{best['tokens_per_s.value']:.1f}" in text and content["setting"] in text
    place = rows[0].split(",").index("tokens_per_s.value")
    line = rows[1 + content["recommended"]].split(",")
    assert float(line[place]) == best["tokens_per_s.value"]
    assert content["rows"][2]["gain.value"] == 1.0


def test_settings_of_engines() -> None:
    vllm, sglang, llama = map(find_engine, ("vllm", "sglang", "llama.cpp"))
    assert '{"num_speculative_tokens": 3}' in setting_of(vllm, 3)
    assert setting_of(sglang, 3).endswith("--speculative-num-draft-tokens 4")
    assert setting_of(llama, 3) == "--spec-draft-n-max 3"
    assert setting_of(llama, 0) == "no --spec-type, no draft"
    assert setting_of(llama, 3, "ngram-simple") == "--spec-ngram-simple-size-m 3"


def test_a_reply_without_rounds_costs_no_other_its_own(observed: Path) -> None:
    answers = by_length(AnswerFile(observed / "seen").answers)
    lost = dataclasses.replace(answers[6]["3.1"], steps=None, step_s=None, accepted=None)
    found = predict(answers | {6: answers[6] | {"3.1": lost}})
    assert found.evidence == ROUNDS and "3.1" not in found.requests
    assert len(found.requests) == len(answers[6]) - 1


def test_words_of_a_server() -> None:
    llama = find_engine("llama.cpp")
    base = "llama-server -m t.gguf -md d.gguf --spec-type draft-simple"
    assert words_of(base, llama, 4, 8080)[-4:] == ["--port", "8080", "--spec-draft-n-max", "4"]
    assert words_of(base, llama, 0, None) == ["llama-server", "-m", "t.gguf", "--spec-type", "none"]
    assert words_of("run --n {length} --port 1", llama, 4, 8080) == [
        "run",
        "--n",
        "4",
        "--port",
        "1",
    ]
    own = "llama-server -m t --draft-max {length}"
    assert words_of(own, llama, 0, None) == ["llama-server", "-m", "t", "--spec-type", "none"]
    with pytest.raises(InputError, match="empty"):
        words_of(" ", llama, 4, None)
    with pytest.raises(InputError, match="No closing quotation"):
        words_of("a 'b", llama, 4, None)
    with pytest.raises(InputError, match="restart vLLM yourself"):
        words_of(base, find_engine("vllm"), 4, None)


def test_the_interval_holds_the_truth_of_its_own_replies(observed: Path) -> None:
    found = predict(by_length(AnswerFile(observed / "seen").answers))
    row = found.row(4)
    assert row.tokens_per_s.low < truth(observed, 4)[1] < row.tokens_per_s.high
    assert np.isfinite(row.gain.low)


@pytest.mark.long
def test_held_out_lengths_are_held_against_it(observed: Path, tmp_path: Path) -> None:
    with serving("--spec-draft-n-max", "4") as server:
        folder = tmp_path / "seen"
        shutil.copytree(observed / "seen", folder)
        shutil.copy(observed / "questions.jsonl", tmp_path)
        run(options_for(tmp_path, server.url, lengths=(4,)))
    found = recommend(RecommendOptions(dir=folder, known=(0, 2, 6)))
    (error,) = found.content["held_out"].values()
    row = found.content["rows"][4]
    assert error == pytest.approx(row["tokens_per_s.value"] / truth(observed, 4)[1] - 1.0)
    assert 0 < abs(error) < 0.03 and "Held out: 1 lengths" in found.text
    assert (
        not row["played"] and recommend(RecommendOptions(dir=folder)).content["rows"][4]["played"]
    )
    with pytest.raises(InputError, match="--known 5: that length was not played"):
        recommend(RecommendOptions(dir=folder, known=(0, 5)))
