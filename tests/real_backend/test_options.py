"""What every command says of itself: defaults and units in the help, and what Ctrl-C leaves."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments import cli
from real_backend.command_line import Parser, add_options
from real_backend.interruption import interrupted
from real_backend.options import GrowOptions, LosslessOptions, SessionOptions, SittingOptions

UNITS = (
    r"tokens|seconds|minutes|requests|replies|questions|prompts|rounds|runs|times|percent|share|"
    r"whole number|a number|numbers|processes|threads|iterations|environments|settings|"
    r"milliseconds|policy files|imputations|"
    r"0 is greedy"
)
MODULES = (GrowOptions, SittingOptions, SessionOptions, LosslessOptions)


def module_parser(cls: type) -> argparse.ArgumentParser:
    """The options of a `python -m` command that is no verb."""
    parser = Parser(prog=cls.__name__)
    add_options(cls, parser)
    return parser


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """This one and all below it."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


ALL = [*parsers(cli.build_parser()), *map(module_parser, MODULES)]


@pytest.mark.parametrize("parser", ALL, ids=lambda parser: parser.prog)
def test_every_option_with_a_value_says_its_default_and_its_unit(
    parser: argparse.ArgumentParser,
) -> None:
    formatter = parser._get_formatter()
    for action in parser._actions:
        if not action.option_strings or action.nargs == 0:
            continue
        shown = formatter._expand_help(action) if action.help else ""
        assert shown, action.option_strings
        assert action.required or "default" in shown, shown
        if isinstance(action.default, int | float | tuple) and action.type is not None:
            assert re.search(UNITS, shown), shown
            first = (
                (action.default or ("none",))[0]
                if isinstance(action.default, tuple)
                else action.default
            )
            assert str(first) in shown


def test_every_verb_is_looked_at() -> None:
    names = {parser.prog.removeprefix("gammalab ") for parser in ALL}
    assert {"capture", "measure", "validate", "train", "trace import", "study-published"} <= names


@pytest.mark.parametrize(
    ("command", "given", "told"),
    [
        ("measure", {"out": Path("t.json")}, "the same command goes on"),
        ("grow", {"out": Path("t.npz")}, "the same command goes on"),
        ("measure", {"out": Path("t.json"), "force": True}, "command without --force goes on"),
        ("capture", {"out": Path("t"), "resume": False}, "command with --resume goes on"),
        ("capture", {"out": Path("t"), "resume": True, "force": True}, "same command goes on"),
        ("validate", {"out": Path("o"), "measured": None}, "the same command goes on"),
        ("validate", {"out": None, "measured": None}, "nothing is kept, with --out"),
        ("studies batches", {"out": None}, "nothing is kept, with --out"),
        ("train", {"out": Path("n.json"), "algo": "ppo"}, "the same command goes on"),
        ("train", {"out": Path("n.json"), "algo": "clone"}, "nothing is kept, it begins anew"),
        ("compare", {"out": Path("o")}, "nothing is kept, it begins anew"),
    ],
)
def test_ctrl_c_says_what_goes_on(command: str, given: dict[str, object], told: str) -> None:
    assert told in interrupted(command, argparse.Namespace(**given))
