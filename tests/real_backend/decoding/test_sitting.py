"""A sitting as files: its command, replayed acceptance, logs judged where none were made."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import cli
from experiments.common.cost_sources import step_costs
from experiments.validation.validate import judge
from experiments.validation.validate_text import validation_text
from policies.fixed import Fixed
from policies.registry import REGISTRY, label, parse_policies
from real_backend.command_line import run_module
from real_backend.decoding import sitting
from real_backend.decoding.engine import Engine
from real_backend.decoding.interleaving import Sitting, baseline_of
from real_backend.decoding.measured import (
    PLACEBO,
    Anchor,
    Measured,
    anchors_path,
    read_measured,
    timed_path,
    write_measured,
    write_rounds,
)
from real_backend.decoding.sitting import begin_sitting
from real_backend.decoding.sitting_file import load_states, saved_state
from real_backend.options import SittingOptions
from real_backend.prompts import read_questions
from real_backend.recording.capture import capture
from real_backend.recording.coupling import CaptureSettings
from simulator.replay.replay import replay
from tests.results import lively_trace, make_timing
from tests.specimens import write_prompts
from traces.costs.pricing import StepCosts
from traces.errors import InputError
from traces.roundlog import ROUND_DTYPES, join_logs
from traces.split import split_rows
from traces.store import read_trace, write_trace

Files = tuple[Path, Path, Path, Path]
POLICIES = ["--policies", "never,fixed:gamma=2,gammatune,hf-confidence"]
NAMES = {"never", "fixed:gamma=2", "gammatune", "hf-confidence"}


@pytest.fixture(scope="module")
def files(pair: Any, pair_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The tiny pair's folder, its prompts, a trace of them and a timing."""
    folder = tmp_path_factory.mktemp("passes")
    prompts = write_prompts(folder / "prompts.jsonl")
    settings = CaptureSettings(24, 0.0, 1.0, 16, 0, 1)
    capture(pair, read_questions(prompts), folder / "trace.parquet", settings)
    make_timing().write(folder / "timing.json")
    return pair_folder, prompts, folder / "trace.parquet", folder / "timing.json"


def decode(monkeypatch: pytest.MonkeyPatch, files: Files, out: Path, *more: object) -> int:
    """`python -m real_backend.decoding.sitting` on the tiny pair."""
    pair, prompts, trace, timing = files
    options = ["--pair", pair, "--prompts", prompts, "--trace", trace, "--timing", timing]
    options += ["--device", "cpu", "--out", out, *POLICIES, *more]
    monkeypatch.setattr("sys.argv", ["sitting", *map(str, options)])
    return run_module("real_backend.decoding.sitting", "", SittingOptions, sitting.run)


