"""Result files: JSON without NaN, written atomically, and the provenance that goes into them."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from policies.base import Policy, drops_tokens, uses_signals
from traces.errors import InputError, warn
from traces.json_text import dumps, read_json
from traces.schema import Trace
from traces.store import content_hash, read_trace, write_atomically
from traces.timing import Timing, read_timing

RESULT_VERSION = 1
MAKERS = {"leaderboard": "sweep"}  # of results that are not called by their command


def write_result(kind: str, value: dict[str, Any], path: Path, *, overwrite: bool) -> None:
    """One result as JSON with its kind and version, atomically."""
    text = dumps({"kind": kind, "version": RESULT_VERSION, **value}) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, "utf-8"), overwrite)


def write_text(text: str, path: Path) -> None:
    """Write a command's printed text beside its result, atomically."""
    write_atomically(path, lambda to: to.write_text(text + "\n", "utf-8"), overwrite=True)


def withdraw(path: Path) -> None:
    """Take a result away before the files that it names change: a kill leaves no old result of new
    files.
    """
    path.unlink(missing_ok=True)


def other_input(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Of which input two results differ, "trace" or "timing"; "" if they were made of the same."""
    for name in ("trace", "timing"):
        if one.get(f"{name}_sha256") != other.get(f"{name}_sha256"):
            return name
    return ""


def read_result(kind: str, path: Path) -> dict[str, Any]:
    """Inverse of write_result; raises InputError naming the file if it is not of that kind."""
    maker = MAKERS.get(kind, kind)
    if not path.is_file():
        raise InputError(f"{path}: no such file; make it with `gammalab {maker}`")
    raw = read_json(path)
    if not isinstance(raw, dict) or raw.get("kind") != kind:
        raise InputError(f"{path} is JSON, but not the result of `gammalab {maker}`")
    if raw.get("version") != RESULT_VERSION:
        raise InputError(f"{path} has version {raw.get('version')}; run `gammalab {maker}` again")
    return raw


def command_line() -> str:
    """The command as it was typed, without the path of the program."""
    return shlex.join(["gammalab", *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Versions behind a simulated number."""
    import numba
    import numpy as np

    return {
        "gammalab": _own_version(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
    }


def _own_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("gammalab")
    except PackageNotFoundError:
        return "source tree"


def describe_inputs(
    trace: Trace, trace_name: str, timing: Timing | Mapping[str, Any]
) -> dict[str, Any]:
    """Where the numbers of a result come from. timing: or, where none was measured, what is known
    of the costs.
    """
    return {
        "trace": trace_name,
        "trace_sha256": content_hash(trace),
        "trace_meta": trace.meta.to_dict(),
        "requests": trace.requests,
        "positions": trace.positions,
        "timing_meta": dict(timing.meta if isinstance(timing, Timing) else timing),
        "timing_sha256": timing.sha256() if isinstance(timing, Timing) else None,
    }


def mismatches(trace: Trace, timing: Timing) -> list[str]:
    """Disagreements of a trace and a timing, one line each; empty if they belong together.

    A replay over a foreign timing is legal (what would this pair do on that machine?), so these
    are warnings. A timing of random weights belongs to no trace: one line says what is whose.
    """
    note = random_weights_note(timing.meta, trace.meta.pair)
    if note:
        return [note]
    found = []
    for field in ("pair", "drafter", "tokenizer_sha256", "device", "dtype"):
        named = "device_name" if field == "device" else field  # a trace names the device itself
        ours, theirs = getattr(trace.meta, field), timing.meta.get(named)
        if theirs is not None and ours != theirs:
            found.append(
                f"the trace has {field} {_short(ours)}, the timing {_short(theirs)}; the seconds "
                "below are not those of the recording's own machine and pair"
            )
    taken = timing.meta.get("temperature", 0.0), timing.meta.get("top_p", 1.0)
    asked = trace.meta.temperature, trace.meta.top_p
    if taken != asked and timing.meta:
        found.append(
            f"the trace has temperature {asked[0]:g} and top_p {asked[1]:g}, the timing was taken "
            f"at {taken[0]:g} and {taken[1]:g}; choosing a token costs another time there"
        )
    return found


def under_tree(shape: str) -> str:
    """A note on recordings under a draft tree; "" for all others."""
    return f", under the draft tree {shape}: a drafted token is a level of it" if shape else ""


def fits(policy: Policy, trace: Trace) -> bool:
    """True if a recording can be replayed under the policy: it has the signals that this reads, and
    no draft trees where drafted tokens are dropped.
    """
    dropless = not trace.meta.shape or not drops_tokens(type(policy))
    return dropless and (trace.has_signals or not uses_signals(policy))


def read_input(
    trace_path: Path, timing_path: Path, *, shaped: bool = False
) -> tuple[Trace, Timing]:
    """A trace and a timing, with a warning on stderr for whatever does not belong together. shaped:
    see traces.store.read_trace.
    """
    timing, trace = read_timing(timing_path), read_trace(trace_path, shaped=shaped)
    for line in mismatches(trace, timing):
        warn(f"{trace_path} and {timing_path}: {line}")
    return trace, timing


def read_inputs(traces: Sequence[Path], timing: Path) -> tuple[list[Trace], Timing]:
    """Several traces and one timing, likewise."""
    read = [read_input(path, timing) for path in traces]
    return [trace for trace, _ in read], read[0][1]


def random_weights_note(timing_meta: Mapping[str, Any], pair: str) -> str:
    """A note on whose seconds and whose acceptance a result combines, if the seconds are a shape's;
    or "".
    """
    if timing_meta.get("weights") != "random":
        return ""
    return (
        f"timing: random weights in the shape of {timing_meta['target']} and "
        f"{timing_meta['draft']}, {timing_meta['dtype']} on {timing_meta['device_name']}; "
        f"acceptance comes from the trace of pair {pair!r}"
    )


def replayed_note(about: Mapping[str, Any]) -> str:
    """A note on whose forwards and whose acceptance a run of this meta combines, if they are two's;
    or "".
    """
    if about.get("acceptance", "own") == "own":
        return ""
    return (
        f"replayed acceptance: real forwards of {about['pair']} ({about['weights']} weights), but "
        f"what they accept is the {about['acceptance']}"
    )


def _short(value: Any) -> str:
    text = str(value)
    return repr(text if len(text) <= 24 else text[:12] + "...")
