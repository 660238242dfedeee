# ruff: noqa: SIM905 - a list of words reads best as words
"""The tools of the tool task: described by hand, or composed from verbs, nouns and parameters.

A drawn tool comes with a request that needs it, its arguments, what the tool may return and how to say that.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..words import (
    ADJECTIVES,
    ANIMALS,
    CAPITALS,
    CITIES,
    COLORS,
    FOODS,
    GENRES,
    LANGUAGES,
    MONTHS,
    PLAIN,
    ROOMS,
    WEEKDAYS,
    any_city,
    any_name,
    any_thing,
    made_up,
)

Value = Callable[[random.Random], Any]

PARAMETERS: dict[str, tuple[str, Value]] = {
    "city": ("string", any_city),
    "location": ("string", any_city),
    "name": ("string", any_name),
    "person": ("string", any_name),
    "user": ("string", any_name),
    "day": ("string", lambda r: r.choice(WEEKDAYS)),
    "month": ("string", lambda r: r.choice(MONTHS)),
    "color": ("string", lambda r: r.choice(COLORS)),
    "item": ("string", any_thing),
    "food": ("string", lambda r: r.choice(FOODS)),
    "animal": ("string", lambda r: r.choice(ANIMALS)),
    "title": ("string", lambda r: f"{r.choice(ADJECTIVES)} {r.choice(PLAIN)}"),
    "query": ("string", lambda r: f"{r.choice(ADJECTIVES)} {r.choice(PLAIN)}"),
    "topic": ("string", lambda r: r.choice(PLAIN)),
    "room": ("string", lambda r: r.choice(ROOMS)),
    "genre": ("string", lambda r: r.choice(GENRES)),
    "language": ("string", lambda r: r.choice(LANGUAGES)),
    "country": ("string", lambda r: r.choice(list(CAPITALS))),
    "code": ("string", made_up),
    "word": ("string", lambda r: made_up(r) if r.random() < 0.2 else r.choice(PLAIN)),
    "count": ("integer", lambda r: r.randint(1, 99)),
    "number": ("integer", lambda r: r.randint(1, 999)),
    "amount": ("integer", lambda r: r.randint(1, 999)),
    "minutes": ("integer", lambda r: r.randint(1, 90)),
    "level": ("integer", lambda r: r.randint(1, 10)),
    "hour": ("integer", lambda r: r.randint(0, 23)),
    "id": ("integer", lambda r: r.randint(1, 9999)),
}


ABOUT = ("The {k}", "Name of the {k}", "A {k}", "the {k} to use", "The {k}, e.g. {v}", "The {k} and state, e.g. {v}",
         "The {k}, for example {v} or others")  # fmt: skip
OPTIONAL: dict[str, dict[str, Any]] = {
    "unit": {"enum": ["celsius", "fahrenheit"]}, "format": {"enum": ["short", "long"]}, "locale": {}, "mode": {},
    "units": {"enum": ["metric", "imperial"]}, "timezone": {"description": "The time zone"}, "detail": {},
}  # fmt: skip
GET = (
    "get",
    "fetch",
    "lookup",
    "find",
    "query",
    "show",
    "get_current",
    "read",
    "check",
    "current",
    "ask_for",
    "retrieve",
    "",
)
RENAMED = {
    "city": ("city", "city", "location", "place", "town", "city_name", "where"), "location": ("location", "place",
    "city"),
    "person": ("person", "name", "who", "recipient", "contact"), "item": ("item", "product", "article", "name"),
    "minutes": ("minutes", "duration", "length"), "query": ("query", "q", "text", "search_term"), "text": ("text",
    "message", "body"),
    "room": ("room", "place", "location"), "a": ("a", "x", "first"), "b": ("b", "y", "second"), "amount": ("amount",
    "value"),
    "source": ("source", "from_currency"), "target": ("target", "to_currency"), "title": ("title", "subject", "what"),
    "start": ("start", "origin", "from"), "end": ("end", "destination", "to"), "count": ("count", "number", "n"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tool:
    """`requests` hold the parameters in braces; `result` makes a tool's return, `say` words it."""

    name: str
    description: str
    parameters: dict[str, str]  # name -> key of PARAMETERS or JSON type
    requests: tuple[str, ...]
    result: Callable[[random.Random, dict[str, Any]], dict[str, Any]]
    say: str
    values: dict[str, Value] | None = None

    def schema(self, rng: random.Random | None = None) -> dict[str, Any]:
        """The tool as a client sends it; with `rng`, in one of the forms that clients and their libraries write."""
        loose = rng is not None and rng.random() < 0.5
        properties: dict[str, dict[str, Any]] = {key: {"type": kind} for key, kind in self.parameters.items()}
        parameters: dict[str, Any] = {"type": "object", "properties": properties, "required": list(properties)}
        function: dict[str, Any] = {"name": self.name, "description": self.description, "parameters": parameters}
        if loose and rng is not None:
            if rng.random() < 0.6:
                for key, found in properties.items():
                    found["description"] = rng.choice(ABOUT).format(
                        k=key, v=PARAMETERS.get(key, PARAMETERS["city"])[1](rng)
                    )
            if rng.random() < 0.3:  # an optional parameter that nobody asks for
                extra = rng.choice(list(OPTIONAL))
                if extra not in properties:
                    properties[extra] = {"type": "string", **OPTIONAL[extra]}
            if rng.random() < 0.2:
                parameters["additionalProperties"] = False
            if rng.random() < 0.2:
                del parameters["required"]
            if rng.random() < 0.2:
                function["strict"] = True
            if rng.random() < 0.2:
                del function["description"]
        return {"type": "function", "function": function}

    def renamed(self, rng: random.Random) -> Tool:
        """The same tool under other names, so that names are read from the list and not remembered."""
        verb, _, noun = self.name.partition("_")
        name = self.name
        if verb == "get":
            name = f"{rng.choice(GET)}_{noun}".strip("_")
        if rng.random() < 0.15:
            first, *others = name.split("_")
            name = first + "".join(part.capitalize() for part in others)
        elif rng.random() < 0.15:
            name += rng.choice(("_tool", "_api", "_v2", "_now", "_service"))
        names = {key: rng.choice(RENAMED.get(key, (key,))) for key in self.parameters}
        if len(set(names.values())) < len(names):
            return replace(self, name=name)

        def fill(text: str) -> str:
            for old, new in names.items():
                text = text.replace("{" + old + "}", "{" + new + "}")
            return text

        values = {names[key]: (self.values or {}).get(key) or PARAMETERS[key][1] for key in self.parameters}
        back = {new: old for old, new in names.items()}
        return Tool(
            name,
            self.description,
            {names[key]: kind for key, kind in self.parameters.items()},
            tuple(fill(request) for request in self.requests),
            lambda r, arguments: self.result(r, {back[key]: value for key, value in arguments.items()}),
            fill(self.say),
            values,
        )

    def arguments(self, rng: random.Random) -> dict[str, Any]:
        own = self.values or {}
        return {key: own[key](rng) if key in own else PARAMETERS[key][1](rng) for key in self.parameters}


