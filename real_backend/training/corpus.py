"""Training text and held-out prompts of the embedded pair, without any download.

Two sources: text that every Python installation carries (the standard library's sources and
``pydoc_data.topics``) and dialogues generated for the six Spec-Bench tasks
(`Spec-Bench <https://github.com/hemingkx/Spec-Bench>`_, Xia et al. 2024). Everything is a function
of a ``random.Random`` handed in and of the installed standard library.

The split: a user turn has a content key, and a hash of the key decides whether the turn belongs to
the held-out side. A training dialogue has no held-out turn, a held-out dialogue has nothing else.
"""

import ast
import hashlib
import re
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from random import Random

from real_backend.training.dialogue import Dialogue, DocEntry
from real_backend.training.tasks import GENERATORS

CATEGORIES: tuple[str, ...] = tuple(GENERATORS)
HELD_OUT_SHARE = 8  # one content key in eight is held out
_SKIPPED = {
    "test",
    "tests",
    "site-packages",
    "idlelib",
    "lib2to3",
    "__pycache__",
    "ensurepip",
    "turtledemo",
}


@cache
def _sources() -> tuple[tuple[str, str], ...]:
    """(dotted module name, source) of the standard library's modules, sorted by path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: list[tuple[str, str]] = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if _SKIPPED & set(parts) or parts[0].startswith(("config-", "_sysconfigdata")):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        name = ".".join(parts).removesuffix(".__init__")
        if text.isascii() and name != "pydoc_data.topics":
            found.append((name, text))
    return tuple(found)


def _topics() -> list[str]:
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


@cache
def stdlib_documents(held_out: bool = False) -> tuple[str, ...]:
    """Plain text on any machine: module sources and the pydoc topics, in a fixed order."""
    texts = [text for _, text in _sources()] + _topics()
    return tuple(text for text in texts if len(text) > 400 and is_held_out(text) == held_out)


@cache
def _document_ends(held_out: bool) -> tuple[int, ...]:
    return tuple(accumulate(len(text) for text in stdlib_documents(held_out)))


def stdlib_window(rng: Random, length: int, held_out: bool = False) -> str:
    """Up to ``length`` characters of one document from a line start drawn at random."""
    ends = _document_ends(held_out)
    text = rng.choices(stdlib_documents(held_out), cum_weights=ends)[0]
    start = text.rfind("\n", 0, rng.randrange(len(text))) + 1
    return text[start : start + length]


def _sentences(docstring: str) -> tuple[str, ...]:
    """The clean leading sentences of a docstring (at most three, 300 characters); empty if none."""
    text = " ".join(docstring.strip().split("\n\n")[0:2])
    text = re.sub(r"\s+", " ", text)
    if not text.isascii() or ">>>" in text or "{" in text or "::" in text or "->" in text:
        return ()
    kept: list[str] = []
    for sentence in re.findall(r"[A-Z][^.]*\.(?=\s|$)", text):
        if not 24 <= len(sentence) <= 150 or "=" in sentence or "|" in sentence or "--" in sentence:
            break
        kept.append(sentence)
    return tuple(kept[:3]) if text.startswith(tuple(kept[:1])) else ()


def _walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, str, str]]:
    """(dotted name, kind, docstring) of every public definition below a node."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if child.name.startswith("_"):
            continue
        name = f"{prefix}.{child.name}"
        is_class = isinstance(child, ast.ClassDef)
        kind = "class" if is_class else "method" if isinstance(node, ast.ClassDef) else "function"
        docstring = ast.get_docstring(child)
        if docstring:
            yield name, kind, docstring
        if is_class:
            yield from _walk(child, name)


@cache
def doc_entries() -> tuple[DocEntry, ...]:
    """Documented names of the standard library, sorted; each docstring once."""
    entries: dict[tuple[str, ...], DocEntry] = {}
    for module, text in _sources():
        if any(part.startswith("_") for part in module.split(".")):
            continue
        for name, kind, docstring in _walk(ast.parse(text), module):
            sentences = _sentences(docstring)
            if sentences and len(name) <= 40 and sentences not in entries:
                entries[sentences] = DocEntry(name, kind, sentences)
    return tuple(sorted(entries.values()))


def is_held_out(key: str) -> bool:
    """Which side of the split a content key falls on; independent of seeds and machines."""
    return hashlib.sha256(key.encode()).digest()[0] % HELD_OUT_SHARE == 0


@cache
def _split_entries(held_out: bool) -> tuple[DocEntry, ...]:
    return tuple(entry for entry in doc_entries() if is_held_out(entry.name) == held_out)


def dialogue(rng: Random, category: str, held_out: bool = False) -> Dialogue:
    """One dialogue of a category from one side of the split."""
    docs = _split_entries(held_out)
    while True:
        drawn = GENERATORS[category](rng, docs)
        if all(is_held_out(f"{category}: {key}") == held_out for key in drawn.keys):
            return drawn


def held_out_prompts(seed: int, per_category: int) -> list[Dialogue]:
    """Held-out dialogues, ``per_category`` of each task, no user turn twice."""
    rng = Random(f"held-out {seed}")
    prompts: list[Dialogue] = []
    seen: set[str] = set()
    for category in CATEGORIES:
        count = 0
        while count < per_category:
            drawn = dialogue(rng, category, held_out=True)
            if seen.isdisjoint(drawn.turns):
                seen.update(drawn.turns)
                prompts.append(drawn)
                count += 1
    return prompts


def assert_disjoint(prompts: Sequence[Dialogue], training: Iterable[str]) -> None:
    """Raise AssertionError if a user turn of ``prompts`` occurs verbatim in a training text."""
    turns = [turn for prompt in prompts for turn in prompt.turns]
    for text in training:
        for turn in turns:
            if turn in text:
                raise AssertionError(f"held-out turn occurs in the training text: {turn!r}")
