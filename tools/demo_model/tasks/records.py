# ruff: noqa: SIM905 - a list of words reads best as words
"""Write a JSON object for a record described in words, or given as plain assignments."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from ..conversation import Exchange
from ..words import (
    ADJECTIVES,
    ANIMALS,
    COLORS,
    FOODS,
    FRUITS,
    NAMES,
    OBJECTS,
    SURNAMES,
    WEEKDAYS,
    any_city,
    any_name,
    any_thing,
)

Record = dict[str, Any]
JOBS = """teacher nurse baker pilot farmer lawyer painter writer doctor engineer singer driver chef gardener student
dentist carpenter librarian scientist plumber""".split()

ASK = [
    "Write a JSON object for this record: {d}", "Turn this into JSON: {d}", "Give me JSON for the following: {d}",
    "{d} Write this as a JSON object.", "{d} Answer with JSON only.", "Convert to JSON: {d}",
    "Extract the record as JSON: {d}",
    "As JSON, please: {d}", "Make a JSON record: {d}", "Describe this in JSON: {d}",
]  # fmt: skip


def person(r: random.Random) -> tuple[Record, str]:
    record: Record = {"name": f"{any_name(r)} {r.choice(SURNAMES)}" if r.random() < 0.5 else any_name(r),
              "age": r.randint(5, 95), "city": any_city(r)}  # fmt: skip
    if r.random() < 0.5:
        record["job"] = r.choice(JOBS)
        text = r.choice((
            "{name} is {age} years old, lives in {city} and works as a {job}.",
            "A person named {name}, aged {age}, living in {city}, with the job {job}.",
            "{name} is a {age}-year-old {job} from {city}.",
            "The {job} {name} is {age} and lives in {city}.",
        ))  # fmt: skip
    else:
        text = r.choice((
            "{name} is {age} years old and lives in {city}.", "A person named {name}, aged {age}, who lives in {city}.",
            "{name}, {age}, from {city}.", "{name} lives in {city} and is {age} years old.",
        ))  # fmt: skip
    return record, text.format(**record)


def product(r: random.Random) -> tuple[Record, str]:
    record: Record = {"product": any_thing(r), "color": r.choice(COLORS), "price": r.randint(1, 999),
              "in_stock": r.random() < 0.5}  # fmt: skip
    stock = "in stock" if record["in_stock"] else "not in stock"
    text = r.choice((
        "The product is a {color} {product}, it costs {price} euros and is {stock}.",
        "A {color} {product} for {price} euros, {stock}.",
        "We sell a {product} in {color}. The price is {price} euros and it is {stock}.",
    ))  # fmt: skip
    return record, text.format(stock=stock, **record)


def pet(r: random.Random) -> tuple[Record, str]:
    record: Record = {
        "name": any_name(r),
        "animal": r.choice(ANIMALS),
        "age": r.randint(1, 20),
        "color": r.choice(COLORS),
    }
    text = r.choice((
        "{name} is a {color} {animal} and {age} years old.", "A {color} {animal} called {name}, age {age}.",
        "My {animal} is named {name}, is {age} years old and {color}.",
    ))  # fmt: skip
    return record, text.format(**record)


def meeting(r: random.Random) -> tuple[Record, str]:
    record: Record = {
        "day": r.choice(WEEKDAYS),
        "hour": r.randint(8, 19),
        "city": any_city(r),
        "people": r.sample(NAMES, 2),
    }
    text = r.choice((
        "On {day} at {hour} o'clock {a} and {b} meet in {city}.",
        "{a} and {b} have a meeting in {city} on {day} at {hour}.",
        "There is a meeting on {day} at {hour} in {city} with {a} and {b}.",
    ))  # fmt: skip
    first, second = record["people"]
    return record, text.format(a=first, b=second, day=record["day"], hour=record["hour"], city=record["city"])


def order(r: random.Random) -> tuple[Record, str]:
    items = r.sample(FOODS + FRUITS, r.randint(1, 3))
    record: Record = {"order": r.randint(100, 9999), "customer": any_name(r), "items": items, "paid": r.random() < 0.5}
    listed = items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
    paid = "has paid" if record["paid"] else "has not paid"
    text = r.choice((
        "Order {order}: {customer} wants {listed} and {paid}.",
        "{customer} ordered {listed} with number {order} and {paid}.",
        "In order {order} the customer {customer} asks for {listed}. The customer {paid}.",
    ))  # fmt: skip
    return record, text.format(listed=listed, paid=paid, order=record["order"], customer=record["customer"])


def fields(r: random.Random) -> tuple[Record, str]:
    """Plain assignments with any field names: the general case."""
    makers: list[Callable[[], Any]] = [
        lambda: any_name(r), lambda: any_city(r), lambda: r.choice(COLORS), lambda: r.randint(0, 999),
        lambda: r.randint(0, 99), lambda: r.random() < 0.5, lambda: f"{r.choice(ADJECTIVES)} {r.choice(OBJECTS)}",
    ]  # fmt: skip
    names = ["name", "age", "city", "color", "size", "count", "price", "title", "owner", "code", "kind", "year", "id",
             "active", "level", "score", "weight", "height", "status", "note", "brand", *OBJECTS[:30]]  # fmt: skip
    record: Record = {name: r.choice(makers)() for name in r.sample(names, r.randint(1, 5))}
    shown = {k: json.dumps(v) if isinstance(v, bool) else str(v) for k, v in record.items()}
    form = r.choice(("{k} is {v}", "{k} = {v}", "{k}: {v}", "the {k} is {v}"))
    text = ", ".join(form.format(k=k, v=v) for k, v in shown.items()) + r.choice((".", ""))
    return record, text


MAKERS = (person, product, pet, meeting, order, fields, fields)


def exchange(rng: random.Random) -> Exchange:
    record, text = rng.choice(MAKERS)(rng)
    answer = json.dumps(record, ensure_ascii=False)
    return Exchange("json", "json " + answer, rng.choice(ASK).format(d=text), answer)
