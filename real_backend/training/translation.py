"""English to German from a small grammar: cases, verb-second and verb-final order."""

from collections.abc import Sequence
from random import Random

from real_backend.training import words as cw
from real_backend.training.dialogue import Dialogue, DocEntry, upper_first

_ARTICLE = {"m": ("der", "den", "einen"), "f": ("die", "die", "eine"), "n": ("das", "das", "ein")}
_PRONOUN = {"m": ("he", "er"), "f": ("she", "sie"), "n": ("it", "es")}


def _subject(rng: Random) -> tuple[str, str, str]:
    """English, German, gender of who acts."""
    if rng.random() < 0.35:
        name = rng.choice(["Anna", "Clara", "Emma", "Maria", "Nina", "Ben", "Paul", "Felix", "Leo"])
        return name, name, "f" if name.endswith("a") else "m"
    english, german, gender = rng.choice(cw.PEOPLE_DE)
    return f"the {english}", f"{_ARTICLE[gender][0]} {german}", gender


def _object(rng: Random) -> tuple[str, str]:
    """English and German (accusative) noun phrase, with an article and often an adjective."""
    english, german, gender = rng.choice(cw.NOUNS_DE)
    adjective, stem = rng.choice(cw.ADJECTIVES_DE)
    if rng.random() < 0.35:
        return f"the {english}", f"{_ARTICLE[gender][1]} {german}"
    if rng.random() < 0.5:
        ending = "en" if gender == "m" else "e"
        return f"the {adjective} {english}", f"{_ARTICLE[gender][1]} {stem}{ending} {german}"
    ending = {"m": "en", "f": "e", "n": "es"}[gender]
    article = "an" if adjective[0] in "aeiou" else "a"
    return f"{article} {adjective} {english}", f"{_ARTICLE[gender][2]} {stem}{ending} {german}"


def _sentence_pair(rng: Random) -> tuple[str, str]:
    """One English sentence and its German translation."""
    (s_en, s_de, gender), (o_en, o_de) = _subject(rng), _object(rng)
    inf, third, past, inf_de, third_de, participle = rng.choice(cw.VERBS_DE)
    (p_en, p_de), (t_en, t_de) = rng.choice(cw.PLACES_DE), rng.choice(cw.TIMES_DE)
    mood, mood_de = rng.choice(cw.MOODS_DE)
    he, er = _PRONOUN[gender]
    kind = rng.randrange(7)
    if kind == 0:
        return f"{s_en} {third} {o_en} {p_en}.", f"{s_de} {third_de} {o_de} {p_de}."
    if kind == 1:
        return f"{t_en} {s_en} {past} {o_en}.", f"{t_de} hat {s_de} {o_de} {participle}."
    if kind == 2:
        return (
            f"{s_en} wants to {inf} {o_en} because {he} is {mood}.",
            f"{s_de} möchte {o_de} {inf_de}, weil {er} {mood_de} ist.",
        )
    if kind == 3:
        return (
            f"I think that {s_en} {third} {o_en}.",
            f"Ich glaube, dass {s_de} {o_de} {third_de}.",
        )
    if kind == 4:
        return f"there is {o_en} {p_en}.", f"{p_de} gibt es {o_de}."
    if kind == 5:
        if t_en.startswith(("on ", "in ", "after ")):
            return f"can {s_en} {inf} {o_en} {t_en}?", f"kann {s_de} {t_de} {o_de} {inf_de}?"
        return f"does {s_en} {inf} {o_en}?", f"{third_de} {s_de} {o_de}?"
    return (
        f"{s_en} was {mood} and {past} {o_en} {p_en}.",
        f"{s_de} war {mood_de} und hat {o_de} {p_de} {participle}.",
    )


def translation(rng: Random, docs: Sequence[DocEntry]) -> Dialogue:
    """Three or four English sentences into German."""
    del docs
    pairs = [_sentence_pair(rng) for _ in range(rng.choice([2, 3, 3, 4]))]
    english = " ".join(upper_first(pair[0]) for pair in pairs)
    german = " ".join(upper_first(pair[1]) for pair in pairs)
    ask = rng.choice(
        [
            f"Translate the following text into German: {english}",
            f"What is this in German? {english}",
            f"Please give me the German version of these sentences.\n{english}",
            f"Translate English to German: {english}",
        ]
    )
    return Dialogue("translation", (ask,), (german,), (english,))
