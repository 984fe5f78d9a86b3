"""Word problems with worked steps."""

from collections.abc import Sequence
from random import Random

from real_backend.training import words as cw
from real_backend.training.dialogue import Dialogue, DocEntry, some


def _shop(rng: Random) -> tuple[str, str]:
    name, (x, y) = rng.choice(cw.NAMES), some(rng, cw.SHOP_ITEMS, 2)
    n, m, p, q = (rng.randrange(2, 13) for _ in range(4))
    total = n * p + m * q
    note = 10 * (total // 10 + rng.randrange(1, 4))
    ask = rng.choice(
        [
            f"{name} buys {n} {x} for {p} dollars each and {m} {y} for {q} dollars each, "
            "and pays with "
            f"{note} dollars. How much change does {name} get?",
            f"In a shop, {x} cost {p} dollars each and {y} cost {q} dollars each. {name} "
            f"takes {n} {x} "
            f"and {m} {y} and has {note} dollars. How much is left?",
        ]
    )
    reply = (
        f"The {x} cost {n} * {p} = {n * p} dollars. The {y} cost {m} * {q} = {m * q} dollars. "
        f"Together this makes {n * p} + {m * q} = {total} dollars. "
        f"{name} keeps {note} - {total} = {note - total} dollars. The answer is {note - total}."
    )
    return ask, reply


def _trip(rng: Random) -> tuple[str, str]:
    name, town = rng.choice(cw.NAMES), rng.choice(cw.TOWNS)
    v, w, t, u = (
        rng.randrange(4, 13) * 5,
        rng.randrange(4, 13) * 5,
        rng.randrange(2, 6),
        rng.randrange(2, 6),
    )
    total = v * t + w * u
    ask = rng.choice(
        [
            f"{name} drives to {town}: {t} hours at {v} km per hour and then {u} hours at "
            f"{w} km per hour. "
            f"How long is the whole way?",
            f"On the way to {town}, {name} travels at {v} km per hour for {t} hours, "
            "rests, and goes on at "
            f"{w} km per hour for {u} hours. How many kilometres are that?",
        ]
    )
    reply = (
        f"In the first part, {name} covers {v} * {t} = {v * t} km. In the second part it is "
        f"{w} * {u} = {w * u} km. The whole way is {v * t} + {w * u} = {total} km. "
        f"The answer is {total}."
    )
    return ask, reply


def _sharing(rng: Random) -> tuple[str, str]:
    a, b = some(rng, cw.NAMES, 2)
    item = rng.choice(cw.SHOP_ITEMS)
    n, k, gift = rng.randrange(3, 10), rng.randrange(3, 13), rng.randrange(2, 9)
    ask = rng.choice(
        [
            f"{a} has {n} boxes with {k} {item} in each of them. {b} gives {a} {gift} "
            "more, and then they "
            f"share all {item} equally with {b}. How many {item} remain over if each takes half?",
            f"There are {n} tables with {k} {item} on each. {b} adds {gift} {item}. {a} "
            f"and {b} split them "
            f"into two equal parts. How many are left over?",
        ]
    )
    total = n * k + gift
    reply = (
        f"At first there are {n} * {k} = {n * k} {item}. With the new ones, {a} and {b} have "
        f"{n * k} + {gift} = {total} {item}. Half of {total} is {total // 2}, "
        f"and {total} - 2 * {total // 2} = {total % 2}. The answer is {total % 2}."
    )
    return ask, reply


def _saving(rng: Random) -> tuple[str, str]:
    name, item = rng.choice(cw.NAMES), rng.choice(["bicycle", "guitar", "camera", "tent", "phone"])
    start, week, weeks, spent = (
        rng.randrange(5, 60),
        rng.randrange(3, 25),
        rng.randrange(3, 10),
        rng.randrange(2, 15),
    )
    total = start + week * weeks - spent
    ask = rng.choice(
        [
            f"{name} saves for a {item}. There are {start} dollars in the box, {week} "
            "dollars are added each "
            f"week for {weeks} weeks, and {spent} dollars are taken out. How much is in the box?",
            f"To buy a {item}, {name} starts with {start} dollars and earns {week} dollars "
            f"in each of {weeks} "
            f"weeks, but loses {spent} dollars. How much money is there at the end?",
        ]
    )
    reply = (
        f"In {weeks} weeks, {name} adds {weeks} * {week} = {weeks * week} dollars. "
        f"Together with the start this is {start} + {weeks * week} = "
        f"{start + weeks * week} dollars. "
        f"Then we subtract {spent}: {start + weeks * week} - {spent} = {total}. The answer "
        f"is {total}."
    )
    return ask, reply


def _area(rng: Random) -> tuple[str, str]:
    name, thing = (
        rng.choice(cw.NAMES),
        rng.choice(["garden", "room", "wall", "field", "carpet", "roof"]),
    )
    w, h, price = rng.randrange(3, 20), rng.randrange(3, 15), rng.randrange(2, 10)
    ask = rng.choice(
        [
            f"The {thing} of {name} is {w} metres long and {h} metres wide. Paint costs "
            f"{price} dollars per "
            f"square metre. What are the area, the border and the price?",
            f"{name} has a {thing} of {w} by {h} metres and pays {price} dollars for each "
            "square metre. Find "
            f"the border and the total price.",
        ]
    )
    reply = (
        f"The area of the {thing} is {w} * {h} = {w * h} square metres. "
        f"The border is 2 * ({w} + {h}) = {2 * (w + h)} metres. "
        f"So {name} pays {w * h} * {price} = {w * h * price} dollars. The answer is "
        f"{w * h * price}."
    )
    return ask, reply


def _ages(rng: Random) -> tuple[str, str]:
    a, b, c = some(rng, cw.NAMES, 3)
    age, k, years, gap = (
        rng.randrange(4, 20),
        rng.randrange(2, 5),
        rng.randrange(2, 12),
        rng.randrange(1, 9),
    )
    ask = rng.choice(
        [
            f"{a} is {age} years old. {b} is {k} times as old, and {c} is {gap} years "
            f"younger than {b}. How "
            f"old will {c} be in {years} years?",
            f"{b} is {k} times as old as {a}, who is {age}. In {years} years, how old is "
            f"{c}, who is {gap} "
            f"years younger than {b}?",
        ]
    )
    old = age * k
    reply = (
        f"{b} is {k} * {age} = {old} years old. {c} is {gap} years younger, which gives "
        f"{old} - {gap} = {old - gap}. In {years} years, {c} will be {old - gap} + {years} = "
        f"{old - gap + years}. The answer is {old - gap + years}."
    )
    return ask, reply


def math_reasoning(rng: Random, docs: Sequence[DocEntry]) -> Dialogue:
    """Word problems with worked steps."""
    del docs
    ask, reply = rng.choice([_shop, _trip, _sharing, _saving, _area, _ages])(rng)
    lead = rng.choice(["", "", "Let us think step by step. ", "We work it out in order. "])
    return Dialogue("math_reasoning", (ask,), (lead + reply,), (ask,))
