"""The tokenizer against Transformers on the same directories."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightllm.errors import CheckpointError, InvalidRequest
from lightllm.text.tokenizer import Tokenizer

from .toy_tokenizers import BUILDERS, byte_level, save, sentence_piece

KINDS = sorted(BUILDERS)
TEXTS = st.text(max_size=60) | st.lists(
    st.sampled_from(
        [
            "hello",
            " world",
            "<|im_end|>",
            "<s>",
            "</s>",
            "é spaced",
            "<tool_call>",
            "🎉",
            "  ",
            "\n",
            "<0x41>",
        ]
    )
).map("".join)


@pytest.fixture(scope="module")
def oracles(directories: dict[str, Path]) -> dict[str, Any]:
    from transformers import PreTrainedTokenizerFast

    return {kind: PreTrainedTokenizerFast.from_pretrained(path) for kind, path in directories.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_encode_and_decode_equal_transformers(
    kind: str, tokenizers: dict[str, Tokenizer], oracles: dict[str, Any]
) -> None:
    ours, theirs = tokenizers[kind], oracles[kind]

    @settings(max_examples=100, deadline=None)
    @given(TEXTS, st.booleans())
    def check(text: str, specials: bool) -> None:
        ids = theirs.encode(text, add_special_tokens=specials)
        assert ours.encode(text, specials) == ids
        assert ours.encode_batch([text, "x"], specials)[0] == ids
        assert ours.decode(ids, specials) == theirs.decode(ids, skip_special_tokens=specials)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_decode_of_any_ids_equals_transformers(
    kind: str, tokenizers: dict[str, Tokenizer], oracles: dict[str, Any]
) -> None:
    ours, theirs = tokenizers[kind], oracles[kind]

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.integers(0, ours.vocab_size - 1), max_size=12), st.booleans())
    def check(ids: list[int], skip: bool) -> None:
        assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_properties_equal_transformers(kind: str, tokenizers: dict[str, Tokenizer], oracles: dict[str, Any]) -> None:
    ours, theirs = tokenizers[kind], oracles[kind]
    assert ours.vocab_size == len(theirs)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (
        theirs.bos_token_id,
        theirs.eos_token_id,
        theirs.pad_token_id,
    )
    assert ours.special_tokens == theirs.special_tokens_map
    assert set(theirs.all_special_ids) <= ours.special_ids
    assert ours.info()["eos_token"] == theirs.eos_token


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("flag", [True, False])
def test_bos_flags_that_contradict_tokenizer_json(tmp_path: Path, add_bos: bool, flag: bool) -> None:
    from transformers import PreTrainedTokenizerFast

    names = {"bos_token": "<|begin|>", "eos_token": "<|im_end|>"}
    save(byte_level(add_bos), tmp_path, **names, add_bos_token=flag, add_eos_token=flag)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert Tokenizer.load(tmp_path).encode("hello") == theirs.encode("hello")


@pytest.mark.parametrize("tokenizer_class", ["Qwen2Tokenizer", "LlamaTokenizer"])
def test_model_classes_of_transformers_agree(tmp_path: Path, tokenizer_class: str) -> None:
    import transformers

    qwen = tokenizer_class == "Qwen2Tokenizer"
    names = {"eos_token": "<|im_end|>", "pad_token": "<|end|>", "unk_token": "<|end|>"}
    names = names if qwen else {"bos_token": "<s>", "eos_token": "</s>"}
    save(byte_level(False) if qwen else sentence_piece(), tmp_path, tokenizer_class=tokenizer_class, **names)
    ours, theirs = Tokenizer.load(tmp_path), getattr(transformers, tokenizer_class).from_pretrained(tmp_path)
    for text in ("hello world", "It's café 🎉\n", "two  spaces ", ""):
        ids = theirs.encode(text)
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_tokens_that_only_the_config_names_are_added(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    decoder = {"500": {"content": "<extra>", "lstrip": True, "special": True}}
    names = {"bos_token": "<|begin|>", "eos_token": {"__type": "AddedToken", "content": "<eos>"}}
    save(byte_level(), tmp_path, added_tokens_decoder=decoder, extra_special_tokens=["<more>"], **names)
    ours, theirs = Tokenizer.load(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text = "a <extra> b <more><eos> c"
    assert ours.encode(text) == theirs.encode(text)
    assert ours.eos_id == theirs.eos_token_id
    assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text), skip_special_tokens=True)


def test_added_tokens_of_old_checkpoints(tmp_path: Path) -> None:
    """tokenizer.json wins where it has them, too."""
    from transformers import PreTrainedTokenizerFast

    save(byte_level(), tmp_path)
    added = {"<tool_call>": 420, "<|older|>": 423, "two words": 424, "<pad>": 422}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": "<pad>"}')
    ours, theirs = Tokenizer.load(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text = "a<|older|>b two words <tool_call><pad>"
    ids = theirs.encode(text, add_special_tokens=False)
    assert ours.encode(text, add_special_tokens=False) == ids
    assert set(added.values()) < set(ids)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == "a<|older|>b two words <tool_call>"
    assert ours.pad_id == theirs.pad_token_id == 422


@pytest.mark.parametrize("home", ["tokenizer_config.json", "special_tokens_map.json"])
def test_flags_beside_a_name_do_not_change_a_token_that_is_there(tmp_path: Path, home: str) -> None:
    """As in old checkpoints of Llama: tokenizer.json, which is the truth, finds `<s>` before it normalises."""
    from transformers import PreTrainedTokenizerFast

    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    names = {"bos_token": {"content": "<s>", **flags}, "eos_token": {"content": "</s>", **flags}}
    save(sentence_piece(), tmp_path)
    if home == "tokenizer_config.json":
        names = {name: {"__type": "AddedToken", **token} for name, token in names.items()}
    (tmp_path / home).write_text(json.dumps(names))
    ours, theirs = Tokenizer.load(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text = "<s>[INST] hello [/INST] world </s><s>[INST] there"
    ids = theirs.encode(text, add_special_tokens=False)
    assert ours.encode(text, add_special_tokens=False) == ids
    assert ids.count(1) == 2 and ids.count(2) == 1


@pytest.mark.parametrize(
    ("config", "hidden"),
    [
        ({"extra_special_tokens": ["<tool_call>"]}, False),
        ({"additional_special_tokens": ["<tool_call>"]}, False),
        ({"pad_token": "<tool_call>"}, True),
        ({}, False),
    ],
)
def test_a_token_that_is_there_is_hidden_only_for_a_name_of_its_own(
    tmp_path: Path, config: dict[str, Any], hidden: bool
) -> None:
    from transformers import PreTrainedTokenizerFast

    save(byte_level(), tmp_path, **config)
    ours, theirs = Tokenizer.load(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ids = ours.encode("so <tool_call>{}", add_special_tokens=False)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.decode(ids) == ("so {}" if hidden else "so <tool_call>{}")
    assert (ours.token_to_id("<tool_call>") in ours.special_ids) == hidden


@pytest.mark.parametrize("kind", ["word_piece", "byte_level"])
def test_cleaning_up_spaces_is_left_to_transformers_rules(tmp_path: Path, kind: str) -> None:
    from transformers import PreTrainedTokenizerFast

    save(BUILDERS[kind](), tmp_path, clean_up_tokenization_spaces=True)
    ours, theirs = Tokenizer.load(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ids = theirs.encode("isn't it ? It 's , yes .", add_special_tokens=False)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_special_tokens_map_of_old_checkpoints(tmp_path: Path) -> None:
    save(sentence_piece(), tmp_path)
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": {"content": "<s>"}, "eos_token": "</s>"}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.eos_ids) == (1, 2, {2, 7})


@pytest.mark.parametrize("kind", KINDS)
def test_token_bytes_join_to_the_text(kind: str, tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers[kind]
    text = "hello there café 🎉 it" if kind in ("byte_level", "sentence_piece", "gemma") else "hello there"
    ids = tokenizer.encode(text, add_special_tokens=False)
    if kind == "word_piece":
        assert [tokenizer.token_text(token_id) for token_id in ids] == ["hello", "there"]
        return
    assert b"".join(map(tokenizer.token_bytes, ids)).decode().strip() == text
    assert tokenizer.token_bytes(tokenizer.vocab_size + 9) == b""


def test_special_tokens_have_text(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte_level"]
    assert tokenizer.token_text(tokenizer.eos_id or 0) == "<|im_end|>"
    assert tokenizer.token_to_id("<|im_end|>") == tokenizer.eos_id
    assert tokenizer.token_to_id("no such entry") is None


@pytest.mark.parametrize("text", ["\ud800", "ab\udfffc", "🎉\ud83d"])
def test_lone_surrogates_are_refused(text: str, tokenizers: dict[str, Tokenizer]) -> None:
    with pytest.raises(InvalidRequest, match=r"lone surrogate U\+D"):
        tokenizers["byte_level"].encode(text)
    with pytest.raises(InvalidRequest, match=r"text\[1\].*lone surrogate"):
        tokenizers["byte_level"].encode_batch(["fine", text])


@pytest.mark.parametrize("text", [None, 3, b"bytes", ["list"]])
def test_text_of_a_wrong_type_is_refused(text: Any, tokenizers: dict[str, Tokenizer]) -> None:
    with pytest.raises(InvalidRequest, match=f"must be a string, not {type(text).__name__}"):
        tokenizers["byte_level"].encode(text)


@pytest.mark.parametrize("bad", [-1, 422, 2**40, 1.5, "7", True, None])
def test_unknown_ids_are_named(bad: Any, tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte_level"]
    with pytest.raises(InvalidRequest, match="position 1") as caught:
        tokenizer.decode([5, bad])
    assert str(bad) in caught.value.message
    assert tokenizer.vocab_size == 422
    if isinstance(bad, int) and not isinstance(bad, bool):
        assert "vocabulary of 422 tokens" in caught.value.message


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json") as caught:
        Tokenizer.load(tmp_path)
    assert str(tmp_path) in caught.value.message
    with pytest.raises(CheckpointError, match="is not a directory"):
        Tokenizer.load(tmp_path / "missing")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", '{"model": {"type": "Nonsense"}}'),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", "{not json"),
        ("tokenizer_config.json", "[" * 100_000),
        ("tokenizer_config.json", '{"bos_token": 7}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}'),
        ("tokenizer_config.json", '{"extra_special_tokens": "x"}'),
        ("tokenizer_config.json", '{"chat_template": 3}'),
        ("generation_config.json", '{"eos_token_id": "two"}'),
        ("special_tokens_map.json", '{"bos_token": []}'),
        ("added_tokens.json", '{"<a>": "7"}'),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: str) -> None:
    save(byte_level(), tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.load(tmp_path)
    assert str(tmp_path) in caught.value.message


def test_where_chat_templates_come_from(tmp_path: Path) -> None:
    save(byte_level(), tmp_path)
    assert Tokenizer.load(tmp_path).chat_template is None
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "processor"}))
    assert Tokenizer.load(tmp_path).chat_template == "processor"
    save(byte_level(), tmp_path, chat_template="config")
    assert Tokenizer.load(tmp_path).chat_template == "config"
    pair = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]
    save(byte_level(), tmp_path, chat_template=pair)
    assert Tokenizer.load(tmp_path).chat_templates == {"default": "one", "tool_use": "two"}
    (tmp_path / "chat_template.jinja").write_text("file")
    assert Tokenizer.load(tmp_path).chat_templates == {"default": "file"}
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    assert Tokenizer.load(tmp_path).chat_templates == {"default": "file", "tool_use": "tools"}


def test_importing_is_light() -> None:
    code = (
        "import sys, lightllm.text.chat, lightllm.text.detokenizer, lightllm.text.parsers;"
        "print([name for name in ('torch', 'transformers', 'jinja2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
