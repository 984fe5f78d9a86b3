"""policies.fields: every hyper-parameter has a domain, and no policy is made outside of it."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from experiments.sweep.search_space import SPACES
from experiments.sweep.suites import SUITES
from experiments.sweep.tuning import with_values
from policies.base import Policy
from policies.conformance import _play
from policies.fields import Domain, fits
from policies.goodput.smartspec import SmartSpec
from policies.learned.neural import KINDS
from policies.registry import REGISTRY, parse_policies, parse_policy, read_policies
from traces.errors import InputError

EVERY = {**REGISTRY, **KINDS}


def ends(field: dataclasses.Field[Any]) -> list[Any]:
    """The least and the largest value of a field."""
    kind, domain = type(field.default), field.metadata["domain"]
    low = domain.low if domain.low is not None else domain.above + 1e-6
    return [kind(low), kind(domain.high)]


def beyond(field: dataclasses.Field[Any]) -> list[Any]:
    """What a field may not be."""
    if isinstance(field.default, bool):
        return [0, 1, 2, "true", None]
    domain = field.metadata["domain"]
    low = domain.above if domain.low is None else domain.low - 1
    wrong = [low, domain.high + 1, 10**20, -(10**20), math.nan, math.inf, True, "1", None]
    return wrong if isinstance(field.default, float) else [*wrong, float(field.default)]


@pytest.mark.parametrize("name", EVERY)
def test_every_field_is_declared_and_refuses_what_lies_outside(name: str) -> None:
    cls = EVERY[name]
    cls()
    for field in dataclasses.fields(cls):
        assert field.metadata["origin"].startswith(("primary", "secondary", "ours", "unconfirmed"))
        assert fits(field.default, field)
        for value in beyond(field):
            with pytest.raises(InputError) as refused:
                cls(**{field.name: value})
            message = str(refused.value)
            assert name in message and field.name.removesuffix("_tokens") in message, message
            assert "must be" in message and repr(value) in message and "\n" not in message


@pytest.mark.parametrize("name", REGISTRY)
def test_whatever_lies_inside_can_be_played(name: str) -> None:
    cls = REGISTRY[name]
    for field in dataclasses.fields(cls):
        for value in ends(field):
            policy = with_values(cls(), {field.name: value})
            if policy is not None:  # it may need another field changed, too
                _play(policy, 25, seed=0)


@pytest.mark.parametrize("name", SPACES)
def test_search_spaces_lie_inside(name: str) -> None:
    fields = {field.name: field for field in dataclasses.fields(REGISTRY[name])}
    for field, points in SPACES[name].items():
        for point in points:
            assert fits(point, fields[field]), (field, point)
        together = [with_values(REGISTRY[name](), {field: point}) for point in points]
        assert any(together), field


def test_suites_name_policies_that_can_be_made() -> None:
    for suite in SUITES.values():
        assert len(parse_policies(",".join(suite.policies))) == len(suite.policies)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fixed:gamma=-1", "field gamma must be int, 0 to 1,000, not -1"),
        ("fixed:gamma=99999999999999999999", "field gamma must be int, 0 to 1,000, not 9999999"),
        ("hf-confidence:threshold=5", "field threshold must be float, 0 to 1, not 5.0"),
        ("gammatune:eta=2", "field eta must be float, 0 to 1, not 2.0"),
        ("gammatune:delta=-3", "field delta must be int, 0 to 1,000, not -3"),
        ("gammatune:gamma_min=9,gamma_max=2", "gamma_min 9 is above gamma_max 2"),
        ("d-ucb:discount=1.5", "field discount must be float, above 0, at most 1, not 1.5"),
        ("ucb:exploration=-1", "field exploration must be float, 0 to 1,000,000, not -1.0"),
        ("svip:threshold=nan", "field threshold must be float, 0 to 1,000,000, not nan"),
        ("hf-heuristic:transient=1", "field transient must be true or false, not '1'"),
        ("fixed:gamma=3,gamma=4", "field gamma is given twice"),
        ("fixed:gamma=3,gamma_tokens=4", "field gamma_tokens is given twice"),
        ("entropy-gate:low=0.9", "low 0.9 is above high 0.82"),
        ("rate-buckets:above_mid=0.8", "above_mid 0.8 is above above_high 0.7"),
        ("rate-ema:base=1", "floor 4 is above twice base 1"),
        ("sglang-tiers:step2=1", "step1 to step4 must ascend"),
        ("batch-table:bound2=3", "bound1 to bound4 must ascend"),
        ("length-table:context2=64", "context1 131072 is above context2 64"),
        ("beg-mab:gamma_max=1000", "gamma_max * window is 300,000, above 100,000"),
        ("arbiter/ucb:gamma_max=0", "policy 'arbiter/ucb': field gamma_max must be int, 1 to"),
        ("arbiter/ucb:gamma_min=9", "policy 'arbiter/ucb': gamma_min 9 is above gamma_max 8"),
    ],
)
def test_what_is_refused_and_how(text: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_policy(text)
    assert message in str(refused.value)


def test_a_policy_file_names_itself_and_the_field(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    entry = {"policy": "fixed", "fields": {"gamma_tokens": -1}}
    path.write_text(json.dumps({"kind": "policies", "version": 1, "policies": [entry]}))
    with pytest.raises(InputError, match=r"p\.json: policies\[0\]: policy 'fixed': field gamma"):
        read_policies(path)


def test_settings_that_do_not_go_together_are_left_out_of_a_search() -> None:
    ucb = REGISTRY["ucb"]()
    assert with_values(ucb, {"gamma_min": 9}) is None
    assert with_values(ucb, {"gamma_min": 9, "gamma_max": 12}) is not None
    assert with_values(SmartSpec(), {"decide_every": 0}) is None


@dataclasses.dataclass(frozen=True)
class Plain(Policy):
    """A stranger's: no domains, and a field that is no number."""

    size: int = 3
    scale: float = 1
    names: tuple[str, ...] = ()
    name = "plain"


def test_plain_fields_are_free_but_finite() -> None:
    assert Plain(-(10**18), 0.5, ("a",)).scale == 0.5
    for field, value in (("size", 10**20), ("scale", math.nan), ("scale", math.inf)):
        with pytest.raises(InputError, match=f"'plain': field {field} must be finite"):
            Plain(**{field: value})


def test_domains_in_words() -> None:
    texts = {"0 to 1": Domain(0, 1), "from 2": Domain(2), "above 0": Domain(above=0)}
    texts |= {"above 0, at most 1": Domain(None, 1, 0), "finite": Domain()}
    assert {text: str(domain) for text, domain in texts.items()} == {t: t for t in texts}
