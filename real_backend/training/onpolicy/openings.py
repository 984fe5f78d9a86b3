"""How user turns begin that a model is to make up: several words of each task, and how far it may
go on.
"""

from __future__ import annotations

from typing import NamedTuple


class Opening(NamedTuple):
    """Words that a user turn begins with, and the most tokens of the turn."""

    text: str
    most: int


_SHORT, _LONG = 64, 160

_QUESTIONS = (
    "What is the", "Who was", "When did the", "Where can I find", "Why do", "How many", "How do I",
    "Which country", "What causes", "What are the main", "In what year", "Can you tell me about",
    "What does it mean when", "Is it true that", "Tell me",
)  # fmt: skip
_WRITING = (
    "Write a short story about", "Write an email to", "Compose a poem about", "Draft a speech for",
    "Write a blog post on", "Describe a", "Imagine you are", "Pretend that you are a",
    "Give me three ideas for", "Suggest a name for", "Create a list of", "Rewrite this sentence:",
    "Help me plan", "Write a review of",
)  # fmt: skip
_REASONING = (
    "If all", "Explain the difference between", "Explain how", "Compare", "What would happen if",
    "Solve this riddle:", "Give an argument for", "What is wrong with", "Classify the following",
    "Extract the names from this text:",
)  # fmt: skip
_MATHEMATICS = (
    "A farmer has", "If a train travels", "Tom buys", "Calculate", "Solve for x:",
    "A shop sells", "There are 12", "Anna earns $", "What is the sum of", "The ratio of",
    "It takes a worker", "Find the area of",
)  # fmt: skip
_CODE = (
    "Write a Python function that", "Write a program to", "How can I sort", "Explain this code:",
    "What does this function do?", "Implement", "Fix the bug in",
)  # fmt: skip
_TRANSLATION = (
    "Translate this German sentence into English: Die", "Translate from German to English: Der",
    "Translate into English: Es ist", "Translate German to English: Wir",
    "Translate this sentence into French:", "What is the English for: Ich",
)  # fmt: skip
_SUMMARIES = (
    "Summarize this article: The", "Summarize the following text: In", "Summarize: LONDON",
    "Give a short summary of this news: A", "Summarize this report: Police",
    "Shorten this paragraph: Scientists",
)  # fmt: skip
_PASSAGES = (
    "Answer the question with the help of this passage: The", "Read this text and answer: In 19",
    "Here is some information: The", "Using the document below, answer the question. Document:",
    "Context: The city of",
)  # fmt: skip

FREE = Opening("", _SHORT)
OPENINGS = tuple(
    Opening(text, _SHORT)
    for texts in (_QUESTIONS, _WRITING, _REASONING, _MATHEMATICS, _CODE, _TRANSLATION)
    for text in texts
) + tuple(Opening(text, _LONG) for texts in (_SUMMARIES, _PASSAGES) for text in texts)
