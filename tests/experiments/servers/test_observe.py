"""`gammalab observe` against a server that is known: answers, faults, resumption."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from experiments import cli
from experiments.servers.answers import FILE, AnswerFile
from experiments.servers.counters import difference, models_in, samples_of
from experiments.servers.observe import play, run
from experiments.servers.plan import Seat, turns_of
from real_backend.prompts import read_questions
from tests.experiments.servers import fake
from tests.experiments.servers.running import options_for, serving, write_questions
from traces.errors import InputError

FAKE = Path(fake.__file__)
REQUESTS = 9  # eight questions, one of two turns


@pytest.mark.parametrize("engine", ["llama.cpp", "vllm", "sglang"])
def test_rounds_are_those_of_the_server(engine: str, tmp_path: Path) -> None:
    with serving("--engine", engine) as server:
        run(options_for(tmp_path, server.url, engine=engine, lengths=(3,)))
    kept = AnswerFile(tmp_path / "seen")
    assert len(kept.answers) == REQUESTS
    for answer in kept.answers:
        question = read_questions(tmp_path / "questions.jsonl")[int(answer.request_id[0])]
        prompt = question.turns[int(answer.request_id[-1]) - 1]
        truth = [(d, a) for d, a, _ in fake.rounds_of(prompt, answer.tokens, 3)]
        told = [accepted for _, accepted in answer.steps or ()]
        assert told == [accepted for _, accepted in truth]
        if engine == "llama.cpp":
            assert list(answer.steps or ()) == truth
    assert kept.servers[0]["about"]["version"] == "0.0-fake"
    assert kept.servers[0]["counters"]["llamacpp:spec_decode_num_draft_tokens_total"] > 0


def test_a_dialogue_is_sent_with_its_replies(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving("--log", str(log)) as server:
        run(options_for(tmp_path, server.url, lengths=(3,)))
    sent = [json.loads(line) for line in log.read_text().splitlines()]
    (second,) = (messages for messages in sent if len(messages) == 3)
    assert [m["role"] for m in second] == ["user", "assistant", "user"]
    assert second[2]["content"] == "more" and second[1]["content"].startswith("w ")


@pytest.mark.parametrize("trouble", ["busy", "cut", "gzip", "unknown", "no-usage", "detailed"])
def test_troubles_that_are_overcome(trouble: str, tmp_path: Path) -> None:
    with serving("--trouble", trouble) as server:
        result = run(options_for(tmp_path, server.url, lengths=(3,)))
    assert not result.findings and len(AnswerFile(tmp_path / "seen").answers) == REQUESTS


def test_no_usage_and_no_tokens_is_no_answer(tmp_path: Path) -> None:
    with serving("--trouble", "no-usage", "--engine", "uncounted") as server:
        result = run(options_for(tmp_path, server.url, engine="vllm", lengths=(3,)))
    assert "told neither usage nor tokens" in result.findings[0]


def test_an_unavailable_server_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.servers.client.FIRST_PAUSE_S", 0.001)
    with serving("--trouble", "unavailable") as server:
        result = run(options_for(tmp_path, server.url, lengths=(3,)))
        # The second turn of a dialogue waits for the first, and is not asked.
        assert result.findings[0].startswith("8 requests got no answer, the first: 0.1: status 503")
        server.args.trouble = ""
        assert not run(options_for(tmp_path, server.url, lengths=(3,))).findings
    assert len(AnswerFile(tmp_path / "seen").answers) == REQUESTS


def test_a_silent_server_times_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("experiments.servers.client.MOST_TRIES", 1)
    before = threading.active_count()
    with serving("--trouble", "silent") as server:
        result = run(options_for(tmp_path, server.url, lengths=(3,), timeout=0.05, limit=1))
    assert "time-out" in result.findings[0]
    # Its handlers have ended, and told nobody's test of the client that went away.
    assert threading.active_count() <= before and capfd.readouterr().err == ""


def test_a_key_comes_from_the_environment_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GAMMALAB_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with serving("--trouble", "key") as server:
        with pytest.raises(InputError, match=r"status 401.*GAMMALAB_API_KEY"):
            run(options_for(tmp_path, server.url, lengths=(3,)))
        monkeypatch.setenv("GAMMALAB_API_KEY", "secret")
        assert not run(options_for(tmp_path, server.url, lengths=(3,))).findings
    assert "secret" not in (tmp_path / "seen" / FILE).read_text()


def test_a_prompt_that_is_refused_is_told_and_not_asked_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving("--trouble", "too-long") as server:
        run(options_for(tmp_path, server.url, lengths=(3,)))
        asked = server.asked
        run(options_for(tmp_path, server.url, lengths=(3,)))
        # The second turn of the refused dialogue is still open, and cannot be asked.
        assert server.asked == asked
    assert "8 requests were refused" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"url": "localhost:80"}, "must begin with http"),
        ({"url": "http://127.0.0.1:9"}, "nothing answers at"),
        ({"lengths": (0, 2)}, "needs --server-command"),
        ({"url": "http://127.0.0.1:99999"}, "there is no port 99999"),
        ({"model": "other"}, "--model other: the server has fake"),
        ({"engine": "tgi"}, "unknown engine"),
        ({"prompts": Path("none.jsonl")}, "no such prompt file"),
        ({"server_command": "no-such-program"}, "something already answers"),
    ],
)
def test_bad_options_are_one_line(more: dict[str, Any], line: str, tmp_path: Path) -> None:
    with serving() as server, pytest.raises(InputError, match=line):
        run(options_for(tmp_path, **{"url": server.url} | more))


@pytest.mark.parametrize("length", [0, 2])
def test_a_server_that_drafts_more_than_it_was_said_to(length: int, tmp_path: Path) -> None:
    with (
        serving() as server,
        pytest.raises(InputError, match=f"drafts more than --lengths {length}"),
    ):
        run(options_for(tmp_path, server.url, lengths=(length,)))
    assert not AnswerFile(tmp_path / "seen").answers


def test_two_models_behind_one_url(tmp_path: Path) -> None:
    with serving("--trouble", "two-models") as server:
        with pytest.raises(InputError, match="has one, two; choose one with --model"):
            run(options_for(tmp_path, server.url, lengths=(3,)))
        assert not run(options_for(tmp_path, server.url, lengths=(3,), model="two")).findings


def test_a_terminated_observe_leaves_no_server(tmp_path: Path) -> None:
    port, prompts = free_port(), write_questions(tmp_path / "questions.jsonl")
    words = [
        *(sys.executable, "-m", "experiments", "observe", "--url", f"http://127.0.0.1:{port}"),
        *("--engine", "llama.cpp", "--prompts", str(prompts), "--lengths", "3", "--timeout", "60"),
        *(
            "--out",
            str(tmp_path / "seen"),
            "--server-command",
            command(port, "--trouble", "silent"),
        ),
    ]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "seen/servers/0-3.log").exists():
        time.sleep(0.01)
    time.sleep(0.5)
    process.terminate()
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130 and "goes on where it stopped" in said
    with socket.socket() as probe:  # nobody listens there any more
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_another_question_does_not_go_into_the_same_folder(tmp_path: Path) -> None:
    with serving() as server:
        run(options_for(tmp_path, server.url, lengths=(3,)))
        with pytest.raises(InputError, match=r"begun with other settings.*max_tokens"):
            run(options_for(tmp_path, server.url, lengths=(3,), max_tokens=32))
        before = server.asked
        run(options_for(tmp_path, server.url, lengths=(5,)))  # another length may
        assert server.asked == before + REQUESTS


@pytest.mark.parametrize("content", ["", "{}\n", "not json\n", '{"engine": "x"}\nbroken\n'])
def test_a_damaged_file_is_one_line(content: str, tmp_path: Path) -> None:
    folder = tmp_path / "seen"
    folder.mkdir()
    (folder / FILE).write_text(content)
    with pytest.raises(InputError, match=FILE):
        AnswerFile(folder)


def command(port: int, *more: str) -> str:
    """The fake as a program."""
    return " ".join([sys.executable, str(FAKE), "--port", str(port), *more])


def free_port() -> int:
    """A port that nobody has."""
    server = fake.Fake()
    server.server_close()
    return int(server.server_address[1])


def test_a_server_is_started_for_every_length(tmp_path: Path) -> None:
    port = free_port()
    how = {"lengths": (0, 2), "server_command": command(port), "limit": 2, "blocks": 2}
    run(options_for(tmp_path, f"http://127.0.0.1:{port}", **how))
    kept = AnswerFile(tmp_path / "seen")
    assert Counter((a.length, a.block) for a in kept.answers) == dict.fromkeys(
        [(0, 0), (0, 1), (2, 0), (2, 1)], 1
    )
    assert all(not a.drafted for a in kept.answers if a.length == 0)
    with pytest.raises(InputError, match="nothing answers"):  # it was stopped
        run(options_for(tmp_path, f"http://127.0.0.1:{port}", out=tmp_path / "other"))


def test_a_server_that_dies_is_started_again(tmp_path: Path) -> None:
    port = free_port()
    how = {"lengths": (2,), "server_command": command(port, "--trouble", "dies"), "limit": 2}
    kept, _ = play(options_for(tmp_path, f"http://127.0.0.1:{port}", **how),
                   [Seat("2", 2)], tmp_path / "seen")  # fmt: skip
    assert len(kept.answers) == 2


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with pytest.raises(InputError, match=r"--server-command ended with 2: .*unrecognized"):
        run(options_for(tmp_path, url, lengths=(2,), server_command=command(port, "--novel")))
    with pytest.raises(InputError, match="no-such-program: No such file"):
        run(options_for(tmp_path, url, lengths=(2,), server_command="no-such-program"))


@pytest.mark.parametrize(
    "kills",
    [pytest.param(2, marks=pytest.mark.long), pytest.param(20, marks=pytest.mark.slow)],
)
def test_killed_at_any_moment_it_goes_on(kills: int, tmp_path: Path) -> None:
    """kill -9: what was answered stays, nothing is asked twice but what was under way."""
    log, drawn, questions = tmp_path / "log", random.Random(5), 4 * kills + 8
    prompts = write_questions(tmp_path / "questions.jsonl", questions)
    with serving("--log", str(log)) as server:
        words = [
            *(sys.executable, "-m", "experiments", "observe", "--url", server.url),
            *("--engine", "llama.cpp", "--prompts", str(prompts), "--lengths", "3"),
            *("--warm-up", "0", "--out", str(tmp_path / "seen")),
        ]
        for _ in range(kills):
            process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            before = server.asked
            while process.poll() is None and server.asked < before + 2:
                time.sleep(0.002)
            time.sleep(drawn.uniform(0.0, 0.008))
            assert process.poll() is None
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = AnswerFile(tmp_path / "seen").answers
    assert len(answers) == len({answer.key for answer in answers}) == questions + 1
    asked = Counter(log.read_text().splitlines())
    assert len(asked) == questions + 1
    assert max(asked.values()) <= 2 and sum(asked.values()) <= questions + 1 + kills


def test_reading_leaves_the_file_alone(tmp_path: Path) -> None:
    with serving() as server:
        run(options_for(tmp_path, server.url, lengths=(3,)))
    before = (tmp_path / "seen" / FILE).read_bytes()
    AnswerFile(tmp_path / "seen")
    assert (tmp_path / "seen" / FILE).read_bytes() == before


def test_blocks_hold_every_question_once_per_seat(tmp_path: Path) -> None:
    questions = read_questions(write_questions(tmp_path / "q.jsonl"))
    seats = [Seat("a", 0), Seat("b", 2), Seat("placebo", 0)]
    turns = list(turns_of(questions, seats, 3, seed=1))
    assert [turn.block for turn in turns] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for seat in seats:
        asked = [q.question_id for turn in turns if turn.seat == seat for q in turn.questions]
        assert sorted(asked) == sorted(q.question_id for q in questions)
    orders = {tuple(turn.seat.name for turn in turns[k : k + 3]) for k in (0, 3, 6)}
    assert len(orders) > 1
    assert len(list(turns_of(questions[:2], seats, 9, seed=1))) == 6


def test_counters_before_and_after() -> None:
    before = samples_of('vllm:spec_decode_num_drafts_total{engine="0"} 10\nother_total 3\n')
    text = (
        '# HELP x\nvllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 1\n'
        'vllm:spec_decode_num_drafts_total{engine="0"} 4\nvllm:gauge 7\n'
        'vllm:spec_decode_num_drafts_total{engine="1",model_name="n"} 2e1\n'
    )
    found = difference(before, samples_of(text))
    assert found.reset == ['vllm:spec_decode_num_drafts_total{engine="0"}']
    assert found.grown['vllm:spec_decode_num_drafts_total{engine="0"}'] == 4.0
    assert found.grown['vllm:spec_decode_num_drafts_total{engine="1",model_name="n"}'] == 20.0
    assert models_in(text) == ["m", "n"]


def test_the_command_line_prints_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = write_questions(tmp_path / "questions.jsonl")
    with serving() as server:
        words = ["observe", "--url", server.url, "--engine", "llama.cpp", "--prompts", str(prompts)]
        assert cli.main([*words, "--lengths", "3", "--out", str(tmp_path / "seen")]) == 0
    assert "9 of 9" in capsys.readouterr().out
