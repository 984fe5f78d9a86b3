"""Compiled kernels: from the cache or anew, edited, mixed, or refused, the numbers are the same."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from policies.base import Policy, State, View
from policies.fixed import Fixed, Never
from policies.randomness import Rng
from simulator.replay import kernels
from simulator.replay.replay import replay, replay_interpreted
from simulator.replay.rounds import write_row
from simulator.replay.totals import add_steps, add_up
from traces import synthetic
from traces.costs.affine import Affine
from traces.costs.pricing import tabulate
from traces.errors import InputError

ROOT = Path(__file__).resolve().parents[3]


@dataclasses.dataclass(frozen=True)
class Uncompilable(Policy):
    """Asks the operating system for advice."""

    name = "uncompilable"

    def gamma(self, state: State, slot: int, view: View, rng: Rng) -> int:
        return len(os.environ) % 3


def test_an_uncompilable_hook_is_an_input_error() -> None:
    trace = synthetic.constant(0.0, np.random.default_rng(0), requests=1, reply_tokens=5)
    with pytest.raises(InputError, match="Uncompilable cannot be compiled"):
        replay(Uncompilable(), trace, tabulate(Affine()))
    assert len(replay_interpreted(Uncompilable(), trace, tabulate(Affine()))) == 5


def test_without_a_writable_folder_kernels_are_compiled_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blocked = tmp_path / "a_file"
    blocked.write_text("")
    monkeypatch.setenv("GAMMALAB_CACHE", str(blocked / "cache"))
    monkeypatch.setattr(kernels, "_kernels", {})
    trace = synthetic.constant(0.5, np.random.default_rng(0), requests=1, reply_tokens=5)
    assert replay(Never(), trace, tabulate(Affine())).emitted.tolist() == [1, 1, 1, 1, 1]
    assert kernels.policy_kernel(Never, write_row).file is None


POLICY = """
import dataclasses
from policies.base import Policy
from helper_of_mine import doubled

@dataclasses.dataclass(frozen=True)
class Mine(Policy):
    name = "mine"

    def gamma(self, state, slot, view, rng):
        return doubled(1) + 0
"""
HELPER = "def doubled(x):\n    return 2 * x\n"
RUN = """
import numpy as np
from simulator.replay import kernels
from simulator.replay.replay import replay
from simulator.replay.rounds import write_row
from traces import synthetic
from traces.costs.affine import Affine
from traces.costs.pricing import tabulate
{imports}
trace = synthetic.constant(0.5, np.random.default_rng(0), requests=1, reply_tokens=30)
log = replay(Mine(), trace, tabulate(Affine()))
kernel = kernels.policy_kernel(Mine, write_row)
print(log.gamma[0], sum(kernel.call.stats.cache_hits.values()), kernel.file is not None)
"""


def run_in_new_process(folder: Path, imports: str = "from mine import Mine") -> list[str]:
    return run_script(folder, RUN.format(imports=imports))


def run_script(folder: Path, script: str, *arguments: str) -> list[str]:
    paths = os.pathsep.join([str(folder), str(ROOT)])
    # Without bytecode files an edit within one clock tick is not missed by Python itself.
    environment = os.environ | {
        "PYTHONPATH": paths,
        "GAMMALAB_CACHE": str(folder / "cache"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
def test_an_edited_policy_is_never_served_stale(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(POLICY)
    (tmp_path / "helper_of_mine.py").write_text(HELPER)
    assert run_in_new_process(tmp_path) == ["2", "0", "True"]  # cold
    assert run_in_new_process(tmp_path) == ["2", "1", "True"]  # warm: a hit
    (tmp_path / "mine.py").write_text(POLICY.replace("+ 0", "+ 1"))
    assert run_in_new_process(tmp_path) == ["3", "0", "True"]
    (tmp_path / "helper_of_mine.py").write_text(HELPER.replace("2 * x", "4 * x"))
    assert run_in_new_process(tmp_path) == ["5", "0", "True"]


@pytest.mark.slow
def test_a_policy_from_main_is_compiled_without_a_cache(tmp_path: Path) -> None:
    (tmp_path / "helper_of_mine.py").write_text(HELPER)
    assert run_in_new_process(tmp_path, textwrap.dedent(POLICY)) == ["2", "0", "False"]


MIXED = """
import dataclasses
from policies.base import Policy

