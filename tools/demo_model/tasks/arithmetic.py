"""Addition and subtraction of numbers up to 999, answered at once or after written digit-by-digit work."""

from __future__ import annotations

import random

from ..conversation import Exchange

ADD = [
    "What is {a} + {b}?", "{a} + {b}", "{a} + {b} = ?", "Add {a} and {b}.", "What is {a} plus {b}?", "{a} plus {b}",
    "Calculate {a} + {b}.", "What is the sum of {a} and {b}?", "How much is {a} + {b}?", "Compute {a} + {b}",
    "I have {a} coins and get {b} more. How many coins do I have?", "What do you get when you add {a} and {b}?",
    "Please add {a} and {b}.", "Can you work out {a} + {b}?", "sum of {a} and {b}", "what's {a} + {b}?",
    "What's {a} plus {b}?", "How much is {a} plus {b}?", "{a}+{b}", "What is {a}+{b}?",
]  # fmt: skip
SUBTRACT = [
    "What is {a} - {b}?", "{a} - {b}", "{a} - {b} = ?", "Subtract {b} from {a}.", "What is {a} minus {b}?",
    "{a} minus {b}", "Calculate {a} - {b}.", "What is the difference {a} - {b}?", "How much is {a} - {b}?",
    "Compute {a} - {b}", "Take {b} away from {a}.", "What do you get when you take {b} from {a}?",
    "Please subtract {b} from {a}.", "Can you work out {a} - {b}?", "what's {a} - {b}?", "What's {a} minus {b}?",
    "How much is {a} minus {b}?", "{a}-{b}", "What is {a}-{b}?",
]  # fmt: skip
PLACES = ("ones", "tens", "hundreds", "thousands", "ten thousands")


def operand(rng: random.Random) -> int:
    """Mostly three digits; short numbers often enough to be right as well, and a few of four digits."""
    return rng.randrange(rng.choices((1000, 100, 10000), (80, 13, 7))[0])


def add_thoughts(a: int, b: int) -> str:
    lines, carry, width = [], 0, max(len(str(a)), len(str(b)))
    for place in range(width):
        x, y = a // 10**place % 10, b // 10**place % 10
        total = x + y + carry
        work = f"{x} + {y} + {carry}" if carry else f"{x} + {y}"
        carry = total // 10
        lines.append(f"{PLACES[place]}: {work} = {total}, write {total % 10}" + (", carry 1" if carry else ""))
    if carry:
        lines.append(f"{PLACES[width]}: write 1")
    return "\n".join(lines)


def subtract_thoughts(a: int, b: int) -> str:
    if a < b:
        return f"{a} is less than {b}, so the result is negative: {b} - {a}\n" + subtract_thoughts(b, a)
    lines, borrow = [], 0
    for place in range(len(str(a))):
        x, y = a // 10**place % 10 - borrow, b // 10**place % 10
        borrow = int(x < y)
        top = x + 10 * borrow
        lines.append(f"{PLACES[place]}: {top} - {y} = {top - y}" + (", borrow 1" if borrow else ""))
    return "\n".join(lines)


def exchange(rng: random.Random) -> Exchange:
    a, b = operand(rng), operand(rng)
    if rng.random() < 0.45:
        user, result, sign = rng.choice(ADD).format(a=a, b=b), a + b, "+"
        thoughts = add_thoughts(a, b)
    else:
        user, result, sign = rng.choice(SUBTRACT).format(a=a, b=b), a - b, "-"
        thoughts = subtract_thoughts(a, b)
    return Exchange("arithmetic", f"{a}{sign}{b}", user, f"{a} {sign} {b} = {result}", thoughts)
