"""Networks as files: they round-trip, and one clear line for every damaged one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from policies.base import Policy
from policies.fixed import Fixed
from policies.learned.networks import read_network, write_network
from policies.learned.neural import (
    NeuralToken,
    digest_of,
    neural_policy,
)
from policies.registry import (
    label,
    parse_policies,
    parse_policy,
    read_policies,
    write_policies,
)
from tests.policies.learned.random_networks import KINDS, PER_ROUND, PER_TOKEN, random_network
from traces.errors import InputError


def saved(folder: Path, kind: tuple[int, int] = PER_TOKEN, **settings: Any) -> Policy:
    policy = neural_policy(random_network(kind, 4), **settings)
    write_policies([policy], folder / "mine.json", {"made": "here"})
    return policy


@pytest.mark.parametrize("kind", KINDS)
def test_files_round_trip(kind: tuple[int, int], tmp_path: Path) -> None:
    policy = saved(tmp_path, kind, round_s=1.5e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.json", "mine.safetensors"]
    entry = json.loads((tmp_path / "mine.json").read_text())["policies"][0]
    assert entry["network"] == "mine.safetensors" and entry["fields"]["round_s"] == 1.5e-5
    (again,) = parse_policies(str(tmp_path / "mine.json"))
    assert again == policy and label(again) == label(policy)
    for one, two in zip(again.new_state(2), policy.new_state(2), strict=True):
        assert one.tobytes() == two.tobytes()
    known = parse_policy(label(policy))  # its file has been read
    assert known == policy and known.new_state(1).w1.tobytes() == policy.new_state(1).w1.tobytes()


def test_several_in_one_file(tmp_path: Path) -> None:
    one, two = (neural_policy(random_network(kind, 6)) for kind in KINDS)
    assert isinstance(two, NeuralToken) and two.network is not None
    slow = neural_policy(two.network, token_s=1e-3)
    chosen: list[Policy] = [Fixed(3), one, two, slow]
    write_policies(chosen, tmp_path / "all.json", {})
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["all-2.safetensors", "all.json", "all.safetensors"]
    assert read_policies(tmp_path / "all.json") == chosen
    with pytest.raises(InputError, match=r"all.json exists"):
        write_policies([two], tmp_path / "all.json", {})
    assert digest_of(read_network(tmp_path / "all.safetensors")) == one.digest
    write_policies([two], tmp_path / "all.json", {}, overwrite=True)
    assert read_policies(tmp_path / "all.json") == [two]


def test_equal_networks_give_equal_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_network(random_network(PER_ROUND, 4), tmp_path / f"{name}.safetensors")
    first, second = ((tmp_path / f"{name}.safetensors").read_bytes() for name in "ab")
    assert first == second
    write_network(random_network(PER_ROUND, 4), tmp_path / "b.safetensors")  # the same: as it was
    with pytest.raises(InputError, match=r"b.safetensors exists"):
        write_network(random_network(PER_ROUND, 5), tmp_path / "b.safetensors")


HEADER = {"kind": "gammalab-network", "version": "1"}


def rewrite(folder: Path, header: dict[str, str] | None = None, **changes: Any) -> None:
    """The network file of `saved` with some tensors changed, or left out (None)."""
    network = random_network(PER_TOKEN, 4)._asdict() | changes
    tensors = {
        name: np.array(a, dtype=np.float32, order="C") for name, a in network.items()
        if a is not None
    }  # fmt: skip
    save_file(tensors, folder / "mine.safetensors", HEADER if header is None else header)


def changed(array: Any, value: float) -> Any:
    copied = np.array(array)
    copied.flat[1] = value
    return copied


BASE = random_network(PER_TOKEN, 4)
BAD_TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"header": {"kind": "other", "version": "1"}}, "field 'kind'"),
    "no header": ({"header": {}}, "field 'kind'"),
    "version": ({"header": HEADER | {"version": "2"}}, "field 'version' is '2'"),
    "missing": ({"b2": None}, "missing or unknown: b2"),
    "unknown": ({"b4": np.zeros(3)}, "missing or unknown: b4"),
    "inputs": ({"w1": np.zeros((20, 8))}, "w1 has 20 rows"),
    "rows": ({"w2": np.zeros((9, 6))}, "w2 has 9 rows"),
    "columns": ({"b1": np.zeros(7)}, "b1 has 7 numbers"),
    "flat": ({"w1": np.zeros(8)}, r"w1 has shape \[8\]"),
    "scalar": ({"b1": np.zeros(())}, r"b1 has shape \[\]"),
    "empty": ({"b1": np.zeros(0)}, "b1 has shape"),
    "wide": ({"w3": np.zeros((6, 200))}, "w3 has shape"),
    "outputs": ({"w3": np.zeros((6, 3)), "b3": np.zeros(3)}, "b3 3 numbers"),
    "nan": ({"w2": changed(BASE.w2, math.nan)}, "w2 holds NaN"),
    "infinite": ({"b3": changed(BASE.b3, math.inf)}, "b3 holds NaN or infinity"),
    "off the grid": ({"w2": changed(BASE.w2, 0.3)}, "w2 is not on the grid"),
    "too large": ({"w2": changed(BASE.w2, 33.0)}, "w2 is not on the grid"),
    "another": ({"w2": changed(BASE.w2, 0.25)}, "field 'digest'"),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_bad_network_files(case: str, tmp_path: Path) -> None:
    changes, message = BAD_TENSORS[case]
    saved(tmp_path)
    rewrite(tmp_path)
    read_policies(tmp_path / "mine.json")  # unchanged it is good
    rewrite(tmp_path, **changes)
    with pytest.raises(InputError, match=message) as caught:
        read_policies(tmp_path / "mine.json")
    told = str(caught.value)
    assert "\n" not in told and "mine.safetensors" in told and "gammalab train" in told


def test_doubles_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    save_file(BASE._asdict(), tmp_path / "mine.safetensors", HEADER)
    with pytest.raises(InputError, match="tensor w1 is F64, not F32"):
        read_policies(tmp_path / "mine.json")


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_truncated_network_files(length: int, tmp_path: Path) -> None:
    saved(tmp_path)
    file = tmp_path / "mine.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(InputError, match="is not a safetensors file"):
        read_policies(tmp_path / "mine.json")


def test_missing_and_foreign_network_files(tmp_path: Path) -> None:
    saved(tmp_path)
    file = tmp_path / "mine.safetensors"
    file.write_bytes(b"\x80\x04" + bytes(range(256)) * 9)
    with pytest.raises(InputError, match="is not a safetensors file"):
        read_policies(tmp_path / "mine.json")
    file.unlink()
    with pytest.raises(InputError, match="no such network file"):
        read_policies(tmp_path / "mine.json")
    file.mkdir()
    with pytest.raises(InputError, match="no such network file"):
        read_policies(tmp_path / "mine.json")


def test_paths_stay_in_the_folder(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    saved(inside)
    (tmp_path / "out.safetensors").write_bytes((inside / "mine.safetensors").read_bytes())
    (inside / "link.safetensors").symlink_to(tmp_path / "out.safetensors")
    names: list[Any] = [
        "../out.safetensors", str(tmp_path / "out.safetensors"), "link.safetensors", "", ".", "..",
        "mine.bin", "a\\b.safetensors", "a\0.safetensors", None, 3, ["mine.safetensors"],
    ]  # fmt: skip
    for name in names:
        with pytest.raises(InputError, match="field 'network'"):
            read_policies(edited(inside, network=name))


def edited(folder: Path, **changes: Any) -> Path:
    """mine.json with its entry changed, as another file."""
    raw = json.loads((folder / "mine.json").read_text())
    raw["policies"][0] |= changes
    other = folder / "other.json"
    other.write_text(json.dumps(raw))
    return other


def test_bad_entries(tmp_path: Path) -> None:
    policy = saved(tmp_path)
    good = {"digest": policy.digest} if isinstance(policy, NeuralToken) else {}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"fields": {"digest": 5}}, "field 'digest' is 5"),
        ({"fields": {}}, "field 'digest' is None"),
        ({"fields": good | {"gamma_max": 0}}, "field gamma_max"),
        ({"fields": good | {"round_s": -1.0}}, "field round_s"),
        ({"fields": good | {"round_s": "x"}}, "'neural-token': field round_s must be float"),
        ({"fields": good | {"theta": 1}}, "no field 'theta'"),
        ({"policy": "neural-round", "fields": good}, "field 'policy' is 'neural-round'"),
    ]
    for changes, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            read_policies(edited(tmp_path, **changes))
        assert "other.json: policies[0]" in str(caught.value)
