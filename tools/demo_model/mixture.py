"""What is trained on in which share: draws whole conversations from all tasks, and the evaluation cases.

Training draws only problems outside the held-out split, evaluation only problems inside it.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable

from .conversation import Case, Conversation, Exchange, Message, draw, is_held_out
from .tasks import arithmetic, chat, facts, general, lists, lookup, records, stories, style, toolbox, tooluse
from .words import any_name

# Shares of training tokens are about proportional to weight times the mean length of a conversation.
WEIGHTS = {
    "chat": 8.0, "arithmetic": 11.0, "lists": 15.0, "facts": 11.0, "json": 6.0, "general": 2.0, "style": 6.0,
    "story": 3.0, "tools": 7.5, "thinking": 3.0, "mixed": 10.0, "lookup_short": 6.0, "lookup_long": 1.6,
}  # fmt: skip

Maker = Callable[[random.Random], Exchange]
SHORT: tuple[tuple[Maker, float], ...] = (
    (arithmetic.exchange, 4), (lists.exchange, 4), (facts.exchange, 4), (records.exchange, 2), (general.exchange, 1.5),
    (stories.exchange, 0.5), (lookup.exchange, 1),
)  # fmt: skip
_MAKERS = [maker for maker, _ in SHORT]
_SHARES = [share for _, share in SHORT]


OPENERS = ("Hello! ", "Hi, ", "Please: ", "I have a question. ", "Hey! ", "Okay. ", "Now: ", "Next: ",
           "My name is {n}. ",
           "I am {n}. ", "Good morning! ", "Sure. ", "And ", "Can you help me? ")  # fmt: skip


def trained(rng: random.Random, make: Maker) -> list[Message]:
    """A training exchange; some are asked carelessly: a small first letter, or words before the question."""
    exchange = draw(make, rng, held_out=False)
    user, roll = exchange.user, rng.random()
    if exchange.task != "json" and roll < 0.16 and user[1:2].islower():
        user = user[0].lower() + user[1:]
    elif 0.16 <= roll < 0.24:
        user = rng.choice(OPENERS).format(n=any_name(rng)) + user
    user = user if user not in facts.HELD_OUT else exchange.user
    return [{"role": "user", "content": user}, {"role": "assistant", "content": exchange.assistant}]


def _run(rng: random.Random, make: Maker, turns: int) -> Conversation:
    messages: list[Message] = []
    for _ in range(turns):
        messages += trained(rng, make)
    return Conversation(messages)


def _mixed(rng: random.Random) -> Conversation:
    messages: list[Message] = []
    if rng.random() < 0.2:
        messages.append({"role": "system", "content": rng.choice(style.STYLES["plain"].systems)})
    for _ in range(rng.randint(1, 6)):
        if rng.random() < 0.3:
            messages += chat.conversation(rng, rng.randint(0, 1)).messages
        else:
            messages += trained(rng, rng.choices(_MAKERS, _SHARES)[0])
    return Conversation(messages or chat.conversation(rng, 1).messages)


def _thinking(rng: random.Random) -> Conversation:
    """History without thoughts, then one thinking turn: arithmetic with its work, anything else with a short note."""
    messages: list[Message] = []
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        messages += trained(rng, rng.choices(_MAKERS, _SHARES)[0])
    if rng.random() < 0.75:
        last = draw(arithmetic.exchange, rng, held_out=False)
    else:
        last = draw(rng.choices(_MAKERS, _SHARES)[0], rng, held_out=False)
    messages.append({"role": "user", "content": last.user})
    messages.append({"role": "assistant", "content": thought(last)})
    return Conversation(messages, thinking=True)


def thought(exchange: Exchange) -> str:
    """The answer with its think block."""
    notes = {"facts": "This is about lightllm.", "json": "I write the record as JSON.",
     "lookup": "I look for the key in the list.",
             "story": "I tell a story.", "general": "I know this."}  # fmt: skip
    thoughts = exchange.thoughts or notes.get(exchange.task, f"I {exchange.task} the list.")
    return f"<think>\n{thoughts}\n</think>\n\n{exchange.assistant}"


def _style(rng: random.Random) -> Conversation:
    while True:
        _, keys, messages = style.draw(rng, rng.randint(1, 4))
        if not any(is_held_out(key) for key in keys):
            return Conversation(messages)


def _lookup_long(rng: random.Random) -> Conversation:
    if rng.random() < 0.4:  # nearly the whole context is one list
        return lookup.conversation(rng, rng.randint(280, 440), rng.randint(4, 16))
    return lookup.conversation(rng, rng.choice((rng.randint(60, 150), rng.randint(150, 280))), rng.randint(12, 40))


def _lookup_short(rng: random.Random) -> Conversation:
    count = rng.choice((rng.randint(2, 10), rng.randint(10, 60)))
    return lookup.conversation(rng, count, rng.randint(1, 10))


_TABLE: dict[str, Callable[[random.Random], Conversation]] = {
    "chat": lambda r: chat.conversation(r, r.randint(1, 4)),
    "arithmetic": lambda r: _run(r, arithmetic.exchange, r.randint(1, 6)),
    "lists": lambda r: _run(r, lists.exchange, r.randint(1, 5)),
    "facts": lambda r: _run(r, facts.exchange, r.randint(1, 4)),
    "json": lambda r: _run(r, records.exchange, r.randint(1, 3)),
    "general": lambda r: _run(r, general.exchange, r.randint(1, 4)),
    "style": _style,
    "story": lambda r: _run(r, stories.exchange, r.choice((1, 1, 2))),
    "tools": lambda r: tooluse.conversation(r, r.randint(1, 6), lambda key: not is_held_out(key)),
    "thinking": _thinking,
    "mixed": _mixed,
    "lookup_short": _lookup_short,
    "lookup_long": _lookup_long,
}


def conversation(rng: random.Random, weights: dict[str, float] | None = None) -> Conversation:
    """One training conversation."""
    weights = weights or WEIGHTS
    return _TABLE[rng.choices(list(weights), list(weights.values()))[0]](rng)


LOOKUP_LENGTHS = (256, 512, 1024, 2048, 3000, 3500)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def _case(exchange: Exchange, task: str = "", check: str = "exact", group: str = "", thinking: bool = False) -> Case:
    return Case(task or exchange.task, [{"role": "user", "content": exchange.user}], exchange.assistant, check,
                group or exchange.task,
                thinking=thinking, max_tokens=300 if thinking else 200)  # fmt: skip


def _lookup_cases(rng: random.Random, count: int, length_of: Callable[[str], int]) -> list[Case]:
    """`count` cases for every length (in tokens, reached within 3 %) and depth."""
    found: list[Case] = []
    for length in LOOKUP_LENGTHS:
        for depth in DEPTHS:
            for _ in range(count):
                found.append(_lookup_case(rng, length, depth, length_of))
    return found


def _lookup_case(rng: random.Random, length: int, depth: float, length_of: Callable[[str], int]) -> Case:
    pairs, seed = max(4, length // 9), rng.random()
    while True:
        exchange = lookup.exchange(random.Random(seed), pairs, depth, held_out=True)
        measured = length_of(exchange.user)
        if length * 0.97 <= measured <= min(length, 3500):
            return _case(exchange, group=f"{length}@{depth:g}")
        better = max(4, round(pairs * length * 0.985 / measured))
        if better == pairs or rng.random() < 0.1:  # no list of this kind fits: take another kind
            seed = rng.random()
        pairs = better


def _tool_cases(rng: random.Random, count: int) -> list[Case]:
    """A call is asked for; and, with the call and its response given, the final answer."""
    found: list[Case] = []
    while len(found) < 2 * count:
        tools = toolbox.draw_tools(rng, rng.randint(2, 5))
        keys, turn = tooluse.use(rng, rng.choice(tools))
        if not is_held_out(keys[0]):
            continue
        schemas = [tool.schema(rng) for tool in tools]
        expected = json.dumps(turn[1]["tool_calls"][0]["function"])
        found.append(Case("tools", turn[:1], expected, "tool", "call", schemas))
        found.append(Case("tool answers", turn[:3], turn[3]["content"], "exact", "answer", schemas))
    return found


def _style_cases(rng: random.Random, count: int) -> list[Case]:
    found: list[Case] = []
    while len(found) < count:
        name, keys, messages = style.draw(rng, 1)
        if all(is_held_out(key) for key in keys):
            found.append(Case("style", messages[:-1], messages[-1]["content"], "exact", name))
    return found


def _chat_cases(rng: random.Random, count: int) -> list[Case]:
    """Conversations of several turns whose last answer must end by itself."""
    found: list[Case] = []
    while len(found) < count:
        talk = chat.conversation(rng, rng.randint(1, 3)).messages + draw(general.exchange, rng, True).messages()
        talk += chat.conversation(rng, 1).messages
        found.append(Case("chat ends", talk[:-1], talk[-1]["content"], "ends", "chat"))
    return found


def cases(seed: int, count: int, length_of: Callable[[str], int], lookup_count: int | None = None) -> list[Case]:
    """The evaluation: `count` held-out cases per task (facts: all of them, at most `count` if that is below 200)."""
    rng = random.Random(seed)
    found: list[Case] = []
    for _ in range(count):
        found.append(_case(_sum(rng), check="number"))
        found.append(_case(_sum(rng), "arithmetic, thinking", "number", thinking=True))
        for operation in lists.OPERATIONS:
            found.append(_case(draw(lambda r, o=operation: lists.exchange(r, o), rng, True)))  # type: ignore[misc]
        found.append(_case(draw(records.exchange, rng, True), check="json"))
        found.append(_case(draw(general.exchange, rng, True)))
    questions = [_case(question) for question in facts.cases()]
    found += questions if count >= 200 else rng.sample(questions, min(count, len(questions)))
    found += _tool_cases(rng, count) + _style_cases(rng, count) + _chat_cases(rng, count)
    per_cell = lookup_count if lookup_count is not None else max(1, count // 10)
    return found + _lookup_cases(rng, per_cell, length_of)


def _sum(rng: random.Random) -> Exchange:
    """A held-out sum or difference of numbers up to 999."""
    while True:
        exchange = draw(arithmetic.exchange, rng, True)
        if max(map(int, re.findall(r"\d+", exchange.key))) <= 999:
            return exchange
