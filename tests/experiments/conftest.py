"""Comparisons of a few controllers, where a command of this folder's tests names none."""

from __future__ import annotations

import pytest

from policies.registry import REGISTRY
from tests.specimens import FEW


@pytest.fixture(autouse=True)
def few_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the registry has kernels of its own, which take seconds to compile. The whole of it
    is compared in one test of `make test-all`, and each plays in tests/conformance.
    """
    few = {name: rule for name, rule in REGISTRY.items() if name in FEW}
    for module in ("study", "comparison.compare"):
        monkeypatch.setattr(f"experiments.{module}.REGISTRY", few)
