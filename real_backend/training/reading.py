"""Summaries and answers whose words stand in the prompt: reports and documentation."""

from collections.abc import Sequence
from random import Random

from real_backend.training import words as cw
from real_backend.training.dialogue import (
    Dialogue,
    DocEntry,
    doc_text,
    lower_first,
    some,
    upper_first,
)


def _report(rng: Random) -> tuple[str, str]:
    """A generated report and its summary."""
    group, deed, things = rng.choice(cw.REPORT_EVENTS)
    thing = rng.choice(cw.words(things))
    town, day = rng.choice(cw.TOWNS), rng.choice(["Monday", "Tuesday", "Thursday", "Saturday"])
    speaker, (quote, stance) = rng.choice(cw.NAMES), rng.choice(cw.REPORT_REACTIONS)
    number = rng.randrange(2, 90)
    unit = rng.choice(["people", "volunteers", "visitors", "members", "thousand euros", "letters"])
    detail = rng.choice(
        [
            f"About {number} {unit} were counted",
            f"The organisers spoke of {number} {unit}",
            f"According to the police, {number} {unit} were involved",
        ]
    )
    filler = some(rng, cw.REPORT_FILLER, rng.choice([1, 2, 3]))
    text = [f"The {group} of {town} {deed} {thing} on {day}.", f"{detail}."]
    text += [f"{line}." for line in filler]
    text.insert(rng.randrange(1, len(text) + 1), f'"{upper_first(quote)}," said {speaker}.')
    summary = [
        rng.choice(
            [
                f"On {day}, the {group} of {town} {deed} {thing}.",
                f"The text reports that the {group} in {town} {deed} {thing} on {day}.",
                f"In {town}, {thing} made the news: the {group} {deed} it on {day}.",
            ]
        ),
        rng.choice([f"The number given is {number} {unit}.", f"There were {number} {unit}."]),
        rng.choice([f"{speaker} {stance}.", f"A person called {speaker} {stance}."]),
    ]
    return " ".join(text), " ".join(summary)


def summarization(rng: Random, docs: Sequence[DocEntry]) -> Dialogue:
    """A report or a few pieces of documentation, to be told in two or three sentences."""
    if rng.random() < 0.6:
        text, summary = _report(rng)
        ask = rng.choice(
            [
                f"Summarize the following article: {text}",
                f"{text}\nSum up this text in a few words.",
                f"Give a short summary of the report. {text}",
            ]
        )
        return Dialogue("summarization", (ask,), (summary,), (text,))
    first, second = rng.sample(list(docs), 2)
    body = f"{first.name}: {doc_text(first)}\n{second.name}: {doc_text(second)}"
    lead = rng.choice(["The notes describe", "The text explains", "Here we read about"])
    summary = (
        f"{lead} the {first.kind} `{first.name}` and the {second.kind} `{second.name}`. "
        f"In short, the first one is described as follows: {lower_first(first.sentences[0])} "
        f"{rng.choice(['As for the other', 'The second one is told in these words', 'Then comes'])}"
        f": {lower_first(second.sentences[0])}"
    )
    ask = rng.choice(
        [
            f"Summarize these notes in two sentences.\n{body}",
            f"What do these two pieces of documentation say?\n{body}",
        ]
    )
    return Dialogue("summarization", (ask,), (summary,), (f"{first.name} {second.name}",))


def rag(rng: Random, docs: Sequence[DocEntry]) -> Dialogue:
    """Three retrieved passages and a question that one of them answers."""
    entries = rng.sample(list(docs), 3)
    lines = [f"[{i + 1}] {entry.name}: {doc_text(entry)}" for i, entry in enumerate(entries)]
    index = rng.randrange(3)
    entry = entries[index]
    others = [str(i + 1) for i in range(3) if i != index]
    ask = rng.choice(
        [
            f"What does {entry.name} do?",
            f"What is said about {entry.name}?",
            f"Explain {entry.name}, please.",
        ]
    )
    intro = rng.choice(
        [
            "Use the passages to answer the question.",
            "Answer from these search results.",
            "Read the context and answer.",
        ]
    )
    prompt = f"{intro}\n" + "\n".join(lines) + f"\nQuestion: {ask}"
    quote = " ".join(entry.sentences[:2])
    reply = " ".join(
        [
            rng.choice(
                [
                    f"According to passage [{index + 1}], the {entry.kind} `{entry.name}` "
                    "is described like this:",
                    f"The answer is in passage [{index + 1}], which is about `{entry.name}`:",
                ]
            ),
            quote,
            rng.choice(
                [
                    f"Passages [{others[0]}] and [{others[1]}] are about other things.",
                    f"The "
                    f"{rng.choice(['other passages', 'passages ' + ' and '.join(others)])} "
                    "do not help here.",
                ]
            ),
        ]
    )
    return Dialogue("rag", (prompt,), (reply,), (" ".join(e.name for e in entries),))
