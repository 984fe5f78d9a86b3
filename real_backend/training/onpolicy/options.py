"""Options that the trainings of a head and of a draft share, and the record that both leave."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from real_backend.command_line import option, options
from real_backend.number_options import number, positive
from real_backend.options import seed_of
from real_backend.training.loop import TrainingProgress
from traces.store import write_atomically


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Text, target and effort; every default is what was shipped."""

    text: tuple[Path, ...] = options("folder of chunks, several times for several", Path)
    out: Path = option("folder of the weights", Path)
    work: Path | None = option(
        "folder of checkpoints (default: OUT with -work appended)", Path, None
    )
    held_out: Path | None = option("folder of chunks that is not learnt from", Path, None)
    target: str | None = option("GGUF file or folder of the model (default: SmolLM2)", str, None)
    tokens: float = option("tokens of answers to learn from", positive, 3.4e5)
    epochs: float = option("times that all are read", positive, 3.0)
    rate: float = option("peak learning rate", positive, 2e-3)
    seed: int = seed_of("all draws")
    checkpoint_s: float = option("seconds between checkpoints", number(0.0, above=False), 60.0)

    @property
    def folder(self) -> Path:
        """Of checkpoints."""
        return self.work or self.out.with_name(self.out.name + "-work")

    def told(self, tokens: int, progress: TrainingProgress) -> dict[str, Any]:
        """The start of training.json, which write_card.py reads. tokens: of answers, read."""
        return {
            "tokens": tokens,
            "epochs": self.epochs,
            "train_s": round(progress.train_s),
            "losses": progress.losses,
        }


def write_json(what: Mapping[str, Any], path: Path) -> None:
    """Indented, whole or not at all."""
    text = json.dumps(what, indent=2, sort_keys=True) + "\n"
    write_atomically(path, lambda to: to.write_text(text, "utf-8"), overwrite=True)
