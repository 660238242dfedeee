"""Everyday questions with short answers: capitals, opposites, colours, days and months, sizes of animals.

Each question also has its one-word answer, which the style task needs.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from ..conversation import Exchange
from ..words import ANIMALS, CAPITALS, COLORS, FOODS, FRUITS, MONTHS, OPPOSITES, THING_COLORS, WEEKDAYS


@dataclass(frozen=True, slots=True)
class Question:
    user: str
    sentence: str
    word: str


def _capital(r: random.Random) -> Question:
    country, city = r.choice(list(CAPITALS.items()))
    if r.random() < 0.2:
        user = r.choice(("Which country has the capital {v}?", "{v} is the capital of which country?"))
        return Question(user.format(v=city), f"{city} is the capital of {country}.", country)
    user = r.choice((
        "What is the capital of {k}?", "Capital of {k}?", "Name the capital of {k}.",
        "Which city is the capital of {k}?",
        "Tell me the capital of {k}.", "What's the capital of {k}?", "Do you know the capital of {k}?",
        "What is the capital city of {k}?",
    ))  # fmt: skip
    return Question(user.format(k=country), f"The capital of {country} is {city}.", city)


def _opposite(r: random.Random) -> Question:
    word, other = r.choice(list(OPPOSITES.items()))
    user = r.choice((
        "What is the opposite of {k}?", "Opposite of {k}?", "Give me the opposite of {k}.",
        "Which word is the opposite of {k}?",
        "What's the opposite of {k}?", "Tell me the opposite of {k}.",
    ))  # fmt: skip
    return Question(user.format(k=word), f"The opposite of {word} is {other}.", other)


def _color(r: random.Random) -> Question:
    thing, color = r.choice(list(THING_COLORS.items()))
    user = r.choice(("What color is {k}?", "Tell me the color of {k}.", "What is the color of {k}?"))
    return Question(user.format(k=thing), f"The color of {thing} is {color}.", color)


def _calendar(r: random.Random) -> Question:
    names, kind = (WEEKDAYS, "day") if r.random() < 0.5 else (MONTHS, "month")
    index, step = r.randrange(len(names)), r.choice((1, -1))
    side = "after" if step == 1 else "before"
    user = r.choice((
        "Which {kind} comes {side} {k}?", "What {kind} is {side} {k}?", "Name the {kind} {side} {k}.",
        "What comes {side} {k}?",
        "Tell me the {kind} {side} {k}.",
    ))  # fmt: skip
    other = names[(index + step) % len(names)]
    return Question(user.format(kind=kind, side=side, k=names[index]), f"{other} comes {side} {names[index]}.", other)


def _kind(r: random.Random) -> Question:
    word, kind = r.choice([(r.choice(ANIMALS), "animal"), (r.choice(FRUITS), "fruit"), (r.choice(COLORS), "color"),
                           (r.choice(FOODS), "food")])  # fmt: skip
    if word in {"orange", "plum", "coral", "ruby", "apple"}:
        word, kind = "tiger", "animal"
    article = "an" if word[0] in "aeiou" else "a"
    noun = word if kind in ("color", "food") else f"{article} {word}"
    user = r.choice(("What kind of thing is {k}?", "Is {k} an animal, a fruit, a color or a food?", "What is {k}?"))
    sentence = f"{noun[0].upper()}{noun[1:]} is {'an' if kind == 'animal' else 'a'} {kind}."
    return Question(user.format(k=noun), sentence, kind)


def question(rng: random.Random) -> Question:
    return rng.choices((_capital, _opposite, _color, _calendar, _kind), (5, 4, 2, 4, 2))[0](rng)


def exchange(rng: random.Random) -> Exchange:
    asked = question(rng)
    return Exchange("general", "general " + asked.user, asked.user, asked.sentence)
