"""Small tokenizers of the kinds that language models use, trained on the spot and saved as directories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 12:34, isn't it?",
    "def main(arguments):\n    return [argument for argument in arguments]\n\n",
    "Größe, naïveté, café — 日本語のテキスト 中文 한국어 🎉🚀",
    "hello world hello there   several   spaces\tand tabs",
] * 4
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(add_bos: bool = True) -> Tokenizer:
    """Llama 3 and Qwen style: byte-level BPE, a few added tokens, BOS by the post-processor."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|begin|>", "<|end|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False), AddedToken("é spaced", special=False)])
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing("<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    return tokenizer


def sentence_piece(strip: bool = True) -> Tokenizer:
    """Llama 2 style: BPE with byte fallback, spaces as markers, a prepended space (Gemma style without)."""
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    marked = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), marked]) if strip else marked
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<unk>", "<s>", "</s>", *alphabet], show_progress=False
    )
    tokenizer.train_from_iterator([text for text in CORPUS if text.isascii()], trainer)
    tokens = json.loads(tokenizer.to_str())
    tokens["added_tokens"] = tokens["added_tokens"][:3]  # the raw bytes are ordinary entries
    tokenizer = Tokenizer.from_str(json.dumps(tokens))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def metaspace() -> Tokenizer:
    """T5 and XLNet style: Unigram with the Metaspace decoder."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    specials = ["<unk>", "<s>", "</s>"]
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=specials, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("added word", special=False)])
    return tokenizer


def word_piece() -> Tokenizer:
    """BERT style: a decoder that only `tokenizers` knows."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    specials = ["[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


BUILDERS = {
    "byte_level": byte_level,
    "sentence_piece": sentence_piece,
    "gemma": lambda: sentence_piece(strip=False),
    "metaspace": metaspace,
    "word_piece": word_piece,
}
NAMED = {
    "byte_level": {"bos_token": "<|begin|>", "eos_token": "<|im_end|>", "pad_token": "<|end|>"},
    "sentence_piece": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "gemma": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "metaspace": {"eos_token": "</s>", "unk_token": "<unk>"},
    "word_piece": {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
}


def save(tokenizer: Tokenizer, directory: Path, **config: Any) -> Path:
    """Write a model directory's text files."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory
