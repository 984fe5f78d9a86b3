"""The registry: every policy by name, the notation `name:field=value,field=value`, policy files."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from policies.bandits.begmab import BegMab
from policies.bandits.contextual import LinThompson, LinUCB, Nightjar
from policies.bandits.exp3 import Exp3, Exp3Spec
from policies.bandits.remote import SpecStop, UCBSpecStop
from policies.bandits.tapout import TapOut
from policies.bandits.thompson import ThompsonBeta, ThompsonGauss
from policies.bandits.ucb import UCB, UCB1, DiscountedUCB, SlidingUCB
from policies.bandits.ucbspec import UCBSpec, UCBSpecReleased
from policies.base import Policy, field_values
from policies.confidence.classifiers import Disco, SpecDecPlusPlus
from policies.confidence.draft_verify import DraftVerify
from policies.confidence.dsde import Dsde
from policies.confidence.entropy import SVIP, AdaEDL
from policies.confidence.entropy_gate import EntropyGate
from policies.confidence.profile_guided import ProfileGuided
from policies.confidence.roc import HFRocConfidence
from policies.confidence.speckv import SpecKV
from policies.confidence.thresholds import (
    BatchConfidence,
    HFConfidence,
    LlamaPMin,
    TailPruning,
)
from policies.counts.averages import CensoredEma, RateBuckets, RateEma, RateServo
from policies.counts.context_tables import ContextTable, LengthTable
from policies.counts.gammatune import GammaTune, GammaTunePlus
from policies.counts.heuristic import HFHeuristic, HFHeuristicStop, Streak
from policies.counts.leading import LeadingPositions
from policies.counts.llama_adaptive import CreditBucket, Zones
from policies.counts.tables import BatchTable, DisableGate
from policies.counts.tiers import SGLangTiers
from policies.fields import short_field
from policies.fixed import Fixed, Never
from policies.goodput.adaptive_k import AdaptiveK
from policies.goodput.arbiter import arbiter
from policies.goodput.cascade import Cascade
from policies.goodput.ollama import OllamaDepth
from policies.goodput.onnx_genai import OnnxAdaptiveK
from policies.goodput.sglang_throughput import SGLangThroughput
from policies.goodput.smartspec import SmartSpec
from policies.goodput.vllm_dynamic import VLLMDynamic
from policies.learned.networks import (
    FROM_FILE,
    beside,
    known_policy,
    load_policy,
    network_files,
    write_networks,
)
from policies.learned.neural import KINDS, NeuralRound, NeuralToken
from policies.ours.goodput import AlphaGoodput, CensoredGoodput
from policies.ours.hedge import Hedge
from policies.ours.marginal import Marginal, Payback
from policies.ours.shapes import ShapeWorth
from policies.ours.worth import Worth
from traces.errors import InputError
from traces.json_text import read_json
from traces.store import refuse_existing, write_atomically

POLICY_FILE_VERSION = 1
LONGEST_TITLE = 40

FAMILIES: dict[str, tuple[type[Policy], ...]] = {
    "lengths": (Never, Fixed),
    "accepted counts": (
        GammaTune, HFHeuristic, Streak, RateEma, CensoredEma, RateBuckets, RateServo, SGLangTiers,
        BatchTable, DisableGate,
        LeadingPositions, ContextTable, LengthTable, CreditBucket, Zones,
    ),
    "the draft's confidence": (
        GammaTunePlus, HFHeuristicStop, HFConfidence, LlamaPMin, BatchConfidence, HFRocConfidence,
        DraftVerify, SVIP, AdaEDL, TailPruning, ProfileGuided, Disco, SpecDecPlusPlus, SpecKV,
        Dsde, EntropyGate,
    ),
    "cost and goodput": (
        VLLMDynamic, SGLangThroughput, SmartSpec, AdaptiveK, Cascade, arbiter(GammaTune),
        OllamaDepth, OnnxAdaptiveK, SpecStop,
    ),
    "bandits": (
        UCB, UCB1, UCBSpec, UCBSpecReleased, DiscountedUCB, SlidingUCB, Exp3, Exp3Spec,
        ThompsonBeta, ThompsonGauss, BegMab, TapOut, LinUCB, LinThompson, Nightjar,
        UCBSpecStop,
    ),
    "ours": (CensoredGoodput, AlphaGoodput, Hedge, Marginal, Payback, Worth, ShapeWorth),
}  # fmt: skip
DEFAULT = HFConfidence.name
"""The default before anything was tuned: with its own arithmetic charged, in shuffled orders and in
sittings on the real engine nothing else was ahead of it reliably (docs/sweeps.md).
"""

REGISTRY: dict[str, type[Policy]] = {cls.name: cls for group in FAMILIES.values() for cls in group}


def _suggest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}? " if near else ""


def find_policy(name: str) -> type[Policy]:
    """The class of that name, or of `arbiter/NAME`; raises InputError with the nearest name."""
    if name not in REGISTRY and name.startswith("arbiter/"):
        return arbiter(find_policy(name.removeprefix("arbiter/")))
    if name in KINDS:
        raise InputError(f"policy {name!r} {FROM_FILE}")
    if name not in REGISTRY:
        raise InputError(
            f"unknown policy {name!r}; {_suggest(name, list(REGISTRY))}known: {', '.join(REGISTRY)}"
        )
    return REGISTRY[name]


def _typed(value: Any, kind: type[int] | type[float] | type[bool]) -> Any:
    """A field's value, as text or as JSON has it, in the type of its default where it can be taken
    for one; policies.fields says what is wrong with it otherwise.
    """
    try:
        if isinstance(value, str):
            words = {"false": False, "true": True}
            return words[value.lower()] if kind is bool else kind(value)
        return float(value) if kind is float and type(value) is int else value
    except (KeyError, ValueError, OverflowError):
        return value


def make_policy(name: str, values: dict[str, Any]) -> Policy:
    """The policy of that name with these fields, written short or in full; the others are defaults.

    Raises InputError naming the field that is unknown, of another type or out of range.
    """
    if name in KINDS:
        return known_policy(name, chosen_fields(KINDS[name], values))
    cls = find_policy(name)
    return cls(**chosen_fields(cls, values))


def chosen_fields(cls: type[Policy], values: dict[str, Any]) -> dict[str, Any]:
    """Fields of a policy class by their full names; raises InputError naming one that there is not,
    or that is given twice.
    """
    name = cls.name
    defaults = field_values(cls())
    fields = {short_field(f): f for f in defaults} | {f: f for f in defaults}
    chosen: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            known = ", ".join(short_field(f) for f in defaults) or "it has none"
            raise InputError(
                f"policy {name!r} has no field {key!r}; {_suggest(key, list(fields))}"
                f"fields: {known}"
            )
        if fields[key] in chosen:
            raise twice(name, key)
        chosen[fields[key]] = _typed(value, type(defaults[fields[key]]))
    return chosen


def twice(name: str, key: str) -> InputError:
    """A field was given two values."""
    return InputError(f"policy {name!r}: field {key} is given twice")


def parse_policy(spec: str) -> Policy:
    """A policy from `name` or `name:field=value,...`; raises InputError naming what is wrong."""
    name, _, settings = spec.strip().partition(":")
    values: dict[str, Any] = {}
    for setting in filter(None, settings.split(",")):
        key, _, text = setting.partition("=")
        if key in values:
            raise twice(name, key)
        values[key] = text
    return make_policy(name, values)


def read_policies(path: Path) -> list[Policy]:
    """The policies of a policy file, in its order, networks from the files beside it; raises
    InputError naming file and field.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such policy file; `gammalab sweep` writes them")
    raw = read_json(path)
    if not isinstance(raw, dict) or raw.get("kind") != "policies":
        raise InputError(f"{path} is JSON, but not a policy file (kind is not 'policies')")
    if raw.get("version") != POLICY_FILE_VERSION:
        raise InputError(f"{path} has policy file version {raw.get('version')!r}; make it again")
    entries = raw.get("policies")
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path}: field 'policies' must be a list with at least one policy")
    found = []
    for number, entry in enumerate(entries):
        shaped = isinstance(entry, dict) and isinstance(entry.get("fields", {}), dict)
        if not shaped or not isinstance(entry.get("policy"), str):
            raise InputError(
                f'{path}: policies[{number}] must be {{"policy": NAME, "fields": {{}}}}'
            )
        try:
            found.append(_of_entry(entry, path))
        except InputError as error:
            raise InputError(f"{path}: policies[{number}]: {error}") from None
    return found


