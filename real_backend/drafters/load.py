"""Which drafter a name means, and how it is loaded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from real_backend.drafters.block import BLOCK_ARCHITECTURES, load_block
from real_backend.drafters.drafter import Drafter
from real_backend.drafters.eagle3_checkpoint import EAGLE3_ARCHITECTURES, load_eagle3
from real_backend.drafters.lookup import LookupDrafter
from real_backend.drafters.suffix import SuffixDrafter
from traces.errors import InputError
from traces.notation import parse_fields

if TYPE_CHECKING:
    from real_backend.models.model import Model

OF_THE_HOST: dict[str, Any] = {"lookup": LookupDrafter, "suffix": SuffixDrafter}
"""Drafters without weights, by the name that stands for them; NAME:field=value,... sets fields."""


def is_model(draft: str) -> bool:
    """True if this names an independent model: no look-up, and no folder of heads."""
    return draft.partition(":")[0] not in OF_THE_HOST and _head_of(draft) is None


def _head_of(draft: str) -> str | None:
    """The kind of heads that lie in this folder; None: there are none.

    Raises InputError if its config.json is no JSON.
    """
    config = Path(draft) / "config.json"
    if not config.is_file():
        return None
    try:
        raw = json.loads(config.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{config} cannot be read ({error})") from None
    if not isinstance(raw, dict):
        return None
    listed = raw.get("architectures")
    said = listed if isinstance(listed, list) else []
    names = {str(name) for name in [*said, raw.get("speculators_model_type")]}
    kinds = {"eagle3": EAGLE3_ARCHITECTURES, "block": BLOCK_ARCHITECTURES}
    return next((kind for kind, known in kinds.items() if names & set(known)), None)


def load_drafter(draft: str, target: Model) -> Drafter:
    """The drafter that is no independent model, for this target.

    Raises InputError for an unknown or impossible field, or heads that do not fit the target.
    """
    name, _, settings = draft.partition(":")
    if cls := OF_THE_HOST.get(name):
        kinds = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        try:
            return cls(**parse_fields(settings, kinds))  # type: ignore[no-any-return]
        except InputError as error:
            raise InputError(f"--draft {draft}: {error}") from None
    if _head_of(draft) == "eagle3":
        return load_eagle3(Path(draft), target)
    return load_block(Path(draft), target)
