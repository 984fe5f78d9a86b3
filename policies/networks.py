"""Networks on disk: NAME.safetensors, six float32 tensors beside the policy file that names them.

Nothing in such a file is run. What is read is checked in full, for it may be a stranger's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from policies.neural import (
    KINDS,
    WIDEST,
    Network,
    NeuralRound,
    NeuralToken,
    fault,
    kind_of,
    neural_policy,
)
from traces.errors import InputError
from traces.store import write_atomically

NETWORK_KIND = "gammalab-network"
NETWORK_VERSION = "1"
SUFFIX = ".safetensors"
LARGEST_BYTES = 1 << 20  # looked at before anything is read: the widest network takes a fifth
AGAIN = "copy it again with its policy file, or make both anew with `gammalab train`"
FROM_FILE = "is a network and comes from its file: give the NAME.json that `gammalab train` wrote"

_known: dict[int, Network] = {}  # every network read by this process, by its digest


def write_network(network: Network, path: Path, *, overwrite: bool = False) -> None:
    """One file, written atomically; equal networks give equal bytes, and the same file that is
    there already, as a stopped run leaves it, is left there.
    """
    from safetensors.numpy import save

    tensors = {
        name: np.ascontiguousarray(array, dtype=np.float32)  # exact: a weight has 16 bits
        for name, array in zip(Network._fields, network, strict=True)
    }
    data = sorted_header(save(tensors, {"kind": NETWORK_KIND, "version": NETWORK_VERSION}))
    if not (path.is_file() and path.read_bytes() == data):
        write_atomically(path, lambda temporary: temporary.write_bytes(data), overwrite)


def sorted_header(data: bytes) -> bytes:
    """A safetensors file with the keys of its header in order: as safetensors writes them they are
    shuffled anew in every call.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]


def read_network(path: Path) -> Network:
    """Inverse of write_network; raises InputError naming file, tensor and remedy."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"{path}: no such network file; {AGAIN}")
    if path.stat().st_size > LARGEST_BYTES:
        raise InputError(f"{path} is too large for a network of {WIDEST} numbers a layer; {AGAIN}")
    try:
        with safe_open(path, framework="numpy") as file:
            header, names = file.metadata() or {}, set(file.keys())
            if header.get("kind") != NETWORK_KIND:
                raise InputError(f"{path}: field 'kind' is not {NETWORK_KIND!r}; {AGAIN}")
            if header.get("version") != NETWORK_VERSION:
                raise InputError(
                    f"{path}: field 'version' is {header.get('version')!r}, this GammaLab reads "
                    f"{NETWORK_VERSION!r}; make it anew with `gammalab train`"
                )
            if names != set(Network._fields):
                listed = ", ".join(sorted(names ^ set(Network._fields)))
                raise InputError(f"{path}: tensors are missing or unknown: {listed}; {AGAIN}")
            arrays = []
            for name in Network._fields:
                kind = file.get_slice(name).get_dtype()
                if kind != "F32":
                    raise InputError(f"{path}: tensor {name} is {kind}, not F32; {AGAIN}")
                arrays.append(np.array(file.get_tensor(name), dtype=np.float64, order="C"))
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} is not a safetensors file ({first[:120]}); {AGAIN}") from None
    network = Network(*arrays)
    try:
        wrong = fault(network)
        if not wrong:
            kind_of(network.w1.shape[0], network.b3.shape[0])
    except ValueError as error:
        wrong = str(error)
    if wrong:
        raise InputError(f"{path}: {wrong}; {AGAIN}")
    return network


def beside(path: Path, name: Any) -> Path:
    """The network file that a policy file names; raises InputError if that is no plain name in its
    own folder.
    """
    plain = isinstance(name, str) and name == Path(name).name and "\\" not in name
    if not plain or not name.endswith(SUFFIX) or "\0" in name:
        raise InputError(
            f"field 'network' must be the name of a {SUFFIX} file in the folder of {path.name}, "
            f"not {name!r}"
        )
    file = path.parent / str(name)
    if file.is_symlink() and file.resolve().parent != path.parent.resolve():
        raise InputError(f"field 'network': {file} is a link out of its folder; copy the file")
    return file


def _built(
    name: str, fields: dict[str, Any], network: Network, where: str
) -> NeuralRound | NeuralToken:
    """The policy of that name and network; raises InputError if they do not fit."""
    if kind_of(network.w1.shape[0], network.b3.shape[0]) is not KINDS[name]:
        raise InputError(
            f"field 'policy' is {name!r}, but {where} holds a network of another kind; {AGAIN}"
        )
    return neural_policy(network, **{k: v for k, v in fields.items() if k != "digest"})


def load_policy(name: str, fields: dict[str, Any], file: Path) -> NeuralRound | NeuralToken:
    """The policy of that name with the network of `file`. Raises InputError if the network is
    another than that of `fields`, or a field is out of range.
    """
    network = read_network(file)
    policy = _built(name, fields, network, str(file))
    if fields.get("digest") != policy.digest:
        raise InputError(
            f"field 'digest' is {fields.get('digest')}, that of {file} is {policy.digest}: "
            f"another network; {AGAIN}"
        )
    _known[policy.digest] = network
    return policy


def known_policy(name: str, fields: dict[str, Any]) -> NeuralRound | NeuralToken:
    """The policy that a label means, if this process has read its network from a file; InputError
    if not. So results that name policies by their labels lead back to them.
    """
    network = _known.get(fields.get("digest", 0))
    if network is None:
        raise InputError(f"policy {name!r} {FROM_FILE}")
    return _built(name, fields, network, "the file of that digest")


def network_files(policies: list[NeuralRound | NeuralToken], path: Path) -> dict[int, Path]:
    """Digest to network file for a policy file of that path: NAME.safetensors, NAME-2, ..."""
    files: dict[int, Path] = {}
    for policy in policies:
        number = len(files) + 1
        tail = "" if number == 1 else f"-{number}"
        files.setdefault(policy.digest, path.with_name(f"{path.stem}{tail}{SUFFIX}"))
    return files


def write_networks(
    policies: list[NeuralRound | NeuralToken], files: dict[int, Path], *, overwrite: bool
) -> None:
    """Every network once. Raises ValueError for a policy without one."""
    written: set[int] = set()
    for policy in policies:
        if policy.network is None:
            raise ValueError(f"{policy.name} has no network; make it with neural_policy(network)")
        if policy.digest not in written:
            write_network(policy.network, files[policy.digest], overwrite=overwrite)
            written.add(policy.digest)
