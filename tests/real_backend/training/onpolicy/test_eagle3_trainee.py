"""What a head learns, step by step, against a plain reading of the file it is written to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from real_backend.drafters.eagle3_checkpoint import default_taps
from real_backend.models.checkpoint import load_model
from real_backend.training.onpolicy.eagle3_trainee import Eagle3Trainee
from real_backend.training.onpolicy.text import Rows
from real_backend.training.onpolicy.train_eagle3 import head_config, write_head
from real_backend.training.onpolicy.write_text import ASKED, GREEDY
from tests.real_backend.drafters.plain_eagle3 import LAYERS, Plain

STEPS, WIDTH = 3, 14


def rows_of(module: object, taps: tuple[int, ...]) -> Rows:
    """Two random rows of text, the target's states and its whole laws; a user turn in the middle
    of the first.
    """
    ids = torch.randint(2, 60, (2, WIDTH), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        said = module(ids, output_hidden_states=True)  # type: ignore[operator]
    logs = said.logits.log_softmax(-1).sort(-1, descending=True)
    whose = torch.full((2, WIDTH), GREEDY, dtype=torch.uint8)
    whose[0, 4:8] = ASKED
    states = torch.cat([said.hidden_states[k] for k in taps], -1)
    return Rows(ids, whose, states, logs.indices, logs.values)


@pytest.mark.parametrize("align", [0, 26])
def test_losses_are_those_of_the_written_head(
    deep_target: Path, tmp_path: Path, align: int
) -> None:
    module = load_model(str(deep_target), "cpu", "float32")
    known = torch.arange(3, 63, 2)
    embedding, output = module.get_input_embeddings(), module.get_output_embeddings()
    head = Eagle3Trainee(
        head_config(module, len(known)), embedding.weight.data, output.weight.data, known, seed=1
    )
    for weight in head.parameters():  # float16 and back: the file's
        weight.data = (weight.data + 0.05 * torch.randn_like(weight)).half().float()
    write_head(head, known, LAYERS, tmp_path)
    plain = Plain(tmp_path, module)
    plain.w = {name: w.float() if w.is_floating_point() else w for name, w in plain.w.items()}
    rows = rows_of(module, default_taps(LAYERS))
    found = head.steps(rows, STEPS, align)
    losses: list[list[float]] = [[] for _ in range(STEPS)]
    right = [0] * STEPS
    assert rows.states is not None
    for row in range(2):
        ids = rows.ids[row]
        for start in range(WIDTH - 2):
            features = plain.features(rows.states[row, : start + 1])
            for step in range(STEPS):
                spoken = start + 2 + step
                if spoken >= WIDTH or rows.whose[row, spoken] < GREEDY:
                    break
                logits, states = plain.read(features, ids[1:spoken])
                features = torch.cat([features, states[-1:]])
                law = torch.zeros(64).scatter(
                    0, rows.likeliest[row, spoken - 1], rows.logs[row, spoken - 1].exp()
                )[known]
                logs = logits[-1, known].log_softmax(-1)
                losses[step].append(float(-(law / law.sum() * logs).sum()))
                right[step] += int(known[logs.argmax()] == rows.likeliest[row, spoken - 1, 0])
                if align and ids[spoken] not in known[logs.topk(align).indices]:
                    break
    for step in range(STEPS):
        assert found[step].tokens == len(losses[step])
        assert found[step].right == right[step]
        mean = sum(losses[step]) / len(losses[step])
        assert found[step].loss.item() == pytest.approx(mean, rel=1e-4)
    assert found[0].tokens > found[1].tokens > found[2].tokens > 0
