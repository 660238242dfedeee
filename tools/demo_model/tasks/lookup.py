"""Find the value of a key in a long list of pairs, anywhere in the context.

Keys come in many kinds (words, pairs of words, codes, names, made-up syllables), so that what is learned is looking
up, not a list of keys. In training one list serves many questions: that is where the supervision is dense.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from ..conversation import Conversation, Exchange, Message, is_held_out
from ..words import ADJECTIVES, ALL_WORDS, ANIMALS, CITIES, COLORS, NAMES, OBJECTS, PLAIN, SURNAMES, made_up

INTRO = [
    "Here is a list of pairs:", "Here are some values:", "Read this list:", "Remember these values:",
    "Look at this table:",
    "The list:", "These are the entries:", "Here is some data:", "Use this list:",
]  # fmt: skip
ASK = [
    "What is the value of {k}?", "What is the value for {k}?", "Which value belongs to {k}?",
    "What value does {k} have?",
    "Find {k}.", "Look up {k}.", "Give me the value of {k}.", "{k}?", "Tell me the value of {k}.", "What is {k}?",
    "What did the list say about {k}?",
]  # fmt: skip
ASK_MANY = ["Give me the values of these keys: {k}", "Look up: {k}", "What are the values of {k}?"]


KEYS: list[Callable[[random.Random], str]] = [
    lambda r: r.choice(ALL_WORDS),
    lambda r: f"{r.choice(COLORS)}-{r.choice(ANIMALS)}",
    lambda r: f"{r.choice(ADJECTIVES)}-{r.choice(PLAIN)}",
    lambda r: f"{r.choice(ADJECTIVES)} {r.choice(OBJECTS)}",
    lambda r: f"{r.choice(PLAIN)}-{r.randint(1, 99)}",
    lambda r: f"{r.choice(NAMES)} {r.choice(SURNAMES)}",
    lambda r: f"{r.choice(CITIES)} {r.choice(OBJECTS)}",
    lambda r: f"{r.choice(PLAIN)}_{r.choice(PLAIN)}",
    made_up,
    lambda r: f"item {r.randint(1, 999)}",
    lambda r: f"{chr(65 + r.randrange(26))}{r.randint(10, 999)}",
]
VALUES: list[Callable[[random.Random], str]] = [
    lambda r: str(r.randint(10, 99)),
    lambda r: str(r.randint(100, 999)),
    lambda r: str(r.randint(1000, 9999)),
    lambda r: r.choice(ALL_WORDS),
    lambda r: r.choice(CITIES),
    lambda r: f"{r.choice(COLORS)} {r.choice(OBJECTS)}",
    lambda r: f"{r.choice(PLAIN)}{r.randint(1, 9)}",
    made_up,
]


def pairs(rng: random.Random, count: int) -> dict[str, str]:
    """`count` pairs with distinct keys, of one kind or mixed (single words run out, so kinds mix in long lists)."""
    kinds = rng.sample(KEYS, 1 if count < 30 and rng.random() < 0.6 else rng.randint(2, 5))
    values = rng.sample(VALUES, 1 if rng.random() < 0.6 else 3)
    table: dict[str, str] = {}
    while len(table) < count:
        table[rng.choice(kinds)(rng)] = rng.choice(values)(rng)
        if len(table) > 300 and rng.random() < 0.01:
            kinds.append(rng.choice(KEYS))
    return table


def listing(rng: random.Random, table: dict[str, str]) -> str:
    separator = rng.choice((": ", ": ", ": ", " = "))
    between = rng.choice(("\n", "\n", "\n", "; "))
    return between.join(f"{key}{separator}{value}" for key, value in table.items())


def key_of(key: str, value: str, count: int) -> str:
    return f"lookup {count} {key} {value}"


def conversation(rng: random.Random, count: int, asked: int) -> Conversation:
    """Training: one list of `count` pairs, then `asked` questions, some of which ask for several keys at once."""
    keys: list[str] = []
    while not keys:
        table = pairs(rng, count)
        keys = [key for key in table if not is_held_out(key_of(key, table[key], count))]
    text = listing(rng, table)
    messages: list[Message] = []
    intro = f"{rng.choice(INTRO)}\n{text}\n\n"
    if rng.random() < 0.15:  # the list may also stand in the system turn
        messages.append({"role": "system", "content": intro.strip()})
        intro = ""
    for _ in range(asked):
        if rng.random() < 0.12 and len(keys) > 8:
            chosen = rng.sample(keys, rng.randint(2, 8))
            question = rng.choice(ASK_MANY).format(k=", ".join(chosen))
            answer = "\n".join(f"{key}: {table[key]}" for key in chosen)
        else:
            key = rng.choice(keys)
            question, answer = rng.choice(ASK).format(k=key), table[key]
        messages += [{"role": "user", "content": intro + question}, {"role": "assistant", "content": answer}]
        intro = ""
    return Conversation(messages)


def exchange(
    rng: random.Random, count: int | None = None, depth: float | None = None, held_out: bool | None = None
) -> Exchange:
    """One list and one question; `depth` in [0, 1] says where in the list the asked pair stands.

    With `held_out` given, the asked value is drawn again until the problem falls on that side of the split.
    """
    count = count or rng.randint(3, 20)
    table = pairs(rng, count)
    depth = rng.random() if depth is None else depth
    key = list(table)[round(depth * (count - 1))]
    while held_out is not None and is_held_out(key_of(key, table[key], count)) != held_out:
        table[key] = rng.choice(VALUES)(rng)
    user = f"{rng.choice(INTRO)}\n{listing(rng, table)}\n\n{rng.choice(ASK).format(k=key)}"
    return Exchange("lookup", key_of(key, table[key], count), user, table[key])
