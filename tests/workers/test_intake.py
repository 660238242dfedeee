"""What the tokens of a bad word are: those by which it appears in a text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lightllm.text.tokenizer import Tokenizer
from lightllm.workers.intake import Intake


def forbidden(tokenizer: Tokenizer, words: Sequence[str], text: str) -> bool:
    """Whether some token of `text` could not have come."""
    ids = tuple(tokenizer.encode(text))
    banned = Intake(tokenizer, len(tokenizer.vocabulary.contents), 64, ()).bad_word_ids(words)
    return any(ids[end - len(word) : end] == word for word in banned for end in range(len(word), len(ids) + 1))


@pytest.mark.parametrize("kind", ["byte_level", "sentence_piece"])
@pytest.mark.parametrize(
    "word, text",
    [
        ("\n", "one\ntwo"),
        ("\t", "one\ttwo"),
        ("\nHuman:", "one\nHuman: two"),
        ("日", "中日"),
        ("?", "one?"),
        ("fox", "(fox"),
        ("fox", "one fox"),
        ("  fox", "one fox"),
        ("fox", "fox"),
    ],
)
def test_a_bad_word_cannot_appear(kind: str, word: str, text: str, tokenizers: dict[str, Tokenizer]) -> None:
    assert forbidden(tokenizers[kind], [word], text)


@pytest.mark.parametrize("kind", ["byte_level", "sentence_piece"])
@pytest.mark.parametrize("word, text", [("\nHuman:", "one Human: two"), ("\t", "one two"), ("日", "one two")])
def test_other_words_may(kind: str, word: str, text: str, tokenizers: dict[str, Tokenizer]) -> None:
    assert not forbidden(tokenizers[kind], [word], text)
