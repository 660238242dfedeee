"""System prompts that say how to answer: one word, upper case, lower case, a fixed start or end, numbers only."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from ..conversation import Message
from . import arithmetic, chat, facts, general


@dataclass(frozen=True, slots=True)
class Style:
    systems: tuple[str, ...]
    apply: Callable[[str, str, str], str]  # (sentence, word, phrase) -> answer
    phrases: tuple[str, ...] = ("",)


PHRASES = ("Over.", "Have a nice day!", "Captain", "Thank you.", "Cheers!", "Ahoy!", "The end.", "Beep.", "Good luck!",
           "My friend.", "Yes, sir.", "Meow.", "As always.", "Well then.", "Done.", "Stay curious.")  # fmt: skip
STYLES: dict[str, Style] = {
    "one word": Style(
        ("Answer in one word.", "Reply with one word only.", "Use a single word to answer.", "Answer with one word.",
         "You answer every question in one word.", "Only one word per answer.", "Keep your answer to one word."),
        lambda sentence, word, phrase: word,
    ),
    "upper": Style(
        ("Answer in upper case.", "Write everything in upper case.", "Reply in capital letters.",
         "Use only capital letters.",
         "Always answer in upper case.", "You speak in upper case.", "ANSWER IN UPPER CASE."),
        lambda sentence, word, phrase: sentence.upper(),
    ),
    "lower": Style(
        ("Answer in lower case.", "Write everything in lower case.", "Use only small letters.",
         "Reply in lower case letters.",
         "Always answer in lower case.", "answer in lower case"),
        lambda sentence, word, phrase: sentence.lower(),
    ),
    "end": Style(
        ('End every answer with "{p}"', 'Always end with "{p}"', 'Finish each answer with "{p}"',
         'Close your answer with "{p}"'),
        lambda sentence, word, phrase: f"{sentence} {phrase}",
        PHRASES,
    ),
    "start": Style(
        ('Start every answer with "{p}"', 'Always begin with "{p}"', 'Begin each answer with "{p}"',
         'Open your answer with "{p}"'),
        lambda sentence, word, phrase: f"{phrase} {sentence}",
        PHRASES,
    ),
    "plain": Style(
        ("You are a helpful assistant.", "You are a pirate.", "You are an expert.", "Be polite.",
         "You are a helpful AI assistant.", "You are a friendly assistant.", "Be brief.",
         "You are lightllm's demo model."),
        lambda sentence, word, phrase: sentence,
    ),
}  # fmt: skip


def draw(rng: random.Random, turns: int) -> tuple[str, list[str], list[Message]]:
    """A style name, the keys of its problems, and the messages: a system turn and `turns` exchanges."""
    name = rng.choice(list(STYLES))
    style = STYLES[name]
    phrase = rng.choice(style.phrases)
    system = rng.choice(style.systems).format(p=phrase)
    keys: list[str] = []
    messages: list[Message] = [{"role": "system", "content": system}]
    for _ in range(turns):
        if rng.random() < 0.2:
            sum_ = arithmetic.exchange(rng)
            user, sentence, word = sum_.user, sum_.assistant, sum_.assistant.rsplit(" ", 1)[1]
            keys.append(sum_.key)
        elif name != "one word" and rng.random() < 0.35:
            if rng.random() < 0.5:
                (user, sentence), *_ = chat.small_talk(rng)
            else:
                fact = facts.exchange(rng)
                user, sentence = fact.user, fact.assistant
            word = sentence
            keys.append(f"style {system} {user}")
        else:
            asked = general.question(rng)
            user, sentence, word = asked.user, asked.sentence, asked.word
            keys.append(f"style {system} {user}")
        messages += [
            {"role": "user", "content": user},
            {"role": "assistant", "content": style.apply(sentence, word, phrase)},
        ]
    return name, keys, messages
