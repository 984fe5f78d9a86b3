"""Which pair is meant: the names of the command line, and where each half lies."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from real_backend.drafters.load import OF_THE_HOST, is_model
from real_backend.models import shapes
from real_backend.models.gguf import smollm2_file
from real_backend.options import SHAPE_PREFIX
from traces.errors import InputError

EMBEDDED = Path(__file__).parent / "pair"
EMBEDDED_DRAFTERS = {"": "draft", "block": "heads"}
"""Folders of the embedded pair by what is said behind `embedded+`."""
SMOLLM2 = Path(__file__).parent / "smollm2"
SMOLLM2_DRAFTERS = {"draft": "draft", "eagle3": "eagle3"}
"""Folders of drafters for the public model by what is said behind `smollm2+`."""


@dataclasses.dataclass(frozen=True)
class PairSpec:
    """Where a pair lies: a name for reports; a folder, a hub name or a GGUF file for each model.

    draft: of another kind of drafter its name (real_backend.drafters.load). random: no weights are
    read; target and draft are shapes, see real_backend.models.shapes.
    """

    name: str
    target: str
    draft: str
    random: bool = False


def resolve_pair(pair: str | None, target: str | None, draft: str | None) -> PairSpec:
    """The pair meant on the command line: --pair, or --target with --draft.

    pair: "embedded" or "smollm2", with +DRAFTER or without, "embedded+block" (its own heads),
        "smollm2+draft", "smollm2+eagle3", a folder, or "shape:TARGET+DRAFT".
    Raises InputError if the folder has no target/ and draft/, one of two names is missing, both
    ways are used, or a shape or a drafter is unknown.
    """
    if target or draft:
        if pair is not None:
            raise InputError(f"--pair {pair} beside --target or --draft: give one or the other")
        if not (target and draft):
            raise InputError("--target and --draft belong together; one of them is missing")
        return PairSpec(f"{Path(target).name}+{Path(draft).name}", target, draft)
    family, _, drafter = (pair or "embedded").partition("+")
    if family == "embedded" and (drafter in EMBEDDED_DRAFTERS or not is_model(drafter)):
        own = EMBEDDED_DRAFTERS.get(drafter)
        meant = str(EMBEDDED / own) if own else drafter
        return PairSpec(pair or family, str(EMBEDDED / "target"), meant)
    if family == "embedded":
        own = ", ".join([*filter(None, EMBEDDED_DRAFTERS), *OF_THE_HOST])
        raise InputError(f"--pair {pair}: the embedded pair has no {drafter!r}; it knows {own}")
    if family == "smollm2":
        if drafter and drafter not in SMOLLM2_DRAFTERS and is_model(drafter):
            known = ", ".join([*SMOLLM2_DRAFTERS, *OF_THE_HOST])
            raise InputError(
                f"--pair {pair}: the public model has no {drafter!r}; it knows {known}; for "
                "weights of your own give --target FILE.gguf --draft FOLDER"
            )
        own = SMOLLM2_DRAFTERS.get(drafter)
        meant = str(SMOLLM2 / own) if own else drafter or "lookup"
        return PairSpec(pair or family, str(smollm2_file()), meant)
    assert pair is not None
    if pair.startswith(SHAPE_PREFIX):
        target, draft = shapes.split_pair(pair)
        name = f"{SHAPE_PREFIX}{Path(target).name}+{Path(draft).name}"
        return PairSpec(name, target, draft, random=True)
    folder = Path(pair)
    for part in ("target", "draft"):
        if not (folder / part / "config.json").is_file():
            raise InputError(
                f"--pair {pair}: {folder / part} holds no config.json; give a folder with target/ "
                "and draft/ in Hugging Face layout, or --target and --draft"
            )
    return PairSpec(folder.resolve().name, str(folder / "target"), str(folder / "draft"))
