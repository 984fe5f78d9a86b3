"""Published tables in small: files made by hand, and where the public ones lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.options import PublishedOptions

SHARED = Path(__file__).parents[4] / "shared" / "data"

CHAIN_HEADER = "model,dataset,batch_size,steps,topk,draft,accept_length,output_throughput,speedup"
LAYER_HEADER = "gpu,model,tp,num_tokens,linear_ms_per_layer"
# A coin of 1/2: E_k = 2 - 2 ** -k.
COIN = {3: 1.875, 5: 1.96875, 7: 1.9921875}


def needs(path: Path) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not path.exists(), reason=f"no {path.name} beside the checkout")


def write_chains(
    path: Path,
    tokens: dict[int, float],
    *,
    draft: str = "d",
    round_s: tuple[float, float, float] = (0.010, 0.012, 0.014),
) -> Path:
    """One series of batch 8 over 1,000 tokens/s; seconds per round at k = 3, 5, 7."""
    lines = []
    for (k, emitted), seconds in zip(tokens.items(), round_s, strict=True):
        per_s = 8 * emitted / seconds
        lines.append(f"m,t,8,{k},1,{draft},{emitted},{per_s!r},{per_s / 1000!r}")
    path.write_text("\n".join([CHAIN_HEADER, *lines]) + "\n")
    return path


def write_layers(path: Path, ms: dict[int, float]) -> Path:
    """One series of a device and model that nobody knows."""
    rows = [f"gpu,net,1,{tokens},{value!r}" for tokens, value in ms.items()]
    path.write_text("\n".join([LAYER_HEADER, *rows]) + "\n")
    return path


def arguments(*data: Path, **more: Path) -> PublishedOptions:
    return PublishedOptions(name="by hand", data=data, **more)
