"""The recommended length on the server: confirmed, contradicted, or too noisy to say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from experiments.common.verdict import CONFIRMED, CONTRADICTED, NOISY
from experiments.servers.answers import Answer, AnswerFile
from experiments.servers.observe import run
from experiments.servers.prediction import by_length, predict
from experiments.servers.verify import PLACEBO, PRESENT, RECOMMENDED, judge
from tests.experiments.servers.running import options_for, serving, write_questions
from tests.experiments.servers.test_observe import command, free_port
from traces.errors import InputError


def test_end_to_end_on_a_server_that_we_start(tmp_path: Path) -> None:
    port = free_port()
    url, how = f"http://127.0.0.1:{port}", {"server_command": command(port), "limit": 8}
    run(options_for(tmp_path, url, lengths=(0, 2, 5), **how))
    result = run(options_for(tmp_path, url, verify=True, **how))
    assert not result.findings and result.content["placebo_is_tie"]
    assert result.content["ratio"]["word"] == CONFIRMED and "confirmed" in result.text
    assert result.content["ratio"]["measured"] == pytest.approx(
        result.content["ratio"]["predicted"], rel=0.02
    )
    asked = (tmp_path / "seen" / "verify" / "answers.jsonl").read_text().count('"answer"')
    run(options_for(tmp_path, url, verify=True, **how))  # goes on where it stopped: at the end
    again = (tmp_path / "seen" / "verify" / "answers.jsonl").read_text().count('"answer"')
    assert asked == again == 27
    with pytest.raises(InputError, match=r"begun with other settings.*lengths"):
        run(options_for(tmp_path, url, verify=True, present=2, **how))
    with pytest.raises(InputError, match=r"asks otherwise than .* was observed \(concurrency\)"):
        run(options_for(tmp_path, url, verify=True, concurrency=8, **how))


def test_by_hand_it_says_what_to_restart(tmp_path: Path) -> None:
    for length in (0, 3):
        kind = "draft-simple" if length else "none"
        with serving("--spec-type", kind, "--engine", "vllm") as server:
            run(options_for(tmp_path, server.url, lengths=(length,), engine="vllm"))
    # vLLM's seconds are ours here, so whichever is faster is recommended.
    answers = AnswerFile(tmp_path / "seen").answers
    best = predict(by_length(answers)).best
    with pytest.raises(InputError, match="--verify restarts" if best else "nothing to verify"):
        run(options_for(tmp_path, "http://127.0.0.1:9", verify=True, engine="vllm"))


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("played")
    write_questions(folder / "questions.jsonl", 20)
    for length in (0, 2, 6):
        kind = "draft-simple" if length else "none"
        with serving("--spec-type", kind, "--spec-draft-n-max", str(length)) as server:
            run(options_for(folder, server.url, lengths=(length,)))
    return folder


def seats_of(folder: Path, slower: float, placebo: float = 1.0) -> list[Answer]:
    """What was observed, as three seats: the recommended one at `slower` times its seconds."""
    answers = by_length(AnswerFile(folder / "seen").answers)
    found = []
    for seat, length, factor in (
        (PRESENT, 0, 1.0),
        (RECOMMENDED, 2, slower),
        (PLACEBO, 0, placebo),
    ):
        for number, answer in enumerate(answers[length].values()):
            noise = 1.0 + 0.002 * (number % 3 - 1)
            found.append(
                dataclasses.replace(answer, seat=seat, decode_s=answer.decode_s * factor * noise)
            )
    return found


@pytest.mark.parametrize(
    ("slower", "placebo", "word"),
    [(1.0, 1.0, CONFIRMED), (1.3, 1.0, CONTRADICTED), (1.0, 1.2, NOISY)],
)
def test_verdicts(
    slower: float, placebo: float, word: str, played: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predicted = predict(by_length(AnswerFile(played / "seen").answers))
    predicted = dataclasses.replace(predicted, present=0, best=2)
    options = options_for(played, "http://127.0.0.1:9")
    verdict = judge(seats_of(played, slower, placebo), predicted, options)
    assert verdict.ratio.word == word and verdict.tie == (placebo == 1.0)
