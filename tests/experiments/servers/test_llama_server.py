"""A real llama-server, where one is named: every line that we export for it starts.

    LLAMA_SERVER=path/to/llama-server LLAMA_TARGET=target.gguf LLAMA_DRAFT=draft.gguf \\
        pytest tests/experiments/servers/test_llama_server.py
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from experiments.export.engines import EngineSetting, Names, find_engine
from experiments.servers.answers import AnswerFile
from experiments.servers.observe import run
from experiments.servers.prediction import ROUNDS, by_length, predict
from tests.experiments.servers.running import options_for, write_questions
from tests.experiments.servers.test_observe import free_port

SERVER, TARGET, DRAFT = (os.environ.get(f"LLAMA_{n}", "") for n in ("SERVER", "TARGET", "DRAFT"))
pytestmark = pytest.mark.skipif(
    not all(map(os.path.exists, (SERVER, TARGET, DRAFT))), reason="LLAMA_SERVER names no server"
)
SETTINGS = [
    ("model", EngineSetting(0)),
    ("model", EngineSetting(4)),
    ("model", EngineSetting(6, threshold=0.4)),
    ("lookup", EngineSetting(5)),
    ("eagle3", EngineSetting(4)),
]


def line_of(kind: str, setting: EngineSetting) -> list[str]:
    """An exported line, its names put in place."""
    draft = "lookup:least=1,greatest=3" if kind == "lookup" else DRAFT.removesuffix(".gguf")
    names = Names(TARGET.removesuffix(".gguf"), draft, kind)
    words = shlex.split(find_engine("llama.cpp").render(setting, names).text)
    return [SERVER, *words[1:]]


@pytest.mark.parametrize(("kind", "setting"), SETTINGS)
def test_every_exported_line_starts(kind: str, setting: EngineSetting, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    words = [*line_of(kind, setting), "--port", str(port), "--threads", "1", "-c", "2048"]
    with log.open("wb") as out:
        process = subprocess.Popen(words, stdout=out, stderr=out)
    try:
        while process.poll() is None and not _answers(port):
            time.sleep(0.1)
        said = log.read_text("utf-8", "replace")
        assert "invalid argument" not in said and "unknown" not in said.lower()
        if kind != "eagle3":  # there is no head as GGUF: its line ends at the file, not before
            assert process.poll() is None, said[-500:]
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as found:
            return bool(found.status == 200)
    except OSError:
        return False


def test_its_rounds_are_read_from_the_stream(tmp_path: Path) -> None:
    port = free_port()
    write_questions(tmp_path / "questions.jsonl", 6)
    command = f"{SERVER} -m {TARGET} -md {DRAFT} --spec-type draft-simple --threads 1 -c 4096"
    run(options_for(tmp_path, f"http://127.0.0.1:{port}", lengths=(0, 3), max_tokens=24,
                    timeout=60.0, server_command=command))  # fmt: skip
    answers = AnswerFile(tmp_path / "seen").answers
    assert all(answer.steps is not None for answer in answers) and len(answers) == 14
    found = predict(by_length(answers))
    assert found.evidence == ROUNDS and 1.0 < found.row(3).tokens_per_round.value < 4.0