def _of_entry(entry: dict[str, Any], path: Path) -> Policy:
    """The policy of one entry of the policy file at `path`."""
    name, values = entry["policy"], entry.get("fields", {})
    if name not in KINDS:
        return make_policy(name, values)
    return load_policy(name, chosen_fields(KINDS[name], values), beside(path, entry.get("network")))


def write_policies(
    policies: Sequence[Policy], path: Path, meta: dict[str, Any], *, overwrite: bool = False
) -> None:
    """A policy file: every field of every policy, and in `meta` what they were tuned on. Networks
    come first, into files of their own beside it: a policy file never names what is not there.
    """
    neural = [p for p in policies if isinstance(p, NeuralRound | NeuralToken)]
    files = network_files(neural, path)
    entries = []
    for policy in policies:
        entry = {"policy": policy.name, "fields": field_values(policy)}
        if isinstance(policy, NeuralRound | NeuralToken):
            entry["network"] = files[policy.digest].name
        entries.append(entry)
    raw = {"kind": "policies", "version": POLICY_FILE_VERSION, "meta": meta, "policies": entries}
    text = json.dumps(raw, indent=1, allow_nan=False) + "\n"
    refuse_existing(path, overwrite)
    write_networks(neural, files, overwrite=overwrite)
    write_atomically(path, lambda temporary: temporary.write_text(text, "utf-8"), overwrite)


