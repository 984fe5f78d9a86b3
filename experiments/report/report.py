"""The report: one self-contained HTML page and PNG figures from the files of a study."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.common.plots import Json, Picture, write_pictures
from experiments.common.results import MAKERS, other_input, read_result
from experiments.comparison.drafters import drafters_view
from experiments.comparison.headline import headline
from experiments.options import ReportOptions
from experiments.report.figures import (
    by_role,
    controllers,
    featured,
    headroom_figure,
    speedup_figure,
    task_figure,
)
from experiments.report.figures_runs import ledger_figure, lively_request, reply_figure
from experiments.report.figures_sitting import drift_figure, prediction_figure
from experiments.report.table_page import table_view
from experiments.report.tables import comparison_view, validation_view
from real_backend.command_line import Result
from traces.errors import InputError
from traces.roundlog import RoundLog, read_roundlog
from traces.store import write_atomically

if TYPE_CHECKING:
    from markupsafe import Markup

PAGES = {  # of which result: the page, and what its figures' names begin with
    "compare": ("report.html", ""),
    "leaderboard": ("leaderboard.html", "leaderboard-"),
    "serve": ("serve.html", ""),
    "fleet": ("fleet.html", ""),
}
GLOSSARY = (
    (
        "draft and target",
        "The small model that proposes tokens, and the large one whose text it is.",
    ),
    ("gamma", "The most tokens the draft may propose in one round; 0 is plain decoding."),
    ("round", "Draft, one pass of the target over the proposal, and the tokens that come out."),
    ("accepted", "Proposed tokens that the target agrees with, up to the first it does not."),
    (
        "tuned fixed",
        "The constant gamma that was fastest on the training half: the baseline a controller has "
        "to beat.",
    ),
    (
        "clairvoyant",
        "The fastest schedule if one knew in advance how many tokens would be accepted: a ceiling, "
        "not a controller.",
    ),
    (
        "headroom",
        "What lies between the tuned fixed gamma and the clairvoyant schedule, in seconds.",
    ),
    (
        "placebo",
        "A second copy of the baseline in the sitting: a ratio of equals that shows what chance "
        "does.",
    ),
    (
        "confirmed, contradicted, too noisy to say",
        "Contradicted: the measured interval of these replies, widened by the timing's own error, "
        "excludes the prediction. Confirmed: it does not, and the interval over other questions "
        "lies on the predicted side of 1. Too noisy to say: neither, or the placebo was no tie.",
    ),
    (
        "replay",
        "Running a controller on the recorded acceptance with measured costs instead of on the "
        "models. For greedy decoding it takes the decisions of the real run, round by round.",
    ),
)


def run(options: ReportOptions) -> Result:
    """`gammalab report`: write a page and DIR/figures again, from the files of DIR."""
    try:
        return Result(str(write_report(options.dir)))
    except (LookupError, TypeError, AttributeError, ArithmeticError, StopIteration) as error:
        raise InputError(
            f"{options.dir}: a result lacks something, or was altered ({type(error).__name__}: "
            f"{error}); compare or validate again, or --debug"
        ) from error


def write_report(where: Path) -> Path:
    """The page and its figures; returns the page's path.

    where: compare.json or leaderboard.json, with the simulated rounds beside it, serve.json or
    fleet.json, with its figures, or the folder of one of them; validate.json is used beside
    compare.json if it is there. Raises InputError if a file is missing or foreign, or the results
    do not belong together.
    """
    kind, folder = _page_of(where)
    found = read_result(kind, folder / f"{kind}.json")
    if kind in ("serve", "fleet"):
        view = table_view(kind, found, folder)
        html = render("table", **view, provenance=[{"title": "", "facts": _facts(view["facts"])}])
    else:
        html = _study_page(kind, found, folder)
    page = folder / PAGES[kind][0]
    write_atomically(page, lambda to: to.write_text(html, "utf-8"), overwrite=True)
    return page


def _study_page(kind: str, compared: Json, folder: Path) -> str:
    """The page of a comparison, with its validation if there is one; writes its figures."""
    measured = folder / "validate.json"
    validation = None
    if kind == "compare" and measured.exists():
        validation = read_result("validate", measured)
        _refuse_mixture(compared, validation, folder)
    parts = compared["comparisons"]
    pictures = [comparison_pictures(part, folder) for part in parts]
    checked = [prediction_figure(validation), drift_figure(validation)] if validation else []
    prefix = PAGES[kind][1]
    for part, group in zip(parts, pictures, strict=True):
        of_part = f"{Path(part['trace']).stem}-" if len(parts) > 1 else ""
        write_pictures(group, folder / "figures", prefix + of_part)
    write_pictures(checked, folder / "figures")
    return render(
        "report",
        title=f"GammaLab study of {parts[0]['trace_meta']['pair']}",
        screens=[
            {"trace": part["trace"], "lines": headline(part, _about(part, validation))}
            for part in parts
        ],
        comparisons=[
            comparison_view(part, group) for part, group in zip(parts, pictures, strict=True)
        ],
        drafters=drafters_view(compared["drafters"]) if "drafters" in compared else None,
        validation=validation_view(validation, checked) if validation else None,
        provenance=provenance_view(compared, validation),
        glossary=GLOSSARY,
    )


def _page_of(where: Path) -> tuple[str, Path]:
    """The kind of result that a page is made of, and its folder."""
    if where.suffix == ".json":
        if where.stem not in PAGES:
            made = " or ".join(f"{kind}.json" for kind in PAGES)
            raise InputError(f"{where}: a page is made of {made}")
        return where.stem, where.parent
    if not where.is_dir():
        raise InputError(f"{where}: no such folder; `gammalab study --out {where}` makes it")
    there = [kind for kind in PAGES if (where / f"{kind}.json").exists()]
    if len(there) > 1:
        makers = " and of ".join(f"`gammalab {MAKERS.get(kind, kind)}`" for kind in there)
        named = " or ".join(f"{where}/{kind}.json" for kind in there)
        raise InputError(
            f"{where} holds results of {makers}, and a page is made of one: name {named}"
        )
    if not there and (where / "sweep.json").is_file():
        raise InputError(
            f"{where} holds the result of `gammalab sweep`, which has no page; its tables are in "
            "sweep.txt"
        )
    return next(iter(there), "compare"), where


def _refuse_mixture(compared: Json, validation: Json, folder: Path) -> None:
    """Raise InputError unless the validation is of a trace and the timing of the comparison."""
    differ = [other_input(part, validation) for part in compared["comparisons"]]
    if "" not in differ:
        other = "timing" if "timing" in differ else "trace"  # the trace is looked at first
        raise InputError(
            f"{folder}: validate.json is of another {other} than compare.json; validate again, or "
            "give each a folder of its own"
        )


def comparison_pictures(part: Json, folder: Path) -> list[Picture]:
    """The figures of one comparison."""
    best = featured(part)["name"]
    names = [by_role(part, "tuned")["name"], best, "clairvoyant"]
    fastest = [row["name"] for row in controllers(part)[:3]]
    logs: dict[str, RoundLog] = {}
    for name in dict.fromkeys([names[0], *sorted({best, *fastest}), names[2]]):
        logs[name] = read_roundlog(folder / part["logs"] / part["log_files"][name])
    shown = {name: logs[name] for name in dict.fromkeys(names)}
    request = lively_request(logs["clairvoyant"])
    task = part["test_categories"][request]
    return [
        speedup_figure(part),
        ledger_figure(logs, best),
        task_figure(part),
        headroom_figure(part),
        reply_figure(shown, request, task),
    ]


def unbroken(text: str) -> Markup:
    """The text, escaped; words with a hyphen inside, such as names and ranges, stay on one line."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"\S*\w-\w\S*", r"<span>\g<0></span>", str(escape(text))))


