"""Questions about lightllm, drawn from the fact base with many surface forms."""

from __future__ import annotations

import random

from ..conversation import Exchange
from ..facts_base import FACTS, Fact

OPENERS = ["", "", "", "", "", "", "Hi, ", "Hello! ", "Please tell me: ", "Quick question: ", "I wonder: ",
           "One question: ",
           "Hey, ", "I have a question. ", "Okay. ", "Next: ", "And ", "I am new to lightllm. ", "For my notes: ",
           "In simple words: ", "My colleague asks: ", "I am reading the manual. ", "One more thing: ",
           "Help me, please. ",
           "Maybe you know: ", "Briefly: "]  # fmt: skip
CLOSERS = [
    "",
    "",
    "",
    "",
    "",
    " Thanks.",
    " Please be brief.",
    " I am new here.",
    " Please explain.",
    " I could not find it.",
    " In one sentence.",
    " Just briefly.",
    " I forgot.",
    " In simple words, please.",
]
HELD_OUT = frozenset(question for fact in FACTS for question in fact.held)
_clash = HELD_OUT & {question for fact in FACTS for question in fact.asked}
assert not _clash, f"questions both trained on and held out: {_clash}"


def _vary(rng: random.Random, question: str) -> str:
    """The small changes people make: lower case, a lost question mark, a lost or doubled word."""
    roll = rng.random()
    if roll < 0.1:
        question = question.lower()
    elif roll < 0.2:
        question = question.rstrip("?.")
    elif roll < 0.3:
        words = question.split(" ")
        if len(words) > 4:
            del words[rng.randrange(len(words) - 1)]
        question = " ".join(words)
    opener = rng.choice(OPENERS)
    if opener.endswith((", ", "And ")) and not question.startswith(("lightllm", "TTFT", "TPOT", "CUDA", "KV")):
        question = question[0].lower() + question[1:]
    return opener + question + rng.choice(CLOSERS)


def exchange(rng: random.Random) -> Exchange:
    """A training question; evaluation takes `cases`."""
    while True:
        fact: Fact = rng.choice(FACTS)
        user = _vary(rng, rng.choice(fact.asked))
        if not any(user.lower().rstrip("?.") == q.lower().rstrip("?.") for q in fact.held):
            return Exchange("facts", "", user, fact.answer)


def cases() -> list[Exchange]:
    """Every held-out question with its answer."""
    return [Exchange("facts", "", question, fact.answer) for fact in FACTS for question in fact.held]
