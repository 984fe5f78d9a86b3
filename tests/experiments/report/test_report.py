"""The report is built from files alone, holds everything it shows, and says what they say."""

from __future__ import annotations

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from experiments.common.results import describe_inputs, read_result, write_result
from experiments.common.text_table import fill
from experiments.comparison.command import run as run_compare
from experiments.comparison.headline import headline
from experiments.options import CompareOptions
from experiments.report.figures import controllers
from experiments.report.report import unbroken, write_report
from experiments.report.tables import comparison_view
from experiments.validation.validate_text import validation_dict
from tests.command import gammalab, refused
from tests.experiments.validation.test_validate import run
from tests.results import save_inputs
from traces.errors import InputError
from traces.store import read_trace
from traces.timing import read_timing

FIGURES = ["headroom", "ledger", "reply", "speedup", "tasks"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a comparison and a validation, without the models they would come from."""
    folder = tmp_path_factory.mktemp("study")
    trace, timing = save_inputs(folder)
    run_compare(CompareOptions(trace=(trace,), timing=(timing,), out=folder))
    found = validation_dict(run(slower={"never": 1.25}, noise=0.01))
    found |= {"machine": {"device_name": "<a CPU>"}, "command": "gammalab validate"}
    found |= describe_inputs(read_trace(trace), trace.name, read_timing(timing))
    found["findings"] = ["a finding of the sitting"]
    write_result("validate", found, folder / "validate.json", overwrite=False)
    write_report(folder)
    return folder


class Resources(HTMLParser):
    """Everything a page asks for, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.text: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset")]
        assert tag not in ("script", "link", "iframe", "object")
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parse(folder: Path) -> tuple[str, Resources]:
    html = (folder / "report.html").read_text()
    page = Resources()
    page.feed(html)
    assert not page.open  # every tag is closed
    return html, page


def test_page_is_self_contained(study: Path) -> None:
    html, page = parse(study)
    assert len(page.links) == 7
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not re.search(r"url\(|@import|https?://", html)


def test_all_figures_are_there(study: Path) -> None:
    _, page = parse(study)
    files = sorted(path.stem for path in (study / "figures").glob("*.png"))
    assert files == sorted([*FIGURES, "prediction", "drift"])
    shown = {base64.b64decode(link.partition(",")[2]) for link in page.links}
    assert shown == {path.read_bytes() for path in (study / "figures").glob("*.png")}
    assert all(data.startswith(b"\x89PNG") for data in shown)


def test_page_says_what_the_files_say(study: Path) -> None:
    html, page = parse(study)
    (part,) = read_result("compare", study / "compare.json")["comparisons"]
    text = " ".join(" ".join(page.text).split())
    (validation,) = [read_result("validate", study / "validate.json")]
    for line in headline(part, validation):
        assert line.head in text and line.text in text
    assert "A finding of the sitting".lower() in text.lower() and "confirmed" in text.lower()
    assert len(part["certainty"]) == 4 and all(line[1:] in text for line in part["certainty"])
    for row in part["rows"]:
        assert row["name"] in text
    assert f"{part['rows'][0]['tokens_per_s']:.0f}" in text
    never = next(check for check in validation["checks"] if check["policy"] == "never")
    assert f"{100 * never['error']:+.1f}%" in text and 0.2 < never["error"] < 0.3
    assert part["trace_sha256"] in text and "exact" in text
    assert "<a CPU>" in text and "<a CPU>" not in html  # escaped
    assert text.count("Glossary") == 1


def test_what_is_open_is_short_and_figures_come_early(study: Path) -> None:
    html, _ = parse(study)
    (part,) = read_result("compare", study / "compare.json")["comparisons"]
    first, figure = html.index("<table>"), html.index("<figure>")
    assert figure < html.index("Speed-up by task, all")
    folded = html.index("<details>")
    assert first < folded < figure
    assert html[first:folded].count("<tr>") + html[first:folded].count('"chosen"') <= 1 + 10 + 4
    assert len(controllers(part)) > 10
    assert all(cell in html[first:folded] for cell in ("tokens/s", part["recommended"]))


def test_a_twin_stands_beside_its_first_name(study: Path) -> None:
    (part,) = read_result("compare", study / "compare.json")["comparisons"]
    first, second, *_ = (row["name"] for row in controllers(part))
    rows = [row | ({"twin": first} if row["name"] == second else {}) for row in part["rows"]]
    view = comparison_view(part | {"rows": rows}, [])
    for table in (*view["tables"], view["by_task"]):
        names = [row[0] for group in table["groups"] for row in group["rows"]]
        assert f"{first} = {second}" in names and second not in names


def test_names_are_not_broken_at_their_hyphens() -> None:
    said = str(unbroken("vllm-dynamic, <b> 0.9-1.1 and -3 to 4"))
    assert said == "<span>vllm-dynamic,</span> &lt;b&gt; <span>0.9-1.1</span> and -3 to 4"
    assert fill("x " * 47 + "vllm-dynamic").splitlines()[1] == "  vllm-dynamic"


def test_titles_are_computed(study: Path) -> None:
    html, _ = parse(study)
    validation = read_result("validate", study / "validate.json")
    agree = sum(check["ratio"]["agrees"] for check in validation["checks"] if check["ratio"])
    assert f"{agree} of 3 predicted ratios to {validation['baseline']}" in html
    (part,) = read_result("compare", study / "compare.json")["comparisons"]
    ceiling = next(row for row in part["rows"] if row["role"] == "clairvoyant")
    assert f"{100 * (ceiling['vs_fixed']['value'] - 1):.0f} % faster than" in html


@pytest.mark.long
def test_regenerated_page_is_the_same(study: Path) -> None:
    before = (study / "report.html").read_bytes()
    write_report(study)
    assert (study / "report.html").read_bytes() == before


def test_without_validation(study: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(study, folder)
    (folder / "validate.json").unlink()
    shutil.rmtree(folder / "figures")
    write_report(folder)
    html, page = parse(folder)
    assert len(page.links) == 5 and "nothing was measured on the real models yet" in html
    assert sorted(path.stem for path in (folder / "figures").glob("*.png")) == FIGURES


@pytest.mark.long
def test_two_traces_in_one_report(tmp_path: Path) -> None:
    trace, timing = save_inputs(tmp_path)
    other = tmp_path / "other.parquet"
    shutil.copy(trace, other)
    run_compare(
        CompareOptions(
            trace=(
                trace,
                other,
            ),
            timing=(timing,),
            policies="gammatune",
            out=tmp_path,
        )
    )
    write_report(tmp_path)
    _, page = parse(tmp_path)
    assert len(page.links) == 10
    assert (tmp_path / "figures" / "other-speedup.png").exists()


@pytest.mark.parametrize("input_", ["trace", "timing"])
def test_a_validation_of_another_input_is_refused(study: Path, tmp_path: Path, input_: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(study, folder)
    found = read_result("validate", folder / "validate.json") | {f"{input_}_sha256": "another"}
    write_result("validate", found, folder / "validate.json", overwrite=True)
    before = (folder / "report.html").read_bytes()
    with pytest.raises(InputError, match=f"validate.json is of another {input_} than compare.json"):
        write_report(folder)
    assert (folder / "report.html").read_bytes() == before


@pytest.mark.slow
def test_a_page_is_of_one_command(study: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(study, folder)
    compared = read_result("compare", folder / "compare.json")
    del compared["kind"]
    write_result("leaderboard", compared, folder / "leaderboard.json", overwrite=False)
    with pytest.raises(InputError, match=r"of `gammalab compare` and of `gammalab sweep`"):
        write_report(folder)
    page = write_report(folder / "leaderboard.json")
    assert page.name == "leaderboard.html" and "nothing was measured" in page.read_text()
    assert (folder / "report.html").read_bytes() == (study / "report.html").read_bytes()
    assert write_report(folder / "compare.json").name == "report.html"
    with pytest.raises(InputError, match="a page is made of compare"):
        write_report(folder / "validate.json")


def test_only_a_fixed_length_to_show(tmp_path: Path) -> None:
    """No controller at all: the figures still stand."""
    trace, timing = save_inputs(tmp_path)
    run_compare(CompareOptions(trace=(trace,), timing=(timing,), policies="never", out=tmp_path))
    write_report(tmp_path)
    assert len(parse(tmp_path)[1].links) == 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": []}, "StopIteration"),
        ({"rows": 1}, "TypeError"),
        ({"rows": [1]}, "TypeError"),
        ({"logs": None}, "TypeError"),
        ({"tasks": 10**400}, "TypeError"),
    ],
)
def test_an_altered_result_is_one_line(
    change: dict[str, Any], words: str, study: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(study, folder)
    raw = json.loads((folder / "compare.json").read_text())
    raw["comparisons"][0] |= change
    (folder / "compare.json").write_text(json.dumps(raw))
    refused(gammalab("report", folder), "copy", "was altered", words)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"compare\.json: no such file"):
        write_report(tmp_path)
    (tmp_path / "compare.json").write_text('{"kind": "comp')
    with pytest.raises(InputError, match=r"compare\.json is not JSON"):
        write_report(tmp_path)
    (tmp_path / "compare.json").write_text('{"kind": "timing"}')
    with pytest.raises(InputError, match="not the result of `gammalab compare`"):
        write_report(tmp_path)
