"""A server started and stopped by us: llama.cpp's, once for every draft length."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shlex
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx2 as httpx

from experiments.servers.client import read_text
from experiments.servers.engines import Engine
from traces.errors import InputError

STARTS_WITHIN_S = 600.0  # big models are read from disk
STOPS_WITHIN_S = 15.0


LENGTH_FLAGS = {
    "ngram-simple": "--spec-ngram-simple-size-m",
    "ngram-map-k": "--spec-ngram-map-k-size-m",
    "ngram-map-k4v": "--spec-ngram-map-k4v-size-m",
    "ngram-mod": "--spec-ngram-mod-n-max",
}
"""llama.cpp's flag of the length by --spec-type; of the others it is --spec-draft-n-max."""
DRAFT_FLAGS = ("-md", "--model-draft", "--spec-draft-model", "--spec-draft-n-max")
"""Flags with a value that plain decoding has no use for."""


def spec_type_of(command: str | None) -> str:
    """The --spec-type of a llama.cpp command, "" if it names none.

    Raises InputError if the command cannot be split.
    """
    words = _split(command or "")
    found = ""
    for name, value in itertools.pairwise(words):
        if name == "--spec-type":
            found = value
    return found


def setting_of(engine: Engine, length: int, spec_type: str = "") -> str:
    """The flags or JSON that make an engine draft `length` tokens, 0: none."""
    if engine.name == "vllm":
        fields = json.dumps({"num_speculative_tokens": length})
        told = f"--speculative-config '{fields}' (beside method and model)"
        return told if length else "no --speculative-config"
    if engine.name == "sglang":
        return (
            f"--speculative-num-steps {length} --speculative-eagle-topk 1 "
            f"--speculative-num-draft-tokens {length + 1}"
            if length
            else "no --speculative-algorithm"
        )
    return shlex.join(_length_words(length, spec_type)) if length else "no --spec-type, no draft"


def _length_words(length: int, spec_type: str) -> list[str]:
    if length == 0:
        return ["--spec-type", "none"]
    words = [LENGTH_FLAGS.get(spec_type, "--spec-draft-n-max"), str(length)]
    # Drafts shorter than 48 tokens are thrown away by default.
    return [*words, "--spec-ngram-mod-n-min", "1"] if spec_type == "ngram-mod" else words


def _split(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as error:
        raise InputError(f"--server-command: {error}") from None


def words_of(command: str, engine: Engine, length: int, port: int | None) -> list[str]:
    """The command of a server that drafts `length` tokens, 0: none.

    {length} in the command stands for it; else llama.cpp's own words are added at the end, where
    they win. --port is added if the command has none.

    Raises InputError if the command cannot be split, or the engine is another.
    """
    words = _split(command)
    if not words:
        raise InputError("--server-command is empty")
    if engine.name != "llama.cpp":
        raise InputError(f"--server-command is for llama.cpp; restart {engine.title} yourself")
    if port is not None and "--port" not in words:
        words += ["--port", str(port)]
    if length and any("{length}" in word for word in words):
        return [word.replace("{length}", str(length)) for word in words]
    kind = spec_type_of(command)
    if length == 0:  # a second --spec-type would be added to the first
        words = _without(words, ("--spec-type", *DRAFT_FLAGS))
    return [*words, *_length_words(length, kind)]


def _without(words: list[str], flags: Sequence[str]) -> list[str]:
    """The words without these flags and their values."""
    kept: list[str] = []
    skip = False
    for word in words:
        if skip or word in flags:
            skip = not skip
        elif "{length}" in word:
            if kept and kept[-1].startswith("-") and not word.startswith("-"):
                kept.pop()  # its flag
        else:
            kept.append(word)
    return kept


@contextlib.asynccontextmanager
async def launched(
    client: httpx.AsyncClient, words: list[str], log: Path
) -> AsyncIterator[subprocess.Popen[bytes]]:
    """The server, ready for requests; stopped at the end, whatever happens. log: what it prints.

    Raises InputError if something answers there already, or it ends or is not ready in time.
    """
    if await read_text(client, "/health"):
        raise InputError(f"something already answers at {client.base_url}; stop it, or take --url")
    process = _begun(words, log)
    try:
        await _ready(client, process, log)
        yield process
    finally:
        _stop(process)


def _begun(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    """The process, in a group of its own: Ctrl-C reaches us first."""
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with log.open("ab") as out:
            return subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
    except OSError as error:
        raise InputError(f"--server-command: {words[0]}: {error.strerror}") from None


async def _ready(client: httpx.AsyncClient, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(int(STARTS_WITHIN_S / 0.2)):
        if process.poll() is not None:
            raise InputError(
                f"--server-command ended with {process.returncode}: {_last_words(log)} (see {log})"
            )
        if await read_text(client, "/health"):
            return
        await asyncio.sleep(0.2)
    raise InputError(f"--server-command was not ready within {STARTS_WITHIN_S:.0f} s (see {log})")


def _last_words(log: Path) -> str:
    lines = log.read_text("utf-8", "replace")[-4096:].split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return said[-1][:200] if said else "it printed nothing"


def _stop(process: subprocess.Popen[bytes]) -> None:
    """The whole group, for a command may be a shell around the server; a second Ctrl-C hurries."""
    try:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOPS_WITHIN_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
