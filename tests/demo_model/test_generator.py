"""The generator gives the same data for a seed, right answers, and never trains on what is evaluated."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

from tokenizers import Tokenizer

from tools.demo_model import mixture
from tools.demo_model.conversation import Conversation, draw, is_held_out
from tools.demo_model.facts_base import FACTS
from tools.demo_model.tasks import arithmetic, facts, lists, lookup, records

PRINT = """
import random
from tools.demo_model.mixture import conversation
rng = random.Random(5)
print([conversation(rng) for _ in range(40)])
"""


def conversations(seed: int, count: int) -> list[Conversation]:
    rng = random.Random(seed)
    return [mixture.conversation(rng) for _ in range(count)]


def test_a_seed_means_the_same_conversations_in_every_process() -> None:
    root = Path(__file__).resolve().parents[2]
    texts = [
        subprocess.run(
            [sys.executable, "-c", PRINT],
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert texts[0] == texts[1]
    assert conversations(5, 20) == conversations(5, 20) != conversations(6, 20)


def test_training_never_asks_what_the_evaluation_asks(tokenizer: Tokenizer) -> None:
    cases = mixture.cases(7, 40, lambda text: len(tokenizer.encode(text).ids), lookup_count=1)
    # Not held out by wording: small talk and everyday questions, which the style task asks as well.
    closed = ("chat ends", "tool answers", "style", "general")
    asked = {case.messages[-1]["content"] for case in cases if case.task not in closed}
    styled = {(case.messages[0]["content"], case.messages[-1]["content"]) for case in cases if case.task == "style"}
    for conversation in conversations(1, 4000):
        system = conversation.messages[0]["content"] if conversation.messages[0]["role"] == "system" else ""
        for message in conversation.messages:
            if message["role"] == "user":
                assert message["content"] not in asked
                assert (system, message["content"]) not in styled


def test_every_evaluated_problem_is_held_out() -> None:
    rng = random.Random(3)
    for make in (arithmetic.exchange, lists.exchange, records.exchange):
        assert all(is_held_out(draw(make, rng, held_out=True).key) for _ in range(20))
        assert not any(is_held_out(draw(make, rng, held_out=False).key) for _ in range(20))
    assert all(is_held_out(lookup.exchange(rng, 20, 0.5, held_out=True).key) for _ in range(20))


def test_facts_have_unseen_paraphrases() -> None:
    rng = random.Random(4)
    held = {question for fact in FACTS for question in fact.held}
    assert len(held) >= 200 and all(len(fact.held) >= 4 for fact in FACTS)
    assert not held & {facts.exchange(rng).user for _ in range(20_000)}


def test_answers_are_right() -> None:
    rng = random.Random(6)
    for _ in range(500):
        exchange = arithmetic.exchange(rng)
        a, sign, b = re.fullmatch(r"(\d+)([+-])(\d+)", exchange.key).groups()  # type: ignore[union-attr]
        result = int(a) + int(b) if sign == "+" else int(a) - int(b)
        assert exchange.assistant == f"{a} {sign} {b} = {result}"
        exchange = lists.exchange(rng, "sort")
        items = exchange.user.rpartition(": ")[2].split(", ")
        key = int if items[0].isdigit() else str
        assert exchange.assistant.split(", ") in (sorted(items, key=key), sorted(items, key=key, reverse=True))
        assert isinstance(json.loads(records.exchange(rng).assistant), dict)
        exchange = lookup.exchange(rng)
        assert exchange.assistant in exchange.user


def test_written_work_adds_up() -> None:
    assert arithmetic.add_thoughts(347, 285).splitlines() == [
        "ones: 7 + 5 = 12, write 2, carry 1",
        "tens: 4 + 8 + 1 = 13, write 3, carry 1",
        "hundreds: 3 + 2 + 1 = 6, write 6",
    ]
    assert arithmetic.subtract_thoughts(12, 305).splitlines() == [
        "12 is less than 305, so the result is negative: 305 - 12",
        "ones: 5 - 2 = 3",
        "tens: 10 - 1 = 9, borrow 1",
        "hundreds: 2 - 0 = 2",
    ]
