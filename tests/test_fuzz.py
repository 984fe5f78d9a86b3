"""Damaged files through the commands that read them, all in one process: each is a success, or exit
2 with one line that names the file; no traceback, nothing over 30 s, no output left behind.

By hand: python -m pytest tests/test_fuzz.py --fuzz 1000 -s
"""

from __future__ import annotations

import shutil
import signal
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import pytest

from real_backend.recording import capture
from tests.command import gammalab
from tests.damage import damaged
from tests.valid_files import KINDS, Kind

SEED = 15
LONGEST_S = 30


class Hang(BaseException):
    """A command that took longer than LONGEST_S."""


class Case(NamedTuple):
    """One damaged file and what became of it; "" if that is allowed."""

    what: str
    outcome: str
    fault: str


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_damaged_files_are_refused_in_one_line(
    kind: Kind,
    tmp_path: Path,
    pair: Any,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(capture, "pair_from", lambda *_, **__: pair)  # loaded once
    inputs, out = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    path = kind.write(inputs)
    whole, commands = path.read_bytes(), kind.commands(path, out)
    for command in commands:
        code = gammalab(*command).code
        assert code == kind.code, f"{kind.name} as it should be: {command} gave {code}"
        shutil.rmtree(out, ignore_errors=True)
    total, place = request.config.getoption("fuzz"), KINDS.index(kind)
    cases = []
    for number in range(place, total, len(KINDS)):
        generator = np.random.default_rng([SEED, number])
        how = damaged(path, whole, kind, generator)
        command = commands[int(generator.integers(len(commands)))]
        what = f"{kind.name} {number} {how}: {command}"
        cases.append(judged(what, kind, command, kind.named or path.name, out))
        shutil.rmtree(out, ignore_errors=True)
    print(f"\n{kind.name}: {dict(Counter(case.outcome for case in cases))}")
    faults = [f"{case.what}\n  {case.fault}" for case in cases if case.fault]
    assert not faults, "\n".join(faults)


def judged(what: str, kind: Kind, command: tuple[object, ...], named: str, out: Path) -> Case:
    """The command, run with an alarm, held against what is allowed."""
    signal.alarm(LONGEST_S)
    try:
        done = gammalab(*command)
    except Hang:
        return Case(what, "hang", f"over {LONGEST_S} s")
    except Exception:
        return Case(what, "traceback", "".join(traceback.format_exc().splitlines(True)[-6:]))
    finally:
        signal.alarm(0)
    if done.code in {0, kind.code} - {2}:
        return Case(what, "success", "")
    lines = [one for one in done.err.splitlines() if not one.startswith("gammalab: warning: ")]
    fault = ""
    if done.code != 2 or len(lines) != 1 or not lines[0].startswith("gammalab: "):
        fault = f"exit {done.code}, {len(lines)} lines: {done.err[:300]!r}"
    elif named not in lines[0] or len(lines[0]) > 1300:
        fault = f"does not name the file, or is too long: {lines[0][:300]}"
    elif out.exists() and any(part.is_file() for part in out.rglob("*")):
        fault = f"left {[str(part) for part in out.rglob('*')]}"
    return Case(what, "fault" if fault else "refused", fault)