def parse_policies(text: str) -> list[Policy]:
    """Several specs or policy files (NAME.json), separated by commas; a comma inside a spec's
    settings stays with it.

    `fixed:gamma=3,gammatune:eta=0.3,delta=2` is two policies: a piece without a colon that holds an
    equals sign continues the one before it.
    """
    specs: list[str] = []
    for piece in filter(None, (p.strip() for p in text.split(","))):
        if specs and "=" in piece and ":" not in piece:
            specs[-1] += "," + piece
        else:
            specs.append(piece)
    if not specs:
        raise InputError("no policy given; `gammalab policies` lists them")
    found: list[Policy] = []
    for spec in specs:
        found += read_policies(Path(spec)) if spec.endswith(".json") else [parse_policy(spec)]
    return found


def label(policy: Policy) -> str:
    """The shortest spec that parse_policy turns back into this policy (a network: where its file
    has been read).
    """
    defaults = {f.name: f.default for f in dataclasses.fields(policy)}
    shown = [
        f"{short_field(field)}={str(value).lower() if isinstance(value, bool) else value}"
        for field, value in field_values(policy).items()
        if value != defaults[field] or field == "gamma_tokens"
    ]
    return policy.name + (":" + ",".join(shown) if shown else "")


def title(policy: str) -> str:
    """A policy's label short enough for a table: a long one is cut and ends in its fingerprint."""
    if len(policy) <= LONGEST_TITLE:
        return policy
    digest = hashlib.sha256(policy.encode()).hexdigest()[:6]
    return f"{policy[: LONGEST_TITLE - 8].rstrip(',.=')}..{digest}"


def file_name(policy: str) -> str:
    """A policy's label as part of a file name: fixed:gamma=3 -> fixed-gamma-3."""
    return "".join(c if c.isalnum() or c in "+-." else "-" for c in title(policy))
