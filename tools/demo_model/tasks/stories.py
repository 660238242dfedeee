# ruff: noqa: SIM905 - a list of words reads best as words
"""Short stories from a small grammar: a hero, a place, a wish, trouble, a friend and a good end.

The sentences agree with each other (the hero keeps name and kind, the lost thing is the thing that is found), so a
model that learns them writes grammatical, connected English.
"""

from __future__ import annotations

import random

from ..conversation import Exchange
from ..words import ANIMALS, NAMES, OBJECTS, made_up

TRAITS = """bold brave busy calm careful cheerful clever curious eager friendly funny gentle
happy honest humble hungry kind lazy little lively lonely lucky merry modest old patient polite proud quick quiet shy
small smart strong tiny wise young""".split()
PLACES = """forest garden valley village meadow harbor castle desert mountain island jungle farm town river lake
cave""".split()
TIMES = [
    "One morning",
    "One day",
    "One evening",
    "One winter day",
    "One sunny afternoon",
    "One night",
    "Early one morning",
]
HEROES = """boy dragon farmer giant girl ghost king knight pirate prince princess queen robot sailor unicorn witch
wizard""".split()
ASK = ["Tell me a story about {a}.", "Write a short story about {a}.", "Tell me a tale about {a}.",
       "Can you tell a story about {a}?", "A story about {a}, please.",
       "I want to hear a story about {a}."]  # fmt: skip
ASK_ANY = [
    "Tell me a story.",
    "Write a story.",
    "Tell me a short story.",
    "Can you tell me a story?",
    "A story, please.",
]
CONTINUE = [
    "{s}",
    "Continue this story: {s}",
    "Continue: {s}",
    "How does this story go on? {s}",
    "Finish this story: {s}",
]


def _a(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def tale_of(r: random.Random, hero: str, name: str) -> list[str]:
    """A story whose first sentence starts with "Once upon a time"."""
    while True:
        found = tale(r, hero, name)
        if found[0].startswith("Once upon"):
            return found


def tale(r: random.Random, animal: str | None = None, called: str | None = None) -> list[str]:
    """The sentences of one story."""
    hero, friend = r.sample(ANIMALS, 2)
    hero = animal or hero
    if friend == hero:
        friend = "owl" if hero != "owl" else "fox"
    name, other = r.sample(NAMES, 2)
    name = called or name
    other = other if other != name else "Zoe" if name != "Zoe" else "Max"
    trait, place, thing = r.choice(TRAITS), r.choice(PLACES), r.choice(OBJECTS)
    second = r.choice([t for t in TRAITS if t != trait])
    color = r.choice(("red", "blue", "golden", "silver", "green", "white", "old", "shiny"))
    opening = r.choice((
        f"Once upon a time there was {_a(trait)} {hero} named {name}.",
        f"There once was {_a(trait)} {hero} called {name}.",
        f"Long ago, {_a(trait)} {hero} named {name} lived near the {place}.",
        f"In a quiet {place} lived {_a(trait)} {hero} whose name was {name}.",
    ))  # fmt: skip
    habit = r.choice((
        f"Every day {name} walked through the {place} and sang a song.",
        f"{name} had {_a(color)} {thing} and loved it very much.",
        f"{name} loved the {place} more than any other place.", f"All the animals of the {place} liked {name}.",
    ))  # fmt: skip
    time = r.choice(TIMES)
    trouble, search, help_, rescue = r.choice((
        (f"{time} the {color} {thing} was gone.", f"{name} looked for it everywhere, but could not find it.",
         f"Then {_a(second)} {friend} named {other} came by and asked what was wrong.",
         f"Together they found the {thing} under a big tree."),
        (f"{time} it began to rain, and the path through the {place} was lost.",
         f"{name} was afraid and did not know where to go.",
         f"Then {_a(second)} {friend} named {other} came with {_a(thing)}.",
         f"{other} knew the way and led {name} safely home."),
        (f"{time} {name} found {_a(color)} {thing} on the ground.", f"{name} wanted to know who had lost it.",
         f"Near the {place} sat {_a(second)} {friend} named {other} and cried.",
         f"{name} gave the {thing} back, and {other} was happy again."),
        (f"{time} {name} wanted to build a house, but the work was too hard.", f"{name} sat down and was sad.",
         f"Then {_a(second)} {friend} named {other} came by with {_a(thing)}.",
         "They worked together until the house was done."),
    ))  # fmt: skip
    thanks = r.choice((f'"Thank you," said {name}.', f'"You are a true friend," said {name}.',
                      f"{name} thanked {other} with a big smile.",
                       f'"I will never forget this," said {name}.'))  # fmt: skip
    end = r.choice(("From that day on they were the best of friends.", f"And so {name} and {other} became friends.",
                    "They lived happily ever after.", f"That night they both slept well in the {place}.",
                    "And that is how a good friendship began."))  # fmt: skip
    return [opening, habit, trouble, search, help_, rescue, thanks, end]


def once(rng: random.Random) -> tuple[str, str]:
    """A bare beginning, and the story that goes on from it."""
    first, *others = tale_of(rng, rng.choice(ANIMALS), rng.choice(NAMES))
    opening = rng.choice(("Once upon a time", "Once upon a time there was", "Once upon a time..."))
    rest = first.removeprefix("Once upon a time ")
    if opening.endswith("was"):
        rest = rest.removeprefix("there was ")
    return opening, " ".join([rest, *others])


def exchange(rng: random.Random) -> Exchange:
    roll = rng.random()
    if roll < 0.4:
        roll = rng.random()
        animal = made_up(rng) if roll < 0.1 else rng.choice(HEROES if roll < 0.35 else ANIMALS)
        user = rng.choice(ASK).format(a=_a(animal))
        return Exchange("story", "", user, " ".join(tale(rng, animal)))
    sentences = tale(rng)
    if roll < 0.5:
        return Exchange("story", "", rng.choice(ASK_ANY), " ".join(sentences))
    if roll < 0.55:
        return Exchange("story", "", *once(rng))
    given = rng.randint(1, 5)
    user = rng.choice(CONTINUE).format(s=" ".join(sentences[:given]))
    return Exchange("story", "continue " + user, user, " ".join(sentences[given:]))