def _kinds(*names: str) -> dict[str, str]:
    return {name: PARAMETERS[name][0] for name in names}


SKY = ("sunny", "cloudy", "rainy", "windy", "snowy", "foggy", "clear")
CURRENCIES = ("EUR", "USD", "GBP", "JPY", "CHF", "CAD")

BY_HAND: tuple[Tool, ...] = (
    Tool("get_weather", "Get the current weather in a city", _kinds("city"),
         ("What is the weather in {city}?", "How is the weather in {city}?", "What's the weather like in {city}?",
          "Is it raining in {city}?", "What's the weather like in {city} today?",
          "How is the weather in {city} right now?",
          "What is the weather like in {city} now?", "Check the weather in {city} for me.", "Is it cold in {city}?",
          "Weather in {city}?", "Tell me the weather in {city}.", "How warm is it in {city} now?"),
         lambda r, a: {"temperature": r.randint(-9, 38), "sky": r.choice(SKY)},
         "It is {temperature} degrees and {sky} in {city}."),
    Tool("get_weather", "Returns the weather for a location", _kinds("location"),
         ("What is the weather in {location}?", "How is the weather in {location}?",
          "What's the weather in {location}?",
          "Please check the weather in {location}.", "Weather in {location}, please."),
         lambda r, a: {"temperature": r.randint(-9, 38), "sky": r.choice(SKY)},
         "It is {temperature} degrees and {sky} in {location}."),
    Tool("get_time", "Get the local time in a city", _kinds("city"),
         ("What time is it in {city}?", "Tell me the time in {city}.", "What is the local time in {city}?",
          "Time in {city}?",
          "How late is it in {city}?"),
         lambda r, a: {"time": f"{r.randint(0, 23):02d}:{r.randint(0, 59):02d}"}, "It is {time} in {city}."),
    Tool("set_timer", "Start a timer for some minutes", _kinds("minutes"),
         ("Set a timer for {minutes} minutes.", "Start a {minutes} minute timer.", "Wake me in {minutes} minutes.",
          "I need a timer of {minutes} minutes."),
         lambda r, a: {"status": "started"}, "The timer for {minutes} minutes is started."),
    Tool("add_numbers", "Add two numbers", {"a": "integer", "b": "integer"},
         ("Add {a} and {b}.", "What is {a} plus {b}?", "What is {a} + {b}?", "Sum {a} and {b}."),
         lambda r, a: {"result": a["a"] + a["b"]}, "The result is {result}.",
         {"a": lambda r: r.randint(1, 9999), "b": lambda r: r.randint(1, 9999)}),
    Tool("multiply", "Multiply two numbers", {"a": "integer", "b": "integer"},
         ("Multiply {a} by {b}.", "What is {a} times {b}?", "What is {a} * {b}?", "Compute {a} times {b}."),
         lambda r, a: {"result": a["a"] * a["b"]}, "The result is {result}.",
         {"a": lambda r: r.randint(2, 99), "b": lambda r: r.randint(2, 99)}),
    Tool("send_message", "Send a short message to a person", {"person": "string", "text": "string"},
         ('Send "{text}" to {person}.', 'Write {person} the message "{text}".', 'Tell {person}: "{text}"',
          'Send {person} a message saying "{text}".'),
         lambda r, a: {"status": "sent"}, "The message to {person} is sent.",
         {"text": lambda r: r.choice(("See you at {h}.", "I am late.", "Call me.", "Good luck!", "Dinner at {h}?",
         "Bring {f}.",
                                      "Happy birthday!", "Where are you?", "Thank you for the {f}.")).format(
              h=r.randint(1, 12), f=r.choice(FOODS))}),
    Tool("convert_currency", "Convert an amount of money", {"amount": "integer", "source": "string",
         "target": "string"},
         ("Convert {amount} {source} to {target}.", "How much is {amount} {source} in {target}?",
          "Change {amount} {source} into {target}.", "What are {amount} {source} in {target}?"),
         lambda r, a: {"result": r.randint(1, 2000)}, "{amount} {source} are {result} {target}.",
         {"source": lambda r: r.choice(CURRENCIES[:3]), "target": lambda r: r.choice(CURRENCIES[3:])}),
    Tool("translate", "Translate a word into a language", {"word": "string", "language": "string"},
         ("Translate {word} into {language}.", "What is {word} in {language}?", "How do I say {word} in {language}?"),
         lambda r, a: {"translation": "".join(r.choice("bdfklmnprst") + r.choice("aeiou") for _ in range(3))},
         "In {language}, {word} is {translation}."),
    Tool("search", "Search the web", _kinds("query"),
         ("Search for {query}.", "Look up {query} on the web.", "Find pages about {query}.", "Please search {query}."),
         lambda r, a: {"hits": r.randint(2, 99)}, "I found {hits} results for {query}."),
    Tool("book_table", "Book a table in a restaurant", {"city": "string", "people": "integer", "day": "string"},
         ("Book a table for {people} in {city} on {day}.", "I need a table in {city} for {people} people on {day}.",
          "Reserve a table for {people} people on {day} in {city}."),
         lambda r, a: {"status": "booked", "hour": r.randint(17, 21)},
                                                             "Your table in {city} is booked for {day} at {hour}.",
         {"people": lambda r: r.randint(2, 12)}),
    Tool("play_music", "Play music of some kind", {"genre": "string"},
         ("Play some {genre}.", "I want to hear {genre}.", "Put on {genre} music.", "Play {genre} music."),
         lambda r, a: {"status": "playing"}, "Now playing {genre}."),
    Tool("get_stock", "Get how many pieces of an item are in stock", _kinds("item"),
         ("How many pieces of {item} are in stock?", "Is there any {item} in stock?", "Check the stock of {item}.",
          "How much {item} do we have?"),
         lambda r, a: {"count": r.randint(2, 500)}, "There are {count} pieces of {item} in stock."),
    Tool("turn_on_light", "Turn on the light in a room", {"room": "string"},
         ("Turn on the light in the {room}.", "Light on in the {room}, please.", "Make it bright in the {room}.",
          "Switch on the {room} light."),
         lambda r, a: {"status": "on"}, "The light in the {room} is on."),
    Tool("get_price", "Get the price of an item", _kinds("item"),
         ("What is the price of {item}?", "How much does {item} cost?", "What does {item} cost?", "Price of {item}?"),
         lambda r, a: {"price": r.randint(2, 900)}, "The price of {item} is {price}."),
    Tool("get_birthday", "Get the birthday of a person", _kinds("person"),
         ("When is the birthday of {person}?", "When was {person} born?", "Which day is {person}'s birthday?"),
         lambda r, a: {"birthday": f"{r.choice(MONTHS)} {r.randint(1, 28)}"},
                                               "The birthday of {person} is {birthday}."),
    Tool("create_reminder", "Create a reminder for a day", {"title": "string", "day": "string"},
         ("Remind me of {title} on {day}.", "Create a reminder {title} for {day}.", "On {day}, remind me of {title}."),
         lambda r, a: {"status": "created"}, "I will remind you of {title} on {day}."),
    Tool("get_capital", "Get the capital of a country", {"country": "string"},
         ("Use the tool to find the capital of {country}.", "Look up the capital of {country}.",
          "Ask the tool for the capital of {country}."),
         lambda r, a: {"capital": r.choice(CITIES)}, "The capital of {country} is {capital}."),
    Tool("roll_dice", "Roll a number of dice", {"count": "integer"},
         ("Roll {count} dice.", "Throw {count} dice for me.", "Please roll {count} dice."),
         lambda r, a: {"total": r.randint(a["count"], 6 * a["count"])}, "The dice show {total}.",
         {"count": lambda r: r.randint(2, 12)}),
    Tool("get_distance", "Get the distance between two cities in kilometers", {"start": "string", "end": "string"},
         ("How far is it from {start} to {end}?", "What is the distance from {start} to {end}?",
          "Distance from {start} to {end}?"),
         lambda r, a: {"distance": r.randint(20, 9000)}, "It is {distance} kilometers from {start} to {end}.",
         {"start": lambda r: r.choice(CITIES[:40]), "end": lambda r: r.choice(CITIES[40:])}),
)  # fmt: skip

