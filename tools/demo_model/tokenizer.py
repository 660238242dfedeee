"""Trains the byte-level BPE tokenizer on generated text and writes the tokenizer files of the checkpoint.

`python -m tools.demo_model.tokenizer lightllm/assets/demo`

Digits stand alone, so a number is its digits; line breaks are cut off before the merges, so the text of a turn always
becomes the same ids whether it is encoded alone or inside a conversation.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from . import mixture, template

VOCAB_SIZE = 4096
CONTEXT = 4096


def corpus(seed: int, count: int) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(count):
        yield "".join(piece for piece, _ in template.pieces(mixture.conversation(rng)))


def train(seed: int = 0, count: int = 30_000) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex("\n\n|\n"), "isolated"),
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in template.SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in template.MARKERS])
    first = [*template.SPECIAL_TOKENS, *template.MARKERS]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=first,  # ids 0..8
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(seed, count), trainer)
    text = json.loads(tokenizer.to_str())
    for added in text["added_tokens"]:
        added["special"] = added["content"] in template.SPECIAL_TOKENS
        added["normalized"] = False
    return Tokenizer.from_str(json.dumps(text))


def write(tokenizer: Tokenizer, folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json, special_tokens_map.json and generation_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    added = json.loads(tokenizer.to_str())["added_tokens"]
    decoder = {str(token.pop("id")): token for token in added}
    special = {"eos_token": template.TURN_END, "pad_token": template.END_OF_TEXT}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "added_tokens_decoder": decoder,
        "bos_token": None,
        **special,
        "additional_special_tokens": [template.TURN_START],
        "clean_up_tokenization_spaces": False,
        "chat_template": template.CHAT_TEMPLATE,
    }
    ids = {token: tokenizer.token_to_id(token) for token in template.SPECIAL_TOKENS}
    generation = {
        "eos_token_id": [ids[template.TURN_END], ids[template.END_OF_TEXT]],
        "pad_token_id": ids[template.END_OF_TEXT],
        "do_sample": False,
    }
    for name, value in (
        ("tokenizer_config", config),
        ("special_tokens_map", special),
        ("generation_config", generation),
    ):
        (folder / f"{name}.json").write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--conversations", type=int, default=30_000)
    options = parser.parse_args()
    tokenizer = train(options.seed, options.conversations)
    write(tokenizer, options.folder)
    print(f"{tokenizer.get_vocab_size()} entries written to {options.folder}")


if __name__ == "__main__":
    main()
