"""Output parsers: one result for every cut of the text, exact arguments, nothing lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightllm.errors import ConfigError
from lightllm.text.parsers import (
    FORMAT_TAGS,
    OutputParser,
    ParserEvent,
    ReasoningDelta,
    TextDelta,
    ToolCallArguments,
    ToolCallStart,
    create_parser,
    detect,
    merge_events,
    prompt_opens_reasoning,
)
from lightllm.text.parsers.registry import REASONING_PARSERS, TOOL_PARSERS

FRAGMENTS = [
    "<tool_call>",
    "</tool_call>",
    "<tool",
    "<think>",
    "</think>",
    "</th",
    "\n",
    "  ",
    "text",
    '{"name": "f", "arguments": {"a": [1, "}\\"</tool_call>"]}}',
    '{"name": "g", "arguments": {}}',
    '{"arguments": {"b": 2}, "name": "h"}',
    '{"name": "i"}',
    '{"name": "j", "arguments": "{\\"c\\": 3}"}',
    '{"name": "k", "arguments": ',
    "{",
    "}",
    "[",
    '"',
    "\\",
]
OUTPUTS = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)


def parse(parser: OutputParser, chunks: Sequence[str]) -> list[ParserEvent]:
    events = [event for chunk in chunks for event in parser.push(chunk)]
    return merge_events([*events, *parser.finish()])


def hermes() -> OutputParser:
    return create_parser("hermes")


@pytest.mark.parametrize(
    "create",
    [
        hermes,
        lambda: create_parser(None, "think"),
        lambda: create_parser(None, "think", opened=True),
        lambda: create_parser("hermes", "think"),
        lambda: create_parser(),
    ],
)
def test_every_cut_gives_the_same_events(create: Callable[[], OutputParser]) -> None:
    @settings(max_examples=100, deadline=None)
    @given(OUTPUTS, st.lists(st.integers(0, 200), max_size=8))
    def check(text: str, cuts: list[int]) -> None:
        whole = parse(create(), [text])
        assert parse(create(), list(text)) == whole
        borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
        assert parse(create(), [text[a:b] for a, b in pairwise(borders)]) == whole

    check()


def test_calls_stream_their_arguments_exactly() -> None:
    arguments = '{"city": "Köln </tool_call> \\"x\\" }", "days": [1, {"a": null}]}'
    text = f'Let me look.\n<tool_call>\n{{"name": "weather", "arguments": {arguments}}}\n</tool_call>\n'
    text += '<tool_call>{"arguments" : { "q" :  1 }, "name": "search"}</tool_call>\n'
    assert parse(hermes(), list(text)) == [
        TextDelta("Let me look."),
        ToolCallStart(0, "weather"),
        ToolCallArguments(0, arguments),
        ToolCallStart(1, "search"),
        ToolCallArguments(1, '{ "q" :  1 }'),
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("One.\n{}\n\nTwo.", "One.\n\nTwo."),
        ("One. {}Two.", "One. Two."),
        ("One.{} {}\nTwo.\n", "One.\nTwo.\n"),
        ("One.{}Two.", "One.Two."),
        ("\n{}\nTwo.", "Two."),
        ("One.\n{}\n", "One."),
    ],
)
def test_texts_around_a_call_do_not_run_together(text: str, shown: str) -> None:
    events = parse(hermes(), list(text.replace("{}", '<tool_call>{"name": "f"}</tool_call>')))
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == shown


def test_arguments_leave_while_they_are_written() -> None:
    parser = hermes()
    assert parser.push('<tool_call>\n{"name": "f", "arguments": {"te') == [
        ToolCallStart(0, "f"),
        ToolCallArguments(0, '{"te'),
    ]
    assert parser.push("xt") == [ToolCallArguments(0, "xt")]
    assert parser.push('": 1}}\n</tool') == [ToolCallArguments(0, '": 1}')]
    assert [*parser.push("_call>"), *parser.finish()] == []


@pytest.mark.parametrize(
    "text",
    [
        "a < b <tool and <tool_calls",
        " <tool_call>not JSON</tool_call> after",
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "f", arguments: {}}</tool_call>',
        '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>\n{"name": "f"',
        "trailing \n",
        "<tool_call",
    ],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    assert parse(hermes(), list(text)) == [TextDelta(text)]


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ('{"name": "f"}', "{}"),
        ('{"name": "f", "arguments": null}', "{}"),
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', '{"a": 1}'),
        ('{"name": "f", "parameters": {"a": 1}}', '{"a": 1}'),
        ('{"id": "x", "name": "f", "arguments": {"a":1}}', '{"a":1}'),
    ],
)
def test_other_ways_to_write_a_call(body: str, arguments: str) -> None:
    expected = [ToolCallStart(0, "f"), ToolCallArguments(0, arguments)]
    assert parse(hermes(), list(f"<tool_call>{body}</tool_call>")) == expected
    assert parse(hermes(), [f"<tool_call>{body}"]) == expected


@pytest.mark.parametrize("arguments", ['{"a": {"b": "}"}', '{"a": [1}', '{"a": {"b": 1 < 2, <tool'])
@pytest.mark.parametrize("tag", ["</tool_call>", ""])
def test_arguments_that_lack_a_bracket_end_with_their_call(arguments: str, tag: str) -> None:
    text = f'<tool_call>{{"name": "f", "arguments": {arguments}{tag}<tool_call>{{"name": "g"}}</tool_call> Done.'
    assert parse(hermes(), list(text)) == [
        ToolCallStart(0, "f"),
        ToolCallArguments(0, arguments),
        ToolCallStart(1, "g"),
        ToolCallArguments(1, "{}"),
        TextDelta("Done."),
    ]


def test_a_long_name_waits_for_the_end_of_its_call() -> None:
    """Otherwise every piece of a name that never ends has all before it read again."""
    name = "n" * 300
    parser = hermes()
    assert parser.push(f'<tool_call>{{"name": "{name}", "arguments": {{"a": 1') == []
    assert merge_events(parser.push("}}</tool_call>")) == [ToolCallStart(0, name), ToolCallArguments(0, '{"a": 1}')]


def test_a_cut_call_keeps_what_was_written() -> None:
    assert parse(hermes(), ['<tool_call>{"name": "f", "arguments": {"a": "x\\']) == [
        ToolCallStart(0, "f"),
        ToolCallArguments(0, '{"a": "x\\'),
    ]


def test_a_call_that_is_not_closed_before_the_next() -> None:
    text = '<tool_call>{"name": "f", "arguments": {}}\n<tool_call>{"name": "g", "arguments": {}}</tool_call>'
    starts = [event for event in parse(hermes(), list(text)) if isinstance(event, ToolCallStart)]
    assert starts == [ToolCallStart(0, "f"), ToolCallStart(1, "g")]


@pytest.mark.parametrize(
    ("opened", "text", "reasoning", "answer"),
    [
        (False, "<think>\nwhy\nso\n</think>\n\nanswer\n", "why\nso", "answer\n"),
        (False, "\n<think></think>answer", "", "answer"),
        (False, "no tags, 1 < 2 </think>", "", "no tags, 1 < 2 </think>"),
        (False, "later <think>x</think>", "", "later <think>x</think>"),
        (False, "<think>cut </th", "cut </th", ""),
        (False, "<th", "", "<th"),
        (True, "why\n</think>\n\nanswer", "why", "answer"),
        (True, "\n<think>\nwhy</think>answer", "why", "answer"),
        (True, "\nnever closed\n\n", "never closed", ""),
        (True, "</think>answer", "", "answer"),
    ],
)
def test_reasoning(opened: bool, text: str, reasoning: str, answer: str) -> None:
    expected = [ReasoningDelta(reasoning)] * bool(reasoning) + [TextDelta(answer)] * bool(answer)
    assert parse(create_parser(None, "think", opened), list(text)) == expected


def test_reasoning_and_calls_together() -> None:
    text = '<think>\n<tool_call> is how\n</think>\n\n<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert parse(create_parser("hermes", "think"), list(text)) == [
        ReasoningDelta("<tool_call> is how"),
        ToolCallStart(0, "f"),
        ToolCallArguments(0, "{}"),
    ]


def test_every_format_says_what_it_looks_for() -> None:
    assert set(FORMAT_TAGS) == {*TOOL_PARSERS, *REASONING_PARSERS}


def test_names_of_parsers() -> None:
    with pytest.raises(ConfigError, match=r"tool_parser 'nonsense' is not known; known are: .*hermes"):
        create_parser("nonsense")
    with pytest.raises(ConfigError, match="reasoning_parser"):
        create_parser(None, "nonsense")
    assert detect("... <tool_call> ... <think>") == ("hermes", "think")
    assert detect("<tool_call><function=name>") == (None, None)
    assert detect(None) == (None, None)
    assert prompt_opens_reasoning("<|im_start|>assistant\n<think>\n", "think")
    assert not prompt_opens_reasoning("<think>\n\n</think>\n\n", "think")
    assert not prompt_opens_reasoning("<think>", None)
    for continued, opens in (("<think>\nLet", True), ("<think>a</think> b", False), ("What <think> means", False)):
        assert prompt_opens_reasoning("<|im_start|>assistant\n" + continued, "think", continued) == opens
    assert not prompt_opens_reasoning("<|im_start|>user\n<think>?<|im_end|>\n<|im_start|>assistant\n", "think")
