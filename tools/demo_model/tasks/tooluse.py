"""Conversations with tools: choose the right one, call it with the right arguments, then use what it returned."""

from __future__ import annotations

import json
import random
from typing import Any

from ..conversation import Conversation, Message
from . import chat, general
from .toolbox import Tool, draw_tools

AFTER = ["{q}", "{q}", "{q}", "Please help: {q}", "{q} Thanks.", "Hi! {q}", "And now: {q}", "Can you do this? {q}"]


def call_message(*calls: tuple[str, dict[str, Any]]) -> Message:
    made = [{"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls]
    return {"role": "assistant", "content": "", "tool_calls": made}


def answer(tool: Tool, arguments: dict[str, Any], result: dict[str, Any]) -> str:
    if "{field}" in tool.say:
        field, value = next(iter(result.items()))
        return tool.say.format(field=field, value=value)
    return tool.say.format(**{**arguments, **result})


def problem_keys(tool: Tool, arguments: dict[str, Any]) -> list[str]:
    """The keys of a use; a tool that adds also does a sum, which the split of sums must allow."""
    keys = [f"tool {tool.name} {json.dumps(arguments)}"]
    if tool.description == "Add two numbers":
        keys.append("+".join(map(str, arguments.values())))
    return keys


def request(rng: random.Random, tool: Tool) -> tuple[list[str], str, dict[str, Any]]:
    """The problem's keys, the user's words and the arguments they ask for."""
    arguments = tool.arguments(rng)
    text = rng.choice(tool.requests).format(**arguments)
    return problem_keys(tool, arguments), rng.choice(AFTER).format(q=text), arguments


def use(rng: random.Random, tool: Tool) -> tuple[list[str], list[Message]]:
    """One full use: request, call, response, answer."""
    keys, user, arguments = request(rng, tool)
    result = tool.result(rng, arguments)
    return keys, [
        {"role": "user", "content": user},
        call_message((tool.name, arguments)),
        {"role": "tool", "content": json.dumps(result)},
        {"role": "assistant", "content": answer(tool, arguments, result)},
    ]


def use_two(rng: random.Random, first: Tool, second: Tool) -> tuple[list[str], list[Message]]:
    """Two requests in one message, answered by two calls at once."""
    keys: list[str] = []
    users, calls, responses, answers = [], [], [], []
    for tool in (first, second):
        arguments = tool.arguments(rng)
        keys += problem_keys(tool, arguments)
        users.append(rng.choice(tool.requests).format(**arguments))
        result = tool.result(rng, arguments)
        calls.append((tool.name, arguments))
        responses.append({"role": "tool", "content": json.dumps(result)})
        answers.append(answer(tool, arguments, result))
    user = rng.choice((" ", " And ", " Also: ")).join(users)
    return keys, [
        {"role": "user", "content": user},
        call_message(*calls),
        *responses,
        {"role": "assistant", "content": " ".join(answers)},
    ]


def conversation(rng: random.Random, uses: int, allowed: Any) -> Conversation:
    """Two to five tools and `uses` uses, with small talk between; `allowed(key)` keeps the split."""
    tools = draw_tools(rng, rng.choice((1, 2, 2, 3, 3, 4, 5)))
    messages: list[Message] = []
    if rng.random() < 0.1:
        messages.append(
            {"role": "system", "content": rng.choice(("You are a helpful assistant.", "Use the tools when needed."))}
        )
    done = 0
    while done < uses:
        if rng.random() < 0.12:
            asked = general.exchange(rng)
            pair = (
                (asked.user, asked.assistant) if rng.random() < 0.3 and allowed(asked.key) else chat.small_talk(rng)[0]
            )
            if pair[1] in (chat.DONT_KNOW, chat.ONLY_SUMS) and rng.random() < 0.8:
                continue  # what the model does not know, a tool may know
            if any(word in pair[0] for word in ("weather", "price", "capital", "time", "Translate", "times", "far")):
                continue
            messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
            continue
        if rng.random() < 0.12:
            keys, turn = use_two(rng, rng.choice(tools), rng.choice(tools))
        else:
            keys, turn = use(rng, rng.choice(tools))
        if all(allowed(key) for key in keys):
            messages += turn
            done += 1
    return Conversation(messages, tools=[tool.schema(rng) for tool in tools])
