"""The second turn of a conversation: a pitfall, a comparison with another topic, or three rules."""

from random import Random
from typing import NamedTuple

from real_backend.training import words as cw
from real_backend.training.dialogue import QUALITIES, REASONS, some, upper_first


class _About(NamedTuple):
    """A topic, and the advice, pitfall and pleasure drawn for a follow-up."""

    name: str
    topic: list[list[str]]
    tip: str
    trap: str
    joy: str


_Turn = tuple[str, str, str]  # prompt, reply, content key


def _trap_turn(rng: Random, about: _About) -> _Turn:
    """A remedy for a pitfall."""
    name, (things, tips, _, _), tip, trap, joy = about
    ask = rng.choice(
        [
            f"And what about {trap}? I have had bad luck with that.",
            f"What can I do against {trap} when I try to {tip}?",
        ]
    )
    a, b = some(rng, tips, 2)
    reply = " ".join(
        [
            rng.choice(
                [
                    f"Ah, {trap}, everybody knows that one.",
                    f"With {trap} there is no magic trick, I am afraid.",
                    f"Do not worry too much about {trap}.",
                ]
            ),
            f"{rng.choice(['You could', 'I would', 'Try to'])} {a}, "
            f"{rng.choice(['since', 'because', 'as'])} {rng.choice(REASONS)}.",
            f"If it happens again, {b}, and look at the {rng.choice(things)} once more.",
            rng.choice(
                [
                    f"Later, {joy} will make you forget it.",
                    "Ask me again next month, and we will see.",
                    f"It is {rng.choice(QUALITIES)}, but it works.",
                ]
            ),
        ]
    )
    return ask, reply, f"trap {name} {trap} {tip if tip in ask else ''}"


def _compare_turn(rng: Random, about: _About) -> _Turn:
    """An opinion on two topics."""
    name, (_, tips, _, _), _, trap, joy = about
    other = rng.choice([row[0] for row in cw.TOPICS if row[0] != name])
    ask = rng.choice(
        [
            f"Is {name} harder than {other}? Please give me your opinion.",
            f"Now compare {name} with {other} in a few sentences.",
        ]
    )
    q1, q2, q3 = some(rng, QUALITIES, 3)
    reply = " ".join(
        [
            f"Both have their charm, but {name} is more {q1}, while {other} feels {q2}.",
            f"With {name} you have to {rng.choice(tips)}, and that is {q3}.",
            rng.choice(
                [
                    f"I would choose {name} for {joy}.",
                    f"If you hate {trap}, then {other} is the better choice.",
                    f"My answer may change, but today I prefer {rng.choice([name, other])}.",
                ]
            ),
            f"After all, {rng.choice(REASONS)}.",
        ]
    )
    return ask, reply, f"compare {name} {other}"


def _rules_turn(rng: Random, about: _About) -> _Turn:
    """Three rules for somebody."""
    name, (_, tips, _, _), _, trap, joy = about
    who = rng.choice(cw.NAMES)
    ask = rng.choice(
        [
            f"Thanks. Now write three lines that {who} could pin on the wall about {name}.",
            f"Can you make a list of three rules about {name} for {who}?",
        ]
    )
    rules = some(rng, tips, 3)
    lines = [f"{i + 1}. {upper_first(rule)}." for i, rule in enumerate(rules)]
    end = rng.choice(
        [
            f"That is all {who} needs for the start, and {rng.choice(REASONS)}.",
            f"Tell {who} that {joy} comes later.",
            f"And one more thing for {who}: beware of {trap}.",
        ]
    )
    return (
        ask,
        f"Here are three rules for {who}:\n" + "\n".join(lines) + "\n" + end,
        f"rules {name} {who}",
    )


def second_turn(rng: Random, topic: list[list[str]], name: str) -> _Turn:
    """The follow-up."""
    _, tips, traps, joys = topic
    about = _About(name, topic, rng.choice(tips), rng.choice(traps), rng.choice(joys))
    if rng.random() < 0.4:
        return _trap_turn(rng, about)
    return _compare_turn(rng, about) if rng.random() < 0.5 else _rules_turn(rng, about)
