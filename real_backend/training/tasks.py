"""Generators of task text: one function for each of the six Spec-Bench tasks.

Every generator draws from a ``random.Random`` it is given and returns a ``Dialogue`` whose ``keys``
name the content of each user turn without its phrasing. The split into training and held-out text
hashes the keys (``corpus.is_held_out``), so that a held-out question is new in content and not only
in wording.
"""

from real_backend.training.conversation import conversation
from real_backend.training.dialogue import Generator
from real_backend.training.facts import qa
from real_backend.training.reading import rag, summarization
from real_backend.training.translation import translation
from real_backend.training.word_problems import math_reasoning

GENERATORS: dict[str, Generator] = {
    "conversation": conversation,
    "translation": translation,
    "summarization": summarization,
    "qa": qa,
    "math_reasoning": math_reasoning,
    "rag": rag,
}
