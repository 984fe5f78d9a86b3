"""speculate with drafters that are no model: the output is generate's, whoever drafts."""

from __future__ import annotations

import pytest
import torch

from real_backend.huggingface.generate import speculate
from tests.real_backend.huggingface.models import Models
from traces.errors import InputError

REPEATED = torch.tensor([[0, 2, *([9, 30, 12, 41] * 6), 9, 3]])


@pytest.mark.parametrize("draft", ["lookup", "lookup:least=2,greatest=4", "suffix"])
@pytest.mark.parametrize("policy", ["fixed:gamma=4", "gammatune", "hf-confidence"])
def test_output_is_that_of_generate(tiny: Models, draft: str, policy: str) -> None:
    target, _ = tiny
    settings = {"do_sample": False, "max_new_tokens": 40, "pad_token_id": 0}
    expected = target.generate(REPEATED, **settings)
    spec = speculate(draft, policy)
    found = target.generate(REPEATED, custom_generate=spec, **settings)
    assert torch.equal(found, expected)
    assert spec.log.drafted.sum() > 0 and spec.log.meta["drafter"] == draft.partition(":")[0]


def test_a_drafter_with_an_impossible_field_is_one_line(tiny: Models) -> None:
    spec = speculate("lookup:least=0", "fixed:gamma=4")
    with pytest.raises(InputError, match=r"--draft lookup:least=0: .*need 1 <= least"):
        tiny[0].generate(REPEATED, custom_generate=spec, do_sample=False, max_new_tokens=4)