def test_logs_of_elsewhere_are_judged_here(
    files: Files,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert decode(monkeypatch, files, tmp_path / "run", "--repeats", 2, "--limit", 4) == 0
    argv = ["validate", "--trace", files[2], "--timing", files[3], "--max-error", "1e9"]
    argv += ["--measured", tmp_path / "run", "--out", tmp_path / "judged"]
    code = cli.main([str(word) for word in argv])
    assert "placebo, a second copy of fixed:gamma=2" in capsys.readouterr().out
    found = json.loads((tmp_path / "judged/validate.json").read_text())
    assert code == bool(found["findings"])  # a placebo that is no tie, by the clock's chance
    assert all("placebo" in finding for finding in found["findings"])
    assert {check["policy"] for check in found["checks"]} == NAMES
    for check in found["checks"]:
        assert check["agreement"]["differing"] == 0 and check["agreement"]["rounds"] > 0
        assert check["replies_equal"] == found["requests"]
    assert found["repeats"] == 2 and found["machine"]["pair"] == files[0].name
    assert found["drift"] and found["clock"] == "wall"  # the timing has no other
    # What was judged can be judged again, with the same result.
    argv[argv.index(tmp_path / "run")] = tmp_path / "judged"
    assert cli.main([str(word) for word in [*argv[:-1], tmp_path / "again"]]) == code
    again = json.loads((tmp_path / "again/validate.json").read_text())
    assert again["checks"] == found["checks"]


def test_a_folder_judged_into_itself_keeps_its_rounds(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of policies that are not asked for, and what an unfinished sitting left."""
    assert decode(monkeypatch, files, tmp_path, "--limit", 4) == 0
    (tmp_path / "measured.partial").write_text("of another sitting")
    before = {path: path.read_bytes() for path in (tmp_path / "measured").iterdir()}
    argv = ["validate", "--trace", files[2], "--timing", files[3], "--max-error", "1e9"]
    argv += ["--measured", tmp_path, "--out", tmp_path, "--policies", "never"]
    assert cli.main([str(word) for word in argv]) in (0, 1)  # as the placebo has it
    assert before == {path: path.read_bytes() for path in (tmp_path / "measured").iterdir()}
    assert (tmp_path / "measured.partial").exists() and (tmp_path / "validate.json").exists()


def test_only_held_out_replies_are_decoded(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that a length was tuned on, or a network trained on, is confirmed with."""
    assert decode(monkeypatch, files, tmp_path) == 0
    trace = read_trace(files[2])
    _, test = split_rows(trace, seed=0)
    about = read_measured(tmp_path).timed["never"][0].meta
    assert sorted(about["requests"]) == sorted(trace.request_id[row] for row in test)
    assert decode(monkeypatch, files, tmp_path) == 2  # nothing is overwritten
    assert decode(monkeypatch, files, tmp_path, "--force") == 0


def test_rounds_keep_both_clocks_and_when_they_ran(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert decode(monkeypatch, files, tmp_path) == 0
    measured = read_measured(tmp_path)
    starts = np.sort(np.concatenate([log.start_s for (log,) in measured.timed.values()]))
    assert len(np.unique(starts)) == len(starts) and starts[0] >= 0  # one clock for all seats
    for (log,) in measured.timed.values():
        assert log.cpu_s is not None and bool((log.cpu_s > 0).all())
        assert (np.diff(log.start_s) > 0).all()
    begins = [log.start_s[0] for (log,) in measured.timed.values()]
    assert max(begins) < np.median(starts)  # every seat has begun before the first half is over
    assert all(0 < anchor.at_s < starts[-1] + 60 for anchor in measured.anchors)


def test_batches_have_no_anchors(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert decode(monkeypatch, files, tmp_path, "--batch", 3) == 0
    found = read_measured(tmp_path)
    assert not found.anchors and found.timed["never"][0].batch_size.max() == 3


STATEFUL = ["--policies", "fixed:gamma=2,gammatune,thompson-beta,tail-pruning"]
CLOCKS = ("start_s", "elapsed_s")


def stopped_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Ctrl-C in decode number `call`, those that warm up counted."""
    calls, real = [0], Engine.decode

    def decode_(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(Engine, "decode", decode_)


def without_clocks(folder: Path) -> dict[str, Any]:
    """All of a sitting that no clock has a say in."""
    measured = read_measured(folder)
    found: dict[str, Any] = {"anchors": [row[1:4] for row in measured.anchors]}
    for seat, logs in measured.timed.items():
        for repeat, log in enumerate(logs):
            for name in set(ROUND_DTYPES) - set(CLOCKS):
                found[f"{seat} {repeat} {name}"] = getattr(log, name).tolist()
            about = {k: v for k, v in log.meta.items() if k not in ("started_unix_s", "gaps")}
            found[f"{seat} {repeat} meta"] = about
    return found


HOW = (*STATEFUL, "--repeats", 2)


@pytest.fixture(scope="module")
def whole(files: Files, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a sitting that nothing stops finds."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        assert decode(patch, files, out, *HOW) == 0
    return without_clocks(out)


@pytest.mark.parametrize("turns", [0, 1, 4])
def test_a_stopped_sitting_goes_on_as_if_it_had_not_been(
    files: Files,
    whole: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    turns: int,
) -> None:
    """Three replies, two repeats, five seats: six turns; policies that remember, and draw."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stopped_at(patch, 5 + 5 * turns + 3)
        assert decode(patch, files, out, *HOW) == 130
    assert "the same command goes on where it stopped" in capsys.readouterr().err
    kept = out / "measured.partial"
    before = kept.read_bytes()
    assert before.count(b"\n") == 1 + turns
    with monkeypatch.context() as patch:
        stopped_at(patch, 5 + 5 * (6 - turns) + 1)  # nothing that was finished runs again
        kept.write_bytes(before + b'{"unix_s": 1, "par')  # and what a kill cuts off is left out
        assert decode(patch, files, out, *HOW) == 0
    assert not kept.exists()
    assert without_clocks(out) == whole
    starts = [log.start_s for log in read_measured(out).timed["gammatune"]]
    assert (np.diff(np.concatenate(starts)) > 0).all()
    gaps = read_measured(out).timed["gammatune"][0].meta.get("gaps", [])
    assert [parts for parts, _ in gaps] == ([turns] if turns else [])


def test_what_was_decided_is_kept_until_it_is_judged(
    files: Files,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Killed while results are written: the sitting is there, for these settings alone."""
    pair, prompts, trace, timing = files
    argv = ["validate", "--pair", pair, "--prompts", prompts, "--trace", trace, "--timing", timing]
    argv += ["--device", "cpu", "--max-error", "1e9", *POLICIES, "--out", tmp_path]
    words = [str(word) for word in argv]

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("experiments.validation.command.write_measured", killed)
        assert cli.main(words) == 130
    assert "the same command goes on where it stopped" in capsys.readouterr().err
    assert cli.main([*words, "--seed", "1"]) == 2
    assert "begun with other settings, models or versions (requests" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        stopped_at(patch, 1)
        assert cli.main(words) in (0, 1)  # whatever this machine's placebo says
    assert (tmp_path / "validate.json").exists() and (tmp_path / "validate.txt").exists()
    assert not (tmp_path / "measured.partial").exists()


def test_only_force_or_what_was_begun_with_it_overwrites(tmp_path: Path) -> None:
    result, kept = tmp_path / "validate.json", tmp_path / "measured.partial"
    assert begin_sitting(tmp_path, result, False) == kept
    result.write_text("x")
    with pytest.raises(InputError, match="--force"):
        begin_sitting(tmp_path, result, False)
    kept.write_text("x")
    assert begin_sitting(tmp_path, result, False) == kept and kept.exists()
    begin_sitting(tmp_path, result, True)
    assert not kept.exists() and result.exists()


def test_states_come_back_bit_for_bit() -> None:
    generator = np.random.default_rng(0)
    for policy in (cls() for cls in REGISTRY.values()):
        state, fresh = policy.new_state(2), policy.new_state(2)
        arrays = [part for part in state if isinstance(part, np.ndarray)]
        for array in arrays:
            array[...] = generator.integers(0, 2, array.shape) * generator.random(array.shape)
        load_states({"a": fresh}, {"a": json.loads(json.dumps(saved_state(state)))})
        assert len(arrays) == len(saved_state(state)) > 0
        assert saved_state(fresh) == saved_state(state)
    with pytest.raises(ValueError):
        load_states({"a": fresh}, {"a": []})


def test_logs_of_two_runs_or_of_another_trace_are_refused(
    files: Files,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(InputError, match="holds no round logs"):
        read_measured(tmp_path)
    assert decode(monkeypatch, files, tmp_path / "a", "--limit", 2) == 0
    assert decode(monkeypatch, files, tmp_path / "b") == 0
    mixed = timed_path(tmp_path / "a", "never", 0)
    kept = mixed.read_bytes()
    mixed.write_bytes(timed_path(tmp_path / "b", "never", 0).read_bytes())
    with pytest.raises(InputError, match="differ in trace_sha256; they are of two runs"):
        read_measured(tmp_path / "a")
    mixed.write_bytes(kept)
    timed_path(tmp_path / "a", "never", 1).write_bytes(kept)
    with pytest.raises(InputError, match="lack a repeat"):
        read_measured(tmp_path / "a")
    timed_path(tmp_path / "a", "never", 1).unlink()
    anchors_path(tmp_path / "a").write_text("{")
    with pytest.raises(InputError, match="holds no anchors"):
        read_measured(tmp_path / "a")
    anchors_path(tmp_path / "a").unlink()
    assert read_measured(tmp_path / "a").anchors == []
    timed_path(tmp_path / "a", PLACEBO, 0).unlink()
    with pytest.raises(InputError, match="lacks the rounds of placebo"):
        read_measured(tmp_path / "a")
    other = Path(__file__).parents[3] / "traces/data/embedded-greedy.parquet"
    argv = ["validate", "--trace", other, "--timing", files[3], "--measured", tmp_path / "b"]
    assert cli.main([str(word) for word in argv]) == 2
    assert "requests of another trace" in capsys.readouterr().err


def test_replayed_acceptance_says_so_everywhere(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pair of random weights that never made the trace takes exactly the replay's rounds."""
    pair, _, trace, timing = files
    for part in ("target", "draft"):
        (tmp_path / part).mkdir()
        config = json.loads((pair / part / "config.json").read_text())
        (tmp_path / part / "config.json").write_text(json.dumps(config | {"vocab_size": 50}))
    shape = f"shape:{tmp_path}/target/config.json+{tmp_path}/draft/config.json"
    argv = ["validate", "--pair", shape, "--trace", str(trace), "--timing", str(timing)]
    argv += [*POLICIES, "--device", "cpu", "--repeats", "1", "--max-error", "1e9"]
    assert cli.main(argv) == 2
    assert "--acceptance trace" in capsys.readouterr().err
    out = tmp_path / "out"
    code = cli.main([*argv, "--acceptance", "trace", "--out", str(out)])
    text = capsys.readouterr().out
    told = " ".join(text.split())
    assert "(random weights), but what they accept is the trace of" in told
    found = json.loads((out / "validate.json").read_text())
    assert code == bool(found["findings"])  # a placebo that is no tie, by the clock's chance
    assert all("placebo" in finding for finding in found["findings"])
    assert [check["agreement"]["differing"] for check in found["checks"]] == [0] * 5
    assert [check["replies_equal"] for check in found["checks"]] == [None] * 5
    assert found["machine"]["weights"] == "random"
    assert found["machine"]["acceptance"] == found["acceptance"] == f"trace of {pair.name}"


def test_replayed_dialogues_must_fit(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((files[0] / "target/config.json").read_text())
    (tmp_path / "c.json").write_text(json.dumps(config | {"max_position_embeddings": 40}))
    argv = ["validate", "--pair", f"shape:{tmp_path}/c.json+{tmp_path}/c.json", "--device", "cpu"]
    argv += ["--trace", str(files[2]), "--timing", str(files[3]), "--acceptance", "trace"]
    assert cli.main(argv) == 2
    assert "longest dialogue needs" in capsys.readouterr().err


def test_joules_add_up_and_peaks_do_not() -> None:
    one = replay(Fixed(2), lively_trace(), step_costs(make_timing(), lively_trace()))
    metas = (
        {"energy_j": 3.0, "peak_memory_bytes": 500},
        {"energy_j": 4.0, "peak_memory_bytes": 700},
    )
    logs = [dataclasses.replace(one, meta=meta) for meta in metas]
    assert join_logs(logs).meta == {"energy_j": 7.0, "peak_memory_bytes": 700}
    assert join_logs([logs[0], dataclasses.replace(one, meta={})]).meta == {}


def test_energy_is_shown_where_it_is_known() -> None:
    """1.5 J a token in the first repeat, 2.5 J in the second: 2 J is the median."""
    trace, timing = lively_trace(), make_timing()
    log = replay(Fixed(2), trace, step_costs(timing, trace))
    tokens, name = int(log.emitted.sum()), label(Fixed(2))
    timed = [
        dataclasses.replace(log, meta={"energy_j": joules * tokens, "peak_memory_bytes": 5 << 20})
        for joules in (1.5, 2.5)
    ]
    bare = [dataclasses.replace(log, meta={})] * 2
    found = judge(
        Measured({name: timed, PLACEBO: timed}, name, []), trace, timing, [Fixed(2)], seed=0
    )
    assert found.checks[0].joules_per_token == pytest.approx(2.0)
    text = validation_text(found)
    assert "J/token" in text and "2.000" in text
    assert "5" in text.split("peak MiB")[1].split()
    none = judge(Measured({name: bare, PLACEBO: bare}, name, []), trace, timing, [Fixed(2)], seed=0)
    assert none.checks[0].joules_per_token is None and "J/token" not in validation_text(none)


def test_blocks_cover_every_request_once() -> None:
    def blocks(count: int, size: int) -> list[list[int]]:
        rows: list[Any] = list(range(count))
        return [list(b) for b in Sitting(None, lively_trace(), rows, block=size).blocks()]  # type: ignore[arg-type]  # nothing runs

    assert blocks(5, 2) == [[0, 1], [2, 3], [4]]
    assert blocks(3, 1) == [[0], [1], [2]]


def test_the_baseline_is_the_first_fixed_length() -> None:
    never, fixed, tuned = parse_policies("never,fixed:gamma=3,gammatune")
    assert baseline_of([never, tuned, fixed]) == fixed and baseline_of([never, tuned]) == never


def test_a_sitting_comes_back_from_its_folder(tmp_path: Path) -> None:
    trace = lively_trace()
    log = replay(Fixed(2), trace, step_costs(make_timing(), trace))
    meta = log.meta | {"baseline": "fixed:gamma=2", "trace_sha256": "a", "requests": []}
    logs = {
        seat: [dataclasses.replace(log, meta=meta | {"seat": seat}, cpu_s=log.elapsed_s / 2)]
        for seat in ("fixed:gamma=2", PLACEBO)
    }
    anchors = [
        Anchor(0.5, "verify", 2, 96, 1e-3, float("nan")),
        Anchor(1.0, "draft", 1, 96, 2.0, 1.0),
    ]
    write_measured(Measured(logs, "fixed:gamma=2", anchors), tmp_path)
    found = read_measured(tmp_path)
    assert found.baseline == "fixed:gamma=2" and set(found.timed) == {"fixed:gamma=2", PLACEBO}
    assert found.anchors[1] == anchors[1] and np.isnan(found.anchors[0].cpu_s)
    back = found.timed[PLACEBO][0]
    assert back.same_rounds(log) and back.cpu_s is not None
    assert back.cpu_s.tolist() == (log.elapsed_s / 2).tolist()


def test_rounds_are_written_where_they_are_looked_for(tmp_path: Path) -> None:
    assert timed_path(tmp_path, "fixed:gamma=3", 0).name == "fixed-gamma-3-1.parquet"
    write_rounds([])
    assert not list(tmp_path.iterdir())


def test_a_sitting_is_priced_at_every_size_of_its_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of three shrinks to two and one at its end."""
    seen: list[StepCosts] = []

    def stop(_: object, __: object, costs: StepCosts, *___: object, **____: object) -> None:
        seen.append(costs)
        raise InputError("enough")

    write_trace(lively_trace(), tmp_path / "t.parquet")
    make_timing().write(tmp_path / "m.json")
    monkeypatch.setattr(sitting, "load_sitting", stop)
    asked = SittingOptions(
        trace=tmp_path / "t.parquet", timing=tmp_path / "m.json", policies="never",
        out=tmp_path / "out", batch=3,
    )  # fmt: skip
    with pytest.raises(InputError, match="enough"):
        sitting.run(asked)
    assert seen[0].sizes == [1, 2, 3]
