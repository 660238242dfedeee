"""The demo tokenizer loses nothing, keeps digits apart, and its template is one thing in three places."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tools.demo_model import mixture, template
from tools.demo_model.conversation import Message

TEXTS = [
    "",
    "a",
    "  two  spaces ",
    "line\n\n\nline\r\n\ttab",
    "naïve café 東京 🙂",
    "x = 3.14159e-10",
    "<think>\n\n</think>",
    "\x00\x7f",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_digits_stand_alone(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("12345 + 678").tokens
    assert [token for token in tokens if any(c.isdigit() for c in token)] == list("12345678")


def test_markers_are_single_and_survive_decoding(tokenizer: Tokenizer) -> None:
    for marker in template.MARKERS:
        ids = tokenizer.encode(marker).ids
        assert len(ids) == 1 and tokenizer.decode(ids, skip_special_tokens=True) == marker
    for special in template.SPECIAL_TOKENS:
        ids = tokenizer.encode(special).ids
        assert len(ids) == 1 and tokenizer.decode(ids, skip_special_tokens=True) == ""


def test_a_turn_has_the_same_ids_alone_and_in_a_conversation(tokenizer: Tokenizer) -> None:
    rng = random.Random(2)
    for _ in range(60):
        parts = [text for text, _ in template.pieces(mixture.conversation(rng))]
        alone = [token for part in parts for token in tokenizer.encode(part).ids]
        assert alone == tokenizer.encode("".join(parts)).ids


def test_the_checkpoint_carries_the_template_of_the_source(demo: Path) -> None:
    for folder in (demo, demo.parent / "demo_draft"):
        assert json.loads((folder / "tokenizer_config.json").read_text())["chat_template"] == template.CHAT_TEMPLATE
        assert (folder / "tokenizer.json").read_bytes() == (demo / "tokenizer.json").read_bytes()


def test_transformers_renders_what_the_generator_trains_on(demo: Path) -> None:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(demo)
    rng = random.Random(8)
    kinds = set()
    for _ in range(80):
        conversation = mixture.conversation(rng)
        if conversation.thinking:
            continue
        messages, tools = conversation.messages, conversation.tools
        kinds |= {message["role"] for message in messages}
        whole = "".join(text for text, _ in template.pieces(conversation))
        assert loaded.apply_chat_template(messages, tools=tools, tokenize=False) == whole
        for thinking in (False, True):
            rendered = loaded.apply_chat_template(
                messages[:-1], tools=tools, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
            )
            assert rendered == template.prompt(messages[:-1], tools, thinking)
    assert kinds == {"system", "user", "assistant", "tool"}


def test_lightllm_renders_the_same_prompt(demo: Path) -> None:
    from lightllm.text.chat import ChatTemplate

    config = json.loads((demo / "tokenizer_config.json").read_text())
    ours = ChatTemplate(config["chat_template"], {"eos_token": config["eos_token"]})
    rng = random.Random(9)
    for _ in range(40):
        conversation = mixture.conversation(rng)
        if not conversation.thinking:
            messages: list[Message] = conversation.messages[:-1]
            rendered = ours.render(messages, tools=conversation.tools, add_generation_prompt=True)
            assert rendered == template.prompt(messages, conversation.tools)


def test_arguments_may_be_json_text_and_thoughts_are_dropped(demo: Path) -> None:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(demo)
    call = {"function": {"name": "get_time", "arguments": '{"city": "Rome"}'}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello!"},
        {"role": "user", "content": "time?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    text = loaded.apply_chat_template(messages, tokenize=False)
    assert "hm" not in text and "</think>\n\nHello!<|im_end|>" in text
    assert '<tool_call>\n{"name": "get_time", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>' in text