def render(template: str, **view: Any) -> str:
    """The page as a string. template: NAME.html.j2 beside this module."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True,
    )  # fmt: skip
    environment.filters["whole"] = unbroken
    return environment.get_template(f"{template}.html.j2").render(view)


def _about(part: Json, validation: Json | None) -> Json | None:
    """The validation, for the comparison whose trace it is of."""
    return None if validation is None or other_input(part, validation) else validation


def provenance_view(compared: Json, validation: Json | None) -> list[dict[str, Any]]:
    """Where every number comes from, as groups of facts."""
    groups = []
    for part in compared["comparisons"]:
        facts = {"file": part["trace"], "content sha256": part["trace_sha256"]}
        facts |= {"requests": part["requests"], "positions": part["positions"]}
        groups.append({"title": "Trace", "facts": _facts(facts | part["trace_meta"])})
        timing = {"file": part["timing"]} | part["timing_meta"]
        groups.append({"title": "Timing", "facts": _facts(timing)})
    simulated = compared["versions"] | {"command": compared["command"]}
    groups.append({"title": "Comparison", "facts": _facts(simulated)})
    if validation:
        machine = validation["machine"] | {"command": validation["command"]}
        groups.append({"title": "Validation", "facts": _facts(machine)})
    return groups


def _facts(raw: Json) -> list[tuple[str, str]]:
    facts = []
    for key, value in raw.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {item}" for name, item in value.items())
        facts.append((key.replace("_", " "), "-" if value in ("", None) else str(value)))
    return facts
