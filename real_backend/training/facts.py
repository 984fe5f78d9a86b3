"""Questions about countries, chemical elements and the standard library."""

from collections.abc import Sequence
from random import Random

from real_backend.training import words as cw
from real_backend.training.dialogue import Dialogue, DocEntry, some, upper_first


def _country_sentences(rng: Random, row: list[str]) -> list[str]:
    country, capital, continent, language, money = row
    return [
        rng.choice(
            [
                f"The capital of {country} is {capital}.",
                f"{capital} is the capital of {country}.",
            ]
        ),
        rng.choice([f"{country} lies in {continent}.", f"{country} belongs to {continent}."]),
        rng.choice(
            [
                f"Most people in {country} speak {language}.",
                f"The main language of {country} is {language}.",
            ]
        ),
        rng.choice(
            [
                f"In {country} people pay with the {money}.",
                f"The money of {country} is called the {money}.",
            ]
        ),
    ]


def _qa_countries(rng: Random) -> tuple[str, str, str]:
    a, b = rng.sample(cw.COUNTRIES, 2)
    field, name = rng.choice([(1, "capital"), (3, "main language"), (4, "money"), (2, "continent")])
    ask = rng.choice(
        [
            f"What is the {name} of {a[0]}, and what is that of {b[0]}?",
            f"Tell me the {name} of {a[0]} and of {b[0]}.",
            f"Do {a[0]} and {b[0]} have the same {name}?",
        ]
    )
    same = a[field] == b[field]
    reply = " ".join(
        [
            _country_sentences(rng, a)[field - 1],
            rng.choice(["For the other country:", "Now to the second one:", "And then:"]),
            _country_sentences(rng, b)[field - 1],
            f"So {a[0]} and {b[0]} {'share the same' if same else 'differ in their'} {name}.",
            *some(rng, _country_sentences(rng, rng.choice([a, b])), rng.choice([1, 2, 2])),
        ]
    )
    return ask, reply, f"{a[0]} {b[0]} {name}"


def _qa_elements(rng: Random) -> tuple[str, str, str]:
    a, b = rng.sample(cw.ELEMENTS, 2)
    ask = rng.choice(
        [
            f"Which one is heavier, {a[0]} or {b[0]}?",
            f"What is the difference between {a[0]} and {b[0]}?",
            f"Compare the elements {a[0]} and {b[0]}.",
        ]
    )
    heavy, light = (a, b) if int(a[2]) > int(b[2]) else (b, a)
    reply = " ".join(
        [
            f"{upper_first(a[0])} has the symbol {a[1]} and the atomic number {a[2]}; it "
            f"is {a[3]}.",
            f"{upper_first(b[0])} has the symbol {b[1]} and the number {b[2]}, and it is {b[3]}.",
            f"Since {heavy[2]} is larger than {light[2]}, {heavy[0]} has the heavier atoms.",
        ]
    )
    return ask, reply, f"{a[0]} {b[0]}"


def _qa_docs(rng: Random, docs: Sequence[DocEntry]) -> tuple[str, str, str]:
    """Where a name of the standard library belongs: readable off the dotted name."""
    entries = rng.sample(list(docs), 2)
    ask = rng.choice(
        [
            f"To which modules do {entries[0].name} and {entries[1].name} belong?",
            f"What kind of things are {entries[0].name} and {entries[1].name} in Python?",
            f"Where do I find {entries[0].name} and {entries[1].name}?",
        ]
    )
    parts = []
    for entry in entries:
        module, _, last = entry.name.rpartition(".")
        parts.append(
            rng.choice(
                [
                    f"The {entry.kind} `{last}` is part of `{module}`.",
                    f"You find the {entry.kind} `{last}` in `{module}`.",
                ]
            )
        )
    tail = f"Both come with Python, so you only need to import {entries[0].name.split('.')[0]}"
    other = entries[1].name.split(".")[0]
    tail += "." if other == entries[0].name.split(".")[0] else f" and {other}."
    return ask, f"{parts[0]} {parts[1]} {tail}", f"{entries[0].name} {entries[1].name}"


def qa(rng: Random, docs: Sequence[DocEntry]) -> Dialogue:
    """Facts about countries, chemical elements and the standard library."""
    kind = rng.randrange(3)
    if kind == 0:
        ask, reply, key = _qa_countries(rng)
    elif kind == 1:
        ask, reply, key = _qa_elements(rng)
    else:
        ask, reply, key = _qa_docs(rng, docs)
    return Dialogue("qa", (ask,), (reply,), (key,))