VERBS = """add open close find get list delete update check start stop count show move order rent paint clean fix lock
unlock pack ship sell buy print save load read rate""".split()
NOUNS = """account alarm album bill book box car card cart channel document door event file folder garden house invoice
job key lamp letter list map meeting note package page parcel phone photo plan playlist printer project record report
room route seat song task team ticket tool train user video wallet window""".split()
FORMS = ("{verb} the {noun} with {args}", "Please {verb} the {noun}: {args}", "{verb} {noun}, {args}",
         "Can you {verb} a {noun} with {args}?", "I want to {verb} the {noun} with {args}.",
         "{verb} the {noun} for {args}")  # fmt: skip
FIELDS = tuple(PARAMETERS)


def composed(rng: random.Random) -> Tool:
    """A tool nobody wrote by hand: verb_noun with one to three parameters."""
    verb, noun = rng.choice(VERBS), rng.choice(NOUNS)
    names = rng.sample(FIELDS, rng.choice((1, 1, 2, 2, 3)))
    form = rng.choice(("{k} {v}", "{k} {v}", "{k} = {v}", "{k}: {v}"))
    args = " and ".join(form.format(k=key, v="{" + key + "}") for key in names)
    request = rng.choice(FORMS).format(verb=verb, noun=noun, args=args)
    name = rng.choice((f"{verb}_{noun}", f"{verb}_{noun}", f"{noun}_{verb}", verb + noun.capitalize()))
    description = rng.choice(
        (f"{verb.capitalize()} a {noun}", f"{verb.capitalize()} the {noun}", f"Can {verb} a {noun}")
    )
    return Tool(
        name,
        description,
        _kinds(*names),
        (request[0].upper() + request[1:], request),
        lambda r, a: rng.choice(({"status": r.choice(("done", "ok", "failed"))}, {"result": r.randint(1, 999)})),
        "The {field} is {value}.",
    )


def draw_tools(rng: random.Random, count: int) -> list[Tool]:
    """`count` tools with distinct names."""
    found: dict[str, Tool] = {}
    while len(found) < count:
        tool = rng.choice(BY_HAND) if rng.random() < 0.6 else composed(rng)
        if tool in BY_HAND and rng.random() < 0.5:
            tool = tool.renamed(rng)
        found.setdefault(tool.name, tool)
    tools = list(found.values())
    rng.shuffle(tools)
    return tools
