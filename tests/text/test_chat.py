"""Chat templates against Transformers, the forms in which clients send messages, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightllm.errors import CheckpointError, InvalidRequest
from lightllm.text.chat import ChatTemplate, check_template_kwargs, normalise_messages, read_traits
from lightllm.text.tokenizer import Tokenizer

from . import chat_templates
from .toy_tokenizers import NAMED

SPECIAL = NAMED["byte_level"]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Wetter <b>für</b> & 'x'",
        "parameters": {"type": "object"},
    },
}
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": "Hi"}],
    "turns": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "  Hello! "},
        {"role": "user", "content": "Über 🎉?"},
    ],
    "calls": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "18 °C"},
    ],
    "reasoning": [
        {"role": "user", "content": "2+2"},
        {"role": "assistant", "content": "4", "reasoning": "\nadd\n"},
    ],
}


def transformers_prompt(directory: Path, template: str, chat: list[dict[str, Any]], **options: Any) -> str:
    from transformers import PreTrainedTokenizerFast

    oracle = PreTrainedTokenizerFast.from_pretrained(directory)
    text = oracle.apply_chat_template(chat, chat_template=template, tokenize=False, **options)
    assert isinstance(text, str)
    return text


PAIRS = [(name, chat) for name in chat_templates.ALL for chat in CHATS if chat != "calls"]
PAIRS += [("qwen3", "calls"), ("llama3", "calls")]


@pytest.mark.parametrize(("name", "chat"), PAIRS)
@pytest.mark.parametrize("prompt", [True, False])
def test_prompts_equal_transformers(name: str, chat: str, prompt: bool, directories: dict[str, Path]) -> None:
    if name == "parts_only":
        shown = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in CHATS[chat]]
    else:
        shown = CHATS[chat]
    template = chat_templates.ALL[name]
    tools = [TOOL] if chat == "calls" else None
    expected = transformers_prompt(
        directories["byte_level"],
        template,
        shown,
        add_generation_prompt=prompt,
        tools=tools,
        enable_thinking=False,
    )
    ours = ChatTemplate(template, SPECIAL)
    assert ours.render(CHATS[chat], tools, None, prompt, enable_thinking=False) == expected


@pytest.mark.parametrize("name", ["chatml", "qwen3", "llama3", "parts"])
@pytest.mark.parametrize("content", ["The answer is", "trailing space ", "", "  both  \n"])
def test_continuing_the_final_message_equals_transformers(
    name: str, content: str, directories: dict[str, Path]
) -> None:
    template = chat_templates.ALL[name]
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": content}]
    options = {"add_generation_prompt": False, "continue_final_message": True}
    expected = transformers_prompt(directories["byte_level"], template, chat, **options)
    assert ChatTemplate(template, SPECIAL).render(chat, **options) == expected


def test_continuing_needs_text_and_excludes_a_generation_prompt() -> None:
    template = ChatTemplate(chat_templates.QWEN3, SPECIAL)
    with pytest.raises(InvalidRequest, match="exclude each other"):
        template.render(CHATS["one"], continue_final_message=True)
    calls = CHATS["calls"][:2]
    with pytest.raises(InvalidRequest, match=r"messages\[1\]\.content"):
        template.render(calls, add_generation_prompt=False, continue_final_message=True)
    upper = ChatTemplate("{% for m in messages %}{{ m.content | upper }}{% endfor %}", {})
    with pytest.raises(InvalidRequest, match="cannot be continued"):
        upper.render(CHATS["one"], add_generation_prompt=False, continue_final_message=True)


def test_template_and_tool_template_of_a_checkpoint(tmp_path: Path, tokenizers: dict[str, Tokenizer]) -> None:
    template = ChatTemplate({"default": "plain", "tool_use": "{{ tools | tojson }}"}, {})
    assert template.render(CHATS["one"]) == "plain"
    assert template.render(CHATS["one"], [{"a": 1}]) == '[{"a": 1}]'
    assert template.source == "plain" and template.tool_source == "{{ tools | tojson }}"
    assert ChatTemplate("plain", {}).tool_source == "plain" and ChatTemplate(None, {}).tool_source is None
    with pytest.raises(InvalidRequest, match="no default"):
        ChatTemplate({"other": "x"}, {}).render(CHATS["one"])


def test_a_missing_template_says_how_to_give_one() -> None:
    with pytest.raises(InvalidRequest, match=r"no chat template.*chat_template\.jinja"):
        ChatTemplate(None, {}).render(CHATS["one"])


@pytest.mark.parametrize(
    "source", ["{% for %}", "{{ open", "{% nonsense %}", "{{ 1 | no_such_filter }}", "{% endif %}"]
)
def test_a_template_that_does_not_compile_fails_at_load(source: str) -> None:
    with pytest.raises(CheckpointError, match="does not compile"):
        ChatTemplate(source, {})


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ none + 1 }}", "TypeError"),
        ("{{ messages | tojson(indent='x', separators=3) }}", "failed"),
        ("{{ undefined_name.field }}", "undefined"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "'append' of 'list' object is unsafe"),
        ("{{ namespace(_x=1) }}", "underscore"),
        ("{% for i in range(1000000) %}{% endfor %}", "Range too big"),
        (
            "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
            "limit of 2000000 steps",
        ),
        ("{{ 'x' * 99999999 }}", "limit of 16777216"),
        ("{{ [0] * 99999999 }}", "limit of 16777216"),
        ("{{ 9 ** 999999999 }}", "limited"),
        ("{% for i in range(9000) %}{{ 'x' * 9000 }}{% endfor %}", "limit of 16777216 characters"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "RecursionError"),
    ],
)
def test_what_a_template_refuses_or_may_not_do(source: str, match: str) -> None:
    with pytest.raises(InvalidRequest, match=match):
        ChatTemplate(source, {}).render(CHATS["one"])


def test_what_a_template_may_use() -> None:
    source = (
        "{% for m in messages %}{% if loop.last %}{{ loop.length }}{% break %}{% endif %}{% endfor %}"
        "{{ dict(a=1).a }}{{ [1, '<&ü'] | tojson }}{{ strftime_now('%Y') | length }}"
        "{{ documents[0].title }}{{ 'ab' * 2 }}"
    )
    rendered = ChatTemplate(source, {}).render(CHATS["turns"], documents=[{"title": "T"}])
    assert rendered == '41[1, "<&ü"]4Tabab'


def test_template_kwargs_may_not_replace_fields() -> None:
    check_template_kwargs({"enable_thinking": False})
    with pytest.raises(InvalidRequest, match="cannot set 'messages'"):
        check_template_kwargs({"messages": []})
    template = ChatTemplate("{{ bos_token }}{{ level }}", {"bos_token": "<s>"})
    assert template.render(CHATS["one"], level=2) == "<s>2"
    with pytest.raises(InvalidRequest, match=r"chat_template_kwargs\.level must be a JSON value, not object"):
        template.render(CHATS["one"], level=object())


def normalised(message: dict[str, Any], source: str = chat_templates.CHATML) -> dict[str, Any]:
    return normalise_messages([message], read_traits(source))[0]


PARTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]


@pytest.mark.parametrize(
    ("source", "role", "content", "expected"),
    [
        (chat_templates.CHATML, "user", PARTS, "a\nb"),
        (chat_templates.CHATML, "tool", PARTS, "a\nb"),
        (chat_templates.CHATML, "user", [], ""),
        (chat_templates.QWEN3, "user", PARTS, "a\nb"),
        (chat_templates.LLAMA3, "user", PARTS, "a\nb"),
        (chat_templates.PARTS, "user", PARTS, PARTS),
        (chat_templates.PARTS, "tool", PARTS, "a\nb"),
        (chat_templates.PARTS, "user", "text", "text"),
        (chat_templates.PARTS_ONLY, "user", "text", [{"type": "text", "text": "text"}]),
        (chat_templates.PARTS_ONLY, "tool", PARTS, PARTS),
    ],
)
def test_content_in_the_form_the_template_reads(source: str, role: str, content: Any, expected: Any) -> None:
    assert normalised({"role": role, "content": content}, source)["content"] == expected


def test_roles_arguments_and_reasoning() -> None:
    assert normalised({"role": "developer", "content": "x"})["role"] == "system"
    assert normalised({"role": "developer", "content": "x"}, "{{ 'developer' }}")["role"] == "developer"
    assert normalised({"role": "critic", "content": "x"}, "{{ 'critic' }}")["role"] == "critic"
    for arguments, expected in (('{"a": 1.5}', {"a": 1.5}), ("", {}), (None, {}), ({"b": 2}, {"b": 2})):
        call = {"id": "1", "function": {"name": "f", "arguments": arguments}}
        message = normalised({"role": "assistant", "tool_calls": [call], "content": None})
        assert message["tool_calls"] == [{"id": "1", "function": {"name": "f", "arguments": expected}}]
        assert message["content"] == ""
    for name in ("reasoning", "reasoning_content"):
        message = normalised({"role": "assistant", "content": "x", name: "why"})
        assert message["reasoning_content"] == "why"
    broken = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{oops"}}]}
    assert normalised(broken, chat_templates.QWEN3)["tool_calls"][0]["function"]["arguments"] == "{oops"
    assert "tool_calls" not in normalised({"role": "assistant", "content": "x", "tool_calls": []})
    none_test = "{% if message['content'] is none %}{% endif %}"
    assert normalised({"role": "assistant", "tool_calls": [CALL]}, none_test)["content"] is None
    assert normalised({"role": "assistant", "tool_calls": [CALL]}, chat_templates.PARTS_ONLY)["content"] == []
    of_reasoning = "{% if message.reasoning_content is string and message.reasoning_content is not none %}{% endif %}"
    assert normalised({"role": "assistant", "tool_calls": [CALL]}, of_reasoning)["content"] == ""
    parts = normalised({"role": "user", "content": "text"}, of_reasoning + chat_templates.PARTS_ONLY)["content"]
    assert parts == [{"type": "text", "text": "text"}]


@pytest.mark.parametrize("reasoning", [{}, {"reasoning_content": "It is about the weather."}])
def test_answers_without_a_content_can_be_sent_back(reasoning: dict[str, str]) -> None:
    """As clients hand back a call: the content is null or missing, which the first templates of Qwen3 search and
    strip."""
    template = ChatTemplate(chat_templates.QWEN3_FIRST, SPECIAL)
    call = {"role": "assistant", **reasoning, "tool_calls": [CALL]}
    chats: list[list[dict[str, Any]]] = [
        [{"role": "user", "content": "x"}, {**call, **content}, {"role": "tool", "content": "sunny"}]
        for content in ({"content": ""}, {"content": None}, {})
    ]
    expected, *others = (template.render(chat) for chat in chats)
    assert others == [expected, expected] and '{"city": "Köln"}' in expected
    assert all(text in expected for text in reasoning.values())


@pytest.mark.parametrize(
    "printed",
    [
        "{{ '```json\n' + call['function']['arguments'] + '\n```' }}",
        "{{- call.function.arguments -}}",
        "{{ call.function['name'] ~ call.function['arguments'] ~ eos_token }}",
    ],
)
def test_arguments_that_a_template_prints_as_they_are_stay_text(printed: str, directories: dict[str, Path]) -> None:
    """As the templates of DeepSeek R1, which its distilled Llama and Qwen models carry, are made for."""
    source = f"{{% for m in messages %}}{{% for call in m.tool_calls %}}{printed}{{% endfor %}}{{% endfor %}}"
    text = '{"city":"Köln",  "days": 2}'
    function = {"name": "weather", "arguments": text}
    chat = [CHATS["calls"][0], {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}]
    expected = transformers_prompt(directories["byte_level"], source, chat)
    assert text in expected
    template = ChatTemplate(source, SPECIAL)
    assert template.render(chat, add_generation_prompt=False) == expected
    spaced = '{"city": "Köln", "days": 2}'
    function["arguments"] = json.loads(text)
    assert template.render(chat, add_generation_prompt=False) == expected.replace(text, spaced)
    function["arguments"] = ""
    assert template.render(chat, add_generation_prompt=False) == expected.replace(text, "{}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ '{\"arguments\": ' + call.arguments | tojson }}",
        "{% for key, value in call.arguments | items %}{% endfor %}{{ '<arguments>' + x }}",
        "{% if call.arguments is mapping %}{{ call.arguments | tojson }}{% else %}{{ call.arguments }}{% endif %}",
        "{% set arguments = call.arguments %}{{ arguments | tojson }}",
        "{{ call.function | tojson }}",
    ],
)
def test_other_templates_get_arguments_as_objects(source: str) -> None:
    message = normalised({"role": "assistant", "tool_calls": [CALL]}, source)
    assert message["tool_calls"][0]["function"]["arguments"] == {"city": "Köln"}


def test_fields_keep_their_order() -> None:
    """Templates may print a message as JSON."""
    fields = ["role", "content", "name", "tool_call_id"]
    assert list(normalised({**dict.fromkeys(fields, "x"), "role": "tool"})) == fields


def test_a_generation_block_has_a_scope_of_its_own() -> None:
    source = "{% set z = 1 %}{% generation %}{% set z = 5 %}{{ z }}{% endgeneration %}{{ z }}"
    assert ChatTemplate(source, SPECIAL).render([{"role": "user", "content": "x"}]) == "51"


def test_messages_are_copied() -> None:
    chat = json.loads(json.dumps(CHATS["calls"]))
    ChatTemplate(chat_templates.QWEN3, SPECIAL).render(chat)
    assert chat == CHATS["calls"]


def deep_list(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def assistant(**call: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [call]}


@pytest.mark.parametrize(
    ("message", "place", "given"),
    [
        ("text", "messages[1]", "a string"),
        (None, "messages[1]", "null"),
        ({"content": "x"}, "messages[1].role", "null"),
        ({"role": 3, "content": "x"}, "messages[1].role", "an integer"),
        ({"role": "robot", "content": "x"}, "messages[1].role", "'robot'"),
        ({"role": "user"}, "messages[1].content", "null"),
        ({"role": "assistant", "content": None}, "messages[1].content", "null"),
        ({"role": "tool", "content": None}, "messages[1].content", "null"),
        ({"role": "user", "content": 7.5}, "messages[1].content", "a number"),
        ({"role": "user", "content": {"text": "x"}}, "messages[1].content", "an object"),
        ({"role": "user", "content": [7]}, "messages[1].content[0]", "an integer"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0].text", "null"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[1].content[0].type", "'image_url'"),
        ({"role": "assistant", "tool_calls": {}}, "messages[1].tool_calls", "an object"),
        ({"role": "assistant", "tool_calls": [1]}, "messages[1].tool_calls[0]", "an integer"),
        (assistant(), "messages[1].tool_calls[0].function", "null"),
        (assistant(function={}), "messages[1].tool_calls[0].function.name", "null"),
        (
            assistant(function={"name": "f", "arguments": "{"}),
            "messages[1].tool_calls[0].function.arguments",
            "JSON",
        ),
        (
            assistant(function={"name": "f", "arguments": "[1]"}),
            "messages[1].tool_calls[0].function.arguments",
            "a list",
        ),
        ({"role": "user", "content": "x", "reasoning": 3}, "messages[1].reasoning", "an integer"),
        ({"role": "user", "content": "x", "extra": object()}, "messages[1].extra", "object"),
        ({"role": "user", "content": "x", 3: 4}, "messages[1]", "an integer"),
        ({"role": "user", "content": deep_list(5000)}, "messages[1]", "nested too deeply"),
    ],
)
def test_malformed_messages_are_named_by_place(message: Any, place: str, given: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ChatTemplate(chat_templates.CHATML, {}).render([{"role": "user", "content": "Hi"}, message])
    assert place in caught.value.message
    assert given in caught.value.message


@pytest.mark.parametrize("messages", [[], "text", None, {"role": "user"}])
def test_messages_must_be_a_list_with_something_in_it(messages: Any) -> None:
    with pytest.raises(InvalidRequest, match="messages"):
        ChatTemplate(chat_templates.CHATML, {}).render(messages)


@pytest.mark.parametrize("field", ["tools", "documents"])
@pytest.mark.parametrize("value", ["text", [1], {"a": 1}, 7])
def test_tools_and_documents_must_be_lists_of_objects(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"{field} must be a list of objects"):
        ChatTemplate(chat_templates.CHATML, {}).render(CHATS["one"], **{field: value})
