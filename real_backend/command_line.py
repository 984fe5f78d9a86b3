"""Commands as data: a frozen class of options per command, and how it is read from a command line.

An options class is a frozen dataclass, all of whose fields come from the functions below: its help,
unit, bounds and default stand with the field. `read_options` turns it into arguments and back, so
that a command is a plain function of its options, called by the command line and by other code
alike. argparse only: --help stays light, and a GPU host needs nothing installed.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar

from real_backend.interruption import interrupted
from traces.errors import InputError, brief, warn
from traces.json_text import dumps

Read = Callable[[str], Any]
Options = TypeVar("Options")
_NAMED = "argument"  # of a field's metadata: what it is on the command line


def option(about: str, read: Read = str, default: Any = dataclasses.MISSING, **how: Any) -> Any:
    """`--name VALUE`; required without a default. about: its help; read: text to value, raising
    argparse.ArgumentTypeError. how: choices, metavar, name (where the field's own will not do),
    exclusive (a group of which one at most may be given).
    """
    return _field(default, kind="option", about=about, read=read, **how)


def options(about: str, read: Read = str, default: Any = dataclasses.MISSING, **how: Any) -> Any:
    """`--name VALUE` that may be given again: a tuple."""
    return _field(default, kind="again", about=about, read=read, **how)


def several(about: str, read: Read = str, default: Any = dataclasses.MISSING) -> Any:
    """`--name VALUE VALUE ...`, at least one: a tuple."""
    return _field(default, kind="several", about=about, read=read)


def flag(about: str) -> Any:
    """`--name`, false if it is not there."""
    return _field(False, kind="flag", about=about)


def switch(about: str, default: bool) -> Any:
    """`--name` or `--no-name`."""
    return _field(default, kind="switch", about=about)


def argument(about: str, read: Read = str, default: Any = dataclasses.MISSING) -> Any:
    """A value without a name, by its place."""
    return _field(default, kind="argument", about=about, read=read)


def arguments(about: str, read: Read = str) -> Any:
    """Values without a name, at least one: a tuple."""
    return _field(dataclasses.MISSING, kind="arguments", about=about, read=read)


def part(title: str, cls: type[Any]) -> Any:
    """Options of another class among these, under a title of their own; each has a default."""
    return _field(dataclasses.MISSING, cls, kind="part", about=title, cls=cls)


def _field(default: Any, factory: Any = dataclasses.MISSING, **how: Any) -> Any:
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, metadata={_NAMED: how})
    return dataclasses.field(default=default, metadata={_NAMED: how})


class Defaults(argparse.HelpFormatter):
    """Help in which every option that takes a value and may be left out says what it is then."""

    def _get_help_string(self, action: argparse.Action) -> str:
        told = action.help or ""
        takes = bool(action.option_strings) and action.nargs != 0
        if not takes or action.required or "default" in told:
            return told
        value = action.default
        shown = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        if value is None or value in ("", ()):
            shown = "none"
        return f"{told} (default: {shown})".replace("%", "%%").strip()


class Parser(argparse.ArgumentParser):
    """argparse, with every default in the help and errors in one line that begins with the
    program's name.
    """

    def __init__(self, **how: Any) -> None:
        super().__init__(**how | {"formatter_class": Defaults})

    def error(self, message: str) -> NoReturn:
        """One line on stderr, exit 2."""
        name = self.prog.split()[0] if self.prog.startswith("gammalab") else self.prog
        self.exit(2, f"{name.rpartition('.')[2]}: {message}; see `{self.prog} --help`\n")


def add_options(cls: type[Any], parser: argparse.ArgumentParser) -> None:
    """Arguments for every field of an options class."""
    exclusive: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        how = dict(field.metadata[_NAMED])
        if how["kind"] == "part":
            group: Any = parser.add_argument_group(how["about"])
            for inner in dataclasses.fields(how["cls"]):
                _add(inner, dict(inner.metadata[_NAMED]), group)
            continue
        where: Any = parser
        if name := how.pop("exclusive", None):
            if name not in exclusive:
                exclusive[name] = parser.add_mutually_exclusive_group()
            where = exclusive[name]
        _add(field, how, where)


def _add(field: dataclasses.Field[Any], how: dict[str, Any], where: Any) -> None:
    kind, about, read = how.pop("kind"), how.pop("about"), how.pop("read", str)
    name = how.pop("name", field.name)
    spelled = "--" + name.replace("_", "-")
    given = field.default is not dataclasses.MISSING
    common: dict[str, Any] = {"help": about.replace("%", "%%")}
    kinds = {} if read is str else {"type": read}
    if kind in ("argument", "arguments"):
        nargs = {"nargs": "+"} if kind == "arguments" else {"nargs": "?"} if given else {}
        default = {"default": field.default} if given else {}
        where.add_argument(field.name, **kinds, **nargs, **default, **common)
    elif kind == "flag":
        where.add_argument(spelled, action="store_true", dest=name, **common)
    elif kind == "switch":
        action = argparse.BooleanOptionalAction
        where.add_argument(spelled, action=action, default=field.default, dest=name, **common)
    else:
        shape = {"again": {"action": "append"}, "several": {"nargs": "+"}}.get(kind, {})
        presence = {"default": field.default} if given else {"required": True}
        where.add_argument(spelled, dest=name, **kinds, **shape, **presence, **how, **common)


def options_of(cls: type[Options], found: argparse.Namespace) -> Options:
    """Options from argparse's namespace; lists become tuples."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]  # a dataclass, by contract
        how = field.metadata[_NAMED]
        if how["kind"] == "part":
            values[field.name] = options_of(how["cls"], found)
        else:
            value = getattr(found, how.get("name", field.name))
            values[field.name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


def read_options(cls: type[Options], parser: Parser, words: Sequence[str] | None) -> Options:
    """The options that these words say; argparse ends the program where they say none."""
    add_options(cls, parser)
    return options_of(cls, parser.parse_args(words))


class Result(NamedTuple):
    """A command's findings, for the command line to print.

    text: for a terminal.
    content: JSON-ready, printed instead under `--json`.
    csv: the rows, printed instead under `--csv`.
    findings: lines for stderr; with any the exit code is 1.
    """

    text: str = ""
    content: Any = None
    csv: str = ""
    findings: Sequence[str] = ()


def show(result: Result, options: object) -> int:
    """Print a result as the options ask for it; returns the exit code."""
    text = result.text
    if getattr(options, "csv", False):
        text = result.csv.removesuffix("\n")
    elif getattr(options, "json", False):
        text = dumps(result.content)
    if text:
        print(text, flush=True)
    for line in result.findings:
        warn(line)
    return 1 if result.findings else 0


def print_anything() -> None:
    """No file's name may end a command: what stdout's encoding lacks is shown as \\uXXXX."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def run_module(
    name: str,
    about: str | None,
    cls: type[Options],
    run: Callable[[Options], Result],
    words: Sequence[str] | None = None,
) -> int:
    """`python -m NAME`: parse the words (default: the command line's), run, turn bad input into one
    line and exit code 2.

    Device faults without a remedy of their own get one here.
    """
    parser = Parser(prog=f"python -m {name}", description=about)
    name = name.rpartition(".")[2]
    options = read_options(cls, parser, words)
    print_anything()
    from real_backend.device_errors import DEVICE_REMEDY, device_faults

    try:
        with device_faults(f"in {name}", DEVICE_REMEDY):
            return show(run(options), options)
    except InputError as error:
        print(f"{name}: {brief(str(error))}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{name}: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: {interrupted(name, options)}", file=sys.stderr)
        return 130
