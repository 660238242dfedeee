"""Fixtures shared by the suite: tiny checkpoints in Hugging Face format with random weights and a trained tokenizer."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # test processes share the cores: more threads only wait for each other

VOCABULARY = 512
TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
}
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Reference = Any
"""A Transformers model."""


@pytest.fixture
def count_calls() -> Callable[[Callable[[], object]], int]:
    """Counts calls and returns while a function runs: work that does not depend on the machine."""

    def count(function: Callable[[], object]) -> int:
        num_events = 0

        def on_event(*_: object) -> None:
            nonlocal num_events
            num_events += 1

        before = sys.getprofile()
        sys.setprofile(on_event)
        try:
            function()
        finally:
            sys.setprofile(before)
        return num_events

    return count


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a byte-level BPE tokenizer of 512 entries and a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    text = ["the quick brown fox jumps over the lazy dog and runs away from the river to the hills"] * 4
    tokenizer.train_from_iterator(text + ["a server streams tokens while other requests wait their turn"] * 4, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    wrapped.chat_template = CHAT_TEMPLATE
    directory = tmp_path_factory.mktemp("tokenizer")
    wrapped.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def make_checkpoint(
    tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, Reference]]:
    """Writes a random model of a Transformers family; returns its directory and the Transformers model."""
    import shutil

    import torch
    import transformers

    def make(family: str, *, seed: int = 0, shard: str = "5GB", **changes: Any) -> tuple[Path, Reference]:
        config = getattr(transformers, f"{family}Config")(**{**TINY, **changes})
        torch.manual_seed(seed)
        model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(0, 0.2)
            else:
                parameter.data.uniform_(0.5, 1.5)
        directory = tmp_path_factory.mktemp(family.lower())
        model.save_pretrained(directory, max_shard_size=shard)
        for file in tiny_tokenizer.iterdir():
            shutil.copy(file, directory)
        return directory, model

    return make


@pytest.fixture(scope="session")
def tiny_llama(make_checkpoint: Callable[..., tuple[Path, Reference]]) -> Path:
    """A random Llama of three layers that stops at <|im_end|>."""
    directory, _ = make_checkpoint("Llama", eos_token_id=2)
    return directory


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is marked `gpu` is skipped where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
