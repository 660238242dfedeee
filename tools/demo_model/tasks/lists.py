# ruff: noqa: SIM905 - a list of words reads best as words
"""Copy, reverse, sort and count short lists of words or numbers."""

from __future__ import annotations

import random

from ..conversation import Exchange
from ..words import ALL_WORDS, CITIES, NAMES, made_up
from . import stories

COPY = [
    "Repeat this list: {x}", "Copy this list: {x}", "Say exactly this: {x}", "Copy: {x}", "Repeat after me: {x}",
    "Write this list again: {x}", "Please repeat these items: {x}", "Echo this list: {x}", "Repeat: {x}",
]  # fmt: skip
SAY = ["Repeat this: {x}", "Say exactly this: {x}", "Copy: {x}", "Repeat after me: {x}", "Repeat: {x}", "Echo: {x}",
       "Say: {x}",
       'Repeat "{x}"', 'Say "{x}"', "Copy this text: {x}", "Repeat this sentence: {x}",
        "Write exactly this: {x}"]  # fmt: skip
REVERSE = [
    "Reverse this list: {x}", "Write this list backwards: {x}", "Reverse: {x}", "Reverse the order of these items: {x}",
    "Put these in reverse order: {x}", "List these from last to first: {x}", "Please reverse these items: {x}",
    "Turn this list around: {x}",
]  # fmt: skip
SORT_NUMBERS = [
    "Sort these numbers: {x}", "Sort: {x}", "Put these numbers in order: {x}", "Order these from small to large: {x}",
    "Sort this list from smallest to largest: {x}", "Please sort these numbers: {x}", "Sort in ascending order: {x}",
    "Sort this list: {x}",
]  # fmt: skip
SORT_DOWN = [
    "Sort these numbers in descending order: {x}", "Sort from largest to smallest: {x}",
    "Order these from large to small: {x}",
]  # fmt: skip
SORT_WORDS = [
    "Sort these words: {x}", "Sort: {x}", "Put these words in alphabetical order: {x}", "Sort alphabetically: {x}",
    "Sort this list from A to Z: {x}", "Please sort these words: {x}", "Order these words alphabetically: {x}",
    "Sort this list: {x}",
]  # fmt: skip
COUNT = [
    "How many items are in this list: {x}", "Count the items: {x}", "How long is this list: {x}",
    "How many things are listed here: {x}", "Count these: {x}", "Count the items in this list: {x}",
    "What is the length of this list: {x}",
]  # fmt: skip
COUNT_OF = [
    'How many times does "{w}" appear in this list: {x}', 'Count "{w}" in this list: {x}',
    'How often is "{w}" in this list: {x}', 'Count how many times "{w}" occurs: {x}',
]  # fmt: skip
OPERATIONS = ("copy", "reverse", "sort", "count")


def numbers(rng: random.Random) -> list[str]:
    top = rng.choice((10, 100, 100, 1000, 1000))
    return [str(rng.randrange(top)) for _ in range(rng.randint(2, 8))]


def words(rng: random.Random, strange: float = 0.0) -> list[str]:
    """Distinct words; `strange` is the share of lists with made-up words."""
    if rng.random() < strange:
        return list({made_up(rng): None for _ in range(rng.randint(2, 8))})
    source = rng.choice((ALL_WORDS, ALL_WORDS, ALL_WORDS, NAMES, CITIES))
    return rng.sample(source, rng.randint(2, 8))


SMALL = """a an the and or of to in on at is was are it he she we you they my your this that with for from not hello
world good day please thank one two three yes no who what when where why how very""".split()
MARKS = ("", "", "", ".", "!", "?")


def phrase(rng: random.Random) -> str:
    """A few words without much sense, so that copying cannot lean on meaning."""
    if rng.random() < 0.2:
        return rng.choice(stories.tale(rng))
    made = [made_up(rng) if rng.random() < 0.1 else rng.choice(SMALL if rng.random() < 0.5 else ALL_WORDS)
            for _ in range(rng.randint(1, 9))]  # fmt: skip
    if rng.random() < 0.5:
        made[0] = made[0].capitalize()
    if rng.random() < 0.15:
        made.insert(rng.randrange(len(made) + 1), str(rng.randrange(10000)))
    return " ".join(made) + rng.choice(MARKS)


def count_exchange(rng: random.Random) -> Exchange:
    if rng.random() < 0.5:
        items = words(rng) if rng.random() < 0.6 else numbers(rng)
        text = ", ".join(items)
        return Exchange("count", "count " + text, rng.choice(COUNT).format(x=text), str(len(items)))
    kinds = rng.sample(ALL_WORDS, rng.randint(2, 4))
    items = [rng.choice(kinds) for _ in range(rng.randint(3, 9))]
    target, text = rng.choice(kinds), ", ".join(items)
    return Exchange("count", f"count {target} {text}", rng.choice(COUNT_OF).format(w=target, x=text),
                    str(items.count(target)))  # fmt: skip


def sort_exchange(rng: random.Random) -> Exchange:
    if rng.random() < 0.6:
        items = numbers(rng)
        down = rng.random() < 0.15
        answer = sorted(items, key=int, reverse=down)
        frames = SORT_DOWN if down else SORT_NUMBERS
    else:
        items = words(rng)
        answer, frames = sorted(items), SORT_WORDS
    text = ", ".join(items)
    return Exchange("sort", "sort " + text, rng.choice(frames).format(x=text), ", ".join(answer))


def exchange(rng: random.Random, operation: str | None = None) -> Exchange:
    operation = operation or rng.choices(OPERATIONS, (4, 3, 7, 3))[0]
    if operation == "count":
        return count_exchange(rng)
    if operation == "sort":
        return sort_exchange(rng)
    if operation == "copy" and rng.random() < 0.4:
        text = phrase(rng)
        return Exchange("copy", "copy " + text, rng.choice(SAY).format(x=text), text)
    items = words(rng, strange=0.15) if rng.random() < 0.6 else numbers(rng)
    if rng.random() < 0.15:
        items = [rng.choice(items) for _ in items]
    text = ", ".join(items)
    if operation == "copy":
        return Exchange("copy", "copy " + text, rng.choice(COPY).format(x=text), text)
    return Exchange("reverse", "reverse " + text, rng.choice(REVERSE).format(x=text), ", ".join(reversed(items)))
