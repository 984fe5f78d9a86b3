"""Files that small runs of `gammalab serve` read."""

from __future__ import annotations

import pytest

from tests.experiments.serving.small_runs import Inputs, save_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return save_inputs(tmp_path_factory.mktemp("inputs"))
