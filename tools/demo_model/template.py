"""The chat format: the Jinja template of the checkpoint and the same rules in Python for the generator.

ChatML turns; tools as in Qwen and Hermes; every assistant turn begins with an empty think block, in the history just
as in the prompt for an answer, so a conversation's earlier turns render exactly as they were generated and the prefix
cache finds them. With `enable_thinking=true` the last header stays bare and the model writes its own think block.
"""

from __future__ import annotations

import json

from .conversation import Conversation, Message

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
NO_THOUGHTS = "<think>\n\n</think>\n\n"

TOOLS_BEFORE = "You may call these functions:\n<tools>"
TOOLS_AFTER = (
    "\n</tools>\nTo call one, answer with\n"
    '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)

CHAT_TEMPLATE = (
    """\
{%- set ns = namespace(start=0, system='') %}
{%- if messages and messages[0].role == 'system' %}
    {%- set ns.start = 1 %}
    {%- set ns.system = messages[0].content %}
{%- endif %}
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if ns.system %}{{- ns.system + '\\n\\n' }}{%- endif %}
    {{- """
    + json.dumps(TOOLS_BEFORE)
    + """ }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
    {{- """
    + json.dumps(TOOLS_AFTER)
    + """ }}
    {{- '<|im_end|>\\n' }}
{%- elif ns.start == 1 %}
    {{- '<|im_start|>system\\n' + ns.system + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages[ns.start:] %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'assistant' %}
        {%- if '</think>' in content %}{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}
        {{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + content }}
        {%- for call in message.tool_calls or [] %}
            {%- set function = call.function if call.function else call %}
            {%- if content or not loop.first %}{{- '\\n' }}{%- endif %}
            {{- '<tool_call>\\n{"name": ' }}{{- function.name | tojson }}{{- ', "arguments": ' }}
            {%- set arguments = function.arguments %}
            {{- arguments if arguments is string else arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- elif message.role in ('user', 'system') %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- else %}
        {{- raise_exception('unknown role ' + (message.role | string) + ', use system, user, assistant or tool') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if not (enable_thinking is defined and enable_thinking) %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
)


def _assistant(message: Message) -> str:
    text: str = message["content"]
    for call in message.get("tool_calls") or ():
        function = call["function"]
        arguments = json.dumps(function["arguments"], ensure_ascii=False)
        text += "\n" if text else ""
        text += f'<tool_call>\n{{"name": {json.dumps(function["name"])}, "arguments": {arguments}}}\n</tool_call>'
    return text


def _system(messages: list[Message], tools: list[Message] | None) -> tuple[str, list[Message]]:
    system, rest = "", messages
    if messages and messages[0]["role"] == "system":
        system, rest = messages[0]["content"], messages[1:]
    if tools:
        listed = "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in tools)
        system = (system + "\n\n" if system else "") + TOOLS_BEFORE + listed + TOOLS_AFTER
    return (f"{TURN_START}system\n{system}{TURN_END}\n" if system else ""), rest


def pieces(conversation: Conversation) -> list[tuple[str, bool]]:
    """The conversation as text with a mark on what the model is trained to write.

    A thinking conversation keeps the thoughts of its last turn: its content is `<think>...</think>` and the answer.
    """
    head, rest = _system(conversation.messages, conversation.tools)
    found: list[tuple[str, bool]] = [(head, False)] if head else []
    for index, message in enumerate(rest):
        role = message["role"]
        if role == "assistant":
            last = conversation.thinking and index == len(rest) - 1
            header = f"{TURN_START}assistant\n" + ("" if last else NO_THOUGHTS)
            found += [(header, False), (_assistant(message) + TURN_END, True), ("\n", False)]
        elif role == "tool":
            opening = "" if index and rest[index - 1]["role"] == "tool" else f"{TURN_START}user"
            closing = "" if index + 1 < len(rest) and rest[index + 1]["role"] == "tool" else f"{TURN_END}\n"
            found.append((f"{opening}\n<tool_response>\n{message['content']}\n</tool_response>{closing}", False))
        else:
            found.append((f"{TURN_START}{role}\n{message['content']}{TURN_END}\n", False))
    return found


def prompt(messages: list[Message], tools: list[Message] | None = None, thinking: bool = False) -> str:
    """The text the model continues; equal to the Jinja template with add_generation_prompt."""
    text = "".join(piece for piece, _ in pieces(Conversation(messages, tools)))
    return text + f"{TURN_START}assistant\n" + ("" if thinking else NO_THOUGHTS)
