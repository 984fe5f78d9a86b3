"""The order of the queue, and the memory that a request holds: plain arithmetic, compiled with the
server.

The queue is a binary heap of records (key, number of the request): the smallest key goes
first, ties to the smaller number. A request that lost its place keeps its key.
"""

from __future__ import annotations

from typing import Any

FIRST_COME, SHORTEST, PRIORITY = 0, 1, 2
ORDERS = {"first-come": FIRST_COME, "shortest": SHORTEST, "priority": PRIORITY}


def queue_key(order: int, arrival_s: float, prompt_tokens: int, priority: int) -> float:
    """The key of a request: when it came, how long its prompt is (what a server knows of its
    length), or its priority, the smaller the sooner.
    """
    if order == SHORTEST:
        return float(prompt_tokens)
    if order == PRIORITY:
        return float(priority)
    return arrival_s


def before(heap: Any, i: int, j: int) -> bool:
    """True if entry i of a heap goes before entry j."""
    first, second = float(heap[i].key), float(heap[j].key)
    return first < second or (first == second and int(heap[i].number) < int(heap[j].number))


def swap(heap: Any, i: int, j: int) -> None:
    """Exchange two entries of a heap."""
    key, number = float(heap[i].key), int(heap[i].number)
    heap[i].key, heap[i].number = float(heap[j].key), int(heap[j].number)
    heap[j].key, heap[j].number = key, number


def push(heap: Any, size: int, key: float, number: int) -> None:
    """Add an entry to a heap of `size`; the caller counts."""
    heap[size].key, heap[size].number = key, number
    i = size
    while i > 0 and before(heap, i, (i - 1) // 2):
        swap(heap, i, (i - 1) // 2)
        i = (i - 1) // 2


def pop(heap: Any, size: int) -> int:
    """Take the first number out of a heap of `size` > 0; the caller counts."""
    number = int(heap[0].number)
    last = size - 1
    swap(heap, 0, last)
    i = 0
    while True:
        child = 2 * i + 1
        if child >= last:
            return number
        if child + 1 < last and before(heap, child + 1, child):
            child += 1
        if not before(heap, child, i):
            return number
        swap(heap, i, child)
        i = child


def blocks_of(tokens: int, block_tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return (tokens + block_tokens - 1) // block_tokens