FACTOR = 1

@dataclasses.dataclass(frozen=True)
class Shifted(Policy):
    name = "shifted"
    offset: int = 0

def loop(self, x):
    return ladder(x) + self.offset

def ladder(x):
    return FACTOR if x < 2 else ladder(x - 1) * FACTOR + ladder(x - 2)  # calls itself: not inlined
"""
RUN_MIXED = """
import sys
from mixed_of_mine import Shifted, loop
from simulator.replay.kernels import recipe, run_recipe

for factor in map(int, sys.argv[1]):
    made = recipe(Shifted, loop, {"FACTOR": factor}, f"times{factor}")
    print(run_recipe(Shifted(), made, factor, 4))
"""


@pytest.mark.slow
def test_kernels_that_differ_in_a_constant_are_not_mixed(tmp_path: Path) -> None:
    # Compiled in two processes, their inner functions agree in name, number and argument types.
    (tmp_path / "mixed_of_mine.py").write_text(MIXED)
    twos, threes = "34", "129"  # 2, 2, 6, 14, 34 and 3, 3, 12, 39, 129
    assert run_script(tmp_path, RUN_MIXED, "2") == [twos]
    assert run_script(tmp_path, RUN_MIXED, "3") == [threes]
    assert run_script(tmp_path, RUN_MIXED, "23") == [twos, threes]
    assert run_script(tmp_path, RUN_MIXED, "32") == [threes, twos]


@pytest.mark.slow
def test_what_a_closure_holds_is_part_of_the_kernel(tmp_path: Path) -> None:
    factory = "def policy(drafted):\n" + textwrap.indent(
        POLICY.replace("doubled(1) + 0", "drafted") + "\nreturn Mine\n", "    "
    )
    (tmp_path / "helper_of_mine.py").write_text(HELPER)
    (tmp_path / "factory.py").write_text(factory)
    for drafted in "23":
        imports = f"from factory import policy; Mine = policy({drafted})"
        assert run_in_new_process(tmp_path, imports) == [drafted, "0", "True"]
        assert run_in_new_process(tmp_path, imports) == [drafted, "1", "True"]


def test_kernels_of_one_policy_are_told_apart_at_once() -> None:
    # numba knows a NamedTuple by name and fields; equal ones cost 0.15 ms at every call.
    names = {
        kernels.policy_kernel(Fixed, recorder).fields.__name__
        for recorder in (write_row, add_up, add_steps)
    }
    assert len(names) == 3


COUNTED = """
import sys
from numba.core import event
from tests.specimens import random_trace

names = []
class Heard(event.Listener):
    def on_start(self, heard):
        names.append(heard.data["dispatcher"].py_func.__qualname__)
    def on_end(self, heard):
        pass
event.register("numba:compile", Heard())

import numpy as np
from policies.registry import parse_policy
from simulator.replay.replay import replay
from traces.costs.affine import Affine
from traces.costs.pricing import tabulate

replay(parse_policy(sys.argv[1]), random_trace(np.random.default_rng(0), 3, 4), tabulate(Affine()))
print(*{name.rsplit("_", 1)[0] for name in names})
"""


@pytest.mark.slow
def test_the_next_policy_links_what_the_first_one_compiled(tmp_path: Path) -> None:
    first = run_script(tmp_path, COUNTED, "fixed:gamma=2")
    assert {"round_seconds", "room_at", "settle", "Fixed.gamma"} <= set(first)
    second = run_script(tmp_path, COUNTED, "gammatune")
    assert "GammaTune.gamma" in second
    assert not {"round_seconds", "room_at", "settle", "write_row"} & set(second)
