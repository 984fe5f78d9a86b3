"""Two-turn conversations, the first turn; free word choices between fixed phrases."""

from collections.abc import Sequence
from random import Random

from real_backend.training import words as cw
from real_backend.training.dialogue import QUALITIES, REASONS, Dialogue, DocEntry, some
from real_backend.training.follow_up import second_turn

_AUDIENCES = cw.words(
    "a child, a beginner, my grandmother, a busy friend, a new colleague, a sceptic"
)
_LIMITS = cw.words(
    "ten minutes a day, very little money, no teacher, a small flat, bad weather, only the "
    "weekends, "
    "a sore back, two noisy kids"
)


def _advice_reply(rng: Random, topic: list[list[str]], name: str) -> str:
    """Tips about a topic: free word choices between fixed phrases."""
    things, tips, traps, joys = topic
    first, second, third = some(rng, tips, 3)
    quality, other = some(rng, QUALITIES, 2)
    sentences = [
        rng.choice(
            [
                f"I would say that {name} is {quality} and at times {other}.",
                f"To be honest, {name} looks {quality} at first, but it becomes {other} "
                "with practice.",
                f"Good question! Most people find {name} {quality}, and a few call it {other}.",
            ]
        ),
        rng.choice(
            [
                f"Start with the {rng.choice(things)}, and {first}, because {rng.choice(REASONS)}.",
                f"If I had to choose one thing, I would {first}; {rng.choice(REASONS)}.",
                f"First of all, {first}. With {rng.choice(things)}, {rng.choice(REASONS)}.",
            ]
        ),
        rng.choice(
            [
                f"After that, {second}, and do not forget to {third}.",
                f"It also helps to {second}. Once this works, {third}.",
                f"Then {second}, even when you do not feel like it.",
            ]
        ),
        rng.choice(
            [
                f"Watch out for {rng.choice(traps)}: it has ruined many good plans.",
                f"The usual problem is {rng.choice(traps)}, so take your time.",
                f"You will meet {rng.choice(traps)} sooner or later, and that is fine.",
            ]
        ),
        rng.choice(
            [
                f"In the end, {rng.choice(joys)} makes up for everything.",
                f"For me, nothing beats {rng.choice(joys)}.",
                f"Think of {rng.choice(joys)} when it gets hard.",
            ]
        ),
    ]
    return " ".join(sentences[: rng.choice([4, 5, 5])])


def _letter_reply(rng: Random, topic: list[list[str]], name: str, friend: str) -> str:
    """A short letter to a friend about a topic."""
    things, tips, traps, joys = topic
    return (
        f"Dear {friend},\n"
        + rng.choice(
            [
                f"you asked me how it is going with {name}. ",
                f"I hope you are well. Since last month I have been busy with {name}. ",
                f"today I must tell you about {name}. ",
            ]
        )
        + rng.choice(
            [
                f"Last week I had {rng.choice(traps)}, and I almost gave up. ",
                f"My {rng.choice(things)} are not perfect yet, but I am learning. ",
                f"At first I only cared about {rng.choice(things)}, which was a mistake. ",
            ]
        )
        + rng.choice(
            [
                f"My neighbour told me to {rng.choice(tips)}, and she was right. ",
                f"Now I always {rng.choice(tips)}, since {rng.choice(REASONS)}. ",
            ]
        )
        + f"You would love {rng.choice(joys)}. "
        + rng.choice(
            ["Come and visit me soon!", "Write back when you can!", "Shall we try it together?"]
        )
        + f"\nYours, {rng.choice(cw.NAMES)}"
    )


def _story_reply(rng: Random, topic: list[list[str]], name: str, hero: str) -> str:
    """A short story with a hero."""
    things, tips, traps, joys = topic
    other = rng.choice(cw.NAMES)
    place = rng.choice(cw.TOWNS)
    return " ".join(
        [
            rng.choice(
                [
                    f"{hero} lived in {place} and knew nothing about {name}.",
                    f"One morning in {place}, {hero} decided to try {name}.",
                    f"Everybody in {place} laughed when {hero} talked about {name}.",
                ]
            ),
            rng.choice(
                [
                    f"The first day brought {rng.choice(traps)} and a very bad mood.",
                    f"There were {rng.choice(things)} all over the floor, and "
                    f"{rng.choice(traps)} too.",
                ]
            ),
            rng.choice(
                [
                    f'"You should {rng.choice(tips)}," said {other} with a smile.',
                    f'Then {other} came by and whispered: "Just {rng.choice(tips)}."',
                ]
            ),
            rng.choice(
                [
                    f"{hero} was {rng.choice(['angry', 'doubtful', 'curious', 'silent'])}, "
                    "but listened.",
                    f"It took {rng.choice(['a week', 'a month', 'a year', 'three long winters'])}.",
                ]
            ),
            f"What remained was {rng.choice(joys)}, and {rng.choice(joys)} as well."
            if rng.random() < 0.3
            else f"In the end there was {rng.choice(joys)}, and nobody laughed any more.",
        ]
    )


def _first_turn(rng: Random, topic: list[list[str]], name: str) -> tuple[str, str, str]:
    """Prompt, reply, content key."""
    kind = rng.randrange(4)
    limit, friend = rng.choice(_LIMITS), rng.choice(cw.NAMES)
    if kind == 0:
        ask = rng.choice(
            [
                f"I want to get better at {name}, but I have {limit}. What would you do?",
                f"Can you give me some honest advice about {name}? My problem: {limit}.",
                f"How should I begin with {name} when I have {limit}?",
            ]
        )
        return ask, _advice_reply(rng, topic, name), f"advice {name} {limit}"
    if kind == 1:
        ask = rng.choice(
            [
                f"Write a short letter to my friend {friend} about {name}.",
                f"Help me with a friendly note to {friend}. It should be about {name}.",
            ]
        )
        return ask, _letter_reply(rng, topic, name, friend), f"letter {name} {friend}"
    if kind == 2:
        ask = rng.choice(
            [
                f"Tell me a little story about {friend} and {name}.",
                f"Invent a short tale in which {friend} discovers {name}.",
            ]
        )
        return ask, _story_reply(rng, topic, name, friend), f"story {name} {friend}"
    who = rng.choice(_AUDIENCES)
    thing = rng.choice(topic[0])
    ask = rng.choice(
        [
            f"How would you explain {name} to {who}? Say something about {thing}.",
            f"Imagine you talk to {who}. What is {name}, and why do {thing} matter?",
        ]
    )
    opener = rng.choice(
        [
            f"Imagine a day full of {thing}.",
            f"Well, {name} is mostly about {thing}, and a little about patience.",
            f"To {who} I would say this: look at the {thing} first.",
        ]
    )
    return ask, opener + " " + _advice_reply(rng, topic, name), f"explain {name} {who} {thing}"


def conversation(rng: Random, docs: Sequence[DocEntry]) -> Dialogue:
    """Two turns about one topic: advice, letters, stories, explanations, then a follow-up."""
    del docs
    row = rng.choice(cw.TOPICS)
    name, topic = row[0], [cw.words(cell) for cell in row[1:]]
    ask1, reply1, key1 = _first_turn(rng, topic, name)
    ask2, reply2, key2 = second_turn(rng, topic, name)
    return Dialogue("conversation", (ask1, ask2), (reply1, reply2), (key1, key2))
