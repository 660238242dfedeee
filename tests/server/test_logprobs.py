"""Where the tokens of a completion stand in its text, against the offsets that `tokenizers` gives."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from lightllm.server.openai.logprobs import CompletionLogprobsWriter, TokenNames
from lightllm.text.detokenizer import Detokenizer
from lightllm.text.tokenizer import Tokenizer

from ..text.toy_tokenizers import BUILDERS, NAMED, save

TEXTS = ["The quick brown fox", "  two spaces first", "Größe — 日本語", " "]
KINDS = ["byte_level", "sentence_piece", "gemma"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", KINDS)
def test_offsets_of_an_echo(kind: str, text: str, tmp_path: Path) -> None:
    backend = BUILDERS[kind]()
    tokenizer = Tokenizer.load(save(backend, tmp_path / kind, **NAMED[kind]))
    encoding = backend.encode(text)
    writer = CompletionLogprobsWriter(TokenNames(tokenizer, False), 0, True)
    writer.add(encoding.ids, [None] * len(encoding.ids), text)
    found = writer.take().text_offset
    expected = [begin for begin, _ in encoding.offsets]
    assert found[:2] == [0, 0]  # the token in front is not echoed
    whole = [place for place, token in enumerate(encoding.ids) if "\ufffd" not in tokenizer.token_text(token)]
    assert [found[place] for place in whole[2:]] == [expected[place] for place in whole[2:]]


@pytest.mark.parametrize("prompt", ["", "one"])
@pytest.mark.parametrize("kind", [*KINDS, "metaspace"])
def test_offsets_of_an_output(kind: str, prompt: str, tmp_path: Path) -> None:
    """Only an output that starts a text, after a prompt that shows nothing, loses its first space."""
    tokenizer = Tokenizer.load(save(BUILDERS[kind](), tmp_path / kind, **NAMED[kind]))
    before, ids = tokenizer.encode(prompt), tokenizer.encode("The quick brown", add_special_tokens=False)
    writer = CompletionLogprobsWriter(TokenNames(tokenizer, False), 0, True, before)
    writer.add(ids, [None] * len(ids))
    detokenizer = Detokenizer(tokenizer, before)
    pieces = [detokenizer.push([token_id]) for token_id in ids]
    assert writer.take().text_offset == [sum(map(len, pieces[:place])) for place in range(len(ids))]


@pytest.mark.parametrize("echoed", [0, 7])
def test_offsets_among_bytes_that_are_no_text(echoed: int, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(save(BUILDERS["byte_level"](), tmp_path / "bytes", **NAMED["byte_level"]))
    size, random = len(tokenizer.vocabulary.contents), Random(0)
    for _ in range(50):
        ids = [random.randrange(size) for _ in range(30)]
        writer = CompletionLogprobsWriter(TokenNames(tokenizer, False), 0, True)
        echo = tokenizer.decode(ids[:echoed])
        if echoed:
            writer.add(ids[:echoed], [None] * echoed, echo)
        writer.add(ids[echoed:], [None] * (30 - echoed))
        expected = [len(tokenizer.decode(ids[:place])) for place in range(echoed)]
        expected += [len(echo) + len(tokenizer.decode(ids[echoed:place])) for place in range(echoed, 30)]
        assert writer.take().text_offset == expected
