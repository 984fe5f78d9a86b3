"""Workloads as settings: files, short notation, titles, and one clear line for a wrong one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.traces.workload.samples import CATEGORIES, EVERY, SAMPLES, draw, same_bytes
from traces.errors import InputError
from traces.workload.arrivals import demand
from traces.workload.files import parse_workload, read_workload, write_workload
from traces.workload.workload import Workload, mean_rate_per_s, title

# --- files, notation, titles


@EVERY
def test_a_file_gives_the_workload_back(workload: Workload, tmp_path: Path) -> None:
    path = tmp_path / "workload.json"
    write_workload(workload, path)
    again = read_workload(path)
    assert again == workload and same_bytes(draw(again), draw(workload))
    assert parse_workload(str(path), 1) == workload
    with pytest.raises(InputError, match="exists"):
        write_workload(workload, path)
    write_workload(SAMPLES["poisson"], path, overwrite=True)
    assert read_workload(path) == SAMPLES["poisson"]


def test_a_file_holds_only_what_is_not_default(tmp_path: Path) -> None:
    write_workload(SAMPLES["mix"], tmp_path / "w.json")
    assert json.loads((tmp_path / "w.json").read_text()) == {
        "kind": "workload",
        "version": 1,
        "requests": 50,
        "process": "poisson",
        "rate_per_s": 1.0,
        "weights": {"chat": 3.0, "math": 1.0},
        "priorities": {"code": 2, "math": -1},
    }


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("poisson:rate=4", {"rate_per_s": 4.0}),
        (" poisson:rate_per_s=4, order=recorded ", {"rate_per_s": 4.0, "order": "recorded"}),
        ("gamma:rate=4,cv=2", {"rate_per_s": 4.0, "cv": 2.0}),
        (
            "bursts:on=8,off=1,on_s=10,off_s=30",
            {"on_rate_per_s": 8.0, "off_rate_per_s": 1.0, "on_s": 10.0, "off_s": 30.0},
        ),
        ("closed:users=8,think_s=0.5", {"users": 8, "think_s": 0.5}),
        ("closed:users=8,think=fixed", {"users": 8, "think": "fixed"}),
    ],
)
def test_the_short_notation(text: str, fields: dict[str, Any]) -> None:
    process = text.strip().partition(":")[0]
    assert parse_workload(text, 7) == Workload(7, process, **fields)


@pytest.mark.parametrize(
    ("name", "words", "rate_per_s"),
    [
        ("poisson", "poisson 4/s", 4.0),
        ("gamma", "gamma 4/s, cv 2.5", 4.0),
        ("bursts", "bursts 8/s for 10 s, 1/s for 30 s", 2.75),
        ("silence", "bursts 8/s for 0.5 s, 0/s for 2 s", 1.6),
        ("recorded", "recorded 1.33/s", 2 / 1.5),
        ("closed", "closed, 8 users, think 0.5 s fixed", math.nan),
    ],
)
def test_titles_and_mean_rates(name: str, words: str, rate_per_s: float) -> None:
    assert title(SAMPLES[name]) == words
    assert mean_rate_per_s(SAMPLES[name]) == pytest.approx(rate_per_s, nan_ok=True)


def test_titles_and_mean_rates_at_the_edge() -> None:
    assert title(Workload(9, "closed", users=1)) == "closed, 1 user"
    assert title(Workload(9, "closed", users=8)) == "closed, 8 users"
    at_once = Workload(2, "recorded", arrival_s=(1.0, 1.0))
    assert title(at_once) == "recorded" and math.isnan(mean_rate_per_s(at_once))


# --- errors


def complaint(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert text and len(text.splitlines()) == 1
    return text


BURSTS = {"process": "bursts", "on_rate_per_s": 8.0, "on_s": 1.0, "off_s": 1.0}
CLOSED = {"process": "closed", "users": 8}
RECORDED = {"process": "recorded", "requests": 3}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"requests": 0}, "requests must"),
        ({"requests": True}, "requests must"),
        ({"requests": 2.0}, "requests must"),
        ({"process": "poison"}, "process 'poison' is not known; known: poisson, gamma, bursts"),
        ({"process": None}, "process None"),
        ({"rate_per_s": 0.0}, "rate_per_s must"),
        ({"rate_per_s": -1.0}, "rate_per_s must"),
        ({"rate_per_s": math.nan}, "rate_per_s must"),
        ({"rate_per_s": math.inf}, "rate_per_s must"),
        ({"rate_per_s": 10**400}, "rate_per_s must"),
        ({"rate_per_s": True}, "rate_per_s must"),
        ({"rate_per_s": "4\n5"}, "rate_per_s must"),
        ({"cv": 2.0}, "cv does not belong to process 'poisson'"),
        ({"cv": True}, "cv does not belong"),
        ({"users": 3}, "users does not belong"),
        ({"think": "fixed"}, "think does not belong"),
        ({"think_s": 1.0}, "think_s does not belong"),
        ({"on_s": 1.0}, "on_s does not belong"),
        ({"arrival_s": (1.0,)}, "arrival_s does not belong"),
        ({"process": "gamma", "cv": 0.0}, "cv must"),
        ({"process": "gamma", "cv": -1.0}, "cv must"),
        ({**BURSTS, "rate_per_s": 4.0}, "rate_per_s does not belong to process 'bursts'"),
        ({**BURSTS, "on_rate_per_s": 0.0}, "on_rate_per_s must"),
        ({**BURSTS, "off_rate_per_s": -1.0}, "off_rate_per_s must"),
        ({**BURSTS, "on_s": 0.0}, "on_s must"),
        ({**BURSTS, "off_s": math.inf}, "off_s must"),
        ({**BURSTS, "on_s": 1e-6}, "on_s and off_s are so short"),
        ({**RECORDED, "arrival_s": (1.0, 2.0)}, "arrival_s must be a tuple of 3"),
        ({**RECORDED, "arrival_s": [1.0, 2.0, 3.0]}, "arrival_s must be a tuple"),
        ({**RECORDED, "arrival_s": (0.0, 2.0, 1.0)}, "arrival_s[2] is 1 s, before the 2 s"),
        ({**RECORDED, "arrival_s": (-1.0, 2.0, 3.0)}, "arrival_s[0] must"),
        ({**RECORDED, "arrival_s": (0.0, math.nan, 1.0)}, "arrival_s[1] must"),
        ({**RECORDED, "arrival_s": (0.0, 1.0, "2")}, "arrival_s[2] must"),
        ({"process": "closed"}, "users must"),
        ({**CLOSED, "users": 2.0}, "users must"),
        ({**CLOSED, "think_s": -0.1}, "think_s must"),
        ({**CLOSED, "think": "never"}, "think 'never' is not known; known: exponential, fixed"),
        ({"order": "sorted"}, "order 'sorted' is not known; known: drawn, recorded"),
        ({"weights": {"chat": 1.0}}, "weights must be a tuple"),
        ({"weights": (("chat",),)}, "weights must be a tuple"),
        ({"weights": (("chat", -1.0),)}, "weights['chat'] must"),
        ({"weights": (("chat", True),)}, "weights['chat'] must"),
        ({"weights": (("chat", 0.0), ("code", 0))}, "weights are all 0"),
        ({"weights": (("chat", 1.0), ("chat", 2.0))}, "weights names category 'chat' twice"),
        ({"weights": (("chat", 1.0),), "order": "recorded"}, "weights need order 'drawn'"),
        ({"priorities": (("chat", 1.5),)}, "priorities['chat'] must"),
        ({"priorities": (("chat", 2**31),)}, "priorities['chat'] must"),
        ({"priorities": (("a\nb", 1), ("a\nb", 1))}, "priorities names category"),
        ({"priorities": ((1, 1),)}, "priorities must be a tuple"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], named: str) -> None:
    base: dict[str, Any] = {"requests": 10, "process": "poisson"}
    if fields.get("process") not in ("bursts", "closed", "recorded"):
        base["rate_per_s"] = 4.0
    with pytest.raises(InputError) as error:
        Workload(**{**base, **fields})
    assert complaint(error).startswith(named)


@pytest.mark.parametrize("name", ["weights", "priorities"])
def test_a_category_that_the_trace_lacks_is_named(name: str) -> None:
    pairs: Any = {name: (("chat", 1), ("poetry", 1))}
    workload = Workload(5, "poisson", rate_per_s=1.0, **pairs)
    with pytest.raises(InputError) as error:
        draw(workload)
    found = complaint(error)
    assert found.startswith(f"{name} names category 'poetry'")
    assert found.endswith("it has 'chat', 'code', 'math'")


def test_an_empty_trace_and_a_negative_seed_are_refused() -> None:
    for categories, seed, named in (((), 0, "categories"), (CATEGORIES, -1, "seed")):
        with pytest.raises(InputError) as error:
            demand(SAMPLES["poisson"], categories, seed)
        assert complaint(error).startswith(named)


HEAD = '{"kind": "workload", "version": 1, "requests": 3, "process": "poisson", "rate_per_s": 4'


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (HEAD, "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "not a workload"),
        (HEAD.replace('"workload"', '"timing"') + "}", "not a workload"),
        (HEAD.replace("1", "2", 1) + "}", "version 2"),
        (HEAD.replace("1", "true", 1) + "}", "version True"),
        (HEAD + ', "rat": 4}', "field 'rat' is unknown; known: requests, process, rate_per_s"),
        (HEAD.replace('"requests": 3, ', "") + "}", "'requests' is missing"),
        (HEAD.replace('"process": "poisson", ', "") + "}", "'process' is missing"),
        (HEAD.replace("4", "false") + "}", "rate_per_s must"),
        (HEAD.replace("4", '"4"') + "}", "rate_per_s must"),
        (HEAD.replace("4", "NaN") + "}", "rate_per_s must"),
        (HEAD.replace("4", "[4]") + "}", "rate_per_s must"),
        (HEAD.replace("3", "3.0") + "}", "requests must"),
        (HEAD.replace('"poisson"', '["poisson"]') + "}", "process ['poisson']"),
        (HEAD + ', "users": false}', "users does not belong"),
        (HEAD + ', "arrival_s": 3}', "'arrival_s' must be a list"),
        (HEAD + ', "weights": [["chat", 1]]}', "'weights' must be an object"),
        (HEAD + ', "weights": {"chat": "1"}}', "weights['chat'] must"),
        (HEAD + ', "priorities": 1}', "'priorities' must be an object"),
        (HEAD + ', "priorities": {"chat": true}}', "priorities['chat'] must"),
    ],
)
def test_a_bad_file_is_named_with_its_field(text: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "w.json"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_workload(path)
    found = complaint(error)
    assert found.startswith(str(path)) and named in found


def test_a_missing_and_a_binary_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for name, named in (("missing.json", "no such workload file"), ("binary.json", "not UTF-8")):
        with pytest.raises(InputError) as error:
            parse_workload(str(tmp_path / name), 3)
        assert named in complaint(error) and name in str(error.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "process '' is not known; known: poisson"),
        ("poison:rate=4", "process 'poison' is not known; known: poisson, gamma"),
        ("poisson", "rate_per_s must"),
        ("poisson:4", "'4' is not known; it takes rate=, order="),
        ("poisson:cv=4", "'cv=4' is not known"),
        ("gamma:rat=4", "'rat=4' is not known; it takes rate=, cv=, order="),
        ("bursts:on=8,of=1", "takes on=, off=, on_s=, off_s=, order="),
        ("poisson:rate=x", "'rate=x': rate_per_s must be a number"),
        ("poisson:rate=inf", "rate_per_s must"),
        ("poisson:rate=4,rate_per_s=5", "'rate_per_s=5' gives rate_per_s a second time"),
        ("closed:users=8.5", "'users=8.5': users must be a whole number"),
        ("closed:users=8,think=hard", "think 'hard' is not known"),
        ("recorded:arrival_s=1", "arrival_s does not fit here"),
    ],
)
def test_a_wrong_piece_of_the_notation_is_named(text: str, named: str) -> None:
    with pytest.raises(InputError) as error:
        parse_workload(text, 10)
    found = complaint(error)
    assert found.startswith(f"workload {text!r}: ") and named in found


def test_the_count_of_the_short_notation_is_checked() -> None:
    with pytest.raises(InputError, match="requests must"):
        parse_workload("poisson:rate=4", 0)
