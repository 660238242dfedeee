"""Incremental text against whole decodes, for any ids in any portions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from lightllm.text.checkpoint import TextFiles
from lightllm.text.detokenizer import Detokenizer
from lightllm.text.tokenizer import Tokenizer

from .toy_tokenizers import BUILDERS

KINDS = sorted(BUILDERS)


def stream(detokenizer: Detokenizer, ids: Sequence[int], cuts: Sequence[int]) -> list[str]:
    """Push `ids` in portions that end at `cuts`."""
    borders = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    pieces = [detokenizer.push(ids[start:end]) for start, end in pairwise(borders)]
    return [*pieces, detokenizer.flush()]


@pytest.mark.parametrize("kind", KINDS)
def test_any_ids_join_to_the_whole_decode(kind: str, tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers[kind]
    ids = st.lists(st.integers(0, tokenizer.vocab_size - 1) | st.integers(0, 12), max_size=30)

    @settings(max_examples=100, deadline=None)
    @given(ids, st.lists(st.integers(0, 30), max_size=30), st.booleans())
    def check(ids: list[int], cuts: list[int], skip: bool) -> None:
        pieces = stream(Detokenizer(tokenizer, (), skip), ids, cuts)
        assert "".join(pieces) == tokenizer.decode(ids, skip)

    check()


@pytest.mark.parametrize("kind", ["byte_level", "sentence_piece", "gemma"])
def test_valid_text_never_shows_part_of_a_character(kind: str, tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers[kind]

    @settings(max_examples=100, deadline=None)
    @given(st.text(max_size=40))
    def check(text: str) -> None:
        text = text.replace("\ufffd", "")
        ids = tokenizer.encode(text, add_special_tokens=False)
        expected = tokenizer.decode(ids)
        pieces = stream(Detokenizer(tokenizer), ids, range(len(ids)))
        assert not any("\ufffd" in piece for piece in pieces)
        assert "".join(pieces) == expected

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_tail_decides_the_leading_space(kind: str, tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers[kind]
    visible = [token_id for token_id in range(3, tokenizer.vocab_size) if tokenizer.token_bytes(token_id).isalpha()]
    text = st.lists(st.sampled_from(tokenizer.encode("hello there fox dog", False) + visible[:20]), max_size=8)

    @settings(max_examples=100, deadline=None)
    @given(text, text)
    def check(prompt: list[int], output: list[int]) -> None:
        detokenizer = Detokenizer(tokenizer, prompt[-6:])
        expected = tokenizer.decode(prompt + output)[len(tokenizer.decode(prompt)) :]
        assert "".join(stream(detokenizer, output, range(len(output)))) == expected

    check()


def test_llama2_space_after_a_prompt(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["sentence_piece"]
    ids = tokenizer.encode("hello", add_special_tokens=False)
    assert Detokenizer(tokenizer).push(ids) == "hello"
    assert Detokenizer(tokenizer, ids).push(ids) == " hello"
    assert Detokenizer(tokenizer, [tokenizer.bos_id or 1]).push(ids) == "hello"
    assert Detokenizer(tokenizer, [tokenizer.bos_id or 1], skip_special_tokens=False).push(ids) == " hello"


@pytest.mark.parametrize("kind", ["sentence_piece", "gemma"])
def test_an_added_token_that_is_normalised_keeps_its_space(kind: str) -> None:
    """Llama 2 finds it with the space before it, which then belongs to the token."""
    backend = BUILDERS[kind]()
    backend.add_tokens([AddedToken("<tool_call>"), AddedToken("two words")])
    tokenizer = Tokenizer(backend, TextFiles())
    text = "hello <tool_call>hello two words"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert {tokenizer.vocab_size - 2, tokenizer.vocab_size - 1} < set(ids)
    pieces = stream(Detokenizer(tokenizer), ids, range(len(ids)))
    assert "".join(pieces) == tokenizer.decode(ids) == text


def test_bytes_of_one_character_arrive_one_by_one(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte_level"]
    by_bytes = {tokenizer.token_bytes(token_id): token_id for token_id in range(4, tokenizer.vocab_size)}
    rocket = [by_bytes[bytes((byte,))] for byte in "🚀".encode()]
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push([token_id]) for token_id in rocket] == ["", "", "", "🚀"]
    assert detokenizer.push(rocket[:2]) == ""
    assert detokenizer.push([by_bytes[b"a"]]) == "\ufffda"
    assert detokenizer.push(rocket[:3]) == ""
    assert (detokenizer.flush(), detokenizer.flush()) == ("\ufffd", "")


@pytest.mark.parametrize("kind", KINDS)
def test_ids_beyond_the_vocabulary_give_no_text(kind: str, tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode("hello there", add_special_tokens=False)
    padded = [100_000, *ids, tokenizer.vocab_size]
    assert "".join(stream(Detokenizer(tokenizer), padded, range(9))) == "hello there"


def test_spaces_between_special_tokens(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["word_piece"]
    detokenizer = Detokenizer(tokenizer, (), False, spaces_between_special_tokens=False)
    assert detokenizer.push([1, 2, 2]) + detokenizer.flush() == "[CLS][SEP][SEP]"
    assert Detokenizer(tokenizer, (), False).push([1, 2, 2]) == "[CLS] [SEP] [SEP]"
